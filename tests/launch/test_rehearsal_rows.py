"""The few rows a rehearsal reads: generated ones pass the recipe's own mapping and filters, locked ones come whole."""

import json
from pathlib import Path

import pytest

from data.corpus.sources import read_source
from data.corpus.text_match import near_duplicates
from data.grading.grader import Grader
from data.hub import locate
from eval.questions.forms import FORMS, questions_of
from launch.rehearsal import synthetic
from launch.rehearsal.hardware import Hardware
from launch.rehearsal.rows import write_rows
from launch.rehearsal.run import _replaced
from launch.rehearsal.scale import QUESTIONS, SOURCE_ROWS, Replacements, scale
from recipes.errors import UserError
from recipes.loading import load_recipe, validate_recipe
from recipes.suite_schema import BenchmarkData
from tests.paths import RECIPES, ROOT

SHIPPED = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("qwen3-*/*.yaml", "llama*/*.yaml", "released/*.yaml", "corpora/*.yaml")
    for path in RECIPES.glob(pattern)
)


@pytest.mark.parametrize("name", SHIPPED)
def test_made_up_rows_pass_the_mapping_of_every_shipped_recipe(name, tmp_path):
    recipe = load_recipe(ROOT / name)
    rows = write_rows(recipe, tmp_path, generate=True)
    for number, source in enumerate(recipe.corpus.sources):
        local = source.model_copy(update={"kind": "file", "path": rows.files[f"corpus.sources.{number}"]})
        read = list(read_source(local, 0))
        assert {row.reject for row in read} == {None}, name
        assert len(read) >= SOURCE_ROWS // len(recipe.corpus.sources)
        assert all(row.reference_answer.isdigit() for row in read)
    if recipe.corpus.sources:
        assert len(rows.problems) >= SOURCE_ROWS
        assert list(near_duplicates(list(rows.problems), 0.8)) == []


def test_answers_of_made_up_problems_are_right():
    for problem, answer in synthetic.problems(40):
        first, second = (int(word) for word in problem.split() if word.isdigit() and len(word) == 1)
        assert str(first + second) == answer, problem
    grader = Grader()
    assert all(grader.are_gradable([answer for _, answer in synthetic.problems(40)]))
    grader.close()


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_of_benchmark_reads_its_made_up_rows(form, tmp_path):
    suites = [load_recipe(ROOT / f"recipes/{name}/matched.yaml").suite for name in ("qwen3-14b", "smollm2-135m")]
    benchmark = next(item for suite in suites for item in suite.benchmarks if item.data and item.data.form == form)
    rows = [json.loads(json.dumps(row)) for row in synthetic.benchmark_rows(benchmark, 6)]
    file = {"kind": "file", "path": "x.jsonl", "rows": None, "alternatives": ()}
    data = BenchmarkData(**benchmark.data.model_dump() | file)
    questions = questions_of("b", data, rows)
    assert len({question.question_id for question in questions}) == 6
    if form == "mc_taco":
        assert len({question.unit for question in questions}) == 3
    if form == "halueval":
        assert {question.stratum for question in questions} == {"qa", "dialogue", "summarization"}


def test_a_field_with_dots_is_put_where_it_is_read():
    row = synthetic.put(synthetic.put({}, "prompt.0.content", "p"), "extra.answer", "a")
    assert row == {"prompt": [{"content": "p"}], "extra": {"answer": "a"}}


def taco(sentences):
    """Three candidates for each of two questions of each sentence."""
    return [
        {"sentence": f"s{s}", "question": f"q{q}", "answer": f"a{a}", "label": "no", "category": "c"}
        for s in range(sentences)
        for q in range(2)
        for a in range(3)
    ]


def local_recipe(tmp_path, rows, problems):
    for name, values in (("taco.jsonl", rows), ("problems.jsonl", problems)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in values))
    values = load_recipe(ROOT / "recipes/qwen3-1.7b/matched.yaml").dump()
    values["suite"]["benchmarks"] = [b for b in values["suite"]["benchmarks"] if b["name"] in ("mctaco", "math500")]
    for number, name in ((0, "problems.jsonl"), (1, "taco.jsonl")):
        data = values["suite"]["benchmarks"][number]["data"]
        data |= {"kind": "file", "path": str(tmp_path / name), "dataset": None, "files": [], "id_field": None}
    values["analysis"] = {}
    values["corpus"]["sources"] = [
        {"kind": "file", "name": "own", "path": str(tmp_path / "problems.jsonl"), "where": {"kept": ["yes"]}}
    ]
    values["corpus"]["decontamination"]["benchmarks"] = []
    return validate_recipe(values, "test")


def test_slices_are_whole_units_spread_over_the_rows_that_pass(tmp_path):
    problems = [{"problem": f"p{n}", "answer": n, "kept": "yes" if n % 2 else "no"} for n in range(400)]
    recipe = local_recipe(tmp_path, taco(5), problems)
    rows = write_rows(recipe, tmp_path / "rows", generate=False)
    kept = [json.loads(line) for line in Path(rows.files["corpus.sources.0"]).read_text().splitlines()]
    assert len(kept) == SOURCE_ROWS
    assert [row["problem"] for row in kept[:2] + kept[-1:]] == ["p1", "p9", "p391"]
    assert rows.problems["p391"] == "391"
    chosen = [json.loads(line) for line in Path(rows.files["suite.benchmarks.1.data"]).read_text().splitlines()]
    # Two units of three candidates are the fewest whole ones that reach the number wanted.
    assert [(row["sentence"], row["question"], row["answer"]) for row in chosen] == [
        ("s0", f"q{q}", f"a{a}") for q in range(2) for a in range(3)
    ]
    assert len(chosen) >= QUESTIONS
    assert rows.generated == ()


