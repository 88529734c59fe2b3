"""Sampling with a vLLM engine that lives as long as one call, for stages that sample a checkpoint once."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from recipes.errors import UserError

ENGINE_SHARE = 0.85  # of the GPU's memory: nothing else is on it meanwhile
_STOP_SECONDS = 60.0
_CPU_SEQUENCES = 16


def cpu_arguments(model: str | Path, tokens: int) -> dict[str, Any]:
    """Arguments of a vLLM engine whose requests have seeds that its CPU build needs; none on a GPU. Imports vLLM.

    The CPU build fails with "CPU Generator does not use offset" once it computes only a part of a prompt with a seed in
    a step, which it does as soon as the prompts of a step exceed `max_num_batched_tokens`. So it takes whole prompts.

    `tokens`: longest sequence.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {}
    return {"enable_chunked_prefill": False, "kv_cache_memory_bytes": cpu_cache_bytes(model, tokens)}


def cpu_cache_bytes(model: str | Path, tokens: int) -> int:
    """Size of vLLM's KV cache on a CPU: 16 sequences of `tokens` in float32, and at least 1 GB.

    By itself vLLM takes a share of the memory of the whole machine, and does not start where another engine or a
    training has some of it. VLLM_CPU_KVCACHE_SPACE, in GB, comes before this size.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return max(1 << 30, _CPU_SEQUENCES * tokens * 2 * int(config.num_hidden_layers) * int(heads) * int(head_dim) * 4)


def require_installed() -> None:
    """Raise UserError if vLLM is not installed."""
    if find_spec("vllm") is None:
        raise UserError(
            "resources.vllm is set but vLLM is not installed; run pip install -r requirements-gpu.lock on a GPU "
            "machine, or set resources.vllm=null"
        )


def vllm_facts(config: Any) -> dict[str, str | None]:
    """Name, version, device and dtype of an engine with this `VllmConfig`, for manifests. Imports vLLM."""
    from vllm.platforms import current_platform

    dtype, device = str(config.model_config.dtype).removeprefix("torch."), current_platform.get_device_name()
    return {"name": "vllm", "version": version("vllm"), "device": device, "dtype": dtype}


def sample_with_engine(
    directory: Path,
    prompts: Sequence[Sequence[int]],
    *,
    max_prompt_tokens: int,
    max_new_tokens: int,
    temperature: float,
    stop_ids: Sequence[int],
    seeds: Sequence[int],
    dtype: str,
) -> tuple[list[list[int]], dict[str, str | None]]:
    """Continue each prompt once; the engine and its memory are gone when this returns.

    Prompts are token ids and the temperature is above 0. `stop_ids` end a completion and are part of it. Each prompt
    has a seed, so that its completion does not depend on the others.

    Returns:
        Token ids of the completions, in order; and name, version, device and dtype of the engine.

    Raises:
        UserError: vLLM is not installed.
    """
    require_installed()
    # A forked engine could not use CUDA, which this process may have initialised.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    others = set(active_children())
    engine = LLM(
        model=str(directory),
        dtype=dtype,
        gpu_memory_utilization=ENGINE_SHARE,
        max_model_len=max_prompt_tokens + max_new_tokens,
        enforce_eager=current_platform.is_cpu(),
        disable_log_stats=True,
        **cpu_arguments(directory, max_prompt_tokens + max_new_tokens),
    )
    try:
        parameters = [
            SamplingParams(
                max_tokens=max_new_tokens, temperature=temperature, stop_token_ids=list(stop_ids), seed=seed,
                detokenize=False,
            )
            for seed in seeds
        ]  # fmt: skip
        requests: list[Any] = [{"prompt_token_ids": list(ids)} for ids in prompts]
        outputs = engine.generate(requests, parameters, use_tqdm=False)  # bars that are switched off divide by zero
        facts = vllm_facts(engine.llm_engine.vllm_config)
    finally:
        engine.llm_engine.engine_core.shutdown()
        for process in set(active_children()) - others:
            process.join(_STOP_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
    return [list(output.outputs[0].token_ids) for output in outputs], facts
