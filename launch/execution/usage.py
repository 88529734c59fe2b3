"""Resource usage of a stage: seconds, processor seconds, and peak host and GPU memory over all its processes."""

import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from recipes.files import read_json, write_json

USAGE = "usage.json"
_EVERY_SECONDS = 0.5
_GPU_EVERY_SECONDS = 2.0


@contextmanager
def measured(stage_dir: Path) -> Iterator[None]:
    """Measure this process and its descendants during the block; then write `usage.json` into `stage_dir`.

    Host memory counts pages that processes share, such as libraries, mapped weights and shared memory, once. GPU memory
    is all memory in use on the visible devices, also by other processes. Peaks between two samples are missed.
    """
    peaks = {"host_bytes": 0, "gpu_bytes": 0}
    stop = threading.Event()
    thread = threading.Thread(target=_sample, args=(os.getpid(), peaks, stop), daemon=True)
    begun, spent = time.monotonic(), _cpu_seconds()
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
        with suppress(OSError):  # a full disk has a message of its own
            seconds = {"seconds": time.monotonic() - begun, "cpu_seconds": _cpu_seconds() - spent}
            write_json(stage_dir / USAGE, {name: round(value, 1) for name, value in seconds.items()} | peaks)


def _cpu_seconds() -> float:
    """Processor seconds of this process, its threads and the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


def _sample(root: int, peaks: dict[str, int], stop: threading.Event) -> None:
    nvidia_smi = shutil.which("nvidia-smi")
    queried = -_GPU_EVERY_SECONDS
    while True:
        peaks["host_bytes"] = max(peaks["host_bytes"], host_bytes(descendants(root)))
        if nvidia_smi and time.monotonic() - queried >= _GPU_EVERY_SECONDS:
            queried = time.monotonic()
            peaks["gpu_bytes"] = max(peaks["gpu_bytes"], _gpu_bytes(nvidia_smi))
        if stop.wait(_EVERY_SECONDS):
            return


def descendants(root: int) -> list[int]:
    """Ids of a process and all its descendants."""
    processes = [root]
    with suppress(psutil.Error):  # it has ended
        processes += [child.pid for child in psutil.Process(root).children(recursive=True)]
    return processes


def host_bytes(processes: Iterable[int]) -> int:
    """Resident memory of processes: what each has alone, and of what may be shared the largest.

    The proportional set sizes in smaps_rollup are more exact where processes share
    different pages, but the kernel walks all pages of a process for them and blocks its allocations meanwhile: 50 ms
    for 6 GB, twice a second.
    """
    alone, shared = 0, 0
    for process in processes:
        with suppress(psutil.Error):  # it has ended
            memory = psutil.Process(process).memory_info()
            alone += memory.rss - memory.shared
            shared = max(shared, memory.shared)
    return alone + shared


def _gpu_bytes(nvidia_smi: str) -> int:
    """Memory in use on the fullest visible GPU, in bytes; 0 if nvidia-smi fails."""
    command = [nvidia_smi, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if chosen := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={chosen}")
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return max((int(line) for line in text.split()), default=0) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def read_usage(stage_dir: Path) -> dict[str, Any] | None:
    """The usage of a stage; None if it was not measured."""
    return read_json(stage_dir / USAGE)
