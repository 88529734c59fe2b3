"""What a stage took: seconds, seconds of processors, and the peak of host and GPU memory over all of its processes."""

import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recipes.manifest import write_json

USAGE = "usage.json"
_EVERY_SECONDS = 0.5
_GPU_EVERY_SECONDS = 2.0


@contextmanager
def measured(stage_dir: Path) -> Iterator[None]:
    """Sample this process and its descendants while the block runs; then write `usage.json` into `stage_dir`.

    Host memory is the sum of proportional set sizes, so pages that processes share count once. GPU memory is what the
    driver reports for the devices this process sees, whoever uses it. Peaks between two samples are missed.
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
    query = shutil.which("nvidia-smi")
    asked = -_GPU_EVERY_SECONDS
    while True:
        peaks["host_bytes"] = max(peaks["host_bytes"], sum(map(_resident, descendants(root))))
        if query and time.monotonic() - asked >= _GPU_EVERY_SECONDS:
            asked = time.monotonic()
            peaks["gpu_bytes"] = max(peaks["gpu_bytes"], _gpu_bytes(query))
        if stop.wait(_EVERY_SECONDS):
            return


def descendants(root: int) -> list[int]:
    """A process and all processes below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found, pending = [], [root]
    while pending:
        process = pending.pop()
        found.append(process)
        pending += children.get(process, [])
    return found


def _resident(process: int) -> int:
    """Proportional set size in bytes; 0 for a process that has ended or another user's."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def _gpu_bytes(query: str) -> int:
    """Memory in use on the fullest GPU this process sees, in bytes; 0 if the driver does not answer."""
    command = [query, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if chosen := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={chosen}")
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return max((int(line) for line in text.split()), default=0) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def read_usage(stage_dir: Path) -> dict[str, Any] | None:
    """What a stage took; None if nothing was measured."""
    import json

    try:
        found = json.loads((stage_dir / USAGE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
