"""What the processes of a study share: none outlives a killed command; GPUs, logs, and who began the study."""

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from recipes.manifest import write_json

RUN_FILE = "run.json"  # how a study was started, for `resume` and `cancel`


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies (Linux); elsewhere the lock still prevents two writers."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def log_path(study_dir: Path, stage: str) -> Path:
    """Where a stage's output goes."""
    return study_dir / "logs" / f"{stage.replace('/', '--')}.log"


def rank_log_path(study_dir: Path, stage: str, rank: int) -> Path:
    """Where the output of one rank of a stage goes; the first writes to the stage's own log."""
    return log_path(study_dir, stage).with_suffix(f".rank-{rank}.log")


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log that say something; of a large one, only its end is read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64_000))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip()[:500] for line in text.splitlines() if line.strip()][-count:]


def note_run(root: Path, how: dict[str, Any]) -> None:
    """Keep how a study was started."""
    write_json(root / RUN_FILE, how)


def local_run(until: str | None) -> dict[str, Any]:
    """How this process runs a study, and who it is."""
    who = {"host": socket.gethostname(), "pid": os.getpid(), "began": process_start(os.getpid())}
    return {"on": "local", "until": until} | who


def process_start(pid: int) -> str | None:
    """When the kernel started a process, in its own ticks: tells it from a later one of the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def read_run(root: Path) -> dict[str, Any]:
    """How a study was started; on this machine and to its end, where nothing was kept."""
    try:
        how = json.loads((root / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        how = None
    return how if isinstance(how, dict) and "on" in how else {"on": "local", "until": None}
