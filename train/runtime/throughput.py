"""Where the seconds of a step go, tokens per second, and the share of the device's peak (MFU)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from train.micro_batches import Work


class StepClock:
    """Measures one step after another, on one rank.

    A step is divided into sections; a section inside another one is not part of it. `training` is what no section
    takes: forward, backward, the optimizer's step. A GPU is waited for at both ends of every section.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since: float | None = None

    def begin(self) -> None:
        """Begin a step."""
        self._seconds, self._open, self._since = {}, ["training"], _now()

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Context of a section. Outside a step nothing is measured."""
        if self._since is None:
            yield
            return
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def end(self) -> dict[str, float]:
        """Seconds of each section of the step that ends now; empty if none has begun."""
        if self._since is None:
            return {}
        self._count()
        self._since = None
        return self._seconds

    def _count(self) -> None:
        assert self._since is not None
        now = _now()
        self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


def _now() -> float:
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def throughput(
    seconds: dict[str, float], work: Work, config: Any, ranks: int, peak_flops: float | None
) -> dict[str, float]:
    """Metrics of a step.

    Args:
        seconds: of each section.
        work: of all ranks.
        config: of the model.
        ranks: processes that trained.
        peak_flops: of one rank's device, per second; None: unknown.

    Returns:
        `seconds/<section>`; `throughput/tokens_per_second`, the tokens of all rows, computed or not, in a second of the
        whole step; where a row had a gradient `throughput/padding_share` of the computed tokens; with a known peak,
        too, `throughput/mfu`, the model's FLOPs of the needed tokens (6 a parameter and token, and the causal attention
        scores; what checkpointing computes twice is not counted) as a share of the peak during `training`.
    """
    from trl.trainer.utils import adjusted_mfu, compute_flops_per_token, compute_mfu

    needed = work.computed - work.padding
    metrics = {f"seconds/{name}": round(value, 4) for name, value in seconds.items()}
    metrics["throughput/tokens_per_second"] = round((needed + work.skipped) / sum(seconds.values()), 1)
    if needed:  # what a step without a gradient computes only keeps the ranks in step
        metrics["throughput/padding_share"] = round(work.padding / work.computed, 4)
    if peak_flops and needed:
        length = work.squares // needed  # the mean over tokens, at which the attention of all rows is exact
        per_token = compute_flops_per_token(config, length)
        mfu = compute_mfu(per_token, needed / seconds["training"], ranks, peak_flops)
        metrics["throughput/mfu"] = round(adjusted_mfu(mfu, config, length) / 100, 4)
    return metrics


def device_peak(dtype: str) -> float | None:
    """Dense FLOPs a second of this rank's GPU by its vendor's data sheet; None on a CPU or if it is not known.

    `dtype`: "bfloat16" or "float32".
    """
    import torch
    from trl.trainer.utils import get_peak_flops

    return get_peak_flops(torch.cuda.get_device_name(), dtype) if torch.cuda.is_available() else None
