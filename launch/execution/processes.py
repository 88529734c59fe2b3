"""Processes of a study: their end with the parent, their logs, and the record of how the study was started."""

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from recipes.files import read_json, write_json

RUN_FILE = "run.json"  # read by `transfer resume` and `transfer cancel`


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies (Linux). Elsewhere locks still prevent two writers."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def log_path(study_dir: Path, stage: str) -> Path:
    """Log of a stage."""
    return study_dir / "logs" / f"{stage.replace('/', '--')}.log"


def rank_log_path(study_dir: Path, stage: str, rank: int) -> Path:
    """Log of one rank of a stage; rank 0 writes to the stage's log."""
    return log_path(study_dir, stage).with_suffix(f".rank-{rank}.log")


def write_output_to(log: Path) -> None:
    """Append what this process and those it starts print to a log, errors too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log that are not empty."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64_000))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip()[:500] for line in text.splitlines() if line.strip()][-count:]


def note_run(root: Path, how: dict[str, Any]) -> None:
    """Record how a study was started."""
    write_json(root / RUN_FILE, how)


def local_run(until: str | None) -> dict[str, Any]:
    """The record of a study that runs in this process."""
    process = {"host": socket.gethostname(), "pid": os.getpid(), "began": process_start(os.getpid())}
    return {"on": "local", "until": until} | process


def process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks, which distinguishes it from a later one with the same id."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def read_run(root: Path) -> dict[str, Any]:
    """How a study was started. Without a record: on this machine, to its end."""
    how = read_json(root / RUN_FILE)
    return how if how is not None and "on" in how else {"on": "local", "until": None}
