"""Rehearsals of a large recipe, as a user runs them: on this machine, through Slurm, killed, and one that fails."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from launch.stages import build_stages
from recipes.loading import load_recipe, load_study
from recipes.manifest import read_manifest
from tests.paths import ROOT
from tests.support.slurm_cluster import SlurmCluster, why_not

RECIPE = "recipes/qwen3-1.7b/matched.yaml"
ONE_ARM = ("arms.on_policy_sft=null", "arms.grpo=null", "drift=null", "trajectory=null", "diagnostics=null",
           "analysis={}")  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rehearsed(transfer, tmp_path_factory):
    """A rehearsal of the whole recipe: its folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("rehearsal") / "out"
    result = transfer("rehearse", RECIPE, "--synthetic-data", "--out", folder)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    return folder, result.stdout


def test_every_stage_of_the_recipe_passes(rehearsed):
    folder, printed = rehearsed
    outcome = json.loads((folder / "rehearsal.json").read_text())
    wanted = [stage.name for stage in build_stages(load_recipe(ROOT / RECIPE))]
    assert [row["stage"] for row in outcome["stages"]] == wanted
    assert {row["verdict"] for row in outcome["stages"]} == {"passed"}
    assert f"rehearsed: all {len(wanted)} stages passed" in printed.splitlines()[-2]
    assert all(row["host_bytes"] > 100e6 for row in outcome["stages"])


def test_what_was_scaled_and_what_was_missing_is_printed(rehearsed):
    _, printed = rehearsed
    assert "train.steps                               100 -> 2" in printed
    assert "prompt.max_completion_tokens              3072 -> 48" in printed
    assert "GPU kernels and arithmetic" in printed
    assert "the teacher's server: a stand-in on this machine" in printed


def test_arms_learn_from_rewards(rehearsed):
    study = rehearsed[0] / "study"
    base = load_file(study / "base/model.safetensors")
    for arm in ("off_policy_sft", "on_policy_sft", "grpo"):
        run = study / "arms" / arm / "seed-0"
        final = load_file(run / "final/model.safetensors")
        assert any(not base[name].equal(tensor) for name, tensor in final.items()), f"{arm} did not move"
        rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2]
        assert rows[-1]["trained_tokens"] > 0


def test_the_study_is_marked_as_a_rehearsal(rehearsed):
    study = rehearsed[0] / "study"
    assert load_study(study).rehearsal is True
    transfer = json.loads((study / "report/transfer.json").read_text())
    assert transfer["status"] == "REHEARSAL"
    assert transfer["warnings"][0]["message"].startswith("REHEARSAL: the models are tiny and random")
    assert '<p class="rehearsal" role="alert">REHEARSAL.' in (study / "report/index.html").read_text()
    assert "so nothing is concluded" in (study / "report/summary.md").read_text()
    assert (study / "report/summary.md").read_text().startswith("# REHEARSAL of SFT and RL from Qwen3-1.7B-Base")
    for figure in (study / "report/figures").glob("*.svg"):
        assert ">REHEARSAL<" in figure.read_text(), figure


@pytest.mark.parametrize("command", [("pick", "--max-drop", "5"), ("compare",), ("sync", "--offline")])
def test_nothing_is_concluded_from_a_rehearsal(rehearsed, transfer, command):
    result = transfer(command[0], rehearsed[0] / "study", *command[1:])
    assert result.returncode == 2
    assert "is a rehearsal: its models are tiny and random; name a study that was run" in result.stderr


def test_its_weights_are_no_models(rehearsed, transfer, tmp_path):
    trained = rehearsed[0] / "study/arms/grpo/seed-0/final"
    result = transfer("eval", "--base", trained, "--model", trained, "--suite", "recipes/pocket/smoke.yaml",
                      "--out", tmp_path / "out")  # fmt: skip
    assert result.returncode == 2
    assert "is a tiny random model of `transfer rehearse`" in result.stdout + result.stderr


def test_a_rehearsal_that_fails_names_the_stage_and_the_remedy(transfer, tmp_path):
    result = transfer("rehearse", RECIPE, "--synthetic-data", "--out", tmp_path / "out", *ONE_ARM,
                      "suite.max_prompt_tokens=16")  # fmt: skip
    assert result.returncode == 1
    last = result.stdout.splitlines()[-2]
    assert "not rehearsed: eval/base failed after 4 of 7 stages: the prompt of question" in last
    assert "suite.max_prompt_tokens is 16; raise it" in last
    rows = {row["stage"]: row for row in json.loads((tmp_path / "out/rehearsal.json").read_text())["stages"]}
    assert (rows["report"]["verdict"], rows["report"]["reason"][:15]) == ("not run", "needs eval/base")


def test_killed_stages_continue(transfer, tmp_path):
    arms = ("arms.on_policy_sft=null", *ONE_ARM[2:])
    result = transfer("rehearse", RECIPE, "--synthetic-data", "--faults", "--out", tmp_path / "out", *arms)
    assert result.returncode == 0, result.stdout[-4000:]
    outcome = json.loads((tmp_path / "out/rehearsal.json").read_text())
    killed = {row["stage"]: row["resumed"] for row in outcome["stages"] if row["resumed"] is not None}
    assert killed == {"arms/off_policy_sft/seed-0": True, "arms/grpo/seed-0": True}
    facts = read_manifest(tmp_path / "out/study/corpus")["facts"]
    assert facts["demonstrations_that_fit"] < sum(facts["demonstrations"].values())  # one was cut


def test_without_a_lock_the_command_says_how_to_go_on(transfer, tmp_path):
    result = transfer("rehearse", RECIPE, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "not resolved" in result.stderr
    assert "--synthetic-data" in result.stderr
    assert not (tmp_path / "out").exists()
    result = transfer("rehearse", RECIPE, "--synthetic-data", "--faults", "--on", "slurm", "--out", tmp_path / "out")
    assert (result.returncode, "leave out --on slurm" in result.stderr) == (2, True)


@pytest.mark.skipif(why_not() is not None, reason=f"no Slurm cluster can be started: {why_not()}")
def test_through_slurm_on_two_nodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    cluster = SlurmCluster(folder / "slurm")
    site = folder / "site.yaml"
    site.write_text("environment: {OMP_NUM_THREADS: '1'}\nsignal_seconds: 60\n")
    try:
        cluster.start()
        environment = {**os.environ, **cluster.environment, "PYTHONPATH": str(ROOT), "TRANSFER_SITE": str(site)}
        command = [sys.executable, "-m", "launch", "rehearse", RECIPE, "--synthetic-data", "--on", "slurm", "--ranks",
                   "2", "resources.nodes=2", "resources.ranks=8", "resources.zero_stage=3", "--out",
                   str(folder / "out")]  # fmt: skip
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    finally:
        cluster.stop()
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    outcome = json.loads((folder / "out/rehearsal.json").read_text())
    assert outcome["passed"] is True
    assert "resources.ranks 8: 2 trained" in outcome["not_rehearsed"]
    for arm in ("off_policy_sft", "on_policy_sft", "grpo"):
        directory = folder / "out/study/arms" / arm / "seed-0"
        assert read_manifest(directory)["facts"]["topology"]["zero_stage"] == 3
        assert json.loads((directory / "ranks/accelerate.json").read_text())["num_machines"] == 2
