"""The grader: extraction, comparison, outcomes, and the wall clock that holds off the main thread."""

import json
from pathlib import Path

import pytest

from data.grading.grader import Grader, extract_answer, last_boxed
from data.grading.notation import plain
from eval.scorers.answers import score_exact
from eval.scorers.rules import score
from recipes.loading import load_recipe
from tests.trainers import replace
from train.accounting.ledger import Ledger
from train.arms import resolve_arm
from train.rewards import RecordedReward

SMOKE = Path(__file__).resolve().parent.parent / "recipes" / "pocket" / "smoke.yaml"
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
    settings = replace(resolve_arm(load_recipe(SMOKE), "grpo"), completions_per_problem=1)
    reward = RecordedReward(grader, form, Ledger(tmp_path), 1, settings, seed=0)
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


def test_golden_file_is_large_and_hard_enough():
    outcomes = [case["outcome"] for case in CASES]
    assert len(CASES) >= 500
    assert len({case["name"] for case in CASES}) == len(CASES)
    assert min(outcomes.count("wrong"), outcomes.count("correct")) >= 200
    assert all(case["reason"] for case in CASES)


def test_plain_form_keeps_meaning():
    assert plain(r"$\dfrac{1}{2}$.") == r"\frac{1}{2}"
    assert plain(r"\text{ Evelyn }") == "Evelyn"
    assert plain(r"\left\{ 1,\ 2 \right\}") == r"\{ 1, 2 \}"


def test_are_gradable_in_order(grader):
    gradable = [r"\frac{3}{4}", "B", "-0.5", r"\{x : x > 2, x \neq 3\}", "Marbury v. Madison", r"x \in [1, 2)", "52_8"]
    not_gradable = ["  ", "???", r"\frac{1}{", "$$", "-"]
    mixed = [text for pair in zip(gradable, not_gradable, strict=False) for text in pair]
    assert grader.are_gradable(mixed) == [True, False] * len(not_gradable)
    assert grader.are_gradable(gradable) == [True] * len(gradable)


def test_score_exact():
    assert score_exact("cat  cat\n", "cat cat").correct
    assert score_exact("<think>hm</think>\n\ncat", "cat").correct
    assert score_exact("<think>cat", "cat").outcome == "no_answer"
    assert score_exact("the cat", "cat").outcome == "wrong"
