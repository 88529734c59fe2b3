"""Two real ranks (gloo, CPU) through the command line: ZeRO-3 gives what one rank without DeepSpeed gives."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.files import read_json_lines
from recipes.loading import load_recipe, load_study
from recipes.manifest import read_manifest
from tests.paths import ROOT, SMOKE

OFF_POLICY_RL = "arms.off_policy_rl={sampling: teacher, credit: advantage, negatives: true}"
ROUNDS = "arms.rounds={sampling: round, credit: uniform, round_steps: 2}"
SHARED = "arms.shared={sampling: current, credit: advantage, negatives: true, updates_per_batch: 2, beta: 0.1}"
VARIES = "varies=[sampling,credit,negatives,beta,round_steps,updates_per_batch]"
TWO_RANKS = ["resources.ranks=2", "resources.workers=1", "--until", "arms"]
SEVERAL = "train.micro_batch_tokens=128"  # the least: an update is several micro-batches, not as many on each rank


def study_of(smoke_study, directory):
    """A study directory with the smoke study's base and corpus, and no arms yet."""
    directory.mkdir(parents=True)
    for name in ("base", "corpus"):
        shutil.copytree(smoke_study / name, directory / name)
    shutil.copy(smoke_study / "study.json", directory)
    return directory


def metrics(study, arm, *names):
    return [[row[name] for name in names] for row in read_json_lines(study / "arms" / arm / "seed-0" / "metrics.jsonl")]


def weights(directory):
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(directory / "model.safetensors").items())])


def final(study, arm):
    return weights(study / "arms" / arm / "seed-0" / "final")


@pytest.fixture(scope="module")
def zero_3(smoke_study, transfer, tmp_path_factory):
    study = study_of(smoke_study, tmp_path_factory.mktemp("zero") / "study")
    arms = [OFF_POLICY_RL, ROUNDS, SHARED, VARIES, "arms.on_policy_sft=null", "train.save_every_steps=2"]
    result = transfer("run", SMOKE, "--out", study, "resources.zero_stage=3", SEVERAL, *arms, *TWO_RANKS)
    assert result.returncode == 0, result.stdout + result.stderr
    return study


@pytest.fixture(scope="module")
def one_rank(smoke_study, transfer, tmp_path_factory):
    """Off-policy RL on one rank, for comparison; the smoke study has the others."""
    study = study_of(smoke_study, tmp_path_factory.mktemp("one") / "study")
    arms = [OFF_POLICY_RL, "arms.on_policy_sft=null", "arms.off_policy_sft=null", "arms.grpo=null"]
    result = transfer("run", SMOKE, "--out", study, *arms, "--until", "arms")
    assert result.returncode == 0, result.stdout + result.stderr
    return study


@pytest.mark.slow
def test_the_engine_is_deepspeeds_at_the_asked_stage(zero_3):
    for arm in ("off_policy_sft", "grpo", "off_policy_rl"):
        facts = read_manifest(zero_3 / "arms" / arm / "seed-0")["facts"]
        assert facts["topology"] == {"ranks": 2, "engine": "DeepSpeedEngine", "zero_stage": 3}
    config = json.loads((zero_3 / "arms" / "grpo" / "seed-0" / "ranks" / "deepspeed.json").read_text())
    assert config["zero_optimization"]["stage"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["off_policy_sft", "off_policy_rl"])
def test_equal_to_one_rank_without_deepspeed(zero_3, one_rank, smoke_study, arm):
    """The same rows in every update, divided by the same number of tokens."""
    reference = smoke_study if arm == "off_policy_sft" else one_rank
    expected, found = metrics(reference, arm, "loss", "grad_norm"), metrics(zero_3, arm, "loss", "grad_norm")
    assert len(found) == 4
    assert max(grad for _, grad in found) > 0
    for left, right in zip(expected, found, strict=True):
        assert right == pytest.approx(left, rel=1e-4, abs=1e-5)
    start = weights(smoke_study / "base")
    moved = final(reference, arm) - start
    assert float(moved.abs().max()) > 1e-3
    # Adam's first updates divide a gradient by itself, which enlarges rounding in entries near zero.
    assert float((final(zero_3, arm) - final(reference, arm)).norm() / moved.norm()) < 1e-2


