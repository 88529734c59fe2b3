"""Updates that are longer than the limits: a signal that leaves too little time, and the watch over silent ranks.

A module that Python imports at its start slows the reward down while a file exists; nothing of the product knows of it.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from recipes.files import read_json_lines
from recipes.manifest import read_manifest
from tests.integration.test_deepspeed import final, study_of
from tests.paths import ROOT, SMOKE

SLOW = """
import pathlib, time
import train.rewards
called, count = train.rewards.RecordedReward.__call__, []
def slowly(self, *arguments, **columns):
    count.append(1)
    flag = pathlib.Path({flag!r})
    if len(count) > 2:
        while flag.exists():
            {inside}
            time.sleep(0.05)
    return called(self, *arguments, **columns)
train.rewards.RecordedReward.__call__ = slowly
"""

# What a forward pass does to the heartbeat, without one.
WORKING = "import gc; [beat() for beat in gc.get_objects() if type(beat).__name__ == 'Heartbeat']"


def start(study, folder, inside, *settings, **environment):
    """Start a run whose third update waits while the flag exists."""
    folder.mkdir(exist_ok=True)
    flag = folder / "flag"
    flag.touch()
    (folder / "sitecustomize.py").write_text(SLOW.format(flag=str(flag), inside=inside))
    command = [sys.executable, "-m", "launch", "run", str(SMOKE), "--out", str(study), "resources.workers=1"]
    command += ["train.save_every_steps=2", *settings, "--until", "arms/grpo/seed-0"]
    path = os.pathsep.join([str(folder), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return flag, command, subprocess.Popen(command, cwd=ROOT, env=env, **pipe)


def wait_for_rows(study, process, count):
    ledger, deadline = study / "arms" / "grpo" / "seed-0" / "ledger.jsonl", time.monotonic() + 240
    while len(read_json_lines(ledger)) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(), ("resources.ranks=2", "resources.zero_stage=3")], ids=["alone", "two ranks"])
@pytest.mark.faults
def test_a_signal_that_leaves_no_time_ends_the_run_from_its_last_checkpoint(smoke_study, tmp_path, ranks):
    """The third of four updates never ends; a minute is given. The same command reaches the same weights."""
    study, reference = study_of(smoke_study, tmp_path / "study"), study_of(smoke_study, tmp_path / "reference")
    # Alone, a process ends at its next sign of life; ranks that wait for ever are ended by who started them.
    inside = "pass" if ranks else WORKING
    flag, command, process = start(study, tmp_path / "path", inside, *ranks, TRANSFER_SIGNAL_SECONDS="60")
    wait_for_rows(study, process, 2)
    time.sleep(1)
    begun = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=90)
    assert 50 < time.monotonic() - begun < 60  # the mean update would have fitted, so it was waited for
    assert process.returncode == 75, output
    assert "stopped by SIGUSR1 in the middle of step 3 of 4" in output
    assert "continues from step 2" in output
    assert [p.name for p in (study / "arms" / "grpo" / "seed-0").glob("checkpoint-*")] == ["checkpoint-2"]
    flag.unlink()
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    command[command.index(str(study))] = str(reference)
    whole = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert torch.equal(final(study, "grpo"), final(reference, "grpo"))
    ledgers = [read_json_lines(s / "arms" / "grpo" / "seed-0" / "ledger.jsonl") for s in (study, reference)]
    assert ledgers[0] == ledgers[1]
    assert read_manifest(study / "arms" / "grpo" / "seed-0")["completed"]


@pytest.mark.slow
@pytest.mark.faults
def test_a_rank_that_hangs_is_ended_and_one_that_works_is_not(smoke_study, tmp_path):
    """The limit is half a minute: a whole one of forward passes in one update is no silence, a sleep is."""
    two = ("resources.ranks=2", "resources.silence_minutes=0.5")
    study = study_of(smoke_study, tmp_path / "working")
    flag, _, process = start(study, tmp_path / "one", WORKING, *two)
    wait_for_rows(study, process, 2)
    time.sleep(60)
    assert process.poll() is None
    flag.unlink()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    study = study_of(smoke_study, tmp_path / "hanging")
    _, _, process = start(study, tmp_path / "two", "pass", *two)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "no rank has sent a heartbeat for 0.5 minutes" in output