def test_a_source_of_which_nothing_passes_is_named(tmp_path):
    problems = [{"problem": f"p{n}", "answer": n, "kept": "no"} for n in range(40)]
    with pytest.raises(UserError, match="source own has 0 rows that pass its mapping"):
        write_rows(local_recipe(tmp_path, taco(2), problems), tmp_path / "rows", generate=False)


def test_made_up_rows_of_a_file_of_ones_own_are_not_called_a_publishers(tmp_path):
    problems = [{"problem": f"p{n}", "answer": n, "kept": "yes"} for n in range(40)]
    rows = write_rows(local_recipe(tmp_path, taco(5), problems), tmp_path / "rows", generate=True)
    assert _replaced(rows, [], None) == [
        "the data of own, math500, mctaco: generated rows in the columns that the recipe reads"
    ]
    made = [json.loads(line) for line in Path(rows.files["corpus.sources.0"]).read_text().splitlines()]
    assert {tuple(sorted(row)) for row in made} == {("answer", "kept", "problem")}


def test_restricted_questions_are_never_copied(tmp_path):
    recipe = load_recipe(ROOT / "recipes/qwen3-14b/matched.yaml")
    assert any(item.data.restricted for item in recipe.suite.benchmarks)
    values = recipe.dump()
    kept = [item for item in values["suite"]["benchmarks"] if item["name"] in ("gpqa", "math500")]
    kept[0]["data"] |= {
        "kind": "file",
        "path": str(tmp_path / "problems.jsonl"),
        "dataset": None,
        "files": [],
        "id_field": None,
    }
    (tmp_path / "problems.jsonl").write_text(
        "".join(json.dumps({"problem": f"p{n}", "answer": n}) + "\n" for n in range(20))
    )
    values["suite"]["benchmarks"] = kept
    values["corpus"] |= {"sources": [], "teacher": None, "decontamination": {"benchmarks": []}}
    values |= {"arms": {}, "analysis": {}, "drift": None, "trajectory": None, "diagnostics": None}
    rows = write_rows(validate_recipe(values, "t"), tmp_path / "rows", generate=False)
    assert rows.generated == ("gpqa",)


def test_rows_of_the_alternative_that_was_locked_are_read_by_its_mapping(tmp_path, monkeypatch):
    published = tmp_path / "published.jsonl"
    published.write_text("".join(json.dumps({"q": f"p{n}", "a": n, "kept": "yes"}) + "\n" for n in range(60)))
    values = local_recipe(tmp_path, taco(2), [{"problem": "p", "answer": 1, "kept": "yes"}]).dump()
    other = {"dataset": "o/second", "files": ["*.jsonl"], "problem_field": "q", "answer_field": "a"}
    values["corpus"]["sources"] = [
        {"kind": "hub", "name": "own", "dataset": "o/first", "files": ["*.parquet"], "alternatives": [other]}
    ]
    lock = {
        "dataset": "o/second",
        "revision": "0" * 40,
        "files": {"published.jsonl": "h"},
        "rows": 60,
        "alternative": 1,
    }
    values["lock"] = {"sources": {"own": lock}, "benchmarks": {}, "models": {}}

    def located(files, lock):
        return [published] if files.kind == "hub" else locate(files, lock)

    monkeypatch.setattr("data.corpus.sources.locate", located)
    full = validate_recipe(values, "test")
    rows = write_rows(full, tmp_path / "rows", generate=False)
    assert rows.settings["corpus.sources.0"] == other | {"alternatives": []}
    assert rows.problems["p5"] == "5"
    small = scale(
        full, Hardware(0, 1, 1, None), Replacements({}, rows.files, None, rows.settings)
    ).recipe.corpus.sources[0]
    assert (small.kind, small.problem_field, small.dataset, small.alternatives) == ("file", "q", None, ())
    assert len(list(read_source(small, 0))) == SOURCE_ROWS


def test_rows_of_templates_are_generated_under_their_names_or_keep_their_columns(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"stem": f"What is {n} plus 1?", "options": [str(n), str(n + 1)], "label": 1, "x": 0} for n in range(80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {
        "kind": "file", "name": "s", "path": str(path), "problem_field": "{{ stem }} (A) {{ options[0] }}",
        "answer_field": "{{ options[label] }}",
    }  # fmt: skip
    recipe = validate_recipe({"study": "c", "corpus": {"sources": [source], "problem_set": "all"}}, "test")
    made = write_rows(recipe, tmp_path / "made", generate=True)
    assert len(made.problems) >= SOURCE_ROWS
    kept = write_rows(recipe, tmp_path / "kept", generate=False)
    assert kept.problems["What is 5 plus 1? (A) 5"] == "6"
    (first, *_) = Path(kept.files["corpus.sources.0"]).read_text().split("\n")
    assert json.loads(first).keys() == {"stem", "options", "label"}
