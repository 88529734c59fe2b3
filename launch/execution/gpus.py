"""Which stages run at the same time on this machine, and on which of its GPUs."""

from collections.abc import Sequence
from typing import NamedTuple

from launch.hardware import CPU_STAGES, gpus_wanted, teacher_on
from launch.stages import Stage
from recipes.schema import Recipe


class Wish(NamedTuple):
    """A stage that could start now."""

    name: str
    gpus: int
    shared: str | None = None
    """What it would share with others of the same word, which therefore run one after another."""


def wish_of(recipe: Recipe, stage: Stage, gpus: Sequence[str]) -> Wish:
    """What a stage asks for on a machine with these GPUs."""
    wanted, shared = gpus_wanted(recipe, stage.kind), None
    if stage.kind == "corpus" and teacher_on(recipe):
        wanted = len(gpus)  # the server has them; a model loaded beside it would find no memory
    vllm = recipe.resources.vllm
    if stage.module == "train.grpo" and vllm is not None and vllm.mode == "server":
        shared = "vLLM server"  # every arm sends it weights
    return Wish(stage.name, min(wanted, len(gpus)), shared)


class Pool:
    """Which stages run at the same time on one machine, and on which of its GPUs.

    A stage gets GPUs of its own. The first one in order that has to wait for GPUs keeps later ones from taking them, so
    that a run on all GPUs is not put off for ever by evaluations of one each.

    Args:
        gpus: names, as CUDA_VISIBLE_DEVICES has them; none on a CPU.
        workers: stages at the same time, at most. None: with GPUs as many as find theirs, without two.
    """

    def __init__(self, gpus: Sequence[str], workers: int | None) -> None:
        self.gpus = list(gpus)
        self.workers = workers
        self._taken: dict[str, tuple[str, ...]] = {}
        self._shared: dict[str, str] = {}

    @property
    def size(self) -> int:
        """Stages that can run at the same time, at most."""
        return self.workers or (len(self.gpus) + CPU_STAGES if self.gpus else CPU_STAGES)

    def start(self, wishes: Sequence[Wish]) -> list[tuple[str, tuple[str, ...]]]:
        """Place what can start now, in order: names of stages, each with its GPUs."""
        placed = []
        waiting_for_gpus = False
        for wish in wishes:
            if len(self._taken) >= self.size:
                break
            if wish.shared is not None and wish.shared in self._shared.values():
                continue
            gpus: tuple[str, ...] = ()
            if wish.gpus:
                free = [gpu for gpu in self.gpus if not any(gpu in taken for taken in self._taken.values())]
                if waiting_for_gpus or len(free) < wish.gpus:
                    waiting_for_gpus = True
                    continue
                gpus = tuple(free[: wish.gpus])
            elif self.gpus and self.workers is None and self._without_gpus() >= CPU_STAGES:
                continue
            self._taken[wish.name] = gpus
            if wish.shared is not None:
                self._shared[wish.name] = wish.shared
            placed.append((wish.name, gpus))
        return placed

    def end(self, name: str) -> None:
        """Give back what a stage had."""
        self._taken.pop(name, None)
        self._shared.pop(name, None)

    def _without_gpus(self) -> int:
        return sum(not gpus for gpus in self._taken.values())
