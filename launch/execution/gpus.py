"""Assign the GPUs of this machine to stages."""

from collections.abc import Sequence
from typing import NamedTuple

from launch.hardware import CPU_STAGES, gpus_wanted, teacher_on
from launch.stages import Stage
from recipes.schema import Recipe


class Request(NamedTuple):
    """A stage that is ready to start."""

    name: str
    gpus: int
    shared: str | None = None
    """A resource that one stage uses at a time; stages with the same name wait for each other."""


def request_of(recipe: Recipe, stage: Stage, gpus: Sequence[str]) -> Request:
    """The resources of a stage on a machine with these GPUs."""
    count, shared = gpus_wanted(recipe, stage.kind), None
    if stage.kind == "corpus" and teacher_on(recipe):
        count = len(gpus)  # the teacher's server occupies them
    vllm = recipe.resources.vllm
    if stage.trainer == "grpo" and vllm is not None and vllm.mode == "server":
        shared = "vLLM server"  # every arm sends it weights
    return Request(stage.name, min(count, len(gpus)), shared)


class Pool:
    """Decides which stages run at the same time on one machine, and on which of its GPUs.

    A stage has its GPUs to itself. Once a stage has to wait for GPUs, later ones do not get any, so that stages on one
    GPU cannot delay a stage on all GPUs for ever.

    Args:
        gpus: as in CUDA_VISIBLE_DEVICES; empty on a CPU.
        workers: most stages at the same time. None: with GPUs as many as there are free ones for, on a CPU two.
    """

    def __init__(self, gpus: Sequence[str], workers: int | None) -> None:
        self.gpus = list(gpus)
        self.workers = workers
        self._taken: dict[str, tuple[str, ...]] = {}
        self._shared: dict[str, str] = {}

    @property
    def size(self) -> int:
        """Most stages at the same time."""
        return self.workers or (len(self.gpus) + CPU_STAGES if self.gpus else CPU_STAGES)

    def start(self, requests: Sequence[Request]) -> list[tuple[str, tuple[str, ...]]]:
        """The stages that can start now, in order, each with its GPUs."""
        started = []
        waiting_for_gpus = False
        for request in requests:
            if len(self._taken) >= self.size:
                break
            if request.shared is not None and request.shared in self._shared.values():
                continue
            gpus: tuple[str, ...] = ()
            if request.gpus:
                free = [gpu for gpu in self.gpus if not any(gpu in taken for taken in self._taken.values())]
                if waiting_for_gpus or len(free) < request.gpus:
                    waiting_for_gpus = True
                    continue
                gpus = tuple(free[: request.gpus])
            elif self.gpus and self.workers is None and self._without_gpus() >= CPU_STAGES:
                continue
            self._taken[request.name] = gpus
            if request.shared is not None:
                self._shared[request.name] = request.shared
            started.append((request.name, gpus))
        return started

    def end(self, name: str) -> None:
        """Release the resources of a stage."""
        self._taken.pop(name, None)
        self._shared.pop(name, None)

    def _without_gpus(self) -> int:
        return sum(not gpus for gpus in self._taken.values())
