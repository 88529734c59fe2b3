"""The whole smoke study through the command line: what it writes, what a rerun does, what bad input says."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.drawing import label
from launch.execution.failures import recorded
from recipes.files import locked
from recipes.manifest import read_manifest
from tests.paths import RECIPES, ROOT, SMOKE
from tests.support.reports import gain_shown


def test_study_directory_holds_the_contract(smoke_study):
    for name in (
        "study.json",
        "corpus/problems.parquet",
        "corpus/demonstrations.parquet",
        "corpus/rejects.jsonl",
        "base/model.safetensors",
        "base/generation_config.json",
        "arms/grpo/seed-0/final/model.safetensors",
        "arms/grpo/seed-0/metrics.jsonl",
        "arms/grpo/seed-0/ledger.jsonl",
        "analysis.lock",
        "questions/sum.jsonl.zst",
        "eval/grpo-seed0-final/sum-native/scores-robust.parquet",
        "eval/grpo-seed0-final/sum-native/scores-paper.parquet",
        "report/transfer.json",
        "report/index.html",
        "report/figures/gains.svg",
    ):
        assert (smoke_study / name).is_file(), name
    assert len(list((smoke_study / "eval/grpo-seed0-final/sum-native").glob("chunk-0000-*.jsonl.zst"))) == 1
    stop_ids = json.loads((smoke_study / "base" / "generation_config.json").read_text())["eos_token_id"]
    assert len(set(stop_ids)) == 2
    leftovers = [
        path for path in smoke_study.rglob("*") if path.suffix == ".tmp" or path.name.startswith("checkpoint-")
    ]
    assert leftovers == []


def test_transfer_json_agrees_with_the_stored_scores(smoke_study, smoke_transfer):
    for arm in ("off_policy_sft", "on_policy_sft", "grpo"):
        for benchmark, result in smoke_transfer["arms"][arm]["benchmarks"].items():
            unit = smoke_study / "eval" / f"{arm}-seed0-final" / f"{benchmark}-native"
            accuracy = 100 * np.mean(pq.read_table(unit / "scores-robust.parquet")["value"].to_pylist())
            assert result["score"]["estimate"] == pytest.approx(accuracy, abs=1e-3)
            base = smoke_transfer["base"]["benchmarks"][benchmark]["score"]["estimate"]
            assert result["gain"]["estimate"] == pytest.approx(accuracy - base, abs=2e-3)
        for group, names in smoke_transfer["groups"].items():
            gains = [smoke_transfer["arms"][arm]["benchmarks"][name]["gain"]["estimate"] for name in names]
            assert smoke_transfer["arms"][arm]["groups"][group]["estimate"] == pytest.approx(np.mean(gains), abs=2e-3)


def test_untrained_miniature_is_not_identified_and_says_so(smoke_transfer):
    """Four updates do not improve math; an index here would be an invention."""
    for result in smoke_transfer["arms"].values():
        if not (result["groups"]["math"]["low"] > 0 or result["groups"]["math"]["high"] < 0):
            for cells in result["index"].values():
                assert all(cell["interval"] is None for cell in cells.values())
                assert all(cell["status"] == "not identified" for cell in cells.values())


def test_page_is_self_contained_and_escaped(smoke_study, smoke_transfer):
    page = (smoke_study / "report" / "index.html").read_text()
    assert page.count("<svg") == 5
    # Nothing is loaded from anywhere: no source, import or link to another file. (SVG namespaces are only names.)
    assert not re.search(r"<(script|link|img|iframe)|@import|url\((?!#)|(src|href)=\"(?!#)", page)
    for arm, result in smoke_transfer["arms"].items():
        value = result["groups"]["math"]
        assert gain_shown(value) in page
        assert label(arm) in page


def test_title_cannot_become_markup(smoke_study, smoke_transfer):
    from eval.report.build import training_curves
    from eval.report.page import draw_figures, render_page
    from eval.report.schema import Transfer
    from recipes.loading import load_study

    recipe = load_study(smoke_study)
    report = Transfer.model_validate(smoke_transfer | {"title": "<script>x</script>"})
    figures = draw_figures(report, training_curves(recipe, smoke_study), {})
    page = render_page(report, recipe, figures, {})
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_rerun_does_nothing_and_report_and_check_print(smoke_study, smoke_transfer, transfer):
    before = {path: path.stat().st_mtime_ns for path in smoke_study.rglob("manifest.json")}
    again = transfer("run", SMOKE, "--out", smoke_study)
    assert again.returncode == 0
    assert "start" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in smoke_study.rglob("manifest.json")} == before
    assert json.loads(transfer("report", SMOKE, "--out", smoke_study, "--json").stdout) == smoke_transfer
    assert "gains in points" in transfer("report", SMOKE, "--out", smoke_study).stdout
    check = transfer("check", SMOKE, "--out", smoke_study, "--json")
    assert check.returncode == 0
    assert json.loads(check.stdout) == {
        "study": "smoke",
        "matched": True,
        "differences": {"recipe": [], "runs": []},
        "attention": {arm: ["sdpa"] for arm in ("off_policy_sft", "on_policy_sft", "grpo")},
        "unknown_lineage": [],
        "hardware": [],
    }


def test_changed_input_is_named_and_the_old_result_kept(smoke_study, smoke_transfer, transfer, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(smoke_study, study)
    result = transfer("run", SMOKE, "statistics.draws=500", "--out", study)
    assert result.returncode == 0, result.stderr
    assert "recipe   statistics.draws: 1000 -> 500" in result.stdout
    assert "changed  report (statistics.draws: 1000 -> 500)" in result.stdout
    assert result.stdout.count("start ") == 1
    (kept,) = (study / "replaced").iterdir()
    assert json.loads((kept / "transfer.json").read_text()) == smoke_transfer


@pytest.mark.slow
def test_second_study_gives_identical_scores(smoke_transfer, transfer, tmp_path):
    result = transfer("run", SMOKE, "--out", tmp_path / "study", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == smoke_transfer


def test_dry_run_and_plan_write_nothing_and_import_no_torch(tmp_path):
    code = (
        "import sys; from launch.commands.main import main; "
        f"status = main({['run', str(SMOKE), '--dry-run', '--json', '--out', str(tmp_path / 's')]!r}); "
        "heavy = {'torch', 'transformers', 'trl', 'lm_eval', 'datasets'} & set(sys.modules); "
        "sys.exit(f'{heavy}' if heavy else status)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert plan["recipe"]["study"] == "smoke"
    assert [stage["state"] for stage in plan["stages"]] == ["new"] * 11
    assert plan["arms"]["grpo"]["completions"] == 128
    assert plan["responses_at_most"] == 4 * 6 * 10 * 2
    assert not (tmp_path / "s").exists()


BAD_INPUT = [
    (["run", "recipes/pocket/absent.yaml"], "does not exist"),
    (["run", str(SMOKE), "train.stepz=1"], "did you mean `train.steps`?"),
    (["run", str(SMOKE), "suite.benchmarks.0.name=summ"], "has no task file"),
    (["run", "recipes/corpora/math_train_file.yaml", "corpus.sources.0.path=/absent.jsonl"], "does not exist"),
    (["run", str(SMOKE), "arms.grpo.steps=2"], "are unmatched"),
    (["run", str(SMOKE), "--until", "evall"], "is neither a kind of stage nor a stage"),
    (["check", str(SMOKE), "arms.grpo.problem_set=all"], None),
    (["plan", str(SMOKE), "arms.grpo.problem_set=all"], None),
    (["run", "--dry-run", str(SMOKE), "arms.grpo.problem_set=all"], None),
    (["report", str(SMOKE), "--out", "/absent"], "no finished report"),
    (["run", str(SMOKE), "--quick"], "unknown option --quick"),
    (["plan", str(SMOKE), "arms.grp.beta=0.1"], "arms.grp is not an arm of this recipe; did you mean arms.grpo?"),
    (["plan", str(SMOKE), "corpus.train_problems=9000"], "train_problems is 9000 but the synthetic world has 4000"),
    (["run", str(SMOKE), "--dry-run", "model={path: ./nowhere}"], "./nowhere is neither a directory nor"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=[" ".join(a[-1:]) for a, _ in BAD_INPUT])
def test_bad_input_is_a_sentence_and_status_2(arguments, message, transfer, tmp_path):
    out = tmp_path / "study"
    result = transfer(*arguments, *([] if "--out" in arguments else ["--out", out]))
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    if message is None:
        assert "UNMATCHED" in result.stdout
    else:
        assert message in result.stderr
    assert not out.exists()


def test_plan_of_an_unmatched_study_that_may_run_succeeds(transfer, tmp_path):
    result = transfer("plan", SMOKE, "arms.grpo.problem_set=all", "unmatched=stamp", "--out", tmp_path / "s")
    assert result.returncode == 0
    assert "UNMATCHED" in result.stdout


def test_too_short_completions_are_refused_before_pretraining(transfer, tmp_path):
    result = transfer("run", SMOKE, "prompt.max_completion_tokens=20", "--out", tmp_path / "study")
    assert result.returncode == 2
    assert "prompt.max_completion_tokens is 20; raise it" in result.stdout
    assert not (tmp_path / "study" / "base" / "metrics.jsonl").exists()


def test_report_of_another_study_is_not_shown(smoke_study, transfer):
    result = transfer("report", SMOKE, "study=other", "--out", smoke_study)
    assert result.returncode == 2
    assert "holds the study 'smoke', not 'other'" in result.stderr
    assert result.stdout == ""


def test_stage_by_other_code_is_kept_and_pointed_out(smoke_study, transfer, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(smoke_study, study)
    path = study / "arms" / "grpo" / "seed-0" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": "0123456789ab"}))
    result = transfer("run", SMOKE, "--out", study)
    assert result.returncode == 0
    assert "done     arms/grpo/seed-0 (by an earlier version of the code" in result.stdout
    assert "done     arms/on_policy_sft/seed-0\n" in result.stdout
    check = transfer("check", SMOKE, "--out", study)
    assert check.returncode == 2
    assert "seed 0, code: " in check.stdout


def test_directory_of_another_study_or_of_something_else(smoke_study, transfer, tmp_path):
    other = transfer("run", SMOKE, "study=other", "--out", smoke_study)
    assert other.returncode == 2
    assert "holds the study 'smoke', not 'other'" in other.stderr
    (tmp_path / "thesis.tex").write_text("precious")
    below = transfer("run", SMOKE, "--out", tmp_path / "thesis.tex" / "x")
    assert below.returncode == 2
    assert "thesis.tex is a file; choose another --out" in below.stderr
    assert "Traceback" not in below.stderr
    foreign = transfer("run", SMOKE, "--out", tmp_path)
    assert foreign.returncode == 2
    assert "is not empty and is not a study directory" in foreign.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_directory_of_a_run_killed_before_its_study_file_was_in_place(tmp_path):
    from launch.execution.local import check_study_dir
    from recipes.errors import UserError
    from recipes.loading import load_recipe

    (tmp_path / ".lock").touch()
    (tmp_path / ".study.json.7067.tmp").write_text("{")
    check_study_dir(load_recipe(SMOKE), tmp_path)
    (tmp_path / "notes.tmp").touch()
    with pytest.raises(UserError, match="is not a study directory"):
        check_study_dir(load_recipe(SMOKE), tmp_path)


def test_stage_that_fails_for_bad_data_is_a_sentence(transfer, tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"question": "1+1?", "answer": "2"}\n')
    study = tmp_path / "study"
    recipe = RECIPES / "corpora" / "math_train_file.yaml"
    result = transfer("run", recipe, "--until", "corpus", f"corpus.sources.0.path={source}", "--out", study)
    assert result.returncode == 2
    assert "has no column 'problem'; it has answer, question" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not (study / "corpus" / "problems.parquet").exists()


def test_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    import shutil as real
    from collections import namedtuple

    from launch.execution.local import check_study_dir
    from recipes.errors import UserError
    from recipes.loading import load_recipe

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(real, "disk_usage", lambda path: usage(10, 10, 5 << 20))
    with pytest.raises(UserError, match="5 MB free but a study needs at least"):
        check_study_dir(load_recipe(SMOKE), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_damaged_study_file_is_a_sentence(smoke_study, transfer, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(smoke_study, study)
    (study / "study.json").write_text('{"study": "sm')
    result = transfer("run", SMOKE, "--out", study)
    assert result.returncode == 2
    assert "study.json cannot be read" in result.stderr
    assert "Traceback" not in result.stderr
    assert (study / "base" / "model.safetensors").exists()


def test_refused_second_command_changes_nothing(smoke_study, transfer):
    before = (smoke_study / "study.json").read_bytes()
    with locked(smoke_study):
        second = transfer("run", SMOKE, "train.steps=99", "--out", smoke_study)
    assert second.returncode == 2
    assert "is being written by another process" in second.stderr
    assert (smoke_study / "study.json").read_bytes() == before


def test_report_says_when_it_is_not_of_this_recipe(smoke_study, transfer):
    result = transfer("report", SMOKE, "seeds=[0,1]", "--out", smoke_study)
    assert result.returncode == 0
    assert "the recipe has changed since this report was made (" in result.stderr
    assert transfer("report", SMOKE, "--out", smoke_study).stderr == ""


@pytest.mark.slow
def test_interrupt_stops_at_once_and_names_the_stage(tmp_path):
    study = tmp_path / "study"
    command = [sys.executable, "-m", "launch", "run", str(SMOKE), "model.pocket.documents=150000", "--out", str(study)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with the interrupt ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (study / "base" / "metrics.jsonl").exists():  # well inside the stage
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all processes
        _, errors = process.communicate(timeout=20)  # the stage itself would take minutes
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopped while running base. Finished stages are kept" in errors
    assert f"To continue: the same command, or `transfer resume {study}`" in errors
    said = recorded(study, "base")
    assert said is not None and said["message"] == "stopped by Ctrl-C"
    with locked(study / ".locks" / "base"):  # no worker is left that writes there
        pass


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["plan", "--help"]])
def test_help(arguments, transfer):
    result = transfer(*arguments)
    assert result.returncode == 0
    assert "recipe" in result.stdout.lower()


def test_a_study_beside_another_takes_over_what_both_share(smoke_study, transfer, tmp_path):
    """Up to the base's evaluation nothing is left to do; the corpus, which that does not need, is in the plan."""
    shutil.copytree(smoke_study, tmp_path / "old")
    arguments = ["run", SMOKE, "arms.grpo.beta=0.04", "--out", tmp_path / "new", "--until", "eval/base"]
    result = transfer(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"reused   base, questions, eval/base of {tmp_path / 'old'} (--no-reuse" in result.stdout
    assert "start " not in result.stdout
    for name in ("base", "questions", "eval/base"):
        before, after = (read_manifest(tmp_path / study / name) for study in ("old", "new"))
        assert after == before | {"reused_from": "../old"}
    assert "reused" not in transfer(*arguments).stdout
    kept = transfer("plan", SMOKE, "--out", tmp_path / "third", "--no-reuse", "--json")
    assert {stage["state"] for stage in json.loads(kept.stdout)["stages"]} == {"new"}
    planned = transfer("plan", SMOKE, "--out", tmp_path / "third", "--json")
    states = {stage["name"]: stage["state"] for stage in json.loads(planned.stdout)["stages"]}
    assert [name for name, state in states.items() if state == "reused"] == ["base", "corpus", "questions", "eval/base"]
