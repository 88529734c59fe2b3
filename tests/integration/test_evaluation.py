"""The evaluation: what the harness asks and keeps, chunks that are asked once, scores that can be recomputed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import zstandard

from data.corpus.rows import read_problems
from data.pocket_world import benchmark_questions
from data.prompts.prompt import load_tokenizer, render_prompt
from eval.questions import build as questions
from eval.questions.build import load_questions
from eval.questions.task_files import task_folder
from eval.responses import generate
from eval.responses.claims import Claims
from eval.responses.readings import read_benchmark_scores, reading_cells
from eval.responses.rescore import parse_rescorings, rescore
from eval.responses.units import chunk_seed, open_units, weights_hash
from eval.scorers.records import mean_score, read_scores, write_scores
from eval.scorers.rules import score_rows
from launch.execution.replicas import work
from launch.stages import build_stages, stage_inputs
from recipes.errors import UserError
from recipes.files import write_json
from recipes.loading import load_recipe, load_study
from recipes.manifest import finish_stage, read_manifest, start_stage
from tests.paths import ROOT, SMOKE

GRPO = "grpo-seed0-final"


def units_of(study, label="base", recipe=None):
    model_dir = read_manifest(study / "eval" / label)["facts"]["model"]
    return {
        unit.name: unit for unit in open_units(recipe or load_study(study), study, study / "eval" / label, model_dir)
    }


def copy_of(study, target):
    """A study that can be changed; weights are linked."""
    target.mkdir()
    for name in ("study.json", "analysis.lock"):
        shutil.copy(study / name, target / name)
    for name in ("eval", "report", "questions"):
        shutil.copytree(study / name, target / name)
    for name in ("base", "corpus", "arms"):
        (target / name).symlink_to(study / name)
    return target


def evaluate(recipe, study, target, label="base", model_dir="base"):
    """Questions and one model's evaluation of a recipe, in a fresh folder over a study's base and corpus."""
    target.mkdir(exist_ok=True)
    for name in ("base", "corpus"):
        if not (target / name).exists():
            (target / name).symlink_to(study / name)
    start_stage(target / "questions", "questions", {})
    questions.run(recipe, target, target / "questions", False)
    start_stage(target / "eval" / label, f"eval/{label}", {}, in_place=True)
    generate.run(recipe, target, target / "eval" / label, False, model_dir)
    return {unit.name: unit for unit in open_units(recipe, target, target / "eval" / label, model_dir)}


def test_the_manifest_says_which_engine_answered_and_that_decides_nothing(smoke_study):
    manifest = read_manifest(smoke_study / "eval" / GRPO)
    versions = manifest["environment"]["packages"]
    assert manifest["facts"]["engine"] == {
        "name": "transformers", "version": versions["transformers"], "device": "cpu", "dtype": "float32",
        "batch_size": 200,
    }  # fmt: skip
    assert not [key for key in manifest["inputs"] if key.startswith(("engine", "facts"))]
    assert not any("engine.json" in name for name in manifest["outputs"])


def test_prompt_is_byte_for_byte_the_training_prompt(smoke_study):
    recipe = load_study(smoke_study)
    tokenizer = load_tokenizer(str(smoke_study / "base"))
    asked = benchmark_questions(recipe.suite.seed, "sum", "test", recipe.suite.questions)
    rows = units_of(smoke_study, GRPO)["sum-native"].rows()
    assert [row.prompt for row in rows] == [render_prompt(tokenizer, q.problem, recipe.prompt) for q in asked]
    fixed = load_questions(recipe, recipe.suite.benchmarks[0], smoke_study)
    assert [q.reference for q in fixed] == [q.reference_answer for q in asked]
    assert [row.question_id for row in rows] == [q.question_id for q in fixed]


def test_stored_samples_give_the_stored_scores(smoke_study):
    recipe = load_study(smoke_study)
    for benchmark in recipe.suite.benchmarks:
        unit = units_of(smoke_study)[f"{benchmark.name}-native"]
        fixed = load_questions(recipe, benchmark, smoke_study)
        for name, rule in benchmark.scorings.items():
            again = score_rows(unit.rows(), fixed, rule, recipe.suite.max_response_tokens)
            assert read_scores(unit.directory / f"scores-{name}.parquet") == again
            columns = pq.read_table(unit.directory / f"scores-{name}.parquet").to_pylist()
            assert [row["value"] for row in columns] == [row.value for row in again]
            facts = read_manifest(unit.directory)["facts"]
            assert facts["scores"][name] == pytest.approx(mean_score(again))
            assert facts["scores"][name] == pytest.approx(np.mean([row.value for row in again]))


def test_samples_of_a_question_differ_and_every_chunk_has_its_own_seed(smoke_study):
    rows = units_of(smoke_study)["sum-native"].rows()
    assert any(len(set(row.responses)) > 1 for row in rows)
    suite = load_study(smoke_study).suite
    seeds = {chunk_seed(suite, model, unit, n) for model in ("base", "grpo") for unit in ("a", "b") for n in (0, 1)}
    assert len(seeds) == 8


def test_unknown_benchmark_and_folder(smoke_study):
    suite = load_study(smoke_study).suite
    unknown = suite.benchmarks[0].model_copy(update={"name": "summ"})
    with pytest.raises(UserError, match=r"'summ' has no task file summ\.yaml in .*; there are copy, fact"):
        task_folder(suite.model_copy(update={"benchmarks": (unknown,)}))
    with pytest.raises(UserError, match="not a folder; shipped are pocket, smollm2, twelve"):
        task_folder(suite.model_copy(update={"tasks": "nowhere"}))


def test_suffix_and_system_message_of_the_recipe_are_asked_too(smoke_study, tmp_path):
    """Training renders both; the evaluation must ask the same bytes, except where the answer is not boxed."""
    asked = {"system": "Be brief.", "suffix": " Put the answer in a box."}
    overrides = [f"prompt={json.dumps(asked)}", "suite.questions=2", "corpus.heldout_problems=8"]
    benchmarks = [("sum", "math", "boxed"), ("heldout", "math", "boxed"), ("copy", "non_reasoning", "exact")]
    listed = [{"name": name, "group": group, "scorings": {"robust": rule}} for name, group, rule in benchmarks]
    recipe = load_recipe(SMOKE, [*overrides, f"suite.benchmarks={json.dumps(listed)}"])
    units = evaluate(recipe, smoke_study, tmp_path / "study")
    tokenizer = load_tokenizer(str(smoke_study / "base"))
    heldout = read_problems(smoke_study / "corpus", "heldout")
    for name, suffix in (("sum", True), ("heldout", True), ("copy", False)):
        rows = units[f"{name}-native"].rows()
        if name == "heldout":
            problems = [problem.problem for problem in heldout]
        else:
            problems = [q.problem for q in benchmark_questions(recipe.suite.seed, name, "test", 2)]
        prompt = recipe.prompt if suffix else recipe.prompt.model_copy(update={"suffix": ""})
        assert [row.prompt for row in rows] == [render_prompt(tokenizer, text, prompt) for text in problems]
        assert all("Be brief." in row.prompt for row in rows)


CHUNKED = ["suite.chunk_questions=4", "suite.questions=10", "arms={}", "train=null"]
TWO = 'suite.benchmarks=[{name: sum, group: math, scorings: {robust: boxed}}, {name: fact, group: x, scorings: {robust: exact}}]'  # fmt: skip  # noqa: E501


def test_chunks_are_asked_once_and_missing_ones_alone(smoke_study, tmp_path):
    recipe = load_recipe(SMOKE, [*CHUNKED, TWO])
    units = evaluate(recipe, smoke_study, tmp_path / "study")
    files = sorted((tmp_path / "study" / "eval").glob("base/*/chunk-*"))
    assert len(files) == 2 * 3  # ten questions by four
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    files[1].unlink()
    evaluate(recipe, smoke_study, tmp_path / "study")
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    assert after[files[1]][0] == before[files[1]][0]  # asked again, with the random numbers it had
    assert [path for path in files if after[path][1] != before[path][1]] == [files[1]]
    assert len(units["sum-native"].rows()) == 10


def test_another_scoring_asks_nothing_and_more_questions_ask_anew(smoke_study, tmp_path):
    study = tmp_path / "study"
    evaluate(load_recipe(SMOKE, [*CHUNKED, TWO]), smoke_study, study)
    first = {path.name: path.stat().st_mtime_ns for path in (study / "eval").glob("base/sum-native/chunk-*")}
    changed = load_recipe(SMOKE, [*CHUNKED, TWO.replace("robust: boxed", "paper: last_box_text, robust: boxed")])
    units = evaluate(changed, smoke_study, study)
    assert {path.name: path.stat().st_mtime_ns for path in (study / "eval").glob("base/sum-native/chunk-*")} == first
    assert (units["sum-native"].directory / "scores-paper.parquet").exists()
    more = load_recipe(SMOKE, [*CHUNKED, TWO, "suite.questions=11"])
    evaluate(more, smoke_study, study)
    assert not {path.name for path in (study / "eval").glob("base/sum-native/chunk-*")} & set(first)
    assert list((study / "replaced").glob("eval--base--sum-native-1/chunk-*"))  # nothing is deleted


HELPER = """
import sys
from pathlib import Path

