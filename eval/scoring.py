"""How a stored response is judged: pure functions of the response and the reference answer.

`boxed` and `plain` are the two forms of the grader of training (`data/grading.py`); the recipe must score math in
the form it rewards, so the reward and the score cannot disagree. `exact` compares the text after the thinking with
the reference, spacing aside.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from data.grading import AnswerForm, Grader
from data.thinking import answer_text

TRUNCATED = "truncated"


class Score(NamedTuple):
    """Judgement of one response."""

    correct: bool
    outcome: str
    """An outcome of `data/grading.py`, or "truncated": cut off before it could answer."""


@lru_cache(maxsize=1)
def _grader() -> Grader:
    return Grader()


def score_graded(response: str, reference_answer: str, form: AnswerForm) -> Score:
    """Score by the final answer."""
    grade = _grader().grade(response, reference_answer, form)
    return Score(grade.correct, grade.outcome.value)


def score_exact(response: str, reference_answer: str) -> Score:
    """Score by equality of the whole answer text, runs of white space read as one space."""
    answer = " ".join((answer_text(response) or "").split())
    if not answer:
        return Score(False, "no_answer")
    correct = answer == " ".join(reference_answer.split())
    return Score(correct, "correct" if correct else "wrong")


SCORINGS: dict[str, Callable[[str, str], Score]] = {
    "boxed": partial(score_graded, form="boxed"),
    "plain": partial(score_graded, form="plain"),
    "exact": score_exact,
}


def score(response: str, reference_answer: str, scoring: str, cut_off: bool = False) -> Score:
    """Score one response by the named scoring; `cut_off` tells an unfinished answer from a missing or wrong one.

    In `exact` the whole text is the answer, so a text that was cut off is unfinished whatever it says.
    """
    result = SCORINGS[scoring](response, reference_answer)
    unfinished = result.outcome == "no_answer" or (scoring == "exact" and not result.correct)
    return Score(False, TRUNCATED) if cut_off and unfinished else result


def mean_accuracy(responses: Sequence[str], reference_answer: str, scoring: str) -> float:
    """Share of correct responses, 0 to 1."""
    return sum(score(response, reference_answer, scoring).correct for response in responses) / len(responses)
