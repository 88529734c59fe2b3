"""The judgement of one response."""

from typing import Any, NamedTuple

TRUNCATED = "truncated"


class Score(NamedTuple):
    """Judgement of one response."""

    value: float
    """0 to 1; 1 is correct."""
    outcome: str
    """correct, wrong, no_answer, truncated, partial (between 0 and 1), or what kept the grader from judging."""
    answer: str | None = None
    """What was taken as the answer."""
    weight: float = 1.0
    """How much it counts in the benchmark's mean: IFEval's instruction level counts instructions, not prompts."""

    @property
    def correct(self) -> bool:
        """Whether the response has the full score."""
        return self.value == 1


def judged(correct: bool, answer: str | None) -> Score:
    """The score of a response that is right or wrong."""
    return Score(float(correct), "correct" if correct else "wrong", answer)


def fraction(value: float, answer: str | None, weight: float = 1.0) -> Score:
    """The score of a response that can be right in part; `value` is from 0 to 1."""
    outcome = "correct" if value == 1 else "wrong" if value == 0 else "partial"
    return Score(value, outcome, answer, weight)


NO_ANSWER = Score(0.0, "no_answer")


def first_line(text: str) -> str:
    """The first line of a text without the blanks around it."""
    return text.strip().split("\n")[0].strip()


Reference = Any
