"""How long a step takes, and whether it can be finished before the process is killed. Needs no torch."""

import json
import time
from pathlib import Path
from typing import NamedTuple

from train.runtime.ranks import noted_signal, seconds_left

PACE = "pace.json"


class Pace(NamedTuple):
    """Progress of a run between two points where it can stop: ends of steps, or of batches that share a sampling."""

    step: int
    """The last finished step."""
    steps: int
    saved_step: int
    """Step of the newest checkpoint; 0 without one."""
    since: float
    """When the run last passed such a point; seconds since the epoch."""
    seconds: float | None
    """Mean seconds from one such point to the next; None before the first."""
    save_seconds: float
    """Seconds that the last checkpoint took to write; 0 before the first."""

    def needed(self) -> float | None:
        """Seconds until the current step can be finished and saved; None if not known yet."""
        if self.seconds is None:
            return None
        return max(0.0, self.since + self.seconds - time.time()) + self.save_seconds


def cut_short(pace: Pace | None) -> str | None:
    """Why a run that received a signal must end without saving, as a sentence; None if it need not."""
    left, needed = seconds_left(), None if pace is None else pace.needed()
    if left is None or left > (needed or 0.0):
        return None
    where, start = "before its first step", "the beginning"
    if pace is not None:
        where = f"in the middle of step {min(pace.step + 1, pace.steps)} of {pace.steps}"
        start = f"step {pace.saved_step}" if pace.saved_step else "the beginning"
    return (
        f"stopped by {noted_signal()} {where}, which cannot be finished and saved before the process is killed; "
        f"the same command continues from {start}"
    )


def read_pace(ranks_dir: Path) -> Pace | None:
    """The pace that the first rank wrote; None before training begins."""
    try:
        return Pace(**json.loads((ranks_dir / PACE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
