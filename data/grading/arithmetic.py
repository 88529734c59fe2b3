"""Arithmetic that is exact for rational numbers and has 1,100 digits for others, and refuses what costs too much.

Answers such as 2^{2007} - 1 differ from their neighbours in the last digit and 10^{-2000} from 10^{-2001} in the
exponent only: rational numbers are fractions of whole numbers, and a rounded sum is never taken for an exact one.
Operands come from text that models wrote, hence the bounds. Every function raises `NotReadableError` where the result
is undefined and `OutOfRangeError` where it is too large, too small, too costly or not known to a thousand digits.
"""

import math
from fractions import Fraction
from typing import Any

from mpmath.ctx_mp import MPContext

from data.grading.clock import check

MATH = MPContext()  # a separate context: mpmath's default one is shared by the whole process
MATH.dps = 1100
EQUAL_DIGITS = 1000

_EXACT_BITS = 200_000  # of a fraction: 60,000 digits, more than 20,000!
_ORDER = 1_000_000  # binary order of magnitude of other numbers
_MAX_FACTORIAL = 10_000
_LOST, _KEPT = 3300, 330  # bits that cancel in a sum: with more the sum is zero, with fewer it has 1,000 digits


class FormulaError(Exception):
    """A text has no value, or none that is known."""


class NotReadableError(FormulaError):
    """The text is not a formula of the kind read here."""


class OutOfRangeError(FormulaError):
    """The value exists but is too large, too small or too costly to compute."""


def real(value: Any) -> Any:
    """A fraction as a rounded number; other values unchanged."""
    return MATH.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def checked(value: Any) -> Any:
    """`value` itself if it is defined and of representable size; a real number without an imaginary part."""
    check()
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _EXACT_BITS:
            raise OutOfRangeError("too many digits")
        return value
    if MATH.isnan(value):
        raise NotReadableError("undefined")
    size = abs(value)
    if size and not MATH.isinf(size) and abs(MATH.mag(size)) > _ORDER:
        raise OutOfRangeError("too large or too small")
    return value


def is_infinite(value: Any) -> bool:
    """Whether a value is infinite."""
    return not isinstance(value, Fraction) and bool(MATH.isinf(abs(value)))


def add(left: Any, right: Any) -> Any:
    """`left + right`. What cancels to a thousand digits is zero."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return checked(left + right)
    left, right = real(left), real(right)
    total = left + right
    if is_infinite(left) or is_infinite(right) or not left or not right:
        return checked(total)
    orders = MATH.mag(abs(left)), MATH.mag(abs(right))
    if abs(orders[0] - orders[1]) > _LOST:
        raise OutOfRangeError("the smaller term is lost in the larger one")
    lost = max(orders) - MATH.mag(abs(total)) if total else _LOST
    if lost >= _LOST:
        return Fraction(0)
    if lost > _KEPT:
        raise OutOfRangeError("too many digits cancel")
    return checked(total)


def multiply(left: Any, right: Any) -> Any:
    """`left * right`."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        if sum(n.bit_length() for n in (left.numerator, right.numerator)) > _EXACT_BITS:
            raise OutOfRangeError("too many digits")
        return checked(left * right)
    return Fraction(0) if left == 0 or right == 0 else checked(real(left) * real(right))


def divide(top: Any, bottom: Any) -> Any:
    """`top / bottom`."""
    if bottom == 0:
        raise NotReadableError("division by zero")
    if isinstance(top, Fraction) and isinstance(bottom, Fraction):
        return checked(top / bottom)
    return checked(real(top) / real(bottom))