@pytest.mark.slow
def test_books_of_two_ranks_are_those_of_one(zero_3, one_rank, smoke_study):
    for arm, reference in (("off_policy_sft", smoke_study), ("off_policy_rl", one_rank)):
        ledgers = [read_json_lines(study / "arms" / arm / "seed-0" / "ledger.jsonl") for study in (zero_3, reference)]
        assert ledgers[0] == ledgers[1]
    rows = read_json_lines(zero_3 / "arms" / "grpo" / "seed-0" / "ledger.jsonl")
    expected = read_json_lines(smoke_study / "arms" / "grpo" / "seed-0" / "ledger.jsonl")
    for name in ("presented", "exposures", "completions", "prompt_tokens"):  # samples differ, what is asked does not
        assert [row[name] for row in rows] == [row[name] for row in expected]
    assert float((final(zero_3, "grpo") - weights(smoke_study / "base")).abs().max()) > 1e-3


@pytest.mark.slow
def test_ranks_draw_the_samples_of_a_round_together(zero_3, smoke_study):
    """Four updates of two rounds: every problem of a round has its group, drawn once, and both ranks read the same."""
    run_dir = zero_3 / "arms" / "rounds" / "seed-0"
    recipe = load_study(zero_3)
    rows = read_json_lines(run_dir / "ledger.jsonl")
    tokens = 0
    for number in (0, 1):
        groups = json.loads((run_dir / "rollouts" / f"round-{number}.json").read_text())
        assert len(groups) == 2 * recipe.train.problems_per_step
        assert {len(group) for group in groups} == {recipe.train.completions_per_problem}
        assert len({str(ids) for group in groups for ids in group}) > len(groups)  # no rank copies another's
        tokens += sum(len(ids) for group in groups for ids in group)
        assert rows[2 * number + 1]["generated_tokens"] == tokens
    assert rows[-1]["completions"] == 4 * recipe.train.problems_per_step * recipe.train.completions_per_problem
    assert float((final(zero_3, "rounds") - weights(smoke_study / "base")).abs().max()) > 1e-4


@pytest.mark.slow
def test_old_and_reference_log_probabilities_are_those_of_the_policy(zero_3, smoke_study):
    """They are computed in micro-batches that differ between the ranks. KL and ratio are exactly those of no change in
    the first update of a run, and not in the later ones."""
    rows = metrics(zero_3, "shared", "kl", "clip_ratio/region_mean", "loss")
    assert rows[0][:2] == [pytest.approx(0, abs=1e-6), 0.0]
    assert [kl > 1e-5 for kl, *_ in rows[1:]] == [True] * 3
    assert rows[1][1] > 0
    assert float((final(zero_3, "shared") - weights(smoke_study / "base")).abs().max()) > 1e-4


@pytest.mark.slow
def test_saved_weights_load_like_any_checkpoint(zero_3):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(zero_3 / "arms" / "grpo" / "seed-0" / "final")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_remainder_is_refused_with_the_numbers(smoke_study, transfer, tmp_path):
    study = study_of(smoke_study, tmp_path / "study")
    settings = ["resources.ranks=3", "resources.workers=1"]
    result = transfer("run", SMOKE, "--out", study, *settings, "--until", "arms/grpo/seed-0")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "a step has 32 completions, which 3 ranks do not divide" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_offload_needs_deepspeed(transfer):
    offload = transfer("plan", SMOKE, "resources.offload=true")
    assert "`offload: true` needs `zero_stage` 2 or 3" in offload.stderr
    assert load_recipe(SMOKE, ["resources.zero_stage=2", "resources.offload=true"]).resources.launched


