"""The debatable conventions of the grader, as switches.

The defaults hold for demonstrations, rewards and scores alike. docs/grading.md has the reasons.
"""

import re
from dataclasses import dataclass
from decimal import Decimal

from data.grading.arithmetic import real
from data.grading.values import number


@dataclass(frozen=True)
class Policy:
    """Which debatable answers are correct."""

    missing_unit: bool = True
    """`5` for `5 cm`, and `5 cm` for `5`."""
    convert_units: bool = False
    """`500 cm` for `5 m`."""
    bare_percent: bool = True
    """`10` for `10 %`, and `10 %` for `10`."""
    fraction_for_percent: bool = False
    """`0.1` for `10 %`; `10 %` for `0.1` is always correct."""
    missing_base: bool = False
    """`52` for `52_8`, and `52_8` for `52`."""
    rounded: bool = False
    """A decimal of at least three digits that is the rounded reference: `0.333` for `1/3`."""
    list_for_tuple: bool = False
    """`1, 2` for `(1, 2)`, in this order."""


DEFAULT = Policy()


def rounds_to(answer: str, reference: str) -> bool:
    """Whether a decimal number of at least three digits is the rounded value of a formula."""
    digits = answer.lstrip("-").replace(".", "").lstrip("0")
    if not re.fullmatch(r"-?\d*\.\d+", answer) or len(digits) < 3:
        return False
    exact = number(reference)
    if exact is None or real(exact).imag:
        return False
    places = -int(Decimal(answer).as_tuple().exponent)
    return bool(abs(real(number(answer)) - real(exact)) * 10**places <= 0.5)
