"""GPUs: which ones this machine has, how many a stage needs, and whether another process is using them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from recipes.errors import UserError
from recipes.schema import Recipe

CPU_STAGES = 2
"""Stages without a GPU that run at the same time, where the recipe does not say how many."""
_IN_USE = 0.5  # of a GPU's memory; what a display or a monitor takes is far below
_PATIENCE_SECONDS = 60.0  # a process that has ended gives its memory back a little later


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """Names of the NVIDIA GPUs this process may use, as CUDA_VISIBLE_DEVICES has them; found without loading CUDA."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip()]
    devices_of_gpus = [path for path in devices.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    return [str(index) for index in range(len(devices_of_gpus))]  # CUDA counts from 0 in a container too


def gpu_models(folder: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Models of the NVIDIA GPUs of this machine, as its driver names them; empty where it says nothing."""
    models = []
    for path in sorted(folder.glob("*/information")):
        with suppress(OSError):
            lines = path.read_text().splitlines()
            models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return models


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


_ASK_MEMORY = """
import torch
for index in range(torch.cuda.device_count()):
    print(*torch.cuda.mem_get_info(index))
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
            f"GPU {names[index] if index < len(names) and names[index] else index} has {(total - free) / 1e9:.0f} "
            f"of its {total / 1e9:.0f} GB"
            for index, (free, total) in enumerate(ask())
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
