"""Parameters, FLOPs and memory of a decoder, without torch: used by the ledger and by `transfer plan`.

FLOPs follow the usual count of 2 N per token for a forward pass and 6 N for forward and backward, with N the
parameters that take part in a matrix product (Kaplan et al. 2020, arXiv 2001.08361, Sec. 2.1). The ledger leaves
attention scores out, which at the lengths of the pocket study are below 5 %; the plan's hours count them.

Memory follows Rajbhandari et al. 2020, arXiv 1910.02054, Sec. 3: model states per parameter, of which ZeRO divides
the optimizer's (stage 1), also the gradients (2), also the weights (3) among the ranks. Gradients add up in float32, so
with bfloat16 weights there are 18 bytes a parameter in place of the paper's 16.
"""

from dataclasses import dataclass
from typing import Any

from recipes.errors import UserError
from recipes.schema import PocketModelSpec

FORWARD_FLOPS_PER_PARAMETER = 2
TRAIN_FLOPS_PER_PARAMETER = 6
_ADAM_BYTES = 8  # two moments in float32


@dataclass(frozen=True)
class ModelShape:
    """What decides a Qwen3- or Llama-style decoder's size."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tied_embeddings: bool
    head_norms: bool
    """Whether queries and keys are normalised per head, as in Qwen3."""
    attention_bias: bool = False
    """Whether the query, key and value projections have a bias, as in Qwen2."""
    context: int | None = None
    """Longest sequence its positions were made for; None: unknown."""

    def parameters(self) -> int:
        """Number of parameters, embeddings included."""
        hidden, queries, keys = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = hidden * (2 * queries + 2 * keys) + (2 * self.head_dim if self.head_norms else 0)
        attention += queries + 2 * keys if self.attention_bias else 0
        layer = attention + 3 * hidden * self.intermediate_size + 2 * hidden
        embeddings = self.vocab_size * hidden * (1 if self.tied_embeddings else 2)
        return embeddings + self.num_layers * layer + hidden

    def forward_flops(self, tokens: int, length: int) -> int:
        """FLOPs of reading `tokens` tokens of sequences of `length`: matrix products and causal attention scores."""
        embedding = 0 if self.tied_embeddings else self.vocab_size * self.hidden_size  # looked up, not multiplied
        attention = 2 * self.num_layers * self.num_heads * self.head_dim * length  # scores and values, half the square
        return tokens * (FORWARD_FLOPS_PER_PARAMETER * (self.parameters() - embedding) + attention)

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of adapters of this rank on all linear layers (the head is none of them)."""
        hidden, queries, keys = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = 2 * (hidden + queries) + 2 * (hidden + keys)
        return self.num_layers * rank * (attention + 3 * (hidden + self.intermediate_size))

    def layer_activation_bytes(self, bfloat16: bool) -> int:
        """Bytes a layer keeps of one token for its backward pass, with fused attention.

        Inputs of the two norms (in float32 always) and of the projections, the parts of the gated product, queries,
        keys and values before and after rotation; normalising them per head, as Qwen3 does, keeps more of them.
        """
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        if bfloat16:
            heads = 10 if self.head_norms else 4
            return 16 * self.hidden_size + 8 * self.intermediate_size + heads * (queries + keys)
        heads = 16 if self.head_norms else 8
        return 24 * self.hidden_size + 16 * self.intermediate_size + heads * (queries + keys)

    def kv_cache_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Memory of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value


