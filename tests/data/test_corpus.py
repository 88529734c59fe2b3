"""The corpus stage from files: field mapping, reasons for rejection, splits; and its bad inputs."""

import json

import pyarrow.parquet as pq
import pytest

from data.corpus.build import run as build_corpus
from data.corpus.rows import (
    Demonstration,
    Problem,
    demonstrations_by_step,
    demonstrations_to_read,
    presented_order,
    problem_id,
    read_demonstrations,
    read_problems,
)
from data.corpus.sources import read_source
from recipes.corpus_schema import SourceSpec
from recipes.errors import UserError
from recipes.loading import validate_recipe
from recipes.manifest import read_manifest, start_stage

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
        ("rows.jsonl", '{"q": "a", "solution": "b", "d": 3}\n', "for training; the filters removed 1 of 1 rows"),
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
    with pytest.raises(UserError, match="does not exist; correct `path` of "):
        build(recipe_for(tmp_path / "absent.jsonl"), tmp_path)


def test_a_split_without_problems_says_which_setting_brings_some(rows_file, tmp_path):
    build(recipe_for(rows_file), tmp_path)
    with pytest.raises(UserError, match=r"no heldout problems .*; set corpus\.heldout_problems above 0"):
        read_problems(tmp_path / "corpus", "heldout")
    with pytest.raises(UserError, match=r"no train problems .*; raise corpus\.teacher\.samples_per_problem, or set "):
        read_problems(tmp_path / "corpus", "train", "teacher_solvable")


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
        Demonstration("p", f"c{n}", "", "t", n, grade, 9 - n, fits)
        for n, (grade, fits) in enumerate(
            [("wrong", True), ("correct", True), ("correct", False), ("correct", True), ("correct", True)]
        )
    ]

    def read(policy, exposure=0, seed=0):
        view = demonstrations_to_read({"p": rows}, "p", 2, exposure, policy, seed)
        return [row.completion for row in view]

    # c0 is wrong, c2 was cut off; the other three are read in turn, two an exposure.
    assert [read("all", exposure) for exposure in range(3)] == [["c1", "c3"], ["c4", "c1"], ["c3", "c4"]]
    assert read("first", 1) == ["c1"]
    assert read("shortest") == ["c4"]
    assert {tuple(read("random", seed=seed)) for seed in range(20)} == {("c1",), ("c3",), ("c4",)}
    for count in (3, 4, 8):  # none twice: where there are fewer, an exposure has fewer
        view = demonstrations_to_read({"p": rows}, "p", count, 1, "all", 0)
        assert sorted(row.completion for row in view) == ["c1", "c3", "c4"]
    with pytest.raises(UserError, match="no correct demonstration"):
        demonstrations_to_read({"p": rows[:1]}, "p", 1, 0, "all", 0)


def test_no_demonstration_twice_in_one_update():
    """Three problems with 1, 2 and 5 usable demonstrations, two problems an update, so one straddles two passes."""
    problems = [Problem(name, name, "1", "s", None, "train", True, None) for name in "abc"]
    demonstrations = {
        name: [Demonstration(name, f"{name}{n}", "", "t", n, "correct", 1, True) for n in range(count)]
        for name, count in (("a", 1), ("b", 2), ("c", 5))
    }
    a, b, c = problems
    order = [a, b, c, c, b, a]
    updates = demonstrations_by_step(demonstrations, order, 2, 3, 2, "all", 0)
    read = [[row.completion for _, row in update] for update in updates]
    assert read == [["a0", "b0", "b1"], ["c0", "c1", "c2", "c3"], ["b0", "b1", "a0"]]
    first = demonstrations_by_step(demonstrations, order, 2, 3, 2, "first", 0)
    assert [[row.completion for _, row in update] for update in first] == [["a0", "b0"], ["c0"], ["b0", "a0"]]
    assert [problem for problem, _ in updates[0]] == [a, b, b]


def test_problem_id_ignores_case_and_spacing():
    assert problem_id("What  is\n1?") == problem_id("what is 1?") != problem_id("what is 2?")


def problems_file(tmp_path, rows):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"problem": text, "answer": answer}) + "\n" for text, answer in rows))
    return {"kind": "file", "name": "p", "path": str(path)}


def corpus_of(tmp_path, rows, **corpus):
    values = {"study": "c", "corpus": {"sources": [problems_file(tmp_path, rows)], "problem_set": "all"} | corpus}
    recipe = validate_recipe(values, "test")
    facts = build(recipe, tmp_path)
    rejects = [json.loads(line) for line in (tmp_path / "corpus" / "rejects.jsonl").read_text().splitlines()]
    return facts, {row["row"]: row for row in rejects}


LONG = "A farmer has 17 sheep and buys 4 more every month for a year, then sells half of them at the market. How many"


