"""What `transfer view` says of IFEval, code and MC-TACO: the reference as a person reads it, and why a score is so."""

import json

import pytest

from eval.questions.records import Question
from eval.scorers.records import Response, ScoreRow
from eval.scorers.rules import score
from eval.viewer.cell import Cell
from eval.viewer.explain import answer_name, explain, reference_text, rule_text
from eval.viewer.study import _responses, _snippet

IFEVAL = {
    "key": 1,
    "prompt": "p",
    "instructions": ["punctuation:no_comma", "length_constraints:number_words"],
    "arguments": [{}, {"relation": "at least", "num_words": 4, "other": None}],
}
TESTS = [{"input": "1\n2", "output": "3", "testtype": "functional"}, {"input": "9" * 400, "output": "0"}]
CODE = {"public": json.dumps(TESTS[:1]), "private": json.dumps(TESTS[1:]), "function": "add"}


def said(text):
    return Response("q", responses=(text,), tokens=(1,))


@pytest.mark.parametrize(
    ("response", "rule", "expected"),
    [
        (
            "one, two",
            "instructions_strict",
            ["punctuation:no_comma NOT followed", "length_constraints:number_words NOT followed"],
        ),
        (
            "one, two, three, four",
            "each_instruction_strict",
            ["punctuation:no_comma NOT followed", "length_constraints:number_words followed"],
        ),
        (  # the loose rule also tries it without the first line
            "Sure, here it is:\none two three four",
            "instructions_loose",
            ["punctuation:no_comma followed", "length_constraints:number_words followed"],
        ),
        ("<think>never ends", "instructions_strict", []),
    ],
)
def test_every_instruction_is_named(response, rule, expected):
    assert explain(rule, said(response), 0, IFEVAL) == expected
    assert answer_name(rule) is None
    assert rule_text(rule).startswith("Whether all instructions of a prompt are followed")


def test_a_response_without_an_answer_is_not_explained_like_one_that_follows_everything():
    texts = ("<think>never ends", "one two three four")
    judged = [score(text, IFEVAL, "instructions_strict") for text in texts]
    assert [(item.outcome, item.answer) for item in judged] == [("no_answer", None), ("correct", None)]
    question = Question("q", {}, IFEVAL)
    rows = [ScoreRow("q", "q", index, item.value, item.outcome, item.answer) for index, item in enumerate(judged)]
    cell = Cell(None, "native", "robust", [question], {}, {}, {"base": {"robust": {"q": rows}}})
    stored = Response("q", responses=texts, tokens=(2, 4))
    shown = _responses(cell, "base", question, stored, {"robust": "instructions_strict"}, {})
    assert [one["scores"]["robust"]["why"] for one in shown] == [
        [],
        ["punctuation:no_comma followed", "length_constraints:number_words followed"],
    ]


def test_a_failed_program_shows_its_test():
    judged = score(
        "```python\nclass Solution:\n    def add(self, a, b):\n        return a\n```", CODE, "code", sandboxed=False
    )
    assert judged.answer is not None
    assert judged.answer.startswith("test 1: ")
    assert explain("code", said("x"), 0, CODE, judged.answer) == ["test 1: input '1\\n2', expected '3'"]
    assert explain("code", said("x"), 0, CODE, None) == []
    checks = {"prompt": "def add(a, b):\n", "entry_point": "add", "test": "def check(f):\n    assert f(1, 2) == 3\n"}
    failed = "test 1: crash AssertionError: "
    assert explain("code", said("x"), 0, checks, failed) == ["test 1: def check(f):\n    assert f(1, 2) == 3"]
    assert answer_name("code") == "failed"


def test_a_part_of_a_question_is_judged_by_itself():
    assert explain("strict_yes_no", said("No, it is not."), 0, "no") == ["this part: correct, answer no"]
    assert explain("f1_yes_no", said("It depends."), 0, "yes") == ["this part: no answer"]
    likely = Response("q", answers=("no", "yes"), likelihoods=(-1.0, -2.0))
    assert explain("strict_likelihood", likely, 0, "yes") == ["this part: wrong, answer no"]
    assert explain("likelihood", likely, 0, "yes") == []
    assert rule_text("strict_yes_no").startswith("MC-TACO's strict accuracy of a question")
    assert rule_text("yes_no") == "Whether the yes or no that the response settles on is the reference's."


def test_references_are_lines_that_a_person_reads():
    assert reference_text(IFEVAL) == (
        "punctuation:no_comma\nlength_constraints:number_words (relation at least, num_words 4)"
    )
    lines = reference_text(CODE).split("\n")
    assert lines[:2] == ["2 tests of the function add", "test 1: input '1\\n2', expected '3'"]
    assert lines[2] == f"test 2: input '{'9' * 199}…', expected '0'"
    assert reference_text({"answer": "3", "unit": "cm", "tolerance": 0.0}) == "answer: 3\nunit: cm"
    assert reference_text(["white", "it was white"]) == '["white", "it was white"]'
    assert (reference_text("B"), reference_text(None)) == ("B", None)


def test_the_list_tells_the_parts_of_a_question_apart():
    fields = {"sentence": "He ran.", "question": "How long?", "answer": "two days"}
    assert _snippet(Question("a", fields, "no", unit="u")) == "two days · How long?"
    assert _snippet(Question("a", fields, "no")) == "How long?"


def test_the_list_shows_all_fields_of_a_question_that_none_of_them_is():
    assert _snippet(Question("a", {"n": "109", "from": "kilo\ngrams", "to": 5}, "no")) == "109 · kilo grams · 5"