def pocket_shape(spec: PocketModelSpec) -> ModelShape:
    """The pocket model, for the upper bound of its vocabulary."""
    return ModelShape(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=3 * spec.hidden_size,
        num_layers=spec.num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=max(16, spec.hidden_size // 4),
        tied_embeddings=True,
        head_norms=True,
    )


KNOWN_SHAPES = {
    "Qwen/Qwen3-1.7B-Base": ModelShape(151936, 2048, 6144, 28, 16, 8, 128, True, True, context=32768),
    "Qwen/Qwen3-8B-Base": ModelShape(151936, 4096, 12288, 36, 32, 8, 128, False, True, context=32768),
    "Qwen/Qwen3-14B-Base": ModelShape(151936, 5120, 17408, 40, 40, 8, 128, False, True, context=32768),
    "meta-llama/Llama-3.1-8B": ModelShape(128256, 4096, 14336, 32, 32, 8, 128, False, False, context=131072),
}
"""Shapes of published configurations, to plan before anything is downloaded."""


@dataclass(frozen=True)
class Gpu:
    """What the plan knows of a GPU: the vendor's figures."""

    memory_bytes: int
    peak_flops: float
    """Dense bfloat16, per second."""


GPUS = {
    "A100-40GB": Gpu(40 << 30, 312e12),
    "A100-80GB": Gpu(80 << 30, 312e12),
    "H100-80GB": Gpu(80 << 30, 989e12),
    "H200-141GB": Gpu(141_000_000_000, 989e12),
}
TRAIN_UTILISATION = 0.40  # of the peak; assumed, common for long sequences with flash attention
GENERATE_UTILISATION = 0.10  # assumed; decoding waits for memory


def shape_from_config(config: dict[str, Any]) -> ModelShape:
    """The shape in a checkpoint's `config.json`.

    Raises:
        UserError: it describes another kind of model.
    """
    kinds = {"qwen3": (True, False), "qwen2": (False, True), "llama": (False, False), "mistral": (False, False)}
    kind = config.get("model_type")
    if kind not in kinds:
        raise UserError(f"model_type {kind!r} cannot be planned for; known are {', '.join(sorted(kinds))}")
    head_norms, bias = kinds[kind]
    heads = config["num_attention_heads"]
    return ModelShape(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        tied_embeddings=config.get("tie_word_embeddings", False),
        head_norms=head_norms,
        attention_bias=bias,
        context=config.get("max_position_embeddings"),
    )


def run_hours(
    shape: ModelShape, gpu: Gpu, prompt_tokens: int, completion_tokens: int, length: int, sampled: bool, reference: bool
) -> float:
    """GPU-hours of one run at the assumed utilisations: generation, old and reference log-probabilities, training.

    Args:
        shape: of the model.
        gpu: what it runs on.
        prompt_tokens: of all updates together.
        completion_tokens: likewise.
        length: tokens of a sequence.
        sampled: whether the policy writes the completions; they are then read once more for their log-probabilities.
        reference: whether a reference model reads them.
    """
    read = shape.forward_flops(prompt_tokens + completion_tokens, length)
    generated = shape.forward_flops(completion_tokens, length) if sampled else 0
    trained = read * (3 + (1 if sampled else 0) + (1 if reference else 0))
    seconds = trained / (gpu.peak_flops * TRAIN_UTILISATION) + generated / (gpu.peak_flops * GENERATE_UTILISATION)
    return seconds / 3600


def generation_hours(shape: ModelShape, gpu: Gpu, responses: int, length: int) -> float:
    """GPU-hours of `responses` responses of `length` tokens at the assumed utilisation."""
    return shape.forward_flops(responses * length, length) / (gpu.peak_flops * GENERATE_UTILISATION) / 3600


def checkpoint_bytes(shape: ModelShape, snapshots: int, bfloat16: bool) -> int:
    """Disk of one run at its fullest: two resumable checkpoints, one being written, the snapshots and the end."""
    parameters, weights = shape.parameters(), (2 if bfloat16 else 4)
    resumable = parameters * (weights + _ADAM_BYTES + 4)
    return 3 * resumable + (snapshots + 1) * parameters * weights


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one rank while training, by component."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of the components, without fragmentation and what the libraries need."""
        return self.weights + self.gradients + self.optimizer + self.activations


def training_memory(
    shape: ModelShape,
    *,
    ranks: int,
    zero_stage: int,
    offload: bool,
    bfloat16: bool,
    checkpointing: bool,
    tokens: int,
    adapter_rank: int | None = None,
) -> TrainingMemory:
    """Memory of one rank for micro-batches of `tokens` tokens; with adapters, only they have gradients.

    Model states: without DeepSpeed the weights stay in float32 (bfloat16 only in autocast), 4 + 4 + 8 bytes a
    parameter; with DeepSpeed in bfloat16 2 + 4, and 12 for the optimizer with its float32 copy; at stage 1 each rank
    also keeps the bfloat16 gradients of a micro-batch, 2 bytes more. Activations with checkpointing: one hidden state
    per layer and token (Chen et al. 2016, arXiv 1604.06174) and one layer whole; without it every layer whole. All are
    checked against the tensors of real models on a CPU; what a GPU's allocator and kernels add was not measured.
    """
    parameters = shape.parameters()
    mixed = bfloat16 and zero_stage > 0
    trained = parameters if adapter_rank is None else shape.adapter_parameters(adapter_rank)
    weights = (2 if mixed else 4) * (parameters if adapter_rank is None else parameters + trained)
    gradients = (6 if mixed and zero_stage == 1 else 4) * trained
    optimizer = (_ADAM_BYTES + (4 if mixed else 0)) * trained
    optimizer //= ranks if zero_stage >= 1 else 1
    gradients //= ranks if zero_stage >= 2 else 1
    weights //= ranks if zero_stage >= 3 else 1
    if offload:
        optimizer = 0
        weights = 0 if zero_stage == 3 else weights
    whole_layer = tokens * shape.layer_activation_bytes(bfloat16)
    kept = (2 if bfloat16 else 4) * tokens * shape.hidden_size * shape.num_layers
    activations = kept + whole_layer if checkpointing else whole_layer * shape.num_layers
    return TrainingMemory(weights, gradients, optimizer, activations)


def forward_flops(parameters: int, tokens: int) -> int:
    """FLOPs of reading or generating `tokens` tokens."""
    return FORWARD_FLOPS_PER_PARAMETER * parameters * tokens


def train_flops(parameters: int, tokens: int) -> int:
    """FLOPs of a forward and a backward pass over `tokens` tokens."""
    return TRAIN_FLOPS_PER_PARAMETER * parameters * tokens