def power(base: Any, exponent: Any, odd_roots: bool = False) -> Any:
    """`base ** exponent`; `odd_roots`: of a negative number and a fraction p/q with odd q, the real power."""
    if is_infinite(base) or is_infinite(exponent):
        raise NotReadableError("power of infinity")
    if base == 0:
        if MATH.re(real(exponent)) <= 0:
            raise NotReadableError("power of zero")
        return Fraction(0)
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if abs(base) != 1 and bits * abs(exponent) > _EXACT_BITS:
                raise OutOfRangeError("power")
            return checked(base ** (int(exponent) % 2 if abs(base) == 1 else int(exponent)))
        exact = _exact_root(base, exponent.denominator, odd_roots)
        if exact is not None:
            return power(exact, Fraction(exponent.numerator))
    if odd_roots and is_odd_root(base, exponent):
        value = power(-base, exponent)
        return -value if exponent.numerator % 2 else value
    base, exponent = real(base), real(exponent)
    if abs(exponent) * max(1, abs(MATH.mag(abs(base)))) > _ORDER:
        raise OutOfRangeError("power")
    return checked(MATH.power(base, exponent))


def is_odd_root(base: Any, exponent: Any) -> bool:
    """Whether a power is a root of a negative number that may be read as a real number."""
    odd = isinstance(exponent, Fraction) and exponent.denominator > 1 and exponent.denominator % 2 == 1
    return odd and not MATH.im(real(base)) and bool(base < 0)


def _exact_root(base: Fraction, index: int, odd_roots: bool) -> Fraction | None:
    """The rational `index`-th root of a fraction, if it has one."""
    if index > 64 or (base < 0 and not (odd_roots and index % 2)):
        return None
    sign = -1 if base < 0 else 1
    roots = [_whole_root(number, index) for number in (abs(base.numerator), base.denominator)]
    return None if roots[0] is None or roots[1] is None else sign * Fraction(roots[0], roots[1])


def _whole_root(number: int, index: int) -> int | None:
    if number.bit_length() > 3000:
        return None
    guess = math.isqrt(number) if index == 2 else int(MATH.nint(MATH.root(number, index)))
    return guess if guess**index == number else None


def root(value: Any, index: Any) -> Any:
    """The `index`-th root: the real one of a negative number and an odd index, else the principal one."""
    if index == 0:
        raise NotReadableError("root of order zero")
    return power(value, divide(Fraction(1), index), odd_roots=True)


def whole(value: Any, limit: float = math.inf) -> int | None:
    """A whole number as an int, None for other numbers."""
    if not isinstance(value, Fraction) or value.denominator != 1:
        return None
    if abs(value) > limit:
        raise OutOfRangeError("too large")
    return int(value)


def factorial(value: Any, double: bool = False) -> Any:
    """`value!` of a whole number; `double`: `value!!`, the product of every second one."""
    number = whole(value, _MAX_FACTORIAL)
    if number is None or number < 0:
        raise NotReadableError("factorial of a number that is not whole")
    return Fraction(math.prod(range(number, 0, -2)) if double else math.factorial(number))


def binomial(top: Any, bottom: Any) -> Any:
    """The binomial coefficient of whole numbers."""
    first, second = whole(top, _MAX_FACTORIAL), whole(bottom, _MAX_FACTORIAL)
    if first is None or second is None or first < 0:
        raise NotReadableError("binomial coefficient of numbers that are not whole")
    return Fraction(math.comb(first, second)) if second >= 0 else Fraction(0)


def floor(value: Any, up: bool = False) -> Any:
    """The largest whole number below a real one, or the smallest above it (`up`)."""
    if isinstance(value, Fraction):
        return Fraction(math.ceil(value) if up else math.floor(value))
    if MATH.im(value) or MATH.isinf(value) or MATH.mag(value) > _LOST:
        raise NotReadableError("whole part")
    nearest = MATH.nint(value)
    if close(value, nearest):  # (\\sqrt2)^2 is 2, not a little less
        return Fraction(int(nearest))
    return Fraction(int(MATH.ceil(value) if up else MATH.floor(value)))


def close(left: Any, right: Any) -> bool:
    """Whether two values are equal: exactly if both are rational, else to 1,000 digits."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    if is_infinite(left) or is_infinite(right):
        return bool(real(left) == real(right))
    left, right = real(left), real(right)
    return bool(abs(left - right) <= MATH.mpf(10) ** -EQUAL_DIGITS * max(abs(left), abs(right)))
