"""The memory of a training rank against tensors of real models and against hand counts."""

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, add_fused_lm_head

from data.language_model import load_model
from recipes.loading import load_recipe
from tests.paths import RECIPES
from tests.train.test_cost import QWEN3_14B
from train.accounting.cost import shape_from_config
from train.accounting.memory import HEAD_TOKENS, HEAD_WORDS, memory_of_arm, training_memory
from train.arms import resolve_arm


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
        # 14.768e9 parameters of 18 bytes; stage 3 divides all, stage 2 all but 2, stage 1 12 of 20.
        (3, 1, 265.8),
        (3, 8, 33.2),
        (3, 16, 16.6),
        (2, 8, 59.1),
        (1, 8, 140.3),
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
    # 40 hidden states of 5,120 bfloat16 values, and one layer: 16 x 5,120 + 8 x 17,408 + 10 x (5,120 + 1,024) bytes.
    assert memory.activations == 16384 * (5120 * 2 * 40 + 282_624)


@pytest.mark.parametrize(("config", "model"), [(Qwen3Config, Qwen3ForCausalLM), (LlamaConfig, LlamaForCausalLM)])
@pytest.mark.parametrize(
    ("dtype", "checkpointing"),
    [("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True), ("autocast", False)],
)
def test_activations_are_what_a_layer_of_a_real_model_keeps(config, model, dtype, checkpointing):
    """Bytes autograd holds for the backward pass, by the difference between four layers and two."""
    autocast = dtype == "autocast"

    def kept(layers):
        settings = config(
            vocab_size=256, hidden_size=384, intermediate_size=1000, num_hidden_layers=layers, num_attention_heads=6,
            num_key_value_heads=2, head_dim=64, tie_word_embeddings=True,
        )  # fmt: skip
        made = model(settings).to(torch.bfloat16 if dtype == "bfloat16" else torch.float32).train()
        if checkpointing:
            made.gradient_checkpointing_enable({"use_reentrant": False})
        weights = {parameter.untyped_storage().data_ptr() for parameter in made.parameters()}
        found = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage  # held, so that no address is used twice
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            made.model(input_ids=torch.zeros(1, 256, dtype=torch.long), use_cache=False)
        predicted = training_memory(
            shape_from_config(settings.to_dict()),
            ranks=1,
            zero_stage=1 if dtype == "bfloat16" else 0,  # without DeepSpeed bfloat16 is autocast
            offload=False,
            bfloat16=dtype != "float32",
            checkpointing=checkpointing,
            tokens=256,
        ).activations
        return sum(storage.nbytes() for storage in found.values()), predicted

    (four, four_predicted), (two, two_predicted) = kept(4), kept(2)
    assert four_predicted - two_predicted == pytest.approx(four - two, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast"])
def test_the_output_layer_needs_what_it_is_predicted_to(dtype):
    """The peak of the fused loss on a CPU, by torch's memory tracker, less weights and activations of one small layer.

    At its peak a tile of 300 tokens and 32,768 words is alive, and the head's gradient.
    """
    settings = LlamaConfig(
        vocab_size=40_000, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(settings).to(torch.bfloat16 if dtype == "bfloat16" else torch.float32).train()
    add_fused_lm_head(model)
    ids = torch.zeros(2, 151, dtype=torch.long)  # the last token of each row predicts nothing
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            loss = model(input_ids=ids, labels=ids, fused_lm_head=True).loss
        loss.backward()
    (found,) = tracker.get_tracker_snapshot("peak").values()
    memory = training_memory(
        shape_from_config(settings.to_dict()), ranks=1, zero_stage=1 if dtype == "bfloat16" else 0, offload=False,
        bfloat16=dtype != "float32", checkpointing=False, tokens=300, on_gpu=False,
    )  # fmt: skip
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    assert memory.head > 300e6
    assert found["Total"] == pytest.approx(parameters + memory.activations + memory.head, rel=0.005)


def test_the_output_layer_of_14b_by_hand():
    """A tile of 4,096 x 32,768 bfloat16 logits is smaller than the gradient of 151,936 x 5,120 cast to bfloat16."""
    memory = training_memory(
        QWEN3_14B, ranks=8, zero_stage=3, offload=False, bfloat16=True, checkpointing=True, tokens=16384
    )
    weights = 151_936 * 5_120
    assert memory.head == 2 * weights + 4 * weights + 4 * 16384 * 5_120 + 2 * weights
    assert memory.total == memory.states + memory.activations + memory.head
    adapters = training_memory(
        QWEN3_14B, ranks=8, zero_stage=3, offload=False, bfloat16=True, checkpointing=True, tokens=16384,
        adapter_rank=16,
    )  # fmt: skip
    assert adapters.head == 2 * weights + 4 * 16384 * 5_120 + 2 * 4096 * 32768
    assert (HEAD_TOKENS, HEAD_WORDS) == (TOKEN_CHUNK_SIZE, _CHUNKED_LOGPROB_CHUNK_SIZE)


def test_without_a_gpu_no_layer_is_recomputed():
    """A CPU keeps all 40 layers whole; a GPU one, and 40 hidden states of 5,120 values in bfloat16 for each token."""
    found = {}
    for gpu in ("null", "H200-141GB"):
        recipe = load_recipe(RECIPES / "qwen3-14b" / "matched.yaml", [f"resources.gpu={gpu}"])
        arm = resolve_arm(recipe, "grpo")
        found[gpu] = memory_of_arm(recipe, arm, QWEN3_14B).activations
    tokens = arm.tokens_per_micro_batch(recipe.resources.ranks)
    whole = tokens * QWEN3_14B.layer_activation_bytes(True)
    assert found == {"null": 40 * whole, "H200-141GB": whole + 2 * tokens * 5120 * 40}
