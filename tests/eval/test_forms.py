"""From published rows to questions: one made-up row per form, in the columns its publisher uses."""

import base64
import json
import pickle
import zlib
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.questions.build import _require_references, content_hash
from eval.questions.forms import acpbench_shots, code_tests, questions_of, sample_questions, sample_slice, unpack_text
from eval.questions.records import Question, json_line
from recipes.errors import UserError
from recipes.files import hash_json
from recipes.suite_schema import BenchmarkData, BenchmarkSpec


def data(form="fields", **settings):
    return BenchmarkData(kind="file", name="b", path="b.jsonl", form=form, **settings)


def one(form, row, **settings):
    (question,) = questions_of("b", data(form, **settings), [row])
    return question


def test_fields():
    settings = {"fields": {"problem": "q"}, "id_field": "id", "cluster_field": "story"}
    rows = [{"q": f"{n}+1", "answer": n + 1, "id": n, "story": n // 2} for n in range(4)]
    questions = questions_of("b", data(**settings), rows)
    assert [q.fields for q in questions] == [{"problem": f"{n}+1"} for n in range(4)]
    assert [q.reference for q in questions] == ["1", "2", "3", "4"]
    assert len({q.question_id for q in questions}) == 4
    assert questions[0].cluster == questions[1].cluster != questions[2].cluster == questions[3].cluster


def test_a_question_keeps_the_id_of_its_file_for_readers():
    """Its content, and so every stored response, is that of a study from before the id was kept."""
    row = {"q": "1+1", "answer": "x", "id": 17}
    (question,) = questions_of("b", data(fields={"problem": "q"}, id_field="id"), [row])
    assert (question.name, question.extra) == ("17", {"id": "17"})
    assert content_hash([question]) == hash_json([replace(question, extra={}).dump()])
    assert content_hash([question]) != content_hash([replace(question, extra={"type": "Numerical"})])
    (without,) = questions_of("b", data(fields={"problem": "q"}), [row])
    assert without.name == without.question_id
    benchmark = BenchmarkSpec.model_validate({"name": "b", "group": "math", "scorings": {"robust": "choice"}})
    with pytest.raises(UserError, match=r"benchmark b: the reference of row 1 \(id 17\) is 'x' but"):
        _require_references(benchmark, [question])
    with pytest.raises(UserError, match=r"the text of '17' holds '\\ud800'"):
        json_line(replace(question, fields={"problem": "\ud800"}).dump())


def test_olympiadbench():
    row = {
        "question": "Q",
        "context": None,
        "final_answer": ["$1$,$2$"],
        "is_multiple_answer": True,
        "unit": None,
        "error": "1e-1",
        "answer_type": "Numerical",
    }
    question = one("olympiadbench", row)
    assert question.reference == {"answer": "$1$,$2$", "unit": "", "tolerance": 0.1}
    assert question.fields == {"problem": "Q", "context": ""}
    assert question.extra["several"] is True


def gpqa_row(number):
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    return {"Question": f"Which {number}?"} | {name: f"{name} of {number}\n" for name in names}


def test_gpqa_order_is_frozen_and_spreads_the_right_letter():
    questions = questions_of("b", data("gpqa"), [gpqa_row(n) for n in range(200)])
    assert questions == questions_of("b", data("gpqa"), [gpqa_row(n) for n in range(200)])
    for question in questions:
        right = question.fields["options"]["ABCD".index(question.reference)]
        assert right.startswith("Correct Answer of")
        assert right == right.strip()
    counts = {letter: sum(q.reference == letter for q in questions) for letter in "ABCD"}
    assert min(counts.values()) > 30  # 50 are expected of each; the authors' code has 200 of one
    # The place of a question in the file, or other questions beside it, change nothing.
    assert questions_of("b", data("gpqa"), [gpqa_row(7)])[0] == questions[7]


def test_coqa_asks_the_last_turn_and_keeps_the_golds_of_all_annotators():
    row = {
        "story": "A cat sat.",
        "questions": {"input_text": ["Who?", "Did what?"]},
        "answers": {"input_text": ["a cat", "sat"]},
        "additional_answers": {"0": {"input_text": ["cat", "Sat"]}, "1": {"input_text": ["cat", "it sat"]}},
    }
    question = one("coqa", row)
    assert question.fields["history"] == [{"question": "Who?", "answer": "a cat"}]
    assert question.fields["question"] == "Did what?"
    assert question.reference == {"question": "Did what?", "annotators": ["sat", "Sat", "it sat"]}


def test_halueval_kinds_share_a_cluster_only_with_their_own_question():
    empty = dict.fromkeys(("question", "answer", "dialogue_history", "response", "document", "summary", "knowledge"))
    rows = [
        empty | {"knowledge": "k", "question": "q", "answer": "a", "hallucination": "no"},
        empty | {"knowledge": "k", "question": "q", "answer": "b", "hallucination": "yes"},
        empty | {"knowledge": "k", "dialogue_history": "q", "response": "a", "hallucination": "yes"},
        empty | {"document": "d", "summary": "s", "hallucination": "no"},
    ]
    questions = questions_of("b", data("halueval"), rows)
    assert [q.stratum for q in questions] == ["qa", "qa", "dialogue", "summarization"]
    assert [q.reference for q in questions] == ["no", "yes", "yes", "no"]
    assert len({q.cluster for q in questions}) == 3
    with pytest.raises(UserError, match="row 1: it is not of the form 'halueval'"):
        one("halueval", rows[0] | {"hallucination": "maybe"})


def test_mc_taco_clusters_by_sentence_and_counts_repeats():
    rows = [
        {"sentence": "s", "question": "q1", "answer": "a", "label": "yes"},
        {"sentence": "s", "question": "q1", "answer": "a", "label": "yes"},
        {"sentence": "s", "question": "q2", "answer": "a", "label": "0"},
    ]
    questions = questions_of("b", data("mc_taco"), rows)
    assert len({q.question_id for q in questions}) == 3
    assert len({q.cluster for q in questions}) == 1
    assert len({q.unit for q in questions}) == 2
    assert [q.reference for q in questions] == ["yes", "yes", "no"]


def test_acpbench_takes_the_worked_examples_of_the_harness():
    row = {
        "context": "c",
        "question": "q A. x B. y",
        "query": "q",
        "choices": {"text": ["x", "y"], "label": ["A", "B"]},
        "answer": "B",
        "group": "applicable_actions_mc",
    }
    question = one("acpbench", row)
    assert question.reference == "B"
    assert len(question.fields["shots"]) == 2
    assert all("**Final Answer**: " in shot["answer"] for shot in question.fields["shots"])
    with pytest.raises(UserError, match="answer 'C' is none of"):
        one("acpbench", row | {"answer": "C"})
    with pytest.raises(ValueError, match="group 'x' is none of"):
        acpbench_shots("x")


def test_headqa_numbers_start_where_the_publisher_starts_them():
    row = {"qtext": "q ", "ra": 2, "answers": [{"aid": 1, "atext": "x"}, {"aid": 2, "atext": " y"}]}
    question = one("headqa", row)
    assert (question.reference, question.fields["options"]) == ("B", ["x", "y"])


def test_ifeval_leaves_out_empty_arguments():
    row = {"key": 5, "prompt": "p", "instruction_id_list": ["a:b"], "kwargs": [{"n": 3, "m": None}]}
    assert one("ifeval", row).reference["arguments"] == [{"n": 3}]


def packed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def test_livecodebench_tests_are_read_without_unpickling():
    tests = [{"input": "1", "output": "2", "testtype": "stdin"}]
    row = {
        "question_id": "x",
        "question_title": "t",
        "question_content": "c",
        "starter_code": "",
        "public_test_cases": json.dumps(tests),
        "private_test_cases": packed(json.dumps(tests * 2)),
        "metadata": '{"func_name": "f"}',
        "contest_date": "2024-01-01",
    }
    question = one("livecodebench", row)
    assert code_tests(question.reference) == tests * 3
    assert question.reference["function"] == "f"
    with pytest.raises(ValueError, match="more than a text"):
        unpack_text(packed(print))
    with pytest.raises(ValueError, match="more than a text"):
        unpack_text(packed(["a", "b"]))


def test_humaneval_keeps_the_code_before_the_answer():
    row = {"task_id": "HumanEval/7", "prompt": "def f(x):\n", "entry_point": "f", "test": "def check(c): ...",
           "canonical_solution": "    return x"}  # fmt: skip
    question = one("humaneval", row)
    assert question.fields == {"prompt": row["prompt"], "entry_point": "f"}
    assert code_tests(question.reference) == [{"testtype": "check", "input": "", "output": row["test"]}]
    with pytest.raises(UserError, match=r"row 1: it is not of the form 'humaneval' .*does not define 'g'"):
        one("humaneval", row | {"entry_point": "g"})


def test_sample_is_fixed_and_takes_equally_from_each_stratum():
    empty = dict.fromkeys(("question", "answer", "dialogue_history", "response", "document", "summary", "knowledge"))
    rows = [empty | {"knowledge": "k", "question": f"{n}", "answer": "a", "hallucination": "no"} for n in range(60)]
    rows += [empty | {"document": f"{n}", "summary": "s", "hallucination": "no"} for n in range(40)]
    chosen = questions_of("b", data("halueval", rows=20), rows)
    assert sorted(q.stratum for q in chosen) == ["qa"] * 10 + ["summarization"] * 10
    shuffled = questions_of("b", data("halueval", rows=20), rows[::-1])
    assert {q.question_id for q in shuffled} == {q.question_id for q in chosen}
    more = questions_of("b", data("halueval", rows=40), rows)
    assert {q.question_id for q in chosen} < {q.question_id for q in more}
    candidates = [
        {"sentence": f"{n}", "question": "q", "answer": f"{k}", "label": "no"} for n in range(10) for k in range(3)
    ]
    whole = questions_of("b", data("mc_taco", rows=10), candidates)
    assert len(whole) == 9  # three questions with all their candidates, and no part of a fourth
    assert len({q.unit for q in whole}) == 3
    with pytest.raises(UserError, match=r"has 20 questions, but `rows` is 21; set data.rows to at most 20, or to null"):
        sample_questions(chosen, 21, "b")


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), strata=st.integers(1, 3), count=st.integers(1, 40))
def test_samples_are_whole_units_and_never_empty(sizes, strata, count):
    questions = [
        Question(f"{unit}-{part}", {}, "a", unit=f"u{unit}", stratum=f"s{unit % strata}")
        for unit, size in enumerate(sizes)
        for part in range(size)
    ]
    members = {f"u{unit}": size for unit, size in enumerate(sizes)}
    part = sample_slice(questions, count)
    assert {unit: members[unit] for unit in {q.unit for q in part}} == Counter(q.unit for q in part)
    assert part == [q for q in questions if q in part]
    limit = min(count, len(questions))
    if len(part) <= limit:
        assert part == sample_questions(questions, limit, "b") != []
    else:
        assert len({q.unit for q in part}) == 1
        with pytest.raises(UserError, match="so none would be selected"):
            sample_questions(questions, limit, "b")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"q": "a", "answer": "1", "id": 1}, {"q": "b", "answer": "2", "id": 1}],
            "rows 1 and 2 have the same id '1'; make its values unique, or set `data.id_field`",
        ),
        ([{"q": None, "answer": "1", "id": 1}], "row 1: 'q', the field 'problem', is empty; fill it in"),
        ([{"q": "a", "answer": " ", "id": 1}], "row 1: 'answer', the reference answer, is empty"),
    ],
)
def test_bad_rows_are_a_sentence(rows, message):
    with pytest.raises(UserError, match=message):
        questions_of("b", data(fields={"problem": "q"}, id_field="id"), rows)


def test_equal_questions_without_an_id_are_named_by_their_hash():
    rows = [{"q": "a", "answer": "1"}, {"q": "a", "answer": "2"}]
    with pytest.raises(UserError, match=r"rows 1 and 2 have the same identity [0-9a-f]+; set `data.id_field` to a col"):
        questions_of("b", data(fields={"problem": "q"}), rows)