def test_duplicates_by_text_and_by_likeness(tmp_path):
    rows = [
        ("What is 2+2?", "4"),
        ("what is  2+2?", "4.0"),  # the same text, the same answer
        ("What is 3+3?", "6"),
        ("What is 3+3?", "7"),  # the same text, another answer: which one is right?
        (f"{LONG} are left?", "32.5"),
        (f"{LONG} remain?", "65/2"),  # nearly the same text, the same answer
        (f"{LONG} were sold?", "33"),  # nearly the same text, another answer: another question
    ]
    facts, rejects = corpus_of(tmp_path, rows)
    assert {number: row["reason"] for number, row in rejects.items()} == {
        1: "duplicate",
        2: "conflicting_reference",
        3: "conflicting_reference",
        5: "near_duplicate",
    }
    assert rejects[5]["detail"] == "similarity 0.88 to p, p.jsonl line 5"
    assert facts["funnel"][2] == {
        "step": "exact duplicates",
        "left": 4,
        "removed": {"conflicting_reference": 2, "duplicate": 1},
    }
    kept, _ = corpus_of(tmp_path, rows, near_duplicate=None)
    assert kept["train_problems"] == facts["train_problems"] + 1


def test_benchmark_questions_are_removed_and_shown_beside_the_problem(tmp_path):
    bench = tmp_path / "bench.jsonl"
    questions = [
        {"q": f"{LONG} are left in the end?"},
        {"q": "Express your answer as a common fraction in lowest terms please: what is one third of one half of 9?"},
    ]
    bench.write_text("".join(json.dumps(row) + "\n" for row in questions))
    rows = [
        (f"{LONG} are left?", "32"),  # the first question in other words
        ("Express your answer as a common fraction in lowest terms please. A cow eats hay all day.", "1/2"),  # phrasing
        ("Unlike anything else there is, truly.", "1"),
    ]
    benchmark = {"kind": "file", "name": "bench", "path": str(bench), "text_fields": ["q"]}
    facts, rejects = corpus_of(tmp_path, rows, decontamination={"benchmarks": [benchmark]})
    assert {number: row["reason"] for number, row in rejects.items()} == {0: "benchmark_overlap"}
    alike = "(similarity 0.89, coverage 1.00)"  # by hand below
    assert rejects[0]["detail"] == f"like a question of bench {alike}: {questions[0]['q'][:60]!r}"
    (found,) = [json.loads(line) for line in (tmp_path / "corpus" / "contamination.jsonl").read_text().splitlines()]
    assert (found["benchmark"], found["problem"], found["question"]) == ("bench", rows[0][0], questions[0]["q"])
    # 23 words, all but the last in runs of eight shared words; 20 of 23 three-word runs shared, of 25 and 23.
    assert found["coverage"] == 1.0
    assert facts["decontaminated_against"] == ["bench"]
    with pytest.raises(UserError, match=r"most often as benchmark_overlap \(1; .*; corpus.decontamination decides\)"):
        corpus_of(tmp_path, rows, decontamination={"benchmarks": [benchmark]}, heldout_problems=9)


def test_card_and_parquet_for_people_and_for_datasets(tmp_path):
    from datasets import load_dataset

    corpus_of(tmp_path, [(f"What is {n} times {n + 7}?", str(n * (n + 7))) for n in range(30)], heldout_problems=5)
    card = (tmp_path / "corpus" / "README.md").read_text()
    assert "| p | local file | not locked | unknown | 30 |" in card
    assert "25 problems to train on and 5 held out" in card
    assert "| exact duplicates | none | 30 |" in card
    loaded = load_dataset(
        "parquet", data_files=str(tmp_path / "corpus" / "problems.parquet"), cache_dir=str(tmp_path / "c")
    )
    assert loaded["train"].num_rows == 30
    assert sorted(set(loaded["train"]["split"])) == ["heldout", "train"]
    assert not (tmp_path / "corpus" / "demonstrations.parquet").exists()  # there is no teacher


def test_odd_but_valid_files_are_read_and_odd_values_rejected(tmp_path):
    path = tmp_path / "odd.jsonl"
    rows = [
        {"problem": "A line\u2028separator?", "answer": "1"},
        {"problem": "Half a pair \ud835?", "answer": "2"},
        {"problem": "A list?", "answer": ["5", "6"]},
        {"problem": "Not a number?", "answer": float("nan")},
        {"problem": "Question: ", "answer": "3"},
    ]
    path.write_text("\ufeff" + "".join(json.dumps(row, ensure_ascii="pair" in row["problem"]) + "\n" for row in rows))
    source = {"kind": "file", "name": "odd", "path": str(path), "problem_prefix": "Question:"}
    facts = build(
        validate_recipe({"study": "c", "corpus": {"sources": [source], "problem_set": "all"}}, "test"), tmp_path
    )
    assert facts["rejected"] == {
        "empty_problem": 1,
        "invalid_text": 1,
        "reference_is_no_text": 1,
        "several_references": 1,
    }
    assert facts["train_problems"] == 1


