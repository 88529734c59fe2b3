"""Progress of the running stages: one rewritten line on a terminal, an occasional line elsewhere."""

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from launch.execution.failures import CRASHED, STOPPED, Failure
from launch.execution.processes import last_lines, log_path
from recipes.files import read_json
from recipes.progress import NOTES, PROGRESS

_LINE_EVERY_SECONDS = 15.0  # between progress lines where the output is not a terminal


class Display:
    """Prints the start, progress and end of stages."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self._shown = time.monotonic()

    def line(self, text: str) -> None:
        """Print a permanent line."""
        print(("\r\033[K" if self.terminal else "") + text, flush=True)

    def ended(self, name: str, study_dir: Path, stage: str, failure: Failure | None, seconds: float) -> None:
        """Print how a stage ended, with its notes, and with the last lines of its log if it crashed.

        `name`: the stage as it is shown, among those of several studies.
        """
        if failure is None:
            self.line(f"  finished {name} in {seconds:.0f} s")
            self._notes(study_dir / stage / NOTES)
            return
        word = "stopped " if failure.status == STOPPED else "FAILED  "
        self.line(f"  {word} {name} after {seconds:.0f} s: {failure.message}")
        log = log_path(study_dir, stage)
        if failure.status == CRASHED:
            self.line("\n".join(f"           | {text}" for text in last_lines(log, 8)))
        self._notes(study_dir / stage / NOTES)
        self.line(f"           log: {log}")

    def _notes(self, notes: Path) -> None:
        if notes.exists():
            self.line("\n".join(f"           {text}" for text in notes.read_text(encoding="utf-8").split("\n") if text))

    def progress(self, running: Mapping[str, Path], waiting: int) -> None:
        """Show the progress of the running stages, by name with their folders, and how many are waiting."""
        if not self.terminal and time.monotonic() - self._shown < _LINE_EVERY_SECONDS:
            return
        self._shown = time.monotonic()
        parts = [_progress_of(name, running[name]) for name in sorted(running)]
        text = " | ".join(parts) + (f" | {waiting} waiting" if waiting else "")
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r\033[K" + text[:width], end="", flush=True)
        elif parts:
            print(f"  …        {text}", flush=True)


def _progress_of(name: str, directory: Path) -> str:
    if (progress := read_json(directory / PROGRESS)) is None:
        return f"{name} starting"
    note = f", {progress['note']}" if progress["note"] else ""
    return f"{name} {progress['done']}/{progress['total']} {progress['unit']}{note}"
