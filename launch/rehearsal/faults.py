"""Kill a training stage after its first checkpoint, and check that it resumed from there."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from launch.execution.processes import die_with_parent
from launch.execution.usage import descendants
from launch.stages import Stage
from recipes.files import read_json_lines
from train.runtime.recorder import CLOCK, METRICS

_POLL_SECONDS = 0.02


def kill_after_checkpoint(study_dir: Path, stage: Stage) -> list[dict[str, float]] | None:
    """Run a training stage until a checkpoint is complete, then kill all its processes with SIGKILL.

    Returns:
        The rows of `clock.jsonl` up to the checkpoint; None if the stage ended before it could be killed.
    """
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path[1:]])}
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.slurm.step", str(study_dir.resolve()), stage.name],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    directory = study_dir / stage.name
    try:
        while process.poll() is None:
            if steps := [int(path.parent.name.rpartition("-")[2]) for path in directory.glob("checkpoint-*/COMPLETE")]:
                break
            time.sleep(_POLL_SECONDS)
        else:
            return None
    finally:
        for pid in reversed(descendants(process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    return [row for row in read_json_lines(directory / CLOCK) if row["step"] <= max(steps)]


def continuation_fault(study_dir: Path, stage: Stage, before: list[dict[str, float]] | None, steps: int) -> str | None:
    """Why a killed stage did not resume correctly; None if it did.

    `before`: what `kill_after_checkpoint` returned. `steps`: of the run.
    """
    if before is None:
        return "it ended before it could be killed after its first checkpoint; see its log"
    directory = study_dir / stage.name
    after = read_json_lines(directory / CLOCK)
    if after[: len(before)] != before:
        return f"it did not resume from its checkpoint after step {len(before)} but started over"
    logged = [row["step"] for row in read_json_lines(directory / METRICS)]
    if logged != list(range(1, steps + 1)):
        return f"metrics.jsonl has the steps {logged}, not each of {steps} once"
    return None
