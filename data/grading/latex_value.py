r"""Numerical value of a formula written in LaTeX or plain text.

Two formulas are equal when their values agree to 1,000 digits. Closed forms (`\frac{1}{\sqrt2}`, `2^{10}`, `\binom52`)
have one value. Formulas with variables are evaluated at a few fixed pseudo-random points, where different polynomials
do not agree by chance (Schwartz 1980, J. ACM 27, 701). Formulas that are not supported here go to an algebra system.

The text comes from models, so length, nesting, exponents and factorials are bounded (`arithmetic.py`).
"""

import re
from collections.abc import Mapping
from typing import Any

from data.grading import arithmetic
from data.grading.arithmetic import MATH, NotReadableError, OutOfRangeError

MAX_CHARS = 2000
_MAX_DEPTH = 60
_EQUAL_DIGITS = 1000
_MAX_ARGUMENT = 20000  # of a function
_INVERSE = {"sin": "asin", "cos": "acos", "tan": "atan"}

_TOKEN = re.compile(
    r"\s+"
    r"|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+(?![\d.A-Za-z^]))?"  # number
    r"|\\(?:[A-Za-z]+|.)"  # command
    r"|[A-Za-z]+"  # name
    r"|.",  # sign
    re.DOTALL,
)
_FUNCTIONS = ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "exp")
_GREEK = set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi varphi "
    "chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell".split()
)
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_CHARS:
        raise NotReadableError("too long")
    return [token for match in _TOKEN.finditer(text) if (token := match.group().strip())]


