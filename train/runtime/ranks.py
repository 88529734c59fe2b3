"""Several processes that train one model: rank, signals, DeepSpeed, and collectives for Python objects.

A rank is started by torchrun or accelerate (`launch/execution/ranks.py`), which sets RANK, WORLD_SIZE and, with
DeepSpeed, ACCELERATE_USE_DEEPSPEED. Without them there is one rank, and the collectives return their input.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from recipes.errors import UserError
from recipes.resource_schema import VllmSpec

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What cluster schedulers send some time before they kill; see `train/runtime/preemption.py`."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables with which a process considers itself a rank."""

_noted: list[tuple[str, float]] = []  # name and time of each signal, by the monotonic clock


def listen() -> None:
    """Record SIGTERM and SIGUSR1 from now on instead of ending; forgets earlier signals."""
    _noted.clear()
    for awaited in SIGNALS:
        signal.signal(awaited, lambda number, frame: _noted.append((signal.Signals(number).name, time.monotonic())))


def noted_signal() -> str | None:
    """Name of the last signal received; None without one."""
    return _noted[-1][0] if _noted else None


def signalled_at() -> float | None:
    """When the first signal came, as `time.time()`; None without one."""
    return time.time() - (time.monotonic() - _noted[0][1]) if _noted else None


def seconds_left() -> float | None:
    """Seconds within which a run must end, with a reserve of a tenth; None without a signal or without a limit.

    TRANSFER_SIGNAL_SECONDS, which a batch script sets, is the time from a signal to the kill.
    """
    limit = os.environ.get("TRANSFER_SIGNAL_SECONDS", "")
    if not _noted or not limit.isdecimal():
        return None
    return 0.9 * int(limit) - (time.monotonic() - _noted[0][1])


class PreemptedError(Exception):
    """A run stopped on a signal, with or without saving; the same command continues it."""


def rank() -> int:
    """Index of this process among those of the stage; rank 0 writes the files."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of the stage."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def forget_ranks() -> None:
    """Remove the variables of ranks, which job schedulers and containers also set, where a stage has none of its own.

    With WORLD_SIZE=2 from outside, one process would train on half of the rows of every step.
    """
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)


def with_deepspeed() -> bool:
    """Whether the launcher requested DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def server_address(vllm: VllmSpec | None) -> str | None:
    """URL of a stage's vLLM server; None without one. TRANSFER_VLLM_URL is set in a job that starts its own."""
    if vllm is None or vllm.mode != "server":
        return None
    return (vllm.server_url or os.environ.get("TRANSFER_VLLM_URL") or "http://127.0.0.1:8000").rstrip("/")


def prepare() -> None:
    """Prepare DeepSpeed on a CPU; call it before any trainer is made.

    DeepSpeed must not compile its own communication: that build takes minutes, needs a compiler, and a killed one
    leaves a lock that later runs wait for. bfloat16 must be allowed.
    """
    if with_deepspeed() and os.environ.get("DS_ACCELERATOR") == "cpu":
        import deepspeed.ops
        from transformers import training_args

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # transformers requires a GPU for bfloat16 unless `use_cpu` is set (see `device_arguments`). A CPU supports it.
        training_args.is_torch_bf16_gpu_available = lambda: True


def rows_per_rank(rows: int) -> int:
    """Completions of a step on each rank.

    Raises:
        UserError: the ranks do not divide the completions of a step.
    """
    ranks = world_size()
    if rows % ranks:
        raise UserError(
            f"a step has {rows} completions, which {ranks} ranks do not divide; choose resources.ranks so that it "
            f"divides {rows} (train.problems_per_step x train.completions_per_problem)"
        )
    return rows // ranks


def device_arguments(use_cpu: bool) -> dict[str, Any]:
    """Trainer arguments about devices. On a CPU, `use_cpu` would make accelerate silently drop DeepSpeed."""
    if not use_cpu:
        return {"use_cpu": False}
    if with_deepspeed():
        return {"use_cpu": False, "ddp_backend": "gloo"}
    return {"use_cpu": True, "ddp_backend": "gloo" if world_size() > 1 else None}


def require_deepspeed(trainer: Any) -> None:
    """Raise RuntimeError if the launcher requested DeepSpeed but the trainer runs without it."""
    if with_deepspeed() and not trainer.is_deepspeed_enabled:
        raise RuntimeError("DeepSpeed was requested but the trainer does not use it")


def topology(trainer: Any) -> dict[str, Any]:
    """What trained, for the manifest: number of ranks, class of the engine, its ZeRO stage."""
    engine = trainer.model_wrapped
    stage = engine.zero_optimization_stage() if trainer.is_deepspeed_enabled else 0
    return {"ranks": world_size(), "engine": type(engine).__name__, "zero_stage": stage}


def barrier() -> None:
    """Wait for the other ranks; no-op before the process group exists."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Leave the process group together with the other ranks, so that none finds closed connections."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def beat(stage_dir: Path) -> None:
    """Send this rank's heartbeat; the launcher ends a stage whose ranks send none (`launch/execution/watch.py`)."""
    with suppress(OSError):
        os.utime(stage_dir / "ranks" / f"{rank()}.pid")


def from_first_rank(make: Callable[[], Any]) -> Any:
    """The first rank's value, on every rank; for values that depend on a clock."""
    import torch.distributed as dist

    if world_size() == 1 or not (dist.is_available() and dist.is_initialized()):
        return make()
    shared = [make() if rank() == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def gathered(rows: list[Any]) -> list[Any]:
    """The rows of all ranks, in rank order, on every rank."""
    import torch.distributed as dist

    if world_size() == 1 or not (dist.is_available() and dist.is_initialized()):
        return rows
    rows_of_ranks: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(rows_of_ranks, rows)
    return [row for rows_of_rank in rows_of_ranks for row in rows_of_rank]
