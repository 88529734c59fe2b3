"""What the command line shows of a stage: its progress while it runs, and notes at its end."""

import json
import os
import time
from pathlib import Path

from recipes.files import write_atomic

PROGRESS = "progress.json"
NOTES = "notes.txt"
_PROGRESS_EVERY_SECONDS = 0.5
_TELLING_SECONDS, _TELLING_SHARE = 5.0, 0.03  # of the work; the first units wait for a model and for the longest texts


def write_notes(directory: Path, lines: list[str]) -> None:
    """Write what the console shows when a stage ends, finished or not; the log gets it too."""
    write_atomic(directory / NOTES, "".join(f"{line}\n" for line in lines))
    print("\n".join(lines), flush=True)


def duration(seconds: float) -> str:
    """Seconds in a readable unit."""
    if seconds < 120:
        return f"{round(seconds, 1 if seconds < 10 else 0):g} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} days"


def remaining_seconds(seconds: float, made: float, left: float) -> float | None:
    """How long the rest takes if `made` took `seconds`; None while that is too little to tell by."""
    if seconds < _TELLING_SECONDS or made <= 0 or made < _TELLING_SHARE * (made + left):
        return None
    return seconds * left / made


class Progress:
    """Writes `progress.json` of a stage, at most twice a second, for the command line to show."""

    def __init__(self, directory: Path, total: int, unit: str) -> None:
        self.path = directory / PROGRESS
        self.total = total
        self.unit = unit
        self._written = 0.0
        self._first: tuple[int, float] | None = None  # units done and time at the first update, for the rate

    def update(self, done: int, note: str = "") -> None:
        """Record that `done` of `total` units are finished; `note` is a short text such as a loss."""
        now = time.monotonic()
        if now - self._written < _PROGRESS_EVERY_SECONDS and done != self.total:
            return
        self._written = now
        at = time.time()
        first, first_at = self._first = self._first or (done, at)
        values = {"done": done, "total": self.total, "unit": self.unit, "note": note}
        # No fsync: the file is only for display.
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(values | {"at": at, "first": first, "first_at": first_at}))
        os.replace(temporary, self.path)
