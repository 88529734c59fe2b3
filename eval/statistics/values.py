"""Estimates as they are stored in `transfer.json`: rounded, immutable, checked when read; and how a number is shown."""

from math import hypot
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from eval.statistics.inference import Interval

NOT_IDENTIFIED, UNDEFINED = "not identified", "undefined"  # statuses of a transfer index besides "identified"


def number_text(value: float, form: str = "+.1f") -> str:
    """A number in the format `form`.

    One that rounds to zero keeps its sign, and zero itself has none, because rules look at which side a bound is on.
    """
    return f"{value:{form}}" if value else f"{0:{form.lstrip('+')}}"


class Values(BaseModel):
    """A part of a report. Unknown keys are refused; a key that was never set is left out of the JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def dump(self) -> dict[str, Any]:
        """The part as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


class Estimate(Values):
    """An estimate with its confidence interval; the unit is that of the field that holds it."""

    estimate: float
    low: float
    high: float

    @classmethod
    def of(cls, interval: "Interval", digits: int = 3) -> "Estimate":
        """An interval, rounded."""
        return cls(**{key: round(float(value), digits) for key, value in interval._asdict().items()})

    def __neg__(self) -> "Estimate":
        return Estimate(estimate=-self.estimate, low=-self.high, high=-self.low)

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference as if the two were independent (MOVER, Zou and Donner 2008, Stat. Med. 27, 1693).

        Where they share questions it is as a rule too wide.
        """
        difference = self.estimate - other.estimate
        below = hypot(self.estimate - self.low, other.high - other.estimate)
        above = hypot(self.high - self.estimate, other.estimate - other.low)
        return Estimate(
            estimate=round(difference, 3), low=round(difference - below, 3), high=round(difference + above, 3)
        )


class PartialEstimate(Values):
    """An estimate that has no interval where too few draws define it."""

    estimate: float
    low: float | None
    high: float | None
