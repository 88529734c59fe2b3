"""Progress of the running stages: one rewritten line on a terminal, an occasional line elsewhere."""

import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from launch.execution.failures import CRASHED, STOPPED, Failure
from launch.execution.processes import last_lines, log_path
from recipes.files import read_json
from recipes.progress import NOTES, PROGRESS

_LINE_EVERY_SECONDS = 15.0  # between progress lines where the output is not a terminal


class Display:
    """Prints the start, progress and end of stages."""

    def __init__(self, study_dir: Path) -> None:
        self.study_dir = study_dir
        self.terminal = sys.stdout.isatty()
        self._shown = time.monotonic()

    def line(self, text: str) -> None:
        """Print a permanent line."""
        print(("\r\033[K" if self.terminal else "") + text, flush=True)

    def ended(self, stage: str, failure: Failure | None, seconds: float) -> None:
        """Print how a stage ended, with its notes, and with the last lines of its log if it crashed."""
        if failure is None:
            self.line(f"  finished {stage} in {seconds:.0f} s")
            self._notes(stage)
            return
        word = "stopped " if failure.status == STOPPED else "FAILED  "
        self.line(f"  {word} {stage} after {seconds:.0f} s: {failure.message}")
        log = log_path(self.study_dir, stage)
        if failure.status == CRASHED:
            self.line("\n".join(f"           | {text}" for text in last_lines(log, 8)))
        self._notes(stage)
        self.line(f"           log: {log}")

    def _notes(self, stage: str) -> None:
        notes = self.study_dir / stage / NOTES
        if notes.exists():
            self.line("\n".join(f"           {text}" for text in notes.read_text(encoding="utf-8").split("\n") if text))

    def progress(self, running: Iterable[str], waiting: int) -> None:
        """Show the progress of the running stages and how many are waiting."""
        if not self.terminal and time.monotonic() - self._shown < _LINE_EVERY_SECONDS:
            return
        self._shown = time.monotonic()
        parts = [self._progress_of(name) for name in sorted(running)]
        text = " | ".join(parts) + (f" | {waiting} waiting" if waiting else "")
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r\033[K" + text[:width], end="", flush=True)
        elif parts:
            print(f"  …        {text}", flush=True)

    def _progress_of(self, stage: str) -> str:
        if (progress := read_json(self.study_dir / stage / PROGRESS)) is None:
            return f"{stage} starting"
        note = f", {progress['note']}" if progress["note"] else ""
        return f"{stage} {progress['done']}/{progress['total']} {progress['unit']}{note}"
