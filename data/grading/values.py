r"""Whether two formulas are equal: exactly, or to 1,000 digits where they are irrational.

Closed forms (`\frac{1}{\sqrt2}`, `2^{10}`, `\binom52`) have one value. Formulas with variables are evaluated at a few
fixed pseudo-random points, where different polynomials do not agree by chance (Schwartz 1980, J. ACM 27, 701).
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple
from zlib import crc32

from data.grading import arithmetic
from data.grading.arithmetic import FormulaError, NotReadableError, OutOfRangeError, close
from data.grading.formula import Formula
from data.grading.tokens import ALL_WHOLE, whole_names

_IMAGINARY = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])|cis")
_SIZES = (1, 1, 1, 1, 400, 400, 40_000, 40_000)  # of the variables: |x - 2024| is not 2024 - x
_FAR = 4  # from this point on values may be too large to compute
_REAL_NAMES = tuple("xyz")


class _Points(dict[str, Any]):
    """Fixed values of the variables at one point, computed on first use; negative at odd points: |x| is not x."""

    def __init__(self, point: int, whole: frozenset[str]) -> None:
        super().__init__()
        self.point, self.whole = point, whole

    def __missing__(self, name: str) -> Any:
        seed = crc32(f"{name} {self.point}".encode())
        if name in self.whole or (self.whole >= ALL_WHOLE and not name.startswith(_REAL_NAMES)):
            value = Fraction(3 + seed % 150)
        else:
            size = Fraction(3, 10) + Fraction(2 * (crc32(name.encode(), seed) >> 1) + 1, 1 << 32)
            size *= _SIZES[self.point]
            value = -size if self.point % 2 else size
        self[name] = value
        return value


class Value(NamedTuple):
    """Value of a formula, the names of its variables, and whether a root of a negative number was ambiguous."""

    value: Any
    names: frozenset[str]
    has_odd_root: bool


@lru_cache(maxsize=16384)
def computed(text: str, point: int, whole: frozenset[str], odd_roots: bool) -> Value | FormulaError:
    """Value of a formula, or why it has none: it is not supported, or too large, too small or too costly to compute.

    Args:
        text: the formula.
        point: which values the variables have.
        whole: variables that stand for whole numbers.
        odd_roots: read fractional powers of negative numbers as real where the root is odd.
    """
    try:
        formula = Formula(text, _Points(point, whole), odd_roots)
        return Value(formula.read(), frozenset(formula.names), formula.has_odd_root)
    except FormulaError as error:
        return type(error)(*error.args)  # without its traceback
    except (OverflowError, MemoryError):
        return OutOfRangeError("overflow")
    except (TypeError, ValueError, ArithmeticError, RecursionError, AttributeError) as error:
        return NotReadableError(str(error))


def _evaluate(text: str, point: int, whole: frozenset[str], odd_roots: bool = False) -> Value:
    value = computed(text, point, whole, odd_roots)
    if isinstance(value, FormulaError):
        raise value.with_traceback(None)
    return value


def _at_first_point(text: str) -> Value | FormulaError:
    return computed(text, 0, frozenset(), False)


def number(text: str) -> Any:
    """The value of a formula without variables; None for other texts, and where it cannot be computed."""
    value = _at_first_point(text)
    return value.value if isinstance(value, Value) and not value.names else None


def variables(text: str) -> frozenset[str] | None:
    """The names in a formula; None for other texts, and where it cannot be computed."""
    value = _at_first_point(text)
    return value.names if isinstance(value, Value) else None


def is_number(text: str) -> bool:
    """Whether a text is a formula without variables."""
    value = _at_first_point(text)
    return isinstance(value, OutOfRangeError) or (isinstance(value, Value) and not value.names)


def is_formula(text: str) -> bool:
    """Whether a text can be read as a formula."""
    return not isinstance(_at_first_point(text), NotReadableError)


def _at_all_points(
    left: str, right: str, whole: frozenset[str], odd_roots: bool = False
) -> Iterator[tuple[Value, Value]]:
    """The values of two formulas at every point; a far one at which they are too large is left out."""
    for point in range(len(_SIZES)):
        try:
            yield _evaluate(left, point, whole, odd_roots), _evaluate(right, point, whole, odd_roots)
        except OutOfRangeError:
            if point < _FAR:
                raise


def same_value(left: str, right: str) -> bool | None:
    """Whether two formulas are equal; None if one of them cannot be read or computed."""
    whole = whole_names(left) | whole_names(right)
    has_root = "\\sqrt[" in left + right and "^" in left + right
    for odd_roots in (False, True):
        try:
            ambiguous = False
            equal = True
            for first, second in _at_all_points(left, right, whole, odd_roots):
                ambiguous |= first.has_odd_root or second.has_odd_root
                equal = close(first.value, second.value)
                if not equal or not (first.names or second.names):
                    break
        except FormulaError:
            return None
        if equal or not (ambiguous or has_root):
            break
    return equal or _equal_where_real(left, right, whole)


def _equal_where_real(left: str, right: str, whole: frozenset[str]) -> bool:
    r"""Whether two formulas are real at the same points, and equal there: `\sqrt{1/n}` and `1/\sqrt n`."""
    if _IMAGINARY.search(left) or _IMAGINARY.search(right):
        return False
    compared = 0
    for point in range(len(_SIZES)):
        try:
            first, second = (arithmetic.real(_evaluate(text, point, whole).value) for text in (left, right))
        except OutOfRangeError:
            continue
        except NotReadableError:
            return False
        if bool(first.imag) != bool(second.imag):
            return False
        if not first.imag:
            compared += 1
            if not close(first, second):
                return False
    return 1 < compared < len(_SIZES)


def proportional(left: str, right: str, *, positive: bool = False) -> bool | None:
    """Whether two formulas differ by a constant factor, which is above zero if `positive`; None if unknown.

    Equations are compared as left side minus right side, which is defined up to such a factor.
    """
    whole = whole_names(left) | whole_names(right)
    ratios = []
    names = set()
    try:
        for first, second in _at_all_points(left, right, whole):
            names |= {first.names, second.names}
            ratios.append(arithmetic.divide(first.value, second.value))
    except FormulaError:
        return None
    if len(names) != 1 or not names.pop() or not all(close(ratio, ratios[0]) for ratio in ratios):
        return False
    ratio = arithmetic.real(ratios[0])
    return ratio != 0 and (not positive or (not ratio.imag and ratio.real > 0))