from eval.responses.scheduling import ResponseScheduler
from eval.responses.units import open_units
from recipes.loading import load_recipe

recipe, study = load_recipe(sys.argv[1], sys.argv[3:]), Path(sys.argv[2])
units = open_units(recipe, study, study / "eval" / "base", "base")
with ResponseScheduler(recipe, study, study / "base", units) as scheduler:
    scheduler.run()
    print(scheduler.generated)
"""


def test_chunk_that_another_process_has_claimed_is_left_to_it_until_it_dies(smoke_study, transfer, tmp_path):
    recipe = load_recipe(SMOKE, [*CHUNKED, TWO])
    study = tmp_path / "study"
    units = evaluate(recipe, smoke_study, study)
    unit = units["sum-native"]
    stored = unit.path(1).read_bytes(), unit.path(2).read_bytes()
    unit.path(1).unlink()
    unit.path(2).unlink()
    command = ["-c", HELPER, SMOKE, study, *CHUNKED, TWO]
    with Claims(unit.directory.parent / ".queue") as claims:
        assert claims.claim(iter([(f"{unit.name}-{unit.version}", 1)]), 1)
        result = transfer(*command)
        assert result.stdout.strip() == "4", result.stderr  # two questions, two responses each
        assert unit.missing() == [1]
    result = transfer(*command)
    assert result.stdout.strip() == "8", result.stderr
    assert (unit.path(1).read_bytes(), unit.path(2).read_bytes()) == stored


def test_work_helps_a_stage_that_has_begun(smoke_study, tmp_path, capsys, monkeypatch):
    threads = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # restored after the test
    recipe = load_recipe(SMOKE, [*CHUNKED, TWO, "resources.threads=3"])
    study = tmp_path / "study"
    evaluate(recipe, smoke_study, study)
    (stage,) = [stage for stage in build_stages(recipe) if stage.name == "eval/base"]
    for unit in open_units(recipe, study, study / "eval" / "base", "base"):
        unit.path(0).unlink()
        start_stage(unit.directory, "x", unit.inputs, in_place=True)  # begun, not complete
    start_stage(study / "eval" / "base", "eval/base", stage_inputs(stage, study), "other", in_place=True)
    with pytest.raises(UserError, match="eval/base was started with another version of the code or packages"):
        work(recipe, study, wait=False)
    manifest = read_manifest(study / "eval" / "base")
    write_json(study / "eval" / "base" / "manifest.json", manifest | {"code": stage.code})
    assert work(recipe, study, wait=False) == 0
    assert "16 response(s) generated" in capsys.readouterr().out
    assert (threads, os.environ["OMP_NUM_THREADS"]) == ([3], "3")  # as the stage itself
    assert not any(unit.missing() for unit in open_units(recipe, study, study / "eval" / "base", "base"))
    with pytest.raises(UserError, match="does not exist; start `transfer run` first"):
        work(recipe, tmp_path / "nowhere", wait=False)


@pytest.mark.slow
@pytest.mark.faults
def test_killed_evaluation_loses_at_most_the_chunk_it_was_working_on(smoke_study, tmp_path):
    """kill -9 in the middle; afterwards the same responses as without, and finished chunks are not asked again."""
    many = ["suite.chunk_questions=5", "suite.questions=40", "arms={}", "train=null"]
    whole = evaluate(load_recipe(SMOKE, many), smoke_study, tmp_path / "whole")
    study = tmp_path / "killed"
    study.mkdir()
    shutil.copytree(smoke_study / "base", study / "base")
    shutil.copytree(smoke_study / "corpus", study / "corpus")
    command = [sys.executable, "-m", "launch", "run", str(SMOKE), "--out", str(study), *many]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    write_json(study / "study.json", {"study": "smoke"})
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        while len(list((study / "eval").glob("base/*/chunk-*"))) < 3:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(1)  # its workers die with it
    before = {path: path.stat().st_mtime_ns for path in (study / "eval").glob("base/*/chunk-*")}
    assert 3 <= len(before) < 48
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    after = units_of(study, recipe=load_recipe(SMOKE, many))
    assert {name: unit.rows() for name, unit in after.items()} == {name: unit.rows() for name, unit in whole.items()}


def damaged_rows(unit, change):
    path = unit.path(0)
    rows = [json.loads(line) for line in zstandard.decompress(path.read_bytes()).decode().splitlines()]
    text = "".join(json.dumps(row) + "\n" for row in change(rows))
    path.write_bytes(zstandard.compress(text.encode()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "1 missing"),
        (lambda rows: [rows[0], *rows], "1 twice"),
        (
            lambda rows: [rows[0] | {"question_id": "x"}, *rows[1:]],
            r"1 missing \(first .*\), 1 of no question \(first x\)",
        ),
        (lambda rows: rows[::-1], "another order"),
    ],
)
def test_stored_rows_that_do_not_fit_the_questions_are_refused(smoke_study, tmp_path, change, message):
    study = copy_of(smoke_study, tmp_path / "study")
    unit = units_of(study)["sum-native"]
    damaged_rows(unit, change)
    with pytest.raises(UserError, match=message):
        generate.score_unit(load_study(study), study, unit)


def test_damaged_chunk_is_a_sentence(smoke_study, tmp_path):
    study = copy_of(smoke_study, tmp_path / "study")
    unit = units_of(study)["sum-native"]
    unit.path(0).write_bytes(b"not zstandard")
    with pytest.raises(UserError, match=r"is damaged .* delete it, and the same command generates its responses again"):
        unit.rows()


def test_weights_are_identified_by_the_completed_stage_that_wrote_them(tmp_path):
    model_dir = tmp_path / "arms" / "grpo" / "seed-0" / "final"
    model_dir.mkdir(parents=True)
    with pytest.raises(UserError, match="belongs to no completed stage; `transfer run` makes it"):
        weights_hash(model_dir)
    start_stage(model_dir.parent, "arms/grpo/seed-0", {}, in_place=True)
    with pytest.raises(UserError, match="is not complete; `transfer run` continues it"):
        weights_hash(model_dir)
    finish_stage(model_dir.parent, {"final": "x"})
    assert weights_hash(model_dir) == read_manifest(model_dir.parent)["output_hash"]
    assert weights_hash(model_dir.parent) == read_manifest(model_dir.parent)["output_hash"]  # as for a base


def test_models_asked_differently_are_not_compared(smoke_study, tmp_path):
    study = copy_of(smoke_study, tmp_path / "study")
    recipe = load_study(study)
    cells = reading_cells(recipe, "robust")
    read_benchmark_scores(recipe, study, ["base", GRPO], cells)
    path = study / "eval" / GRPO / "sum-native" / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, value in (("max_response_tokens", 64), ("task file", "other"), ("thinking", True)):
        path.write_text(json.dumps(manifest | {"inputs": manifest["inputs"] | {key: value}}))
        with pytest.raises(UserError, match=f"{GRPO} and base cannot be compared on sum-native: {key} was"):
            read_benchmark_scores(recipe, study, ["base", GRPO], cells)


def test_models_that_answered_other_questions_are_not_compared(smoke_study, tmp_path):
    study = copy_of(smoke_study, tmp_path / "study")
    path = study / "eval" / GRPO / "sum-native" / "scores-robust.parquet"
    rows = read_scores(path)
    recipe, cells = load_study(study), reading_cells(load_study(study), "robust")
    write_scores(path, [replace(row, question_id=row.question_id[::-1]) for row in rows])
    with pytest.raises(UserError, match=f"{GRPO} answered other questions of sum than base"):
        read_benchmark_scores(recipe, study, ["base", GRPO], cells)
    write_scores(path, [*rows, rows[0]])
    with pytest.raises(UserError, match=r"has question .* twice"):
        read_benchmark_scores(recipe, study, ["base", GRPO], cells)


def test_rescoring_says_what_changed_and_writes_beside_the_old(smoke_study, tmp_path):
    study = copy_of(smoke_study, tmp_path / "study")
    recipe = load_study(study)
    unit = units_of(study)["sum-native"]
    fixed = load_questions(recipe, recipe.suite.benchmarks[0], study)
    answer = fixed[0].reference
    damaged_rows(unit, lambda rows: [rows[0] | {"responses": [answer, "no"], "tokens": [2, 2]}, *rows[1:]])
    generate.score_unit(recipe, study, unit)
    changes = rescore(recipe, study, parse_rescorings(recipe, ["sum.loose=plain"]))
    (base,) = [change for change in changes if change["model"] == "base"]
    assert base["moved"]["no_answer -> correct"] >= 1
    assert base["after"] >= base["before"] + 5  # one of twenty responses at least
    assert (unit.directory / "scores-loose.parquet").exists()
    assert all(not change["moved"] for change in rescore(recipe, study, {}))  # the code still says what it said
    for text, message in (
        ("sum.robust=plain", "scoring 'robust' of sum is 'boxed'; give the new one another name"),
        ("sum.loose=best", "'best' is not a scoring rule"),
        ("law.loose=plain", "'law' is not a benchmark of the suite; there are sum, story"),
        ("sum=plain", "must have the form BENCHMARK.NAME=RULE"),
    ):
        with pytest.raises(UserError, match=message):
            parse_rescorings(recipe, [text])


def test_prompt_that_would_be_cut_is_refused_before_anything_is_asked(smoke_study, tmp_path):
    recipe = load_recipe(SMOKE, [*CHUNKED, TWO, "suite.max_prompt_tokens=8"])
    with pytest.raises(
        UserError, match=r"the prompt of question \w+ of sum has \d+ tokens but suite.max_prompt_tokens is 8"
    ):
        evaluate(recipe, smoke_study, tmp_path / "study")
    assert not list((tmp_path / "study" / "eval").glob("*/*/chunk-*"))


def test_greedy_benchmark_asks_once(smoke_study, tmp_path):
    greedy = TWO.replace("name: fact,", "name: fact, temperature: 0,").replace("name: sum,", "name: sum, samples: 3,")
    units = evaluate(load_recipe(SMOKE, [*CHUNKED, greedy]), smoke_study, tmp_path / "study")
    assert {len(row.responses) for row in units["fact-native"].rows()} == {1}
    assert {len(row.responses) for row in units["sum-native"].rows()} == {3}
    again = evaluate(load_recipe(SMOKE, [*CHUNKED, greedy, "suite.seed=5"]), smoke_study, tmp_path / "other")
    first = {row.prompt: row.responses for row in units["fact-native"].rows()}
    shared = [row for row in again["fact-native"].rows() if row.prompt in first]
    assert all(row.responses == first[row.prompt] for row in shared)
