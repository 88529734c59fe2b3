"""Memory of a training rank, and what vLLM may take beside it, without torch. Plan and trainer read the same functions.

Model states follow Rajbhandari et al. 2020, arXiv 1910.02054, Sec. 3: per parameter, of which ZeRO divides the
optimizer's (stage 1), also the gradients (2), also the weights (3) among the ranks. Gradients add up in float32, so
with bfloat16 weights there are 18 bytes a parameter in place of the paper's 16.
"""

from dataclasses import dataclass, replace

from recipes.resource_schema import VllmSpec
from recipes.schema import Recipe
from train.accounting.cost import (
    GPUS,
    ModelShape,
    bytes_per_weight,
    expected_prompt_tokens,
    expected_tokens,
    model_shape,
)
from train.arms import ResolvedArm

_ADAM_BYTES = 8  # two moments in float32
USABLE = 0.94  # of a GPU's memory; the rest is a margin for the driver, the libraries and fragmentation
_SMALLEST_SHARE = 0.3  # what vLLM gets where the GPU is unknown, and at least where there is room: it also needs space
_SERVER_SHARE = 0.9  # nothing else is on a server's GPUs
HEAD_TOKENS, HEAD_WORDS = 4096, 32_768  # TRL's loss computes logits in tiles of so many tokens and words
_TILE_BYTES_WITHOUT_TRITON = 29  # of float32 intermediates for a logit, where no GPU fuses them


def resumable_bytes(shape: ModelShape, bfloat16: bool, adapter_rank: int | None = None) -> int:
    """Bytes of one resumable checkpoint: weights that are trained, their float32 copy and Adam's moments."""
    trained = shape.parameters() if adapter_rank is None else shape.adapter_parameters(adapter_rank)
    return trained * ((2 if bfloat16 else 4) + _ADAM_BYTES + 4)


