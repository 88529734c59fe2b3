r"""Numerical value of a closed form or a formula written in LaTeX or plain text, to 1,100 digits.

Two answers are equal when their values agree: numbers and closed forms (`\frac{1}{\sqrt2}`, `2^{10}`, `\binom52`)
at once, formulas with variables at a few fixed random points, where two different analytic functions do not agree by
chance (Schwartz 1980, J. ACM 27, 701, for polynomials). So many digits, because answers such as 2^{2007} - 1 differ
from their neighbours in the last one; what has more than a thousand is out of range. An algebra system is needed only
for what is not read here.

Text comes from models, so everything is bounded: length, nesting, exponents, factorials. Values that are too large to
compute raise `OutOfRangeError`; what cannot be read raises `NotReadableError`.
"""

import re
from collections.abc import Mapping
from typing import Any

from mpmath.ctx_mp import MPContext

_MATH = MPContext()  # a context of our own: mpmath's default one is shared by everybody in the process
_MATH.dps = 1100

MAX_CHARS = 2000
_MAX_DEPTH = 60
_EQUAL_DIGITS = 1000
_MAX_BINARY_ORDER = 3320  # 2**3320 has a thousand digits
_MAX_ARGUMENT = 20000  # of a function
_MAX_FACTORIAL = 400  # 869 digits
_INVERSE = {"sin": "asin", "cos": "acos", "tan": "atan"}

_TOKEN = re.compile(
    r"\s+|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+(?![\d.A-Za-z^]))?)|(?P<command>\\(?:[A-Za-z]+|.))|(?P<name>[A-Za-z]+)|(?P<sign>.)",
    re.DOTALL,
)
_FUNCTIONS = ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "exp")
_GREEK = set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi varphi "
    "chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell".split()
)
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class NotReadableError(ValueError):
    """The text is not a formula of the kind read here."""


class OutOfRangeError(ArithmeticError):
    """The value exists but is too large, too small or too costly to compute."""


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_CHARS:
        raise NotReadableError("too long")
    found = []
    for match in _TOKEN.finditer(text):
        token = match.group().strip()
        if token:
            found.append(token)
    return found


