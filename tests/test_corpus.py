"""The corpus stage from files: field mapping, reasons for rejection, splits; and its bad inputs."""

import json

import pyarrow.parquet as pq
import pytest

from data.corpus import problem_id
from data.corpus import run as build_corpus
from data.rows import (
    Demonstration,
    correct_demonstrations,
    presented_order,
    read_demonstrations,
    read_problems,
)
from data.sources import read_source
from recipes.errors import UserError
from recipes.loading import validate_recipe
from recipes.manifest import read_manifest, start_stage
from recipes.schema import SourceSpec

ROWS = [
    {"q": "What is 1+1?", "solution": "It is \\boxed{2}.", "d": 3.0},
    {"q": "what  is 1+1?", "solution": "\\boxed{2}", "d": 3.0},
    {"q": "Half of one?", "solution": "\\boxed{\\frac{1}{2}}", "d": 4},
    {"q": "Too easy", "solution": "\\boxed{1}", "d": 1},
    {"q": "No box", "solution": "it is 3", "d": 3},
    {"q": "", "solution": "\\boxed{1}", "d": 3},
    {"q": "No solution", "solution": None, "d": 3},
    {"q": "Nonsense gold", "solution": "\\boxed{???}", "d": 3},
    {"q": "Which option?", "solution": "\\boxed{\\text{C}}", "d": 5},
]
REASONS = {
    "duplicate": 1,
    "level_excluded": 1,
    "no_reference_answer": 1,
    "empty_problem": 1,
    "missing_field": 1,
    "gold_unparseable": 1,
}


def recipe_for(path, **corpus):
    source = {
        "kind": "file", "name": "s", "path": str(path), "problem_field": "q", "answer_field": "solution",
        "answer_in": "boxed", "level_field": "d", "levels": ["3", "4", "5"],
    }  # fmt: skip
    values = {"study": "c", "corpus": {"sources": [source], "problem_set": "all"} | corpus}
    return validate_recipe(values, "test")


def build(recipe, directory):
    start_stage(directory / "corpus", "corpus", {})
    build_corpus(recipe, directory, directory / "corpus", resume=False)
    return read_manifest(directory / "corpus")["facts"]


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_every_row_is_kept_or_rejected_with_a_reason(rows_file, tmp_path):
    facts = build(recipe_for(rows_file), tmp_path)
    assert facts["rejected"] == REASONS
    assert facts["train_problems"] == 3
    assert facts["train_problems"] + sum(facts["rejected"].values()) == facts["rows"] == len(ROWS)
    problems = {row.problem: row for row in read_problems(tmp_path / "corpus", "train")}
    assert {text: row.reference_answer for text, row in problems.items()} == {
        "What is 1+1?": "2",
        "Half of one?": "\\frac{1}{2}",
        "Which option?": "\\text{C}",
    }
    assert problems["What is 1+1?"].level == "3"
    rejects = [json.loads(line) for line in (tmp_path / "corpus" / "rejects.jsonl").read_text().splitlines()]
    assert {(row["row"], row["reason"]) for row in rejects} >= {(1, "duplicate"), (7, "gold_unparseable")}


def test_same_corpus_from_json_csv_and_parquet(rows_file, tmp_path):
    import csv

    import pyarrow as pa

    expected = list(read_source(SourceSpec(**recipe_for(rows_file).corpus.sources[0].model_dump()), 0))
    kept = [(row.problem, row.reference_answer) for row in expected if row.reject is None]
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["q", "solution", "d"])
        writer.writeheader()
        writer.writerows(ROWS)
    for extension in ("json", "csv", "parquet"):
        spec = recipe_for(tmp_path / f"rows.{extension}").corpus.sources[0]
        found = [(row.problem, row.reference_answer) for row in read_source(spec, 0) if row.reject is None]
        assert found == kept


def test_gsm8k_style_reference_answer(tmp_path):
    path = tmp_path / "g.jsonl"
    path.write_text(json.dumps({"question": "48 and half?", "answer": "48/2=<<48/2=24>>24\n#### 1,072"}) + "\n")
    spec = SourceSpec(kind="file", name="g", path=str(path), problem_field="question", answer_in="after_hashes")
    assert [row.reference_answer for row in read_source(spec, 0)] == ["1,072"]


def test_heldout_and_subsampling_are_seeded_and_disjoint(rows_file, tmp_path):
    facts = build(recipe_for(rows_file, heldout_problems=1, train_problems=1), tmp_path)
    assert (facts["train_problems"], facts["heldout_problems"], facts["rejected"]["not_sampled"]) == (1, 1, 1)
    train = read_problems(tmp_path / "corpus", "train")
    heldout = read_problems(tmp_path / "corpus", "heldout")
    assert train[0].problem_id != heldout[0].problem_id
    build(recipe_for(rows_file, heldout_problems=1, train_problems=1), tmp_path / "again")
    assert read_problems(tmp_path / "again" / "corpus", "train") == train


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", "", "is empty"),
        ("rows.jsonl", '{"q": "a", "solution": "b", "d": 3}\n{"cut', "cannot be read as jsonl"),
        ("rows.json", '{"q": "a"}', "must hold a list of objects"),
        ("rows.jsonl", '{"question": "a", "solution": "b"}\n', "has no column 'q'; it has question, solution"),
        ("rows.txt", "a", "extension '.txt'; allowed are"),
        ("rows.parquet", "not parquet", "cannot be read as parquet"),
        ("rows.jsonl", '{"q": "a", "solution": "b", "d": 3}\n', "no problem of 1 rows is left for training"),
    ],
)
def test_bad_source_is_one_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        build(recipe_for(path), tmp_path)
    assert message in str(caught.value)
    assert not (tmp_path / "corpus" / "problems.parquet").exists()


def test_binary_source_and_missing_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        build(recipe_for(path), tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        build(recipe_for(tmp_path / "absent.jsonl"), tmp_path)


def test_more_problems_wanted_than_there_are(rows_file, tmp_path):
    with pytest.raises(UserError, match="train_problems is 9 but only 3"):
        build(recipe_for(rows_file, train_problems=9), tmp_path)


def test_presented_order_is_whole_passes_and_the_same_for_every_arm(smoke_study):
    problems = read_problems(smoke_study / "corpus", "train")
    count = len(problems)
    order = presented_order(problems, 80, seed=3)
    assert 2 * count > len(order) == 80 > count
    assert sorted(order[:count]) == sorted(problems)
    assert set(order[count:]) < set(problems)
    assert order[: 80 - count] != order[count:]
    assert order == presented_order(list(reversed(problems)), 80, seed=3)
    assert order != presented_order(problems, 80, seed=4)


def test_demonstrations_keep_wrong_samples_and_the_view_drops_them(smoke_study):
    demonstrations = read_demonstrations(smoke_study / "corpus")
    assert all(len(rows) == 4 for rows in demonstrations.values())
    rows = [
        Demonstration("p", f"c{n}", "", "t", n, grade, 1) for n, grade in enumerate(["wrong", "correct", "correct"])
    ]
    view = correct_demonstrations({"p": rows}, "p", 3, first=1)
    assert [row.completion for row in view] == ["c2", "c1", "c2"]
    with pytest.raises(UserError, match="no correct demonstration"):
        correct_demonstrations({"p": rows[:1]}, "p", 1, 0)


def test_problem_id_ignores_case_and_spacing():
    assert problem_id("What  is\n1?") == problem_id("what is 1?") != problem_id("what is 2?")