def checkpoint_bytes(shape: ModelShape, kept: int, bfloat16: bool, adapter_rank: int | None = None) -> int:
    """Disk of one run at its fullest: two resumable checkpoints, one being written, and the weights that are kept.

    Adapters are merged into the weights that are kept.
    """
    resumable = resumable_bytes(shape, bfloat16, adapter_rank)
    return 3 * resumable + kept * shape.parameters() * (2 if bfloat16 else 4)


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank while an arm trains, for the longest micro-batch that its limits allow."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int = 0
    """The loss's own: a tile of logits, and the head's gradient in float32 before it is added."""
    reference_model: int = 0
    margin: int = 0
    """Kept free on the recipe's GPU; no part of the total."""
    offloaded: int = 0
    """In the node's memory instead, at least: DeepSpeed's pinned buffers come on top. No part of the total."""

    @property
    def states(self) -> int:
        """What stays while the arm samples, as DeepSpeed keeps it."""
        return self.weights + self.gradients + self.optimizer + self.reference_model

    @property
    def total(self) -> int:
        """Sum of the components, without fragmentation and what the libraries need."""
        return self.states + self.activations + self.head


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
    on_gpu: bool = True,
) -> RankMemory:
    """Memory of one rank for micro-batches of `tokens` tokens; with adapters, only they have gradients.

    Model states: without DeepSpeed the weights stay in float32, 4 + 4 + 8 bytes a parameter, and in bfloat16 autocast
    copies the layers' for the time of a micro-batch; with DeepSpeed in bfloat16 2 + 4, and 12 for the optimizer with
    its float32 copy; at stage 1 each rank also keeps the bfloat16 gradients of a micro-batch, 2 bytes more. Activations
    with checkpointing: one hidden state per layer and token (Chen et al. 2016, arXiv 1604.06174) and one layer whole;
    without it every layer whole. All are checked against the tensors of real models on a CPU; what an allocator and a
    GPU's kernels add was not measured.
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
    offloaded = 0
    if offload:
        offloaded, optimizer = optimizer, 0
        if zero_stage == 3:
            offloaded, weights = offloaded + weights, 0
    autocast = bfloat16 and not mixed
    whole_layer = tokens * shape.layer_activation_bytes(bfloat16, autocast)
    kept = (2 if bfloat16 and not autocast else 4) * tokens * shape.hidden_size * shape.num_layers
    activations = kept + whole_layer if checkpointing else whole_layer * shape.num_layers
    if autocast and tokens:
        activations += 2 * shape.projection_parameters() * shape.num_layers
    head = _head_bytes(shape, tokens, adapter_rank is None, bfloat16, mixed, zero_stage == 3, on_gpu)
    return RankMemory(weights, gradients, optimizer, activations, head, offloaded=offloaded)


def _head_bytes(
    shape: ModelShape, tokens: int, trained: bool, bfloat16: bool, mixed: bool, gathered: bool, on_gpu: bool
) -> int:
    """Peak of TRL's fused language-model head (`ChunkedLogProbFunction`), which holds no more than a tile of logits.

    mixed: whether the weights themselves are in bfloat16. gathered: whether ZeRO-3 brings the head together for it.
    """
    if not tokens:
        return 0
    weights, words = shape.vocab_size * shape.hidden_size, min(shape.vocab_size, HEAD_WORDS)
    per_logit = (2 if bfloat16 else 4) + (0 if on_gpu else _TILE_BYTES_WITHOUT_TRITON)
    tile = per_logit * min(tokens, HEAD_TOKENS) * words
    tile += 2 * words * shape.hidden_size if bfloat16 and not mixed else 0  # its words' weights in bfloat16
    gradient = 4 * weights if trained else 0
    cast = 2 * weights if trained and mixed else 0  # to the weights' format, when the last tile is done
    whole = (2 if mixed else 4) * weights if gathered else 0
    return whole + gradient + 4 * tokens * shape.hidden_size + max(tile, cast)


def memory_of_arm(recipe: Recipe, arm: ResolvedArm, shape: ModelShape | None) -> RankMemory | None:
    """Memory of a rank of an arm; None for an unknown model."""
    if shape is None or recipe.model is None:
        return None
    resources = recipe.resources
    memory = training_memory(
        shape,
        ranks=resources.ranks,
        zero_stage=resources.zero_stage,
        offload=resources.offload,
        bfloat16=recipe.model.dtype == "bfloat16",
        checkpointing=resources.gpu is not None,  # as the trainer does: none on a CPU
        tokens=arm.tokens_per_micro_batch(resources.ranks),
        adapter_rank=arm.adapter_rank,
        on_gpu=resources.gpu is not None,
    )
    reference = 0
    if arm.beta > 0 and arm.lora is None:  # with adapters, the reference is the model without them
        bytes_each = 2 if arm.weights_dtype_with(resources.zero_stage > 0) == "bfloat16" else 4
        reference = bytes_each * shape.parameters() // (resources.ranks if resources.zero_stage == 3 else 1)
    margin = 0 if resources.gpu is None else round((1 - USABLE) * GPUS[resources.gpu].memory_bytes)
    return replace(memory, reference_model=reference, margin=margin)


@dataclass(frozen=True)
class SamplingMemory:
    """A vLLM while an arm samples: bytes on one GPU, and how much its cache holds."""

    memory_share: float
    sleep: bool
    derived: tuple[str, ...]
    """Settings of `resources.vllm` that the recipe leaves to the plan."""
    weights: int
    kv_cache: int
    cached_tokens: int
    """Of one copy of the model, which `tensor_parallel` GPUs hold."""
    sequences_at_once: int
    """Sequences of the expected length, with prompts of a quarter of their limit, that the cache holds."""
    colocated: bool
    """Whether it is on the GPUs that train; else it has GPUs of its own."""
    sequences_asked: int
    """What one copy of the model generates for a batch: vLLM's `max_num_seqs`."""


