"""SIGTERM and SIGUSR1: training ends at an update with a checkpoint, says so, and goes on to the same weights."""

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

STOPPED = 75


def start(study, *settings):
    command = [sys.executable, "-m", "launch", "run", str(SMOKE), "--out", str(study), "train.steps=16"]
    command += ["train.save_every_steps=100", "resources.workers=1", *settings]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return command, subprocess.Popen(command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, **pipe)


def stopped_and_resumed(smoke_study, tmp_path, number, arm, *settings):
    """Send a signal (None: `transfer cancel`, and `resume` after it) after the second update; the interrupted run, how
    it ended, and a run without interruption.
    """
    settings = (*settings, "--until", f"arms/{arm}/seed-0")
    reference = study_of(smoke_study, tmp_path / "reference")
    command, process = start(reference, *settings)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    study = study_of(smoke_study, tmp_path / "study")
    command, process = start(study, *settings)
    ledger = study / "arms" / arm / "seed-0" / "ledger.jsonl"
    deadline = time.monotonic() + 300
    while len(read_json_lines(ledger)) < 2:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if number is None:  # by the commands a user has for it
        command = [sys.executable, "-m", "launch", "resume", str(study)]
        told = subprocess.run(
            [*command[:3], "cancel", str(study)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert told.stdout == f"told process {process.pid} to save and stop\n"
    else:
        process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == STOPPED, output
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resume" in again.stdout
    return study, output, reference


def check(study, output, reference, arm, name):
    assert f"stopped by {name} after step" in output
    assert "the same command continues" in output
    assert "Traceback" not in output
    assert torch.equal(final(study, arm), final(reference, arm))
    ledgers = [read_json_lines(s / "arms" / arm / "seed-0" / "ledger.jsonl") for s in (study, reference)]
    assert ledgers[0] == ledgers[1]
    assert read_manifest(study / "arms" / arm / "seed-0")["completed"]


@pytest.mark.slow
def test_signal_saves_and_the_run_continues_to_the_same_weights(smoke_study, tmp_path):
    found = stopped_and_resumed(smoke_study, tmp_path, None, "grpo")
    check(*found, "grpo", "SIGTERM")
    cancel = [sys.executable, "-m", "launch", "cancel", str(found[0])]
    again = subprocess.run(cancel, cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout == f"nothing of {found[0]} is running or queued\n"  # its process has ended


@pytest.mark.slow
@pytest.mark.faults
def test_signal_inside_a_shared_sampling_waits_for_its_last_update(smoke_study, tmp_path):
    lever = ("arms.grpo.updates_per_batch=4", "varies=[sampling,credit,negatives,updates_per_batch]")
    found = stopped_and_resumed(smoke_study, tmp_path, signal.SIGTERM, "grpo", *lever)
    check(*found, "grpo", "SIGTERM")


@pytest.mark.slow
@pytest.mark.faults
def test_signal_before_the_first_update_is_not_lost(smoke_study, tmp_path):
    study = study_of(smoke_study, tmp_path / "study")
    _, process = start(study, "--until", "arms/grpo/seed-0")
    while not (study / "arms" / "grpo" / "seed-0" / "manifest.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == STOPPED, output
    assert "stopped by SIGTERM after step 1 of 16" in output


@pytest.mark.slow
def test_two_ranks_without_deepspeed_stop_and_continue(smoke_study, tmp_path):
    ranks = ("resources.zero_stage=0", "resources.ranks=2")
    found = stopped_and_resumed(smoke_study, tmp_path, signal.SIGTERM, "off_policy_sft", *ranks)
    check(*found, "off_policy_sft", "SIGTERM")


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["off_policy_sft", "grpo"])
@pytest.mark.faults
def test_two_ranks_stop_at_the_same_update(smoke_study, tmp_path, arm):
    ranks = ("resources.zero_stage=3", "resources.ranks=2")
    found = stopped_and_resumed(smoke_study, tmp_path, signal.SIGUSR1, arm, *ranks)
    check(*found, arm, "SIGUSR1")
