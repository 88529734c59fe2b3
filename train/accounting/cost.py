"""Parameters and FLOPs of a decoder, and what a GPU has, without torch: used by the ledger and by `transfer plan`.

FLOPs follow the usual count of 2 N per token for a forward pass and 6 N for forward and backward (Kaplan et al. 2020,
arXiv 2001.08361, Sec. 2.1). In the ledger N is every parameter, also of an input embedding of its own, which is looked
up and not multiplied (5 to 8 % of Qwen3-14B and 8B), and of weights that adapters leave frozen, which need 4 N. It
leaves attention scores out, which at the lengths of the pocket study are below 5 %; the plan's hours count them.
"""

import json
from dataclasses import dataclass
from typing import Any

from data.hub import locate_model
from recipes.errors import UserError
from recipes.schema import PocketModelSpec, Recipe

FORWARD_FLOPS_PER_PARAMETER = 2
TRAIN_FLOPS_PER_PARAMETER = 6


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

    def forward_flops_with_attention(self, tokens: int, length: int) -> int:
        """FLOPs of a forward pass over `tokens` tokens of sequences of `length`, with causal attention scores."""
        embedding = 0 if self.tied_embeddings else self.vocab_size * self.hidden_size  # looked up, not multiplied
        attention = 2 * self.num_layers * self.num_heads * self.head_dim * length  # scores and values, half the square
        return tokens * (FORWARD_FLOPS_PER_PARAMETER * (self.parameters() - embedding) + attention)

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of adapters of this rank on all linear layers (the head is not one)."""
        hidden, queries, keys = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = 2 * (hidden + queries) + 2 * (hidden + keys)
        return self.num_layers * rank * (attention + 3 * (hidden + self.intermediate_size))

    def projection_parameters(self) -> int:
        """Parameters of a layer's linear projections."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return self.hidden_size * (2 * queries + 2 * keys + 3 * self.intermediate_size)

    def layer_activation_bytes(self, bfloat16: bool, autocast: bool = False) -> int:
        """Bytes a layer keeps of one token for its backward pass, with fused attention.

        Inputs of the two norms (in float32 always) and of the projections, the parts of the gated product, queries,
        keys and values before and after rotation; normalising them per head, as Qwen3 does, keeps more of them, and
        autocast, whose weights and hidden states are in float32, both formats of some.
        """
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        if bfloat16:
            heads = 10 if self.head_norms else 4
            return (26 if autocast else 16) * self.hidden_size + 8 * self.intermediate_size + heads * (queries + keys)
        heads = 16 if self.head_norms else 8
        return 24 * self.hidden_size + 16 * self.intermediate_size + heads * (queries + keys)

    def kv_cache_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Memory of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value


def pocket_config(spec: PocketModelSpec) -> dict[str, Any]:
    """The pocket model as `config.json` has it, without its vocabulary."""
    return {
        "hidden_size": spec.hidden_size,
        "intermediate_size": 3 * spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": max(16, spec.hidden_size // 4),
        "tie_word_embeddings": True,
    }


KNOWN_SHAPES = {
    "Qwen/Qwen3-1.7B-Base": ModelShape(151936, 2048, 6144, 28, 16, 8, 128, True, True, context=32768),
    "Qwen/Qwen3-8B-Base": ModelShape(151936, 4096, 12288, 36, 32, 8, 128, False, True, context=32768),
    "Qwen/Qwen3-8B": ModelShape(151936, 4096, 12288, 36, 32, 8, 128, False, True, context=40960),
    "Qwen/Qwen3-14B-Base": ModelShape(151936, 5120, 17408, 40, 40, 8, 128, False, True, context=32768),
    "Qwen/Qwen3-32B": ModelShape(151936, 5120, 25600, 64, 64, 8, 128, False, True, context=40960),
    "meta-llama/Llama-3.1-8B": ModelShape(128256, 4096, 14336, 32, 32, 8, 128, False, False, context=131072),
}
"""Shapes of published configurations, to plan before anything is downloaded."""


@dataclass(frozen=True)
class Gpu:
    """What the plan knows of a GPU: the vendor's figures."""

    memory_bytes: int
    peak_flops: float
    """Dense bfloat16, per second."""
    bandwidth: float
    """Of its memory, bytes per second."""
    float32_flops: float
    """Of the ordinary cores, per second: torch does not use TF32 unless it is told to."""


GPUS = {
    "A100-40GB": Gpu(40 << 30, 312e12, 1.555e12, 19.5e12),
    "A100-80GB": Gpu(80 << 30, 312e12, 2.039e12, 19.5e12),
    "H100-80GB": Gpu(80 << 30, 989e12, 3.35e12, 67e12),
    "H200-141GB": Gpu(141_000_000_000, 989e12, 4.8e12, 67e12),
}


def with_article(gpu: str) -> str:
    """The name of a GPU with its indefinite article, as its first letter is spoken: an H100, a T4."""
    return f"{'an' if gpu[:1] in 'AEFHILMNORSX' else 'a'} {gpu}"


CPU_CORE = Gpu(0, 1.5e11, 1e10, 1.5e11)
"""A core in float32. At 40 % of the peak it makes 6e10 FLOPs a second: the pocket study reached 4.4e10, SmolLM2-135M
1.1e11 (docs/performance.md). Hours elsewhere are a guess until a run has calibrated them."""


def model_shape(recipe: Recipe) -> ModelShape | None:
    """Shape of the recipe's model: the pocket model's, from `config.json`, or a published one; None if unknown."""
    model = recipe.model
    if model is None:
        return None
    if model.pocket is not None:
        largest = {"model_type": "qwen3", "vocab_size": model.pocket.vocab_size}
        return shape_from_config(pocket_config(model.pocket) | largest)
    try:
        folder = locate_model(str(model.path), recipe.lock_of_model(model.path, model.revision), model.revision)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (UserError, OSError, ValueError):
        return KNOWN_SHAPES.get(str(model.path))
    return shape_from_config(config)


def bytes_per_weight(recipe: Recipe, dtype: str | None = None) -> int:
    """Bytes of a weight as it is stored and loaded, or in another number format."""
    return 2 if recipe.model is not None and (dtype or recipe.model.dtype) == "bfloat16" else 4


def expected_prompt_tokens(limit: int) -> int:
    """Mean length of prompts with at most `limit` tokens, assumed: limits are rarely reached."""
    return limit // 4


def expected_tokens(recipe: Recipe, limit: int, share: float = 1.0) -> int:
    """Tokens that a plan assumes for a text of at most `limit`: the expected length if the recipe states it.

    `share`: of the limit, where the recipe states none. 1 for what has to be safe, such as memory.
    """
    return min(limit, recipe.resources.expected_completion_tokens or max(1, round(share * limit)))


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


def forward_flops(parameters: int, tokens: int) -> int:
    """FLOPs of a forward pass over `tokens` tokens, or of generating them."""
    return FORWARD_FLOPS_PER_PARAMETER * parameters * tokens


def train_flops(parameters: int, tokens: int) -> int:
    """FLOPs of a forward and a backward pass over `tokens` tokens."""
    return TRAIN_FLOPS_PER_PARAMETER * parameters * tokens