def sequences_of_copy(recipe: Recipe, arm: ResolvedArm, server_gpus: int | None = None) -> int:
    """Completions that one copy of vLLM's model samples for a batch, at most. `server_gpus`: that the server has."""
    vllm = recipe.resources.vllm
    assert vllm is not None
    gpus = recipe.resources.ranks if vllm.mode == "colocate" else server_gpus or vllm.tensor_parallel
    sampled = arm.problems_per_step * arm.completions_per_problem * arm.updates_per_batch
    return -(-sampled * vllm.tensor_parallel // gpus)


def resolve_vllm(recipe: Recipe, arm: ResolvedArm, shape: ModelShape | None = None) -> VllmSpec | None:
    """`resources.vllm` with the settings that the recipe leaves unset; None where an arm uses no vLLM.

    Colocated, vLLM gets the cache for all completions of a batch at their expected length, as far as there is room
    beside the training states; it sleeps while training unless all of it fits beside that too. A server has its GPUs
    to itself. Values of the recipe win. For an unknown GPU or model vLLM gets 0.3 of the memory and sleeps.

    `shape`: of the model, to save reading it again.
    """
    vllm = recipe.resources.vllm
    if vllm is None or arm.sampling == "teacher":
        return None
    share, sleep = _derived(recipe, arm, vllm, shape or model_shape(recipe))
    share = share if vllm.memory_share is None else vllm.memory_share
    return vllm.model_copy(update={"memory_share": share, "sleep": sleep if vllm.sleep is None else vllm.sleep})


def _derived(recipe: Recipe, arm: ResolvedArm, vllm: VllmSpec, shape: ModelShape | None) -> tuple[float, bool]:
    """Share of a GPU's memory, and whether to sleep."""
    if vllm.mode == "server":
        return _SERVER_SHARE, False
    memory = memory_of_arm(recipe, arm, shape)
    if memory is None or shape is None or recipe.resources.gpu is None:
        return _SMALLEST_SHARE, True
    gpu_bytes = GPUS[recipe.resources.gpu].memory_bytes
    size = bytes_per_weight(recipe)
    cache = sequences_of_copy(recipe, arm) * sequence_tokens(recipe, arm) * shape.kv_cache_bytes_per_token(size)
    wanted = max((size * shape.parameters() + cache) / vllm.tensor_parallel / gpu_bytes, _SMALLEST_SHARE)
    awake = USABLE - memory.total / gpu_bytes
    if wanted <= awake and vllm.sleep is not True:
        return _floor(wanted), False
    room = awake if vllm.sleep is False else USABLE - memory.states / gpu_bytes
    return _floor(max(0.01, min(wanted, room))), True


def _floor(share: float) -> float:
    return int(share * 100 + 1e-9) / 100


def sequence_tokens(recipe: Recipe, arm: ResolvedArm) -> int:
    """Tokens of a sequence of the expected length; prompts are a quarter of their limit, which is rarely reached."""
    return expected_prompt_tokens(arm.prompt.max_prompt_tokens) + expected_tokens(
        recipe, arm.prompt.max_completion_tokens
    )


def sampling_memory(
    recipe: Recipe, arm: ResolvedArm, shape: ModelShape | None, server_gpus: int | None = None
) -> SamplingMemory | None:
    """What vLLM has while an arm samples; None: the arm uses none, or the model or the GPU is unknown."""
    vllm = resolve_vllm(recipe, arm, shape)
    if vllm is None or shape is None or recipe.resources.gpu is None or recipe.resources.vllm is None:
        return None
    assert vllm.memory_share is not None and vllm.sleep is not None
    size = bytes_per_weight(recipe)
    weights = size * shape.parameters() // vllm.tensor_parallel
    cache = max(0, round(vllm.memory_share * GPUS[recipe.resources.gpu].memory_bytes) - weights)
    tokens = cache // (shape.kv_cache_bytes_per_token(size) // vllm.tensor_parallel)
    given = recipe.resources.vllm
    return SamplingMemory(
        memory_share=vllm.memory_share,
        sleep=vllm.sleep,
        derived=tuple(name for name in ("memory_share", "sleep") if getattr(given, name) is None),
        weights=weights,
        kv_cache=cache,
        cached_tokens=tokens,
        sequences_at_once=tokens // sequence_tokens(recipe, arm),
        colocated=vllm.mode == "colocate",
        sequences_asked=sequences_of_copy(recipe, arm, server_gpus),
    )


def size_text(value: float) -> str:
    """Bytes in the unit that leaves one to three digits, or whole ones."""
    if value >= 1e9:
        return f"{value / 1e9:,.0f} GB" if value >= 1e10 else f"{value / 1e9:.1f} GB"
    return f"{value / 1e6:,.0f} MB" if value >= 1e6 else f"{value / 1e3:,.0f} kB"