# Longer: make test-slow


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["resources.zero_stage=0"],
        ["resources.zero_stage=2"],
        ["resources.zero_stage=2", "resources.offload=true"],
        ["resources.zero_stage=3", "resources.offload=true"],
    ],
    ids=lambda settings: " ".join(setting.rpartition(".")[2] for setting in settings),
)
@pytest.mark.faults
def test_other_topologies_give_the_same(smoke_study, transfer, tmp_path, settings):
    study = study_of(smoke_study, tmp_path / "study")
    arms = ["arms.on_policy_sft=null", "arms.grpo=null"]
    result = transfer("run", SMOKE, "--out", study, *settings, SEVERAL, *arms, *TWO_RANKS)
    assert result.returncode == 0, result.stdout + result.stderr
    for left, right in zip(
        metrics(smoke_study, "off_policy_sft", "loss"), metrics(study, "off_policy_sft", "loss"), strict=True
    ):
        assert right == pytest.approx(left, rel=1e-5)
    stored, expected = (
        load_file(directory / "arms/off_policy_sft/seed-0/final/model.safetensors")
        for directory in (study, smoke_study)
    )
    assert stored.keys() == expected.keys()  # the tied embedding once


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.faults
def test_adapters_of_two_ranks_are_those_of_one(smoke_study, transfer, tmp_path, stage):
    """GRPO's trainer with adapters, in several micro-batches and in one."""
    arms = [OFF_POLICY_RL, *(f"arms.{name}=null" for name in ("on_policy_sft", "off_policy_sft", "grpo"))]
    arms += ["train.lora={rank: 4, alpha: 8}", "train.learning_rate=0.01"]
    several = [SEVERAL, f"resources.zero_stage={stage}", *TWO_RANKS]
    studies = []
    for name, settings in (("one", ["--until", "arms"]), ("two", several)):
        studies.append(study_of(smoke_study, tmp_path / name))
        result = transfer("run", SMOKE, "--out", studies[-1], *arms, *settings)
        assert result.returncode == 0, result.stdout + result.stderr
    expected, found = (metrics(study, "off_policy_rl", "loss", "grad_norm") for study in studies)
    assert [norm > 0 for _, norm in expected] == [True] * 4
    for left, right in zip(expected, found, strict=True):
        assert right == pytest.approx(left, rel=1e-3, abs=1e-5)
    one, two = (final(study, "off_policy_rl") for study in studies)
    assert float((two - one).norm() / (one - weights(smoke_study / "base")).norm()) < 1e-2


def start_and_wait_for_checkpoint(study, arm, *settings):
    """Start a ZeRO-3 run in a session of its own and wait until it has a complete checkpoint beyond the first."""
    command = [sys.executable, "-m", "launch", "run", str(SMOKE), "--out", str(study), "train.steps=30", *settings]
    command += ["resources.zero_stage=3", "resources.ranks=2", "resources.workers=1", SEVERAL]
    command += ["--until", f"arms/{arm}/seed-0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 240
    run_dir = study / "arms" / arm / "seed-0"
    while not any(int(p.parent.name.rpartition("-")[2]) >= 3 for p in run_dir.glob("checkpoint-*/COMPLETE")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process, command, run_dir


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["off_policy_sft", "grpo"])
@pytest.mark.faults
def test_kill_and_resume_of_two_ranks(smoke_study, tmp_path, arm):
    reference = study_of(smoke_study, tmp_path / "reference")
    process, command, _ = start_and_wait_for_checkpoint(reference, arm)
    assert process.wait(240) == 0
    study = study_of(smoke_study, tmp_path / "study")
    process, command, run_dir = start_and_wait_for_checkpoint(study, arm)
    # The stage comes from the saved optimizer state, not from what was asked for.
    (path, *_) = sorted(run_dir.glob("checkpoint-*/global_step*/*optim_states.pt"))
    state = torch.load(path, weights_only=False)
    assert state["optimizer_state_dict"]["zero_stage"] == 3
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    assert not subprocess.run(
        ["pgrep", "-f", f"launch.execution.ranks {study}"], capture_output=True, check=False
    ).stdout
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resume" in again.stdout
    assert torch.equal(final(study, arm), final(reference, arm))
    ledgers = [read_json_lines(s / "arms" / arm / "seed-0" / "ledger.jsonl") for s in (study, reference)]
    assert ledgers[0] == ledgers[1]


@pytest.mark.slow
@pytest.mark.faults
def test_killed_rank_ends_the_run_with_a_sentence(smoke_study, tmp_path):
    study = study_of(smoke_study, tmp_path / "study")
    process, _, _ = start_and_wait_for_checkpoint(study, "off_policy_sft", "train.steps=400")
    ranks = subprocess.run(
        ["pgrep", "-f", f"launch.execution.ranks {study}"], capture_output=True, text=True, check=True
    )
    pids = [int(pid) for pid in ranks.stdout.split()]
    victims = [pid for pid in pids if b"accelerate" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(max(victims), signal.SIGKILL)
    begun = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun < 60
    assert process.returncode == 1
    # Whoever notices first tells: the launcher, or the other rank, which lost its connection.
    assert re.search(r"FAILED   arms/off_policy_sft/seed-0 .*(another rank was lost|ranks was killed)", output), output
    left = subprocess.run(
        ["pgrep", "-f", f"launch.execution.ranks {study}"], capture_output=True, text=True, check=False
    )
    assert left.stdout == ""
