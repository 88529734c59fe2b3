"""What vLLM gets and gives, without vLLM: weights of adapters, when they are loaded, log-probabilities of samples."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl.generation.vllm_generation import VLLMGeneration

from recipes.loading import load_recipe
from recipes.resource_schema import VllmSpec
from train.accounting.ledger import Ledger
from train.arms import resolve_arm
from train.grpo import vllm_arguments
from train.rollouts import DynamicSampling
from train.runtime.sampler import merged_weights
from train.runtime.throughput import StepClock
from train.weighted_grpo import WeightedGRPOTrainer, read_rollouts, sample


@pytest.fixture
def adapted():
    """A model in bfloat16 with adapters that have learned something."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, attention_bias=True,
    )  # fmt: skip
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(Qwen3ForCausalLM(config).to(torch.bfloat16), lora, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def test_adapters_are_merged_for_vllm_without_a_change_of_the_weights(adapted):
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    found = dict(merged_weights(adapted))
    after = dict(adapted.named_parameters())
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not any(weight.requires_grad for weight in found.values())
    # TRL's own way gives the same values, and moves the weights.
    generation = VLLMGeneration.__new__(VLLMGeneration)
    generation.model = adapted
    generation._dist = SimpleNamespace(gather_params=lambda _: nullcontext(), is_fsdp=False)
    expected = {name: weight.clone() for name, weight in generation._iter_named_params()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())


def test_weights_are_loaded_once_for_all_batches_of_an_update():
    trainer = WeightedGRPOTrainer.__new__(WeightedGRPOTrainer)
    trainer.accelerator = SimpleNamespace(num_processes=1, process_index=0)
    trainer.num_generations, trainer.use_vllm, trainer.clock = 2, True, StepClock()
    trainer.args, trainer.state = SimpleNamespace(vllm_tensor_parallel_size=1), SimpleNamespace(global_step=0)
    loaded = []

    def generate(ids, images, fields, group):
        if trainer.state.global_step != trainer._last_loaded_step:  # as TRL does
            trainer._load_weights(lambda: loaded.append(trainer.state.global_step))
        return [[1] for _ in ids], None

    trainer._generate_single_turn = generate
    for step in (0, 2, 2, 2, 3):
        trainer.state.global_step = step
        trainer._last_loaded_step = step  # stored samples: TRL must not load weights where nothing is drawn
        assert sample(trainer, lambda texts: {"input_ids": [[1]] * len(texts)}, ["a", "b"], 7)[0] == [[[1], [1]]] * 2
    assert loaded == [0, 2, 3]


@pytest.mark.parametrize("known", [True, False])
def test_dynamic_sampling_hands_the_engines_log_probabilities_to_trl(tmp_path, known):
    """Each chosen completion has those with which vLLM sampled it, whatever was replaced. transformers has none."""
    trainer = WeightedGRPOTrainer.__new__(WeightedGRPOTrainer)
    trainer.accelerator = SimpleNamespace(num_processes=1, process_index=0)
    trainer.num_generations, trainer.use_vllm = 2, known
    trainer.args, trainer.state = SimpleNamespace(vllm_tensor_parallel_size=1), SimpleNamespace(global_step=0)
    counted = []

    def generate(ids, images, fields, group):
        """Completions of one token after the prompt's, with log-probabilities that are told apart by a count."""
        counted.extend(range(len(counted), len(counted) + len(ids)))
        rows = [[prompt[0], 7 + index % 2] for index, prompt in enumerate(ids)]
        return rows, [[-float(n), None] for n in counted[-len(ids) :]] if known else None

    class Tokenizer:
        def __call__(self, prompts):
            return {"input_ids": [[ord(prompt)] for prompt in prompts]}

        def batch_decode(self, rows, skip_special_tokens):
            return [chr(row[0]) for row in rows]

    def judge(step, texts, completion_ids, references):
        """One of two samples of b and d is correct, none of a and c."""
        rewards = [float(text in "bd" and ids[1] == 7) for text, ids in zip(texts, completion_ids, strict=True)]
        return [SimpleNamespace(correct=reward > 0) for reward in rewards], rewards

    def row(name):
        return {"prompt": name, "problem_id": name, "reference_answer": name, "prompt_tokens": 1}

    changes = {"problems_per_step": 2, "completions_per_problem": 2, "dynamic_sampling": 1}
    settings = resolve_arm(load_recipe("recipes/pocket/smoke.yaml"), "grpo").model_copy(update=changes)
    rows, reserve, tokenizer = [row("a"), row("b")], [row("c"), row("d")], Tokenizer()
    trainer._generate_single_turn, trainer.loaded_step = generate, -1
    rollouts = DynamicSampling(rows, reserve, judge, tokenizer, Ledger(tmp_path, 1000), settings, seed=0)
    chosen = rollouts.choose(0, partial(sample, trainer, tokenizer))
    assert [one["problem_id"] for one in chosen] == ["b", "d"]
    found = read_rollouts(rollouts, tokenizer, ["b", "b", "d", "d"], trainer)
    assert found["completion_ids"] == [[98, 7], [98, 8], [100, 7], [100, 8]]
    # Samples 0 and 1 were of a, 2 and 3 of b, 4 and 5 of c, 6 and 7 of d.
    assert found["logprobs"] == ([[-2.0, None], [-3.0, None], [-6.0, None], [-7.0, None]] if known else None)
    trainer.accelerator = SimpleNamespace(num_processes=2, process_index=1)
    found = read_rollouts(rollouts, tokenizer, ["d", "d"], trainer)
    assert found["logprobs"] == ([[-6.0, None], [-7.0, None]] if known else None)


def test_dynamic_sampling_is_corrected_for_the_mismatch():
    tokenizer, vllm = SimpleNamespace(eos_token_id=1, pad_token_id=0), VllmSpec(mode="colocate", memory_share=0.4)
    settings = resolve_arm(load_recipe("recipes/pocket/smoke.yaml"), "grpo")

    def corrected(**changes):
        arguments = vllm_arguments(settings.model_copy(update=changes), tokenizer, vllm)
        return arguments["vllm_importance_sampling_correction"]

    assert corrected(dynamic_sampling=2) is corrected() is True
    assert corrected(dynamic_sampling=2, importance_sampling="off") is corrected(sampling="base_once") is False