def test_many_texts_of_one_template_are_handled(tmp_path):
    """Every one is like every other; only the first few are compared, and equal answers make duplicates."""
    rows = [
        (f"{LONG} were sold if the farmer had {n} sheep before and gave none of them away?", "9") for n in range(400)
    ]
    facts, _ = corpus_of(tmp_path, rows)
    assert facts["rejected"]["near_duplicate"] == 399


def test_answers_of_other_domains_pass(tmp_path):
    rows = [
        ("Which section protects platforms?", "Section 230"),
        ("Which drug?", r"\text{aspirin}"),
        ("Which option?", "(B)"),
        ("Which case founded judicial review?", "Marbury v. Madison"),
    ]
    facts, _ = corpus_of(tmp_path, rows)
    assert facts["train_problems"] == 4


def test_two_sources_of_one_name_are_refused(tmp_path):
    source = problems_file(tmp_path, [("a", "1")])
    with pytest.raises(UserError, match="two sources are called 'p'"):
        validate_recipe({"study": "c", "corpus": {"sources": [source, source]}}, "test")


def test_reference_answers_that_say_there_is_none_are_rejected(tmp_path):
    golds = ["5", "N/A", r"\text{None}", "See the solution.", "none of the above", "nan"]
    facts, rejects = corpus_of(tmp_path, [(f"Question number {n}?", gold) for n, gold in enumerate(golds)])
    assert {number: row["reason"] for number, row in rejects.items()} == dict.fromkeys((1, 2, 3, 5), "gold_placeholder")
    assert facts["train_problems"] == 2


def test_levels_without_a_field_are_refused(tmp_path):
    with pytest.raises(UserError, match="source 'p' has `levels` but no `level_field`"):
        corpus_of(tmp_path, [], sources=[problems_file(tmp_path, []) | {"levels": [3]}])


def test_stored_completions_are_matched_by_the_bare_problem(tmp_path):
    rows = [("What is 1+1?", "2"), ("What is 1+2?", "3")]
    stored = tmp_path / "stored.jsonl"
    asked = {"problem": "Q: What is 1+1? Think.", "completion": [r"\boxed{2}", r"\boxed{3}", r"\boxed{2}."]}
    stored.write_text(json.dumps(asked) + "\n")
    files = {"kind": "file", "name": "t", "path": str(stored), "problem_prefix": "Q: ", "problem_suffix": "Think."}
    teacher = {"kind": "stored", "stored": files, "samples_per_problem": 2}
    corpus_of(tmp_path, rows, teacher=teacher)
    found = read_demonstrations(tmp_path / "corpus")
    assert {key: [row.grade for row in value] for key, value in found.items()} == {
        problem_id("What is 1+1?"): ["correct", "wrong"]
    }
    files["problem_prefix"] = ""
    with pytest.raises(UserError, match=r"none of the problems of corpus\.teacher\.stored 't' is a training problem"):
        corpus_of(tmp_path, rows, teacher=teacher)


def test_references_that_agree_one_way_round_are_no_contradiction(tmp_path):
    """0.1 is wrong where 10 % is asked, 10 % is right where 0.1 is: the same reference in two notations."""
    for golds in (("0.1", r"10\%"), (r"10\%", "0.1")):
        _, rejects = corpus_of(tmp_path, [("What share is red?", gold) for gold in golds] + [("Unrelated?", "1")])
        assert {number: row["reason"] for number, row in rejects.items()} == {1: "duplicate"}


def test_server_key_and_benchmark_files_are_missed_before_anything_runs(tmp_path, monkeypatch):
    from launch.planning.preflight import check_before_running

    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    teacher = {"kind": "endpoint", "model": "m", "api_key_variable": "NO_SUCH_KEY"}
    corpus = {"sources": [problems_file(tmp_path, [("a", "1")])], "teacher": teacher}
    with pytest.raises(UserError, match="environment variable NO_SUCH_KEY with the server's key is not set"):
        check_before_running(validate_recipe({"study": "c", "corpus": corpus}, "test"))
    bench = {"kind": "file", "name": "b", "path": str(tmp_path / "absent.jsonl")}
    corpus = {"sources": [problems_file(tmp_path, [("a", "1")])], "decontamination": {"benchmarks": [bench]}}
    with pytest.raises(UserError, match=r"set corpus\.decontamination\.benchmarks\.0\.path=FILE"):
        check_before_running(validate_recipe({"study": "c", "corpus": corpus}, "test"))
