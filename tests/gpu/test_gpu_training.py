"""On a GPU: DeepSpeed ZeRO-3, padding-free batches with flash attention, memory against the cost model."""

import copy
import importlib.util

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from data.language_model import load_model
from data.prompts.prompt import load_tokenizer
from recipes.loading import load_study
from recipes.manifest import read_manifest
from tests.integration.test_deepspeed import final, study_of, weights
from tests.paths import SMOKE
from tests.support.trainers import gradient_of, grpo_trainer, replace, sft_trainer
from train.accounting.cost import shape_from_config
from train.accounting.memory import training_memory
from train.arms import resolve_arm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing was tested"),
]


def test_zero_3_on_one_gpu_trains_both_kinds_of_arm(smoke_study, transfer, tmp_path):
    study = study_of(smoke_study, tmp_path / "study")
    settings = ["resources.zero_stage=3", "resources.workers=1", "model.dtype=bfloat16", "arms.on_policy_sft=null"]
    result = transfer("run", SMOKE, "--out", study, *settings, "--until", "arms")
    assert result.returncode == 0, result.stdout + result.stderr
    for arm in ("off_policy_sft", "grpo"):
        facts = read_manifest(study / "arms" / arm / "seed-0")["facts"]
        assert facts["topology"] == {"ranks": 1, "engine": "DeepSpeedEngine", "zero_stage": 3}
        moved = final(study, arm).float() - weights(smoke_study / "base")
        assert torch.isfinite(moved).all()
        assert moved.abs().max() > 0


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash_attn is not installed")
def test_padding_free_with_flash_attention_has_the_gradient_of_padded_rows(smoke_study, tmp_path):
    tokenizer = load_tokenizer(str(smoke_study / "base"))
    rows = [{"prompt": f"{n} + {n} = ", "completion": "1 " * (3 + 5 * n)} for n in range(8)]
    settings = replace(
        resolve_arm(load_study(smoke_study), "off_policy_sft"), steps=1, problems_per_step=4, completions_per_problem=2,
        micro_batch_size=8, dtype="bfloat16",
    )  # fmt: skip
    gradients = []
    for attention, free in (("sdpa", False), ("flash_attention_2", True)):
        model = load_model(smoke_study / "base", "float32", attention)
        changed = replace(settings, padding_free=free)
        gradients.append(
            gradient_of(sft_trainer(changed, model, tokenizer, rows, tmp_path / attention, 0)).float().cpu()
        )
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.05  # bfloat16


class Stored:
    """Completions of unequal lengths, for one update."""

    def completions(self, step, draw):
        return [[5 + n] * (3 + 5 * n) for n in range(8)]


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash_attn is not installed")
def test_padding_free_grpo_with_flash_attention_has_the_gradient_of_padded_rows(smoke_study, tmp_path):
    tokenizer = load_tokenizer(str(smoke_study / "base"))
    settings = replace(
        resolve_arm(load_study(smoke_study), "grpo"), steps=1, problems_per_step=2, completions_per_problem=4,
        micro_batch_size=8, dtype="bfloat16",
    )  # fmt: skip

    def reward(prompts, completions, **columns):
        return [float(number % 3 == 0) for number in range(len(completions))]

    gradients = []
    for attention, free in (("sdpa", False), ("flash_attention_2", True)):
        model = load_model(smoke_study / "base", "float32", attention)
        trainer = grpo_trainer(
            replace(settings, padding_free=free), model, tokenizer, [{"prompt": f"{n} = "} for n in range(2)],
            tmp_path / attention, 0, reward, rollouts=Stored(),
        )  # fmt: skip
        gradients.append(gradient_of(trainer).float().cpu())
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.05  # bfloat16


def test_memory_of_an_update_is_what_the_cost_model_says(smoke_study, tmp_path):
    """About 0.4 billion parameters, so that what is counted outweighs what the libraries take."""
    config = Qwen3Config(
        vocab_size=2048, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    tokenizer = load_tokenizer(str(smoke_study / "base"))
    length = 4096
    rows = [{"prompt": "1 = ", "completion": " 1" * (length - 8)}] * 2
    settings = replace(
        resolve_arm(load_study(smoke_study), "off_policy_sft"), steps=2, problems_per_step=1, completions_per_problem=1,
        micro_batch_size=1, dtype="bfloat16", save_every_steps=100,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = sft_trainer(settings, Qwen3ForCausalLM(config).cuda(), tokenizer, copy.deepcopy(rows), tmp_path, 0)
    tokens = len(trainer.train_dataset[0]["input_ids"])
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    predicted = training_memory(
        shape_from_config(config.to_dict()), ranks=1, zero_stage=0, offload=False, bfloat16=True, checkpointing=True,
        tokens=tokens,
    ).total  # fmt: skip
    assert torch.cuda.max_memory_allocated() == pytest.approx(predicted, rel=0.15)