class _Reader:
    """Recursive-descent parser that computes the value while it reads.

    Methods take `stop`, the token that closes the enclosing |...|, because `|` both opens and closes.
    """

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
            raise NotReadableError(f"expected {expected or 'a token'}, got {token!r}")
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
                value = arithmetic.divide(value, self.signed_power(stop))
            elif token == "\\choose":
                self.take()
                value = arithmetic.binomial(value, self.signed_power(stop))
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
            base = arithmetic.factorial(base)
        if self.peek() == "^":
            self.take()
            if self.degrees():
                return base * MATH.pi / 180
            return arithmetic.power(base, self.argument(negative=True))
        return base

    def degrees(self) -> bool:
        """Consume \\circ or {\\circ}, the degree sign, if it is next."""
        for sign in (["\\circ"], ["{", "\\circ", "}"]):
            if self.tokens[self.position : self.position + len(sign)] == sign:
                self.position += len(sign)
                return True
        return False

    def argument(self, negative: bool = False) -> Any:
        """Argument of a command or of ^: a group, one digit, one letter, or one command with its arguments.

        `negative`: the argument is an exponent, which may have a sign, several digits and a factorial.
        """
        token = self.peek()
        if token in ("{", "("):
            value = self.group()
        elif negative and token == "-":
            self.take()
            return -self.argument()
        elif token[:1].isdigit():
            # \frac12 and x^23 read single digits, as TeX does; plain-text exponents such as 2^10 are whole numbers.
            if negative or len(token) == 1:
                value = MATH.mpf(self.take())
            else:
                self.tokens[self.position : self.position + 1] = [token[0], token[1:]]
                value = MATH.mpf(self.take())
        elif token[:1].isalpha() and len(token) > 1 and token not in ("pi", "sqrt"):
            self.tokens[self.position : self.position + 1] = [token[0], token[1:]]
            value = self.atom("")
        else:
            value = self.atom("")
        while negative and self.peek() == "!":
            self.take()
            value = arithmetic.factorial(value)
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
        value = MATH.mpf(text)
        if self.peek() == "\\overline" and "." in text:  # repeating decimal
            self.take()
            self.take("{")
            digits = self.take()
            self.take("}")
            if not digits.isdigit():
                raise NotReadableError("repeating part")
            decimals = len(text.partition(".")[2])
            value += MATH.mpf(digits) / (10**decimals * (10 ** len(digits) - 1))
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
                return value + arithmetic.divide(MATH.mpf(top), MATH.mpf(bottom))
        return value

    def fraction(self) -> Any:
        top = self.argument()
        return arithmetic.divide(top, self.argument())

    def command(self, name: str) -> Any:
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return self.fraction()
        if name == "sqrt":
            index = MATH.mpf(2)
            if self.peek() == "[":
                index = self.group()
            return arithmetic.root(self.argument(), index)
        if name in ("binom", "dbinom", "tbinom"):
            top = self.argument()
            return arithmetic.binomial(top, self.argument())
        if name == "pi":
            return +MATH.pi
        if name == "infty":
            return MATH.inf
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
        base = MATH.mpf(10) if name == "lg" else None
        if self.peek() == "_":
            self.take()
            base = self.argument()
        value = self.function_argument()
        if not value:
            raise NotReadableError("log 0")
        logarithm = MATH.log(value)
        return logarithm if base is None else arithmetic.divide(logarithm, MATH.log(base))

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
        call = getattr(MATH, {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(name, name))
        try:
            result = call(value)
        except (ValueError, ZeroDivisionError):
            raise NotReadableError("outside the domain") from None
        return result if exponent is None else arithmetic.power(result, exponent)

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
            return MATH.mpc(0, 1)
        if name == "e":
            return +MATH.e
        self.names.add(name)
        return self.variables[name]


def _value_at(name: str, point: int) -> Any:
    """Fixed pseudo-random value of a variable at an evaluation point; negative at odd points, so that |x| is not x."""
    seed = 1 + sum(ord(letter) * (position + 7) for position, letter in enumerate(name))
    value = MATH.frac(MATH.sqrt(MATH.mpf(seed)) * MATH.pi + point * MATH.e) + MATH.mpf("0.3")
    return -value if point % 2 else value


def evaluate(text: str, point: int = 0) -> tuple[Any, frozenset[str]]:
    """Value of a formula at evaluation point `point`, and the names of its variables.

    Raises:
        NotReadableError: the formula is not supported.
        OutOfRangeError: its value is too large, too small or too costly to compute.
    """
    try:
        tokens = _tokens(text)
        reader = _Reader(tokens, _Points(point))
        value = reader.sum()
        if reader.position != len(reader.tokens):
            raise NotReadableError(f"unexpected {reader.peek()!r}")
        return arithmetic.checked(value), frozenset(reader.names)
    except (OverflowError, MemoryError):
        raise OutOfRangeError("overflow") from None
    except (TypeError, ValueError, ZeroDivisionError, RecursionError) as error:
        raise NotReadableError(str(error)) from None


class _Points(dict[str, Any]):
    """Values of the variables at one evaluation point, computed on first use."""

    def __init__(self, point: int) -> None:
        super().__init__()
        self.point = point

    def __missing__(self, name: str) -> Any:
        self[name] = _value_at(name, self.point)
        return self[name]


def close(left: Any, right: Any) -> bool:
    """Whether two values agree to 1,000 digits, relative above 1 and absolute below (zero is only near zero)."""
    if MATH.isinf(abs(left)) or MATH.isinf(abs(right)):
        return bool(left == right)
    return bool(abs(left - right) <= MATH.mpf(10) ** -_EQUAL_DIGITS * max(1, abs(left), abs(right)))


def same_value(left: str, right: str) -> bool | None:
    """Whether two formulas are equal; None if that needs an algebra system."""
    results: list[tuple[Any, frozenset[str]] | None] = []
    for text in (left, right):
        try:
            results.append(evaluate(text))
        except OutOfRangeError:
            results.append(None)
        except NotReadableError:
            return None
    if results[0] is None or results[1] is None:
        # If only one side is out of range, the values differ.
        return None if results[0] is results[1] else False
    (left_value, left_names), (right_value, right_names) = results[0], results[1]
    if not close(left_value, right_value):
        return False
    try:
        # A variable that is on one side only may cancel, as in sin(x)^2 + cos(x)^2.
        return not (left_names | right_names) or all(
            close(evaluate(left, n)[0], evaluate(right, n)[0]) for n in (1, 2, 3)
        )
    except (OutOfRangeError, NotReadableError):
        return None


def proportional(left: str, right: str) -> bool | None:
    """Whether two formulas differ by a constant factor; None if unknown.

    Equations are compared as left side minus right side, which is defined up to such a factor.
    """
    try:
        ratios = []
        names = set()
        for point in range(4):
            (top, first), (bottom, second) = evaluate(left, point), evaluate(right, point)
            names.add(first)
            names.add(second)
            ratios.append(arithmetic.divide(top, bottom))
    except (OutOfRangeError, NotReadableError):
        return None
    return len(names) == 1 and bool(names.pop()) and all(close(ratio, ratios[0]) for ratio in ratios)
