"""What grading one completion results in."""

from enum import StrEnum
from typing import NamedTuple


class Outcome(StrEnum):
    """Result of grading one completion."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    GOLD_UNPARSEABLE = "gold_unparseable"
    TIMEOUT = "timeout"
    CRASH = "crash"


class Grade(NamedTuple):
    """The outcome for one completion and the answer that was extracted from it."""

    outcome: Outcome
    extracted_answer: str | None

    @property
    def correct(self) -> bool:
        """Whether the outcome is `CORRECT`."""
        return self.outcome is Outcome.CORRECT
