"""The functions that a formula may name."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import permutations
from typing import Any

from data.grading import arithmetic
from data.grading.arithmetic import MATH, NotReadableError, OutOfRangeError, real

_MAX_ARGUMENT = 20000
_ZERO_ORDER = -3300  # a value below is a rounded zero, as sin(pi) is
FUNCTIONS = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "asin": "asin", "acos": "acos",
    "atan": "atan", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "coth": "coth", "exp": "exp", "tg": "tan",
    "ctg": "cot", "cotg": "cot", "arctg": "atan", "arcctg": "acot", "sh": "sinh", "ch": "cosh", "th": "tanh",
    "cis": "expj", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "abs": "fabs", "ln": "ln",
}  # fmt: skip
"""mpmath's name of every function of one argument; `cis x` is cos x + i sin x."""


def apply(name: str, value: Any) -> Any:
    """The value of a function of one argument."""
    if name == "abs":
        return abs(value)
    argument = real(value)
    if abs(argument) > _MAX_ARGUMENT and name != "ln":
        raise OutOfRangeError("argument of a function")
    try:
        result = getattr(MATH, FUNCTIONS[name])(argument)
    except (ValueError, ZeroDivisionError):
        raise NotReadableError("outside the domain") from None
    if result and MATH.mag(abs(result)) < _ZERO_ORDER and MATH.mag(abs(argument)) > _ZERO_ORDER // 2:
        result = Fraction(0)
    if abs(result) and MATH.mag(abs(result)) > -_ZERO_ORDER:
        raise NotReadableError("a pole")  # tan(pi/2)
    return Fraction(0) if result == 0 else arithmetic.checked(result)


def _real_only(value: Any) -> Any:
    if MATH.im(real(value)):
        raise NotReadableError("real numbers only")
    return value


# What these raise for other values or another number of them, `computed` turns into NotReadableError.
LISTS: dict[str, Callable[[Sequence[Any]], Any]] = {
    "gcd": lambda values: Fraction(math.gcd(*map(arithmetic.whole, values))),  # type: ignore[arg-type]
    "lcm": lambda values: Fraction(math.lcm(*map(arithmetic.whole, values))),  # type: ignore[arg-type]
    "max": lambda values: max(map(_real_only, values)),
    "min": lambda values: min(map(_real_only, values)),
    "binom": lambda values: arithmetic.binomial(*values),
}


def determinant(rows: Sequence[Sequence[Any]]) -> Any:
    """The determinant of a square matrix, by Leibniz's formula."""
    total: Any = Fraction(0)
    for order in permutations(range(len(rows))):
        product: Any = Fraction(-1 if sum(a > b for i, a in enumerate(order) for b in order[i + 1 :]) % 2 else 1)
        for row, column in zip(rows, order, strict=True):
            product = arithmetic.multiply(product, row[column])
        total = arithmetic.add(total, product)
    return total