class _Reader:
    """Recursive descent over the tokens; values are computed while reading."""

    def __init__(self, tokens: list[str], variables: Mapping[str, Any]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.variables = variables
        self.names: set[str] = set()

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if not token or (expected is not None and token != expected):
            raise NotReadableError(f"expected {expected or 'more'} at {token!r}")
        self.position += 1
        return token

    def sum(self, stop: str = "") -> Any:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise NotReadableError("nested too deeply")
        total = self.product(stop)
        while self.peek() in ("+", "-"):
            sign = self.take()
            term = self.product(stop)
            total = total + term if sign == "+" else total - term
        self.depth -= 1
        return total

    def product(self, stop: str) -> Any:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.power(stop)
        while True:
            token = self.peek()
            if token in ("*", "\\cdot", "\\times", "\\ast"):
                self.take()
                value = value * self.signed_power(stop)
            elif token in ("/", "\\div", "\\over"):
                self.take()
                value = _divide(value, self.signed_power(stop))
            elif token == "\\choose":
                self.take()
                value = _binomial(value, self.signed_power(stop))
            elif token and token not in ("+", "-", ")", "]", "}", ",", "=", stop) and self.starts_atom(token):
                value = value * self.power(stop)
            else:
                return -value if negative else value

    def signed_power(self, stop: str) -> Any:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.power(stop)
        return -value if negative else value

    def starts_atom(self, token: str) -> bool:
        if token[0] == "\\":
            name = token[1:]
            return name in _GREEK or name in _FUNCTIONS or name in ("frac", "sqrt", "binom", "pi", "log", "ln", "lg")
        return token[0].isalnum() or token[0] in "([{|." or token == "∞"

    def power(self, stop: str) -> Any:
        base = self.atom(stop)
        while self.peek() == "!":
            self.take()
            base = _factorial(base)
        if self.peek() == "^":
            self.take()
            if self.degrees():
                return base * _MATH.pi / 180
            return _power(base, self.argument(negative=True))
        return base

    def degrees(self) -> bool:
        """Consume \\circ or {\\circ}, the sign of degrees."""
        for sign in (["\\circ"], ["{", "\\circ", "}"]):
            if self.tokens[self.position : self.position + len(sign)] == sign:
                self.position += len(sign)
                return True
        return False

    def argument(self, negative: bool = False) -> Any:
        """What a command or ^ applies to: a group, one digit, one letter or one command with its arguments."""
        token = self.peek()
        if token in ("{", "("):
            value = self.group()
        elif negative and token == "-":
            self.take()
            return -self.argument()
        elif token[:1].isdigit():
            # \frac12 and x^23 read single digits, as TeX does; plain-text exponents such as 2^10 are whole numbers.
            if negative or len(token) == 1:
                value = _MATH.mpf(self.take())
            else:
                self.tokens[self.position : self.position + 1] = [token[0], token[1:]]
                value = _MATH.mpf(self.take())
        elif token[:1].isalpha() and len(token) > 1 and token not in ("pi", "sqrt"):
            self.tokens[self.position : self.position + 1] = [token[0], token[1:]]
            value = self.atom("")
        else:
            value = self.atom("")
        while negative and self.peek() == "!":
            self.take()
            value = _factorial(value)
        return value

    def group(self) -> Any:
        opening = self.take()
        value = self.sum()
        self.take(_CLOSING[opening])
        return value

    def atom(self, stop: str) -> Any:
        token = self.peek()
        if token in _CLOSING:
            return self.group()
        if token == "|":
            self.take()
            value = self.sum("|")
            self.take("|")
            return abs(value)
        if token[:1].isdigit() or token[:1] == ".":
            return self.number()
        if token[:1] == "\\":
            return self.command(self.take()[1:])
        if token[:1].isalpha():
            return self.word()
        raise NotReadableError(f"{token!r} is not a value")

    def number(self) -> Any:
        text = self.take()
        if len(text) > 400:
            raise OutOfRangeError("a number of more than 400 digits")
        value = _MATH.mpf(text)
        if self.peek() == "\\overline" and "." in text:  # repeating decimal
            self.take()
            self.take("{")
            digits = self.take()
            self.take("}")
            if not digits.isdigit():
                raise NotReadableError("repeating part")
            places = len(text.partition(".")[2])
            value += _MATH.mpf(digits) / (10**places * (10 ** len(digits) - 1))
        elif text.isdigit() and self.peek() == "\\frac":  # mixed number: 3\frac{1}{2}
            self.take()
            start = self.position
            fraction = self.fraction()
            whole_numbers = all(token.isdigit() or token in "{}" for token in self.tokens[start : self.position])
            return value + fraction if whole_numbers else value * fraction
        elif text.isdigit() and self.tokens[self.position + 1 : self.position + 2] == ["/"]:
            top, bottom = self.peek(), "".join(self.tokens[self.position + 2 : self.position + 3])
            if top.isdigit() and bottom.isdigit():  # mixed number: 3 1/2
                self.position += 3
                return value + _divide(_MATH.mpf(top), _MATH.mpf(bottom))
        return value

    def fraction(self) -> Any:
        top = self.argument()
        return _divide(top, self.argument())

    def command(self, name: str) -> Any:
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return self.fraction()
        if name == "sqrt":
            index = _MATH.mpf(2)
            if self.peek() == "[":
                index = self.group()
            return _root(self.argument(), index)
        if name in ("binom", "dbinom", "tbinom"):
            top = self.argument()
            return _binomial(top, self.argument())
        if name == "pi":
            return +_MATH.pi
        if name == "infty":
            return _MATH.inf
        if name in ("log", "ln", "lg"):
            return self.logarithm(name)
        if name in _FUNCTIONS:
            return self.function(name)
        if name in _GREEK:
            return self.variable("\\" + name)
        if name == "operatorname":
            self.take("{")
            inner = self.take()
            self.take("}")
            return self.command(inner)
        raise NotReadableError(f"\\{name}")

    def logarithm(self, name: str) -> Any:
        base = _MATH.mpf(10) if name == "lg" else None
        if self.peek() == "_":
            self.take()
            base = self.argument()
        value = self.function_argument()
        if not value:
            raise NotReadableError("log 0")
        logarithm = _MATH.log(value)
        return logarithm if base is None else _divide(logarithm, _MATH.log(base))

    def function(self, name: str) -> Any:
        exponent = None
        if self.peek() == "^":
            self.take()
            exponent = self.argument(negative=True)
        value = self.function_argument()
        if abs(value) > _MAX_ARGUMENT:
            raise OutOfRangeError("argument of a function")
        if exponent == -1 and name in _INVERSE:  # \\sin^{-1} is the inverse function, not the reciprocal
            name, exponent = "arc" + name, None
        call = getattr(_MATH, {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(name, name))
        try:
            result = call(value)
        except (ValueError, ZeroDivisionError):
            raise NotReadableError("outside the domain") from None
        return result if exponent is None else _power(result, exponent)

    def function_argument(self) -> Any:
        """`\\sin 2x` reads the product up to the next sign; `\\sin(2x)y` the parenthesis only."""
        if self.peek() in _CLOSING:
            return self.group()
        value = self.power("")
        while self.peek()[:1].isalnum() or self.peek() in ("\\pi", "\\frac"):
            value = value * self.power("")
        return value

    def word(self) -> Any:
        word = self.take()
        if word in ("sqrt", "pi", "binom"):
            return self.command(word)
        if word in ("log", "ln", *_FUNCTIONS):
            return self.command(word)
        if len(word) > 1:  # a product of letters
            self.tokens[self.position : self.position] = [word[1:]]
        return self.variable(word[0])

    def variable(self, name: str) -> Any:
        if self.peek() == "_":
            self.take()
            if self.peek() == "{":
                self.take()
                parts = []
                while self.peek() and self.peek() != "}":
                    parts.append(self.take())
                self.take("}")
                name += "_" + "".join(parts)
            else:
                name += "_" + self.take()
        if name == "i":
            return _MATH.mpc(0, 1)
        if name == "e":
            return +_MATH.e
        self.names.add(name)
        return self.variables[name]


def _point(name: str, number: int) -> Any:
    """A fixed irrational-looking value for a variable; negative for odd numbers, so that |x| and x differ."""
    seed = 1 + sum(ord(letter) * (position + 7) for position, letter in enumerate(name))
    value = _MATH.frac(_MATH.sqrt(_MATH.mpf(seed)) * _MATH.pi + number * _MATH.e) + _MATH.mpf("0.3")
    return -value if number % 2 else value


def _checked(value: Any) -> Any:
    if _MATH.isnan(value):
        raise NotReadableError("undefined")
    size = abs(value)
    if size and not _MATH.isinf(size) and abs(_MATH.mag(size)) > _MAX_BINARY_ORDER:
        raise OutOfRangeError("too large or too small")
    return value


def _divide(top: Any, bottom: Any) -> Any:
    if not bottom:
        raise NotReadableError("division by zero")
    return _checked(top / bottom)


def _power(base: Any, exponent: Any) -> Any:
    if _MATH.isinf(abs(base)) or _MATH.isinf(abs(exponent)):
        raise NotReadableError("power of infinity")
    if not base:
        if _MATH.re(exponent) <= 0:
            raise NotReadableError("power of zero")
        return _MATH.mpf(0)
    if abs(exponent) * max(1, abs(_MATH.mag(base))) > 2 * _MAX_BINARY_ORDER:
        raise OutOfRangeError("power")
    return _checked(_MATH.power(base, exponent))


def _root(value: Any, index: Any) -> Any:
    if not index:
        raise NotReadableError("root of order zero")
    real = not _MATH.im(value) and not _MATH.im(index)
    if real and _MATH.re(value) < 0 and index == _MATH.floor(index) and int(index) % 2:
        return -_power(-value, 1 / index)  # the real root, as in school
    return _power(value, 1 / index)


def _factorial(value: Any) -> Any:
    if _MATH.im(value) or value != _MATH.floor(value) or value < 0:
        raise NotReadableError("factorial of what is not a whole number")
    if value > _MAX_FACTORIAL:
        raise OutOfRangeError("factorial")
    return _MATH.factorial(value)


def _binomial(top: Any, bottom: Any) -> Any:
    if abs(top) > _MAX_FACTORIAL or abs(bottom) > _MAX_FACTORIAL:
        raise OutOfRangeError("binomial coefficient")
    return _checked(_MATH.binomial(top, bottom))


def evaluate(text: str, point: int = 0) -> tuple[Any, frozenset[str]]:
    """Value of a formula, with its variables at fixed values number `point`, and their names.

    Raises:
        NotReadableError: it is not a formula of the kind read here.
        OutOfRangeError: it has a value that is too large to compute.
    """
    try:
        tokens = _tokens(text)
        reader = _Reader(tokens, _Points(point))
        value = reader.sum()
        if reader.position != len(reader.tokens):
            raise NotReadableError(f"unexpected {reader.peek()!r}")
        return _checked(value), frozenset(reader.names)
    except (OverflowError, MemoryError):
        raise OutOfRangeError("overflow") from None
    except (TypeError, ValueError, ZeroDivisionError, RecursionError) as error:
        raise NotReadableError(str(error)) from None


class _Points(dict[str, Any]):
    """Values of variables by name, made when asked for."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __missing__(self, name: str) -> Any:
        self[name] = _point(name, self.number)
        return self[name]


def close(left: Any, right: Any) -> bool:
    """Whether two values agree to a thousand digits; differences below 1e-1000 are what rounding leaves of zero."""
    if _MATH.isinf(abs(left)) or _MATH.isinf(abs(right)):
        return bool(left == right)
    return bool(abs(left - right) <= _MATH.mpf(10) ** -_EQUAL_DIGITS * max(1, abs(left), abs(right)))


def same_value(left: str, right: str) -> bool | None:
    """Whether two formulas are equal; None if this cannot be decided here."""
    results: list[tuple[Any, frozenset[str]] | None] = []
    for text in (left, right):
        try:
            results.append(evaluate(text))
        except OutOfRangeError:
            results.append(None)
        except NotReadableError:
            return None
    if results[0] is None or results[1] is None:
        # Out of range on one side only: a value of ordinary size is not it.
        return None if results[0] is results[1] else False
    (left_value, left_names), (right_value, right_names) = results[0], results[1]
    if not close(left_value, right_value):
        return False
    try:
        # A name on one side only may drop out, as in sin(x)^2 + cos(x)^2.
        return not (left_names | right_names) or all(
            close(evaluate(left, n)[0], evaluate(right, n)[0]) for n in (1, 2, 3)
        )
    except (OutOfRangeError, NotReadableError):
        return None


def proportional(left: str, right: str) -> bool | None:
    """Whether two formulas differ by a constant factor, as the two sides of equal equations do; None if unknown."""
    try:
        ratios = []
        names = set()
        for point in range(4):
            (top, first), (bottom, second) = evaluate(left, point), evaluate(right, point)
            names.add(first)
            names.add(second)
            ratios.append(_divide(top, bottom))
    except (OutOfRangeError, NotReadableError):
        return None
    return len(names) == 1 and bool(names.pop()) and all(close(ratio, ratios[0]) for ratio in ratios)
