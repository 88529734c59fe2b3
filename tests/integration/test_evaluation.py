"""The evaluation: what lm-evaluation-harness asks and keeps, and that scores can be recomputed from it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data.pocket_world import benchmark_questions
from data.prompt import load_tokenizer, render_prompt
from data.rows import read_problems
from eval import generate
from eval.generate import unit_seed
from eval.report import read_answers
from eval.scoring import mean_accuracy, score
from eval.task_files import task_folder
from recipes.errors import UserError
from recipes.loading import load_recipe, load_study
from recipes.manifest import start_stage

SMOKE = Path(__file__).resolve().parent.parent.parent / "recipes" / "pocket" / "smoke.yaml"


def read_samples(unit):
    text = zstandard.decompress((unit / "samples.jsonl.zst").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def test_prompt_is_byte_for_byte_the_training_prompt(smoke_study):
    recipe = load_study(smoke_study)
    tokenizer = load_tokenizer(str(smoke_study / "base"))
    questions = benchmark_questions(recipe.suite.seed, "sum", "test", recipe.suite.questions)
    rows = read_samples(smoke_study / "eval" / "grpo-seed0-final" / "sum-native")
    assert [row["prompt"] for row in rows] == [render_prompt(tokenizer, q.problem, recipe.prompt) for q in questions]
    assert [row["reference_answer"] for row in rows] == [q.reference_answer for q in questions]


def test_stored_samples_give_the_stored_scores(smoke_study):
    recipe = load_study(smoke_study)
    for benchmark in recipe.suite.benchmarks:
        unit = smoke_study / "eval" / "base" / f"{benchmark.name}-native"
        rows = read_samples(unit)
        again = [
            score(response, row["reference_answer"], benchmark.scoring, tokens >= recipe.suite.max_response_tokens)
            for row in rows
            for response, tokens in zip(row["responses"], row["tokens"], strict=True)
        ]
        stored = pq.read_table(unit / f"scores-{benchmark.scoring}.parquet").to_pydict()
        assert stored["outcome"] == [item.outcome for item in again]
        assert stored["correct"] == [item.correct for item in again]
        accuracy = json.loads((unit / "manifest.json").read_text())["facts"]["accuracy"]
        assert accuracy == pytest.approx(np.mean(stored["correct"]))


def test_samples_of_a_question_differ_and_models_have_their_own_seed(smoke_study):
    rows = read_samples(smoke_study / "eval" / "base" / "sum-native")
    assert any(len(set(row["responses"])) > 1 for row in rows)
    suite = load_study(smoke_study).suite
    assert len({unit_seed(suite, model, b) for model in ("base", "grpo") for b in ("sum", "sort")}) == 4


def test_mean_accuracy_by_hand():
    assert mean_accuracy(["\\boxed{4}", "\\boxed{5}", "4", "\\boxed{4.0}"], "4", "boxed") == 0.5
    assert score("so the", "4", "boxed", cut_off=True).outcome == "truncated"
    assert score("\\boxed{5}", "4", "boxed", cut_off=True).outcome == "wrong"


def test_unknown_benchmark_and_folder(smoke_study):
    suite = load_study(smoke_study).suite
    unknown = suite.benchmarks[0].model_copy(update={"name": "summ"})
    with pytest.raises(UserError, match=r"'summ' has no task file .* there are copy, fact"):
        task_folder(suite.model_copy(update={"benchmarks": (unknown,)}))
    with pytest.raises(UserError, match="not a folder; shipped are pocket"):
        task_folder(suite.model_copy(update={"tasks": "nowhere"}))


def test_suffix_and_system_message_of_the_recipe_are_asked_too(smoke_study, tmp_path):
    """Training renders both; the evaluation must ask the same bytes, except where the answer is not boxed."""
    asked = {"system": "Be brief.", "suffix": " Put the answer in a box."}
    overrides = [f"prompt={json.dumps(asked)}", "suite.questions=2", "corpus.heldout_problems=8"]
    benchmarks = [("sum", "math", "boxed"), ("heldout", "math", "boxed"), ("copy", "non_reasoning", "exact")]
    listed = [dict(zip(("name", "group", "scoring"), item, strict=True)) for item in benchmarks]
    recipe = load_recipe(SMOKE, [*overrides, f"suite.benchmarks={json.dumps(listed)}"])
    study = tmp_path / "study"
    study.mkdir()
    for name in ("base", "corpus"):
        (study / name).symlink_to(smoke_study / name)
    start_stage(study / "eval" / "base", "eval/base", {})
    generate.run(recipe, study, study / "eval" / "base", False, "base")
    tokenizer = load_tokenizer(str(smoke_study / "base"))
    heldout = read_problems(smoke_study / "corpus", "heldout")
    for name, suffix in (("sum", True), ("heldout", True), ("copy", False)):
        rows = read_samples(study / "eval" / "base" / f"{name}-native")
        if name == "heldout":
            problems = [problem.problem for problem in heldout]
        else:
            problems = [q.problem for q in benchmark_questions(recipe.suite.seed, name, "test", 2)]
        prompt = recipe.prompt if suffix else recipe.prompt.model_copy(update={"suffix": ""})
        assert [row["prompt"] for row in rows] == [render_prompt(tokenizer, text, prompt) for text in problems]
        assert all("Be brief." in row["prompt"] for row in rows)


def test_models_that_answered_other_questions_are_not_compared(smoke_study, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(smoke_study / "eval", study / "eval")
    path = study / "eval" / "grpo-seed0-final" / "sum-native" / "scores-boxed.parquet"
    table = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([row | {"question_id": row["question_id"][::-1]} for row in table]), path)
    with pytest.raises(UserError, match="grpo-seed0-final answered other questions of sum than base"):
        read_answers(load_study(smoke_study), study, ["base", "grpo-seed0-final"])
