"""kill -9 in the middle of training, once per trainer: the same command reaches the weights of the smoke study."""

import json
import signal
import time

import pytest
import torch

from recipes.files import read_json_lines
from recipes.manifest import read_manifest
from tests.integration.test_deepspeed import final, study_of, weights
from tests.paths import SMOKE
from tests.support.forked_command import killed_when


@pytest.mark.parametrize("arm", ["off_policy_sft", "grpo"])
def test_killed_training_resumes_to_the_weights_of_a_run_without_a_kill(smoke_study, transfer, tmp_path, arm):
    study, run = study_of(smoke_study, tmp_path / "study"), f"arms/{arm}/seed-0"
    arguments = ["run", str(SMOKE), "--out", str(study), "--until", run]
    with killed_when(study, (study / run / "checkpoint-1" / "COMPLETE").exists):
        killed = transfer(*arguments)
    assert killed.returncode == -signal.SIGKILL, "the study ended before it could be killed"
    time.sleep(0.5)  # its workers die with it
    assert read_manifest(study / run)["completed"] is None, "the kill came too late to test anything"
    again = transfer(*arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resume   {run}" in again.stdout
    assert torch.equal(final(study, arm), final(smoke_study, arm))
    ledgers = [read_json_lines(s / run / "ledger.jsonl") for s in (study, smoke_study)]
    assert json.dumps(ledgers[0]) == json.dumps(ledgers[1])


def test_killed_training_resumes_with_other_micro_batches(smoke_study, transfer, tmp_path):
    """As the out-of-memory message proposes: from the checkpoint, to the same weights up to rounding."""
    arm = "off_policy_sft"
    study, run = study_of(smoke_study, tmp_path / "study"), f"arms/{arm}/seed-0"
    arguments = ["run", str(SMOKE), "--out", str(study), "--until", run]
    with killed_when(study, (study / run / "checkpoint-1" / "COMPLETE").exists):
        killed = transfer(*arguments)
    assert killed.returncode == -signal.SIGKILL, "the study ended before it could be killed"
    time.sleep(0.5)
    again = transfer(*arguments, "train.micro_batch_tokens=128", "train.save_every_steps=2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resume   {run}" in again.stdout
    assert not (study / "replaced").exists()
    manifest = read_manifest(study / run)
    assert (manifest["resumed"], manifest["inputs"]["arm.micro_batch_tokens"]) == (True, 128)
    # Adam's first updates divide a gradient by itself, which enlarges rounding in entries near zero.
    moved = final(smoke_study, arm) - weights(smoke_study / "base")
    assert float((final(study, arm) - final(smoke_study, arm)).norm() / moved.norm()) < 1e-2
    assert len(read_json_lines(study / run / "metrics.jsonl")) == 4
