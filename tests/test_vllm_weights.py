"""Which weights vLLM gets and when, without vLLM: adapters, and batches of one update."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl.generation.vllm_generation import VLLMGeneration

from train.runtime.sampler import merged_weights
from train.runtime.throughput import StepClock
from train.weighted_grpo import WeightedGRPOTrainer, draw


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
        assert draw(trainer, lambda texts: {"input_ids": [[1]] * len(texts)}, ["a", "b"], 7) == [[[1], [1]]] * 2
    assert loaded == [0, 2, 3]
