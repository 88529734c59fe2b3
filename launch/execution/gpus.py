"""GPUs of stages: how many each asks for, which of a machine's they get, and whether somebody else uses them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from launch.stages import Stage
from recipes.errors import UserError
from recipes.schema import Recipe

CPU_STAGES = 2
"""Stages without a GPU that run at the same time, where the recipe does not say how many."""
_IN_USE = 0.5  # of a GPU's memory; what a display or a monitor takes is far below
_PATIENCE_SECONDS = 60.0  # a process that has ended gives its memory back a little later


def gpus_wanted(recipe: Recipe, kind: str) -> int:
    """GPUs that a stage of this kind uses on a node that has some; 0: none."""
    resources, corpus = recipe.resources, recipe.corpus
    if kind == "arms":
        return resources.ranks // resources.nodes if resources.launched else 1
    engine = recipe.suite.engine if recipe.suite is not None else None
    asking = 1
    if engine is not None and engine.kind != "hf":
        asking = engine.tensor_parallel if engine.kind == "vllm" else 0
    samplers = [corpus.teacher, corpus.pass_rate.sampler if corpus.pass_rate else None]
    wanted = {
        "base": int(recipe.model is not None and recipe.model.pocket is not None),
        "corpus": int(any(sampler is not None and sampler.kind == "transformers" for sampler in samplers)),
        "drift": max(1, asking),
        "trajectory": asking,
        "eval": asking,
        "diagnostics": 1,
    }
    return wanted.get(kind, 0)


def teacher_on(recipe: Recipe, hosts: Sequence[str] = ()) -> str | None:
    """Address of a teacher's server on this machine, whose GPUs nobody else can have meanwhile; None: there is none."""
    here = {"127.0.0.1", "localhost", "::1", "0.0.0.0", socket.gethostname(), *hosts}
    corpus = recipe.corpus
    samplers = [corpus.teacher, corpus.pass_rate.sampler if corpus.pass_rate else None]
    for sampler in samplers:
        if sampler is not None and sampler.kind == "endpoint" and urlsplit(str(sampler.base_url)).hostname in here:
            return str(sampler.base_url)
    return None


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


_ASK_MEMORY = """
import torch
for number in range(torch.cuda.device_count()):
    print(*torch.cuda.mem_get_info(number))
"""


def memory_of_gpus() -> list[tuple[int, int]]:
    """Free and all bytes of each visible GPU; empty if they cannot be asked.

    In a process of its own: asking makes a CUDA context, which holds memory and forbids to fork.
    """
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _ASK_MEMORY], capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split() for line in answer.stdout.splitlines()]
    return [(int(row[0]), int(row[1])) for row in rows if len(row) == 2 and all(word.isdigit() for word in row)]


def require_free_memory(
    ask: Callable[[], list[tuple[int, int]]] = memory_of_gpus, patience_seconds: float = _PATIENCE_SECONDS
) -> None:
    """Refuse to load a model beside somebody else's, before it is loaded.

    Raises:
        UserError: most of a GPU's memory is in use, and stays so.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        used = [
            f"GPU {names[number] if number < len(names) and names[number] else number} has {(total - free) / 1e9:.0f} "
            f"of its {total / 1e9:.0f} GB"
            for number, (free, total) in enumerate(ask())
            if total - free > _IN_USE * total
        ]
        if not used:
            return
        if time.monotonic() >= deadline:
            raise UserError(
                f"{', '.join(used)} in use by another process, perhaps the teacher's server; stop that, and run the "
                "same command again"
            )
        time.sleep(min(2.0, patience_seconds / 5))
