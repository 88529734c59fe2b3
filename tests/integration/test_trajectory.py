"""Trajectories: tables by value, resumed by checkpoint and benchmark, and the commands on top of them."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.forgetting.curves import gain_curves, read_axes, read_slice, summarise_trajectories
from eval.forgetting.trajectory import checkpoints_of, slice_parts
from recipes.errors import UserError
from recipes.files import read_json_lines
from recipes.loading import load_recipe, load_study
from tests.conftest import ANALYSED
from tests.paths import SMOKE


def table(study, run, step, benchmark):
    return pq.read_table(study / "trajectory" / run / f"step-{step}-{benchmark}.parquet").to_pandas()


def test_every_checkpoint_has_every_benchmark_and_the_same_questions(analysed_study):
    recipe = load_study(analysed_study)
    assert list(checkpoints_of(analysed_study, "grpo", 0)) == [2, 3, 4]
    parts = slice_parts(recipe, analysed_study)
    assert [part.benchmark.name for part in parts] == ["heldout", "sum", "story", "sort", "logic", "copy", "fact"]
    for part in parts:
        wanted = [question.question_id for question in part.questions]
        assert len(wanted) == (8 if part.benchmark.name == "heldout" else 6)
        for run, step in (("base", 0), ("grpo/seed-0", 2), ("off_policy_sft/seed-0", 4)):
            found = table(analysed_study, run, step, part.benchmark.name)
            assert found["question_id"].tolist() == wanted
            assert set(found["value"]) <= {0.0, 1.0}
            assert ((found["value"] == 1) == (found["outcome"] == "correct")).all()
    facts = json.loads((analysed_study / "trajectory" / "grpo" / "seed-0" / "manifest.json").read_text())["facts"]
    assert facts["steps"] == [2, 3, 4]
    assert [facts["engine"][key] for key in ("name", "device", "dtype")] == ["transformers", "cpu", "float32"]


def test_gains_and_axes_by_value(analysed_study, analysed_transfer):
    found = analysed_transfer["trajectory"]["arms"]["grpo"]
    assert found["steps"] == [0, 2, 3, 4]
    for group, names in {"heldout": ["heldout"], "non_reasoning": ["copy", "fact"]}.items():
        base = np.mean([table(analysed_study, "base", 0, name)["value"].mean() for name in names])
        for place, step in ((1, 2), (3, 4)):
            score = np.mean([table(analysed_study, "grpo/seed-0", step, name)["value"].mean() for name in names])
            assert found["gains"][group][place]["estimate"] == pytest.approx(100 * (score - base), abs=1e-3)
        assert found["gains"][group][0]["estimate"] == 0
    ledger = {row["step"]: row for row in read_json_lines(analysed_study / "arms" / "grpo" / "seed-0" / "ledger.jsonl")}
    assert found["axes"]["generated_tokens"] == [0, *(ledger[step]["generated_tokens"] for step in (2, 3, 4))]
    flops = ledger[3]["train_flops"] + ledger[3]["generate_flops"] + ledger[3]["reference_flops"]
    assert found["axes"]["flops"][2] == flops
    drift = {row["step"]: row for row in read_json_lines(analysed_study / "drift" / "grpo" / "seed-0" / "drift.jsonl")}
    assert found["axes"]["kl_from_base"][3] == pytest.approx(drift[4]["kl_from_base"], abs=1e-6)
    assert "gpu_hours" not in found["axes"]  # not in transfer.json: no two runs share it


def test_hours_are_apart_and_grow(analysed_study):
    hours = json.loads((analysed_study / "report" / "hours.json").read_text())
    assert list(hours) == ["off_policy_sft", "on_policy_sft", "grpo"]
    for arm, found in hours.items():
        clock = read_json_lines(analysed_study / "arms" / arm / "seed-0" / "clock.jsonl")
        assert [row["step"] for row in clock] == [1, 2, 3, 4]
        seconds = [row["process_seconds"] for row in clock]
        assert seconds == sorted(seconds)
        assert seconds[0] > 0
        assert found["hours"] == pytest.approx(seconds[-1] / 3600)
        assert found["at_checkpoints"] == pytest.approx([0, *(seconds[step - 1] / 3600 for step in (2, 3, 4))])


def test_what_is_missing_alone_is_asked_again_with_the_same_result(analysed_study, transfer, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(analysed_study, study)
    stage = study / "trajectory" / "grpo" / "seed-0"
    before = {path.name: path.read_bytes() for path in stage.glob("step-*")}
    manifest = json.loads((stage / "manifest.json").read_text())
    (stage / "manifest.json").write_text(json.dumps(manifest | {"completed": None}))
    for name in ("step-3-sort.parquet", "step-4-copy.parquet"):
        (stage / name).unlink()
    marked = stage / "step-2-sum.parquet"
    when = marked.stat().st_mtime_ns
    result = transfer("run", SMOKE, "--out", study, *ANALYSED, "--until", "trajectory")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "resume   trajectory/grpo/seed-0" in result.stdout
    assert {path.name: path.read_bytes() for path in stage.glob("step-*")} == before
    assert marked.stat().st_mtime_ns == when


def test_an_arm_that_starts_from_another_starts_with_what_that_one_gained_and_cost(analysed_study):
    recipe = load_study(analysed_study)
    arms = {name: arm.model_copy(update={"start_from": "off_policy_sft"} if name == "grpo" else {})
            for name, arm in recipe.arms.items()}  # fmt: skip
    chained = recipe.model_copy(update={"arms": arms})
    curves = gain_curves(read_slice(chained, analysed_study), chained)
    assert curves["grpo"].gain_TG[0] == pytest.approx(curves["off_policy_sft"].gain_TG[-1])
    assert curves["grpo"].gain_DTG[:, 0] == pytest.approx(curves["off_policy_sft"].gain_DTG[:, -1])
    before = read_axes(recipe, analysed_study, "off_policy_sft", 0, [4])
    own, after = (read_axes(r, analysed_study, "grpo", 0, [4]) for r in (recipe, chained))
    assert after["flops"] == [before["flops"][-1], before["flops"][-1] + own["flops"][-1]]
    assert after["kl_to_base"] == [before["kl_to_base"][-1], own["kl_to_base"][-1]]


def test_the_command_shows_and_draws_the_curves(analysed_study, transfer, tmp_path):
    figure = tmp_path / "curves.svg"
    result = transfer(
        "trajectory",
        SMOKE,
        *ANALYSED,
        "--out",
        analysed_study,
        "--axis",
        "kl_from_base",
        "--figure",
        figure,
        "--gain",
        "1",
    )
    assert result.returncode == 0, result.stderr
    assert "done     trajectory/grpo/seed-0" in result.stdout
    assert "start" not in result.stdout
    assert "eval/" not in result.stdout  # the whole suite is not asked for
    assert "report" in transfer("status", analysed_study).stdout  # and the study stays the whole one
    assert "at an equal held-out gain of +1.0 points" in result.stdout
    assert figure.read_text().startswith("<svg")
    printed = json.loads(transfer("trajectory", SMOKE, *ANALYSED, "--out", analysed_study, "--json").stdout)
    stored = json.loads((analysed_study / "report" / "transfer.json").read_text())["trajectory"]
    for arm in stored["arms"]:
        assert printed["arms"][arm]["gains"] == stored["arms"][arm]["gains"]
        assert len(printed["arms"][arm]["axes"]["gpu_hours"]) == 4


def test_an_axis_that_was_not_measured(analysed_study, transfer, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(analysed_study, study, ignore=shutil.ignore_patterns("drift", "report"))
    words = [word for word in ANALYSED if not word.startswith("drift")]
    result = transfer(
        "trajectory", SMOKE, *words, "--out", study, "--axis", "kl_to_base", "--figure", tmp_path / "x.svg"
    )
    assert result.returncode == 2
    assert "--axis kl_to_base was not measured" in result.stderr
    assert "(KL needs `drift`)" in result.stderr
    assert not (tmp_path / "x.svg").exists()


def test_pick_names_a_checkpoint_or_the_base(analysed_study, transfer):
    result = transfer("pick", analysed_study, "--max-drop", "100", "--json")
    found = json.loads(result.stdout)
    best = found["choice"]
    assert best == (found["candidates"][0] if found["refused"] else found["proposed"])
    assert len(found["candidates"]) == 1 + 3 * 3
    assert result.returncode == (1 if best["arm"] is None else 0)
    shown = transfer("pick", analysed_study, "--max-drop", "100")
    assert "frontier (half of the slice)" in shown.stdout
    if best["arm"] is not None:
        (line,) = (line for line in shown.stdout.splitlines() if line.startswith("ship "))
        weights = line.split(": ")[1]
        assert (analysed_study.parent / weights / "model.safetensors").is_file()


def test_mistakes_of_pick_and_trajectory(smoke_study, transfer, tmp_path):
    result = transfer("pick", smoke_study)
    assert result.returncode == 2
    assert f"{smoke_study} has no trajectory; add `trajectory: {{}}` to its recipe for good" in result.stderr
    for section, reason in (("arms", "trains no arms"), ("suite", "has no suite")):
        kept = tmp_path / section
        kept.mkdir()
        values = json.loads((smoke_study / "study.json").read_text())
        empty = {"suite": None, "drift": None} if section == "suite" else {"arms": {}}
        (kept / "study.json").write_text(json.dumps(values | empty))
        result = transfer("pick", kept)
        assert (result.returncode, result.stderr) == (2, f"transfer: {kept} {reason}, so there is nothing to pick\n")
    assert transfer("pick", smoke_study, "--max-drop", "-1").stderr.startswith("transfer: --max-drop is -1")
    assert "is not a study" in transfer("pick", tmp_path).stderr
    assert "invalid choice: 'hours'" in transfer("trajectory", SMOKE, "--axis", "hours").stderr
    for words, message in (
        (["trajectory={}", "corpus.heldout_problems=0"], "which is 0"),
        (["trajectory={questions: 1}"], "questions"),
        (
            ["trajectory={}", "suite.engine={kind: endpoint, base_url: 'http://h/v1/completions', model: m}"],
            "hf or vllm",
        ),
        (["diagnostics={prompts: 2}"], "prompts"),
    ):
        with pytest.raises(UserError, match=message):
            load_recipe(SMOKE, words)


def test_summaries_are_the_same_twice(analysed_study):
    recipe = load_study(analysed_study)
    assert summarise_trajectories(recipe, analysed_study) == summarise_trajectories(recipe, analysed_study)
