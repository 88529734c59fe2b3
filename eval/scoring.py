"""How a stored response is judged: pure functions of the response and the reference answer.

`boxed` is the grader of training (`data/grading.py`), so the reward and the score cannot disagree. `exact`
compares the text after the thinking with the reference, spacing aside.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from data.grading import Grader, answer_text

TRUNCATED = "truncated"


class Score(NamedTuple):
    """Judgement of one response."""

    correct: bool
    outcome: str
    """An outcome of `data/grading.py`, or "truncated": no answer, and the response was cut off."""


@lru_cache(maxsize=1)
def _grader() -> Grader:
    return Grader()


def score_boxed(response: str, reference_answer: str) -> Score:
    """Score by the final boxed answer."""
    grade = _grader().grade(response, reference_answer, "boxed")
    return Score(grade.correct, grade.outcome.value)


def score_exact(response: str, reference_answer: str) -> Score:
    """Score by equality of the whole answer text, runs of white space read as one space."""
    answer = " ".join((answer_text(response) or "").split())
    if not answer:
        return Score(False, "no_answer")
    correct = answer == " ".join(reference_answer.split())
    return Score(correct, "correct" if correct else "wrong")


SCORINGS: dict[str, Callable[[str, str], Score]] = {"boxed": score_boxed, "exact": score_exact}


def score(response: str, reference_answer: str, scoring: str, cut_off: bool = False) -> Score:
    """Score one response by the named scoring; `cut_off` tells a missing answer from an unfinished one."""
    result = SCORINGS[scoring](response, reference_answer)
    return Score(False, TRUNCATED) if cut_off and result.outcome == "no_answer" else result


def mean_accuracy(responses: Sequence[str], reference_answer: str, scoring: str) -> float:
    """Share of correct responses, 0 to 1."""
    return sum(score(response, reference_answer, scoring).correct for response in responses) / len(responses)
