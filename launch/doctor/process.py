"""Run a command with a time limit and progress lines."""

import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from launch.doctor.verdict import shortened
from launch.slurm.script import ROOT

_SMOKE = ROOT / "recipes" / "pocket" / "smoke.yaml"
_RUN_SECONDS = 150.0
_SHOW_SECONDS = 30.0


def run_smoke(study: Path, settings: list[str], until: str, seconds: float = _RUN_SECONDS) -> tuple[int, str]:
    """Run the smoke study with `settings` up to the stage `until`; exit status and output."""
    command = [sys.executable, "-m", "launch", "run", str(_SMOKE), "--out", str(study), *settings, "--until", until]
    return run_limited(command, seconds)


def run_limited(command: list[str], seconds: float) -> tuple[int, str]:
    """Exit status and output of a command; after `seconds` it is killed with all its children.

    Every half minute its last line is printed to stderr.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TRANSFER_"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )

        def output() -> str:
            return os.pread(file.fileno(), 1 << 24, 0).decode(errors="replace")

        while (left := seconds - (time.monotonic() - begun)) > 0:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(min(left, _SHOW_SECONDS)), output()
            if left > _SHOW_SECONDS:
                lines = [line.strip() for line in output().split("\n") if line.strip()] or ["no output yet"]
                print(f"           {time.monotonic() - begun:3.0f} s: {lines[-1][:100]}", file=sys.stderr, flush=True)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        return 1, f"killed after {seconds:.0f} s; a rank may be waiting for another"


def last_line(output: str) -> str:
    """The most informative line of an output: the message of a failed stage, else its last error, else its last line.

    A line that only counts validation errors is followed by the next one, which names the error.
    """
    lines = [text for line in output.splitlines() if (text := line.strip(" |\t"))]
    if not lines:
        return "no output"
    failed = [index for index, line in enumerate(lines) if line.startswith("FAILED")]
    errors = [index for index, line in enumerate(lines) if re.search("Error|validation error", line)]
    index = (failed or errors or [len(lines) - 1])[-1]
    text = lines[index]
    if re.search(r"validation errors? for \S+$", text) and index + 1 < len(lines):
        text += f": {lines[index + 1]}"
    return shortened(text)
