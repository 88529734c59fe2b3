"""Arithmetic to 1,100 digits that refuses what is undefined or too costly to compute.

Answers such as 2^{2007} - 1 differ from their neighbours in the last digit, hence the precision. Operands come from
text that models wrote, hence the bounds. Every function raises `NotReadableError` where the result is undefined and
`OutOfRangeError` where it is too large, too small or too costly.
"""

from typing import Any

from mpmath.ctx_mp import MPContext

MATH = MPContext()  # a separate context: mpmath's default one is shared by the whole process
MATH.dps = 1100

_MAX_BINARY_ORDER = 3320  # 2**3320 has a thousand digits
_MAX_FACTORIAL = 400  # 869 digits


class NotReadableError(ValueError):
    """The text is not a formula of the kind read here."""


class OutOfRangeError(ArithmeticError):
    """The value exists but is too large, too small or too costly to compute."""


def checked(value: Any) -> Any:
    """`value` itself if it is defined and of representable size."""
    if MATH.isnan(value):
        raise NotReadableError("undefined")
    size = abs(value)
    if size and not MATH.isinf(size) and abs(MATH.mag(size)) > _MAX_BINARY_ORDER:
        raise OutOfRangeError("too large or too small")
    return value


def divide(top: Any, bottom: Any) -> Any:
    """`top / bottom`."""
    if not bottom:
        raise NotReadableError("division by zero")
    return checked(top / bottom)


def power(base: Any, exponent: Any) -> Any:
    """`base ** exponent`."""
    if MATH.isinf(abs(base)) or MATH.isinf(abs(exponent)):
        raise NotReadableError("power of infinity")
    if not base:
        if MATH.re(exponent) <= 0:
            raise NotReadableError("power of zero")
        return MATH.mpf(0)
    if abs(exponent) * max(1, abs(MATH.mag(base))) > 2 * _MAX_BINARY_ORDER:
        raise OutOfRangeError("power")
    return checked(MATH.power(base, exponent))


def root(value: Any, index: Any) -> Any:
    """The `index`-th root: the real one of a negative number and an odd index, else the principal one."""
    if not index:
        raise NotReadableError("root of order zero")
    real = not MATH.im(value) and not MATH.im(index)
    if real and MATH.re(value) < 0 and index == MATH.floor(index) and int(index) % 2:
        return -power(-value, 1 / index)
    return power(value, 1 / index)


def factorial(value: Any) -> Any:
    """`value!` of a whole number."""
    if MATH.im(value) or value != MATH.floor(value) or value < 0:
        raise NotReadableError("factorial of a number that is not whole")
    if value > _MAX_FACTORIAL:
        raise OutOfRangeError("factorial")
    return MATH.factorial(value)


def binomial(top: Any, bottom: Any) -> Any:
    """The binomial coefficient."""
    if abs(top) > _MAX_FACTORIAL or abs(bottom) > _MAX_FACTORIAL:
        raise OutOfRangeError("binomial coefficient")
    return checked(MATH.binomial(top, bottom))
