"""The grader: extraction, comparison, outcomes, and the wall clock that holds off the main thread."""

import json
import threading
import time
from pathlib import Path

import pytest

from data.grading import Grader, Outcome, compare_fast, extract_answer, last_boxed, normalise
from eval.scoring import score, score_exact
from train.ledger import Ledger
from train.rewards import CorrectnessReward

CASES = [json.loads(line) for line in (Path(__file__).parent / "golden" / "grading.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def grader():
    grader = Grader(workers=2, timeout_seconds=3)
    yield grader
    grader.close()


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden_case_in_demonstrations_reward_and_score(case, grader, tmp_path):
    """The three users of the grader, each as it calls it, agree on every case."""
    completion, reference, form = case["completion"], case["reference"], case.get("form", "boxed")
    correct = case["outcome"] == "correct"
    (demonstration,) = grader.grade_many([completion], [reference], form)
    assert demonstration.outcome == case["outcome"]
    reward = CorrectnessReward(grader, form, Ledger(tmp_path), 1, 1, negatives=True, beta=0.0)
    assert reward([""], [completion], [[0]], [reference], ["id"], [1]) == [float(correct)]
    judged = score(completion, reference, form)
    assert (judged.outcome, judged.correct) == (case["outcome"], correct)


def test_cut_off_response_is_unfinished_not_wrong():
    assert score("cat ca", "cat cat", "exact", cut_off=True).outcome == "truncated"
    assert score("cat cat", "cat cat", "exact", cut_off=True).correct
    assert score("8+6", "14", "boxed", cut_off=True).outcome == "truncated"
    assert score(r"\boxed{13} so 8+", "14", "boxed", cut_off=True).outcome == "wrong"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{f(\{x\}) = {y}}", r"f(\{x\}) = {y}"),
        (r"\boxed{1} and \boxed{2", None),
        ("no box", None),
    ],
)
def test_last_boxed(text, expected):
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("completion", "form", "expected"),
    [
        (r"<think>\boxed{9}</think>\boxed{3}", "boxed", "3"),
        (r"<think>\boxed{9}", "boxed", None),
        (r"\boxed{9}</think> so it is 3", "boxed", None),
        (r"<think>a</think>b</think>\boxed{4}", "boxed", "4"),
        ("so 4+4=8\n#### 8", "plain", "8"),
        ("The answer is 12 apples\nbye", "plain", "12 apples"),
        ("first line\nlast line\n", "plain", "last line"),
        (r"the answer is 5, that is \boxed{6}", "plain", "6"),
        (r"the answer is 5, that is \boxed{6", "plain", None),
        ("", "plain", None),
        (r"\boxed{}", "boxed", None),
    ],
)
def test_extract_answer(completion, form, expected):
    assert extract_answer(completion, form) == expected


def test_normalise_keeps_meaning():
    assert normalise(r"$\dfrac{1}{2}$.") == r"\frac{1}{2}"
    assert normalise(r"12,345") == "12345"
    assert normalise("1{,}234{,}567.5") == "1234567.5"
    assert normalise("-1,234") == "-1234"
    assert normalise(r"\dfrac{1}{29,\!322,\!216}") == r"\frac{1}{29322216}"
    assert normalise("(1,234)") == "(1,234)"  # a pair, perhaps
    assert normalise(r"\{100,200\}") == r"\{100,200\}"
    assert normalise("1,23") == "1,23"
    assert normalise(r"\text{ Evelyn }") == "Evelyn"


def test_letters_are_compared_as_text_not_as_a_product():
    assert compare_fast("b a", "a b") is Outcome.WRONG
    assert compare_fast("(C)", "C") is Outcome.CORRECT
    assert compare_fast("x+y", "y+x") is None  # left to algebra


def test_wall_clock_limit_holds_in_a_thread(grader):
    """math-verify's own limit is a signal and is silent off the main thread; this one must not be."""
    result = {}

    def work():
        begun = time.monotonic()
        result["grade"] = grader.grade(r"\boxed{9^{9^{9^{9}}}}", "x^2+1")
        result["seconds"] = time.monotonic() - begun

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert result["grade"].outcome is Outcome.TIMEOUT
    # and the next comparison works, with a new process
    assert grader.grade(r"\boxed{x+1}", "1+x").correct


def test_crashed_worker_is_an_outcome_and_is_replaced():
    grader = Grader()
    assert grader.grade(r"\boxed{x+1}", "1+x").correct
    grader._idle[0].process.kill()
    assert grader.grade(r"\boxed{x+2}", "2+x").outcome is Outcome.CRASH
    assert grader.grade(r"\boxed{x+3}", "3+x").correct
    grader.close()


def test_grade_many_keeps_order(grader):
    completions = [rf"\boxed{{{n}+x}}" for n in range(12)]
    grades = grader.grade_many(completions, [f"x+{n if n % 3 else n + 1}" for n in range(12)])
    assert [grade.correct for grade in grades] == [bool(n % 3) for n in range(12)]


def test_is_gradable(grader):
    assert grader.is_gradable(r"\frac{3}{4}")
    assert grader.is_gradable("B")
    assert grader.is_gradable("-0.5")
    assert not grader.is_gradable("  ")
    assert not grader.is_gradable("???")


def test_score_exact():
    assert score_exact("cat  cat\n", "cat cat").correct
    assert score_exact("<think>hm</think>\n\ncat", "cat").correct
    assert score_exact("<think>cat", "cat").outcome == "no_answer"
    assert score_exact("the cat", "cat").outcome == "wrong"
