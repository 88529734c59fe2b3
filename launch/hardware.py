"""GPUs: those of this machine, how many a stage needs, and whether another process uses them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import assert_never
from urllib.parse import urlsplit

from launch.stage_kinds import StageKind
from recipes.errors import UserError
from recipes.schema import Recipe

CPU_STAGES = 2
"""Stages without a GPU that run at the same time, if the recipe does not set `resources.workers`."""
LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")
"""Hosts of an address that are the machine that asks."""
_NO_DEVICE = ("", "-1", "NoDevFiles")  # the last is what Slurm sets for a job without GPUs
_IN_USE = 0.5  # share of a GPU's memory; a display takes far less
_PATIENCE_SECONDS = 60.0  # the driver frees the memory of a process a little after its end


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """The NVIDIA GPUs this process may use, as in CUDA_VISIBLE_DEVICES. Does not load CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # CUDA takes the names before the first one that is no device
        return [*takewhile(lambda name: name not in _NO_DEVICE, map(str.strip, visible.split(",")))]
    gpus = [path for path in devices.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    return [str(index) for index in range(len(gpus))]  # CUDA counts from 0, also in a container with other devices


def gpu_models(folder: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Models of the NVIDIA GPUs of this machine, from its driver; empty without one."""
    models = []
    for path in sorted(folder.glob("*/information")):
        with suppress(OSError):
            lines = path.read_text().splitlines()
            models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return models


def gpus_wanted(recipe: Recipe, kind: StageKind) -> int:
    """GPUs that a stage of this kind uses on a node with GPUs."""
    resources, engine = recipe.resources, recipe.suite.engine if recipe.suite is not None else None
    generation = 1
    if engine is not None and engine.kind != "hf":
        generation = engine.tensor_parallel if engine.kind == "vllm" else 0
    match kind:
        case "base":
            return int(recipe.model is not None and recipe.model.pocket is not None)
        case "corpus":
            return int(any(sampler.kind == "transformers" for sampler in recipe.corpus.samplers.values()))
        case "arms":
            return resources.ranks // resources.nodes if resources.launched else 1
        case "eval" | "trajectory":
            return generation
        case "drift" | "diagnostics":
            return 1
        case "external" | "questions" | "report":
            return 0
        case _:
            assert_never(kind)


def teacher_on(recipe: Recipe) -> str | None:
    """Address of a teacher's server on this machine, which occupies its GPUs; None: there is none."""
    local = {*LOOPBACK, socket.gethostname()}
    for sampler in recipe.corpus.samplers.values():
        if sampler.kind == "endpoint" and urlsplit(sampler.base_url).hostname in local:
            return sampler.base_url
    return None


_PRINT_MEMORY = """
import torch
for index in range(torch.cuda.device_count()):
    print(*torch.cuda.mem_get_info(index))
"""


def memory_of_gpus() -> list[tuple[int, int]]:
    """Free and total bytes of each visible GPU; empty if torch cannot tell.

    Runs in a subprocess, because the query creates a CUDA context: it would hold memory, and forks could not use CUDA.
    """
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _PRINT_MEMORY], capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split() for line in answer.stdout.splitlines()]
    return [(int(row[0]), int(row[1])) for row in rows if len(row) == 2 and all(word.isdigit() for word in row)]


def require_free_memory(
    query: Callable[[], list[tuple[int, int]]] = memory_of_gpus, patience_seconds: float = _PATIENCE_SECONDS
) -> None:
    """Wait until the visible GPUs are free, before a model is loaded.

    `query` returns free and total bytes of each GPU.

    Raises:
        UserError: more than half of a GPU's memory stays in use.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        used = [
            f"GPU {names[index] if index < len(names) and names[index] else index} has {(total - free) / 1e9:.0f} "
            f"of its {total / 1e9:.0f} GB"
            for index, (free, total) in enumerate(query())
            if total - free > _IN_USE * total
        ]
        if not used:
            return
        if time.monotonic() >= deadline:
            raise UserError(
                f"{', '.join(used)} in use by another process, perhaps the teacher's server; stop it, and run the "
                "same command again"
            )
        time.sleep(min(2.0, patience_seconds / 5))
