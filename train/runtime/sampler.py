"""The sampling engine of a run: what vLLM needs beyond TRL's arguments, and its record in the manifest."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

from data.language_model import device_name, on_cpu
from data.sampling.engine import cpu_cache_bytes, require_installed, vllm_facts
from recipes.errors import UserError
from recipes.resource_schema import VllmSpec
from train.runtime.ranks import RANK_VARIABLES, barrier


def rank_variables() -> dict[str, str | None]:
    """Environment variables that TRL sets for vLLM and that make a process consider itself a rank."""
    return {name: os.environ.get(name) for name in (*RANK_VARIABLES, "VLLM_ENABLE_V1_MULTIPROCESSING")}


def require_vllm(vllm: VllmSpec | None) -> None:
    """Check that vLLM can run here, before anything is loaded.

    Raises:
        UserError: vLLM is not installed, or `mode: server` on a machine without a GPU.
    """
    if vllm is None:
        return
    require_installed()
    if vllm.mode == "server" and on_cpu():
        raise UserError(
            "resources.vllm.mode is server but this machine has no GPU, and a vLLM server receives weights by NCCL "
            "only; choose resources.vllm.mode=colocate or resources.vllm=null"
        )


def can_sleep(vllm: VllmSpec) -> bool:
    """Whether a colocated vLLM sleeps during training; prints a note where `sleep` is set but impossible."""
    wanted = bool(vllm.sleep) and vllm.mode == "colocate"
    if wanted and on_cpu():
        print("vLLM cannot sleep on a CPU and stays awake; this takes memory and does not change results", flush=True)
    return wanted and not on_cpu()


def engine_seed(seed: int, process: int, tensor_parallel: int) -> int:
    """Seed of a rank's vLLM, from the training seed and the rank.

    Ranks that hold one copy of the model together must sample the same.
    """
    return (seed * 1_000_003 + process // tensor_parallel) % 2**31


def merged_weights(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of the weights with the adapters in them, one at a time, as vLLM loads them.

    TRL adds the adapters to the weights and subtracts them again. In bfloat16 that leaves other weights every time, and
    the saved ones are those of the start with the adapters.

    Args:
        model: a `PeftModel` that is whole on this rank.
    """
    for name, parameter in model.named_parameters():
        if model.prefix in name:
            continue
        value, layer = parameter.detach(), name.removesuffix(".base_layer.weight")
        if layer != name:
            value = (value + model.get_submodule(layer).get_delta_weight("default").detach()).to(value.dtype)
        yield name.removeprefix("base_model.model.").replace(".base_layer", ""), value


@contextmanager
def engine_options(dtype: str) -> Iterator[None]:
    """Context in which the engine that TRL makes samples in `dtype`; TRL leaves the choice to vLLM.

    On a CPU nothing is compiled, and layers keep their weights unpacked: vLLM would pack them for its kernels and drop
    the tensors that the trainer's weights are copied into.
    """
    from trl.generation import vllm_generation

    made = getattr(vllm_generation, "LLM", None)
    if made is None:  # vLLM is not installed
        yield
        return

    def make(**arguments: Any) -> Any:
        options: dict[str, Any] = {"dtype": dtype}
        if on_cpu():
            cache = cpu_cache_bytes(arguments["model"], arguments["max_model_len"])
            options |= {"enforce_eager": True, "kv_cache_memory_bytes": cache}
        return made(**arguments | options)

    vllm_generation.LLM = make
    try:
        with _unpacked_weights() if on_cpu() else nullcontext():
            yield
    finally:
        vllm_generation.LLM = made


@contextmanager
def _unpacked_weights() -> Iterator[None]:
    import torch
    from vllm.model_executor.layers import utils

    def keep(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    packs = utils.dispatch_cpu_unquantized_gemm
    utils.dispatch_cpu_unquantized_gemm = keep
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = packs


@contextmanager
def released_engine(trainer: Any) -> Iterator[None]:
    """Context that releases a colocated vLLM at its end: memory, the ranks' connections, environment variables.

    Without a GPU later stages run in the same process; with these variables they would consider themselves ranks.
    """
    generation = getattr(trainer, "vllm_generation", None)
    try:
        yield
        if generation is not None and generation.mode == "colocate":
            barrier()  # vLLM's shutdown ends the connections of the ranks
            generation.llm.llm_engine.engine_core.shutdown()
    finally:
        for name, value in getattr(trainer, "environment_before", {}).items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


def sampler_facts(trainer: Any, sampled: bool) -> dict[str, str | None]:
    """The engine that sampled a run's completions, for the manifest: name, version, device, dtype; None if unknown.

    `sampled`: whether the policy sampled them; otherwise they come from a teacher.
    """
    if not sampled:
        return {"name": "stored", "version": None, "device": None, "dtype": None}
    generation = getattr(trainer, "vllm_generation", None)
    if generation is None:
        dtype = str(next(iter(trainer.model.parameters())).dtype).removeprefix("torch.")
        return {"name": "transformers", "version": version("transformers"), "device": device_name(), "dtype": dtype}
    if generation.mode == "server":
        return {"name": "vllm", "version": None, "device": "server", "dtype": None}
    return vllm_facts(generation.llm.llm_engine.vllm_config)
