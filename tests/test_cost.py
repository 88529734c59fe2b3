"""The cost model against the real models it describes and against hand counts."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from data.language_model import load_model
from recipes.errors import UserError
from train.cost import ModelShape, shape_from_config, training_memory

QWEN3_14B = ModelShape(151936, 5120, 17408, 40, 40, 8, 128, tied_embeddings=False, head_norms=True)


@pytest.mark.parametrize(
    ("config", "model"),
    [(Qwen3Config, Qwen3ForCausalLM), (Qwen2Config, Qwen2ForCausalLM), (LlamaConfig, LlamaForCausalLM)],
)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_real_model(config, model, tied):
    settings = config(
        vocab_size=331, hidden_size=48, intermediate_size=112, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        expected = model(settings).num_parameters()
    assert shape_from_config(settings.to_dict()).parameters() == expected


def test_qwen3_14b_by_the_published_size():
    assert QWEN3_14B.parameters() == 14_768_307_200  # "14.8B" on its card
    assert QWEN3_14B.kv_cache_bytes_per_token() == 160 * 1024


def test_model_states_are_those_of_a_real_step(smoke_study):
    """Bytes of weights, gradients and Adam's moments after one update of the tiny model, tensor by tensor."""
    model = load_model(smoke_study / "base", "float32")
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    parameters = list(model.parameters())
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    memory = training_memory(
        shape_from_config(model.config.to_dict()), ranks=1, zero_stage=0, offload=False, bfloat16=False,
        checkpointing=False, tokens=0,
    )  # fmt: skip
    assert memory.weights == sum(p.nbytes for p in parameters)
    assert memory.gradients == sum(p.grad.nbytes for p in parameters)
    assert memory.optimizer == sum(t.nbytes for t in moments)
    assert memory.activations == 0


@pytest.mark.parametrize(
    ("zero_stage", "ranks", "gigabytes"),
    [
        # 14.768e9 parameters: 16 bytes each on one rank; stage 2 keeps 2 whole, stage 3 divides all.
        (3, 1, 236.3),
        (3, 8, 29.5),
        (3, 16, 14.8),
        (2, 8, 55.4),
        (1, 8, 81.2),
    ],
)
def test_model_states_of_14b_by_hand(zero_stage, ranks, gigabytes):
    memory = training_memory(
        QWEN3_14B, ranks=ranks, zero_stage=zero_stage, offload=False, bfloat16=True, checkpointing=True, tokens=0
    )
    assert memory.total / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_offload_and_activations_by_hand():
    memory = training_memory(
        QWEN3_14B, ranks=8, zero_stage=3, offload=True, bfloat16=True, checkpointing=True, tokens=16384
    )
    assert (memory.weights, memory.optimizer) == (0, 0)
    # 40 hidden states of 5,120 bfloat16 values, and one layer at 34 bytes a value.
    assert memory.activations == 16384 * 5120 * (2 * 40 + 34)


def test_another_kind_of_model_is_a_sentence():
    with pytest.raises(
        UserError, match="model_type 'bert' cannot be planned for; known are llama, mistral, qwen2, qwen3"
    ):
        shape_from_config({"model_type": "bert"})
