"""Running something in a process of its own for `transfer doctor`, with a time limit and progress lines."""

import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from launch.slurm.script import ROOT

_SMOKE = ROOT / "recipes" / "pocket" / "smoke.yaml"
_RUN_SECONDS = 150.0
_SHOW_SECONDS = 30.0


def run_smoke(study: Path, settings: list[str], until: str, seconds: float = _RUN_SECONDS) -> tuple[int, str]:
    """Exit status and output of the smoke study, with settings, until a stage."""
    command = [sys.executable, "-m", "launch", "run", str(_SMOKE), "--out", str(study), *settings, "--until", until]
    return run_limited(command, seconds)


def run_limited(command: list[str], seconds: float) -> tuple[int, str]:
    """Exit status and output of a command; one that takes too long is ended with all it has started.

    Every half minute its last line is shown on stderr, so that a long start can be told from a hang.
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
                lines = output().split("\n")
                said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing said yet")
                print(f"           {time.monotonic() - begun:3.0f} s: {said[:100]}", file=sys.stderr, flush=True)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        return 1, f"no end after {seconds:.0f} s: a rank waits for another"


def last_line(output: str) -> str:
    """The line of an output that says most: the sentence of a failed stage, or its last error, or its last line.

    Where a line only counts validation errors, the next one, which says what is wrong, is added.
    """
    lines = [text for line in output.splitlines() if (text := line.strip(" |\t"))]
    if not lines:
        return "nothing was said"
    places = range(len(lines))
    failed = [place for place in places if lines[place].startswith("FAILED")]
    errors = [place for place in places if re.search("Error|validation error", lines[place])]
    place = next((found[-1] for found in (failed, errors) if found), len(lines) - 1)
    said = lines[place]
    if re.search(r"validation errors? for \S+$", said) and place + 1 < len(lines):
        said += f": {lines[place + 1]}"
    return said[:300]
