"""kill -9 in the middle of a stage, run the same command again: the same transfer.json as without the kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.manifest import read_manifest
from tests.paths import ROOT, SMOKE

STEPS = "train.steps=12"  # long enough that a kill lands between two checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reference(transfer, tmp_path_factory):
    study = tmp_path_factory.mktemp("reference") / "study"
    result = transfer("run", SMOKE, STEPS, "--out", study, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def start(study: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "launch", "run", str(SMOKE), STEPS, "--out", str(study), *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def kill_when(process: subprocess.Popen, condition, seconds: float = 240) -> None:
    """SIGKILL the command as soon as `condition()` holds; its workers must die with it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(
        Path(f"/proc/{child}/status").exists() and "Z (" not in Path(f"/proc/{child}/status").read_text()
        for child in children
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


STAGES = {
    "base": "base/checkpoint-50/COMPLETE",
    "arms/off_policy_sft/seed-0": "arms/off_policy_sft/seed-0/checkpoint-4/COMPLETE",
    "arms/on_policy_sft/seed-0": "arms/on_policy_sft/seed-0/checkpoint-4/COMPLETE",
    "arms/grpo/seed-0": "arms/grpo/seed-0/checkpoint-4/COMPLETE",
    "eval/base": "eval/base/story-native/chunk-0000-*",
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.faults
def test_killed_stage_resumes_to_the_same_report(stage, reference, transfer, tmp_path):
    study = tmp_path / "study"
    kill_when(start(study), lambda: any(study.glob(STAGES[stage])))
    manifest = read_manifest(study / stage)
    assert manifest is not None
    assert manifest["completed"] is None, "the kill came too late to test anything"
    again = transfer("run", SMOKE, STEPS, "--out", study, "--json")
    assert again.returncode == 0, again.stderr
    assert f"resume   {stage}" in again.stderr
    assert json.loads(again.stdout) == reference
    assert read_manifest(study / stage)["resumed"] is True


@pytest.mark.faults
def test_half_written_checkpoint_is_not_resumed_from(reference, transfer, tmp_path):
    """A checkpoint without its marker, newer than the complete ones, as a kill while saving leaves it."""
    study = tmp_path / "study"
    stage = study / "arms" / "grpo" / "seed-0"
    kill_when(start(study), (stage / "checkpoint-4" / "COMPLETE").exists)
    newest = max(int(path.name.rpartition("-")[2]) for path in stage.glob("checkpoint-*"))
    torn = stage / f"checkpoint-{newest + 1}"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"cut')
    again = transfer("run", SMOKE, STEPS, "--out", study, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == reference


@pytest.mark.faults
def test_second_command_on_a_running_study_is_refused(transfer, tmp_path):
    study = tmp_path / "study"
    process = start(study)
    try:
        while not (study / "base" / "manifest.json").exists():
            time.sleep(0.05)
        second = transfer("run", SMOKE, STEPS, "--out", study)
        assert second.returncode == 2
        assert "is being written by another process" in second.stderr
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root on Linux")
@pytest.mark.faults
def test_disk_that_fills_up_is_a_sentence_and_continues_with_room(reference, transfer, tmp_path):
    study = tmp_path / "disk" / "study"
    study.parent.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=210m", "tmpfs", study.parent], check=False)
    if mount.returncode:
        # Containers often withhold the right to mount from root. The refusal of a disk that is full from the start
        # is tested without one, in test_study.py; only filling it up midway needs a real small disk.
        pytest.skip("this container may not mount a small disk")
    try:
        kill_when(start(study), (study / "base" / "manifest.json").exists)
        ballast = study.parent / "ballast"
        with pytest.raises(OSError, match="No space"):
            ballast.write_bytes(bytes(220 << 20))
        full = transfer("run", SMOKE, STEPS, "--out", study)
        assert full.returncode in (1, 2)
        assert "Traceback" not in full.stdout + full.stderr
        assert "free" in full.stdout + full.stderr
        ballast.unlink()
        again = transfer("run", SMOKE, STEPS, "--out", study, "--json")
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout) == reference
    finally:
        subprocess.run(["umount", "-l", study.parent], check=False)
