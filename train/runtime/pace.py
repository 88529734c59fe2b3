"""How long a run takes from one point where it can stop to the next, and whether there is time. Needs no torch."""

import json
import time
from pathlib import Path
from typing import NamedTuple

from train.runtime.ranks import noted_signal, seconds_left

PACE = "pace.json"


class Pace(NamedTuple):
    """Where a run stands between two points at which it can stop, and how long it takes from one to the next."""

    step: int
    """The last update that was finished."""
    steps: int
    saved_step: int
    """The update of the newest checkpoint; 0 without one."""
    since: float
    """When the last point at which the run could stop was passed; seconds since the epoch."""
    seconds: float | None
    """From one such point to the next, a mean; None before the first."""
    save_seconds: float
    """Of the last checkpoint; 0 before the first."""

    def needed(self) -> float | None:
        """Seconds until the work at hand could be finished and saved; None if that is not known yet."""
        if self.seconds is None:
            return None
        return max(0.0, self.since + self.seconds - time.time()) + self.save_seconds


def cut_short(pace: Pace | None) -> str | None:
    """Why a run that got a signal must end without saving, as a sentence; None while it need not."""
    left, needed = seconds_left(), None if pace is None else pace.needed()
    if left is None or left > (needed or 0.0):
        return None
    where, start = "before its first update", "the beginning"
    if pace is not None:
        where = f"in the middle of update {min(pace.step + 1, pace.steps)} of {pace.steps}"
        start = f"update {pace.saved_step}" if pace.saved_step else "the beginning"
    return (
        f"stopped by {noted_signal()} {where}, which cannot be finished and saved before the process is killed; "
        f"the same command continues from {start}"
    )


def read_pace(ranks_dir: Path) -> Pace | None:
    """What the first rank wrote; None before its first update."""
    try:
        return Pace(**json.loads((ranks_dir / PACE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
