"""How long training, sampling and forward passes take, from what a GPU has and a few named assumptions. Needs no torch.

Every assumption is a field of `Rates`; `transfer plan` says which of them moves the total most. None was measured on a
GPU (docs/not-run.md); a plan replaces them by what finished stages took.
"""

from dataclasses import dataclass

from train.accounting.cost import CPU_CORE, Gpu, ModelShape


@dataclass(frozen=True)
class Rates:
    """Assumptions behind the hours of a plan."""

    train_utilisation: float = 0.40
    """Share of the peak that training and forward passes reach, communication included; common for long sequences."""
    decode_bandwidth: float = 0.60
    """Share of the memory's bandwidth that decoding reaches; it reads all weights and the cache for every token."""
    padding: float = 1.15
    """Tokens computed for each token that is needed, where rows are padded: micro-batches with a token budget."""
    layer_seconds: float = 0.0007
    """Of a decoding step of transformers, for each layer: its kernels are launched one by one."""
    base_step_seconds: float = 0.05
    """Of a step that trains a toy base, beside its arithmetic: about that in the pocket study."""
    start_seconds: float = 60.0
    """Of a stage: importing, checking, compiling kernels."""
    engine_seconds: float = 120.0
    """Starting vLLM: profiling and CUDA graphs."""
    sync_bandwidth: float = 5e9
    """Bytes a second from the trainer's weights to vLLM's."""
    disk_bandwidth: float = 1e9
    """Bytes a second of a file system, by all ranks together."""
    completion_share: float = 0.5
    """Of its limit that a completion reaches on average in training, drift and the diagnostics, where the recipe
    does not state `resources.expected_completion_tokens`: 0.42 to 0.49 in the pocket study and with SmolLM2-135M."""
    response_share: float = 0.25
    """The same of a response in the evaluation: 0.19 to 0.34 there."""
    question_share: float = 0.25
    """Of `suite.max_prompt_tokens` that a question reaches on average."""
    batch_longest: float = 2.0
    """Longest completion of a batch of transformers, in mean lengths: 1.2 to 2.2 in those studies."""


CPU_RATES = Rates(padding=1.3, start_seconds=2.0, question_share=0.125)
"""Without a GPU: workers have imported their libraries before, and rows are padded to the longest of a batch. Questions
reached 0.13 of their limit in the pocket study and 0.07 with SmolLM2-135M."""


def rates_for(gpu: Gpu | None) -> tuple[Gpu, Rates]:
    """The device and the assumptions; None: a core."""
    return (CPU_CORE, CPU_RATES) if gpu is None else (gpu, Rates())


def forward_seconds(shape: ModelShape, gpu: Gpu, rates: Rates, tokens: float, length: int) -> float:
    """Seconds of one GPU for one forward pass over `tokens` tokens of sequences of `length`."""
    return shape.forward_flops_with_attention(1, length) * tokens / (gpu.peak_flops * rates.train_utilisation)


@dataclass(frozen=True)
class Sampling:
    """Sequences that one copy of a model continues."""

    sequences: float
    prompt: int
    """Tokens of a prompt."""
    mean: int
    """Tokens of a completion."""
    limit: int
    """Tokens of the longest completion."""


def engine_seconds(
    shape: ModelShape,
    gpu: Gpu,
    rates: Rates,
    load: Sampling,
    cache_bytes: float,
    gpus: int = 1,
    value_bytes: int = 2,
) -> float:
    """Seconds until an engine with continuous batching has answered everything.

    As many sequences run at the same time as the cache holds at their mean length while they grow. A step reads the
    weights and all their keys and values; where there are many it is bound by arithmetic. When the queue is empty the
    longest completion goes on alone (the bound of Graham 1969, SIAM J. Appl. Math. 17(2), for list scheduling).

    `cache_bytes`: for keys and values, on all `gpus` of the copy together. `value_bytes`: of a weight, a key or a
    value.
    """
    if not load.sequences:
        return 0.0
    growing = load.prompt + load.mean / 2
    kept = growing * shape.kv_cache_bytes_per_token(value_bytes)
    at_once = min(load.sequences, max(1.0, cache_bytes / kept))
    bandwidth, weights = gpus * gpu.bandwidth * rates.decode_bandwidth, shape.parameters() * value_bytes
    arithmetic = (
        at_once
        * shape.forward_flops_with_attention(1, round(growing))
        / (gpus * gpu.peak_flops * rates.train_utilisation)
    )
    step = max((weights + at_once * kept) / bandwidth, arithmetic)
    tail = (load.limit - load.mean) * weights / bandwidth
    prefill = forward_seconds(shape, gpu, rates, load.sequences * load.prompt, load.prompt) / gpus
    return load.sequences * load.mean / at_once * step + tail + prefill


def batches_seconds(
    shape: ModelShape, gpu: Gpu, rates: Rates, load: Sampling, batch: int, value_bytes: int = 2
) -> float:
    """Seconds of transformers' `generate`: batches one after another, each as long as its longest completion."""
    batches = -(-load.sequences // batch)
    size = load.sequences / max(1.0, batches)
    longest = min(load.limit, rates.batch_longest * load.mean)
    growing = load.prompt + longest / 2
    read = shape.parameters() * value_bytes + size * growing * shape.kv_cache_bytes_per_token(value_bytes)
    launched = shape.num_layers * rates.layer_seconds
    arithmetic = (
        size * shape.forward_flops_with_attention(1, round(growing)) / (gpu.peak_flops * rates.train_utilisation)
    )
    step = max(read / (gpu.bandwidth * rates.decode_bandwidth), launched) + arithmetic
    prefill = forward_seconds(shape, gpu, rates, load.sequences * load.prompt, load.prompt)
    return batches * longest * step + prefill
