"""The tokens of a formula, and a cursor over them."""

import re
from fractions import Fraction

from data.grading.arithmetic import NotReadableError, OutOfRangeError

MAX_CHARS = 2000
_MAX_DIGITS = 4000  # of one number; Python refuses to convert more

_TOKEN = re.compile(
    r"\s+"
    r"|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+(?![\d.A-Za-z^]))?"  # number
    r"|\\(?:[A-Za-z]+|.)"  # command
    r"|[A-Za-z]+"  # name
    r"|.",  # sign
    re.DOTALL,
)
GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi varphi "
    "chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega ell".split()
)
ALL_WHOLE = frozenset("*")
"""Of `whole_names`: all variables but x, y and z."""
_ARGUMENT = r"(?:\{([^{}]*)\}|(\w))"
_CHOICES = re.compile(
    rf"C_\s*{_ARGUMENT}\s*\^\s*{_ARGUMENT}|(?<![\w)}}\]])(?:\{{\s*\}}\s*)?[\^_]\s*{_ARGUMENT}\s*C_\s*{_ARGUMENT}"
)
_WHOLE = (
    re.compile(r"(\w)\s*!|\(([^()]*)\)\s*!"),
    re.compile(rf"\\[dt]?binom\s*{_ARGUMENT}\s*{_ARGUMENT}|([^{{}}]*)\\choose([^{{}}]*)"),
    _CHOICES,
)
"""Factorials and binomial coefficients with their arguments."""


class Cursor:
    """A position in the tokens of a formula: numbers, commands, names and signs."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_CHARS:
            raise NotReadableError("too long")
        self.tokens = [token for match in _TOKEN.finditer(text) if (token := match.group().strip())]
        self.position = 0

    def peek(self, ahead: int = 0) -> str:
        """The next token, or one further ahead; empty at the end."""
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else ""

    def take(self, *expected: str) -> str:
        """The next token, or the next ones, which must be `expected`; moves on."""
        for wanted in expected or ("",):
            token = self.peek()
            if not token or (wanted and token != wanted):
                raise NotReadableError(f"expected {wanted or 'a token'}, got {token!r}")
            self.position += 1
        return token

    def accept(self, *tokens: str) -> str:
        """The next token if it is one of these, which is then taken; else nothing."""
        return self.take() if self.peek() in tokens else ""

    def written(self) -> str:
        """The next token, or the tokens of a group in braces, as text."""
        if not self.accept("{"):
            return self.take()
        start = self.position
        while self.take() != "}":
            pass
        return "".join(self.tokens[start : self.position - 1])


def parsed_number(text: str) -> Fraction:
    """The value of the token of a number."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > _MAX_DIGITS or (exponent and abs(int(exponent[:8])) > _MAX_DIGITS):
        raise OutOfRangeError("a number of too many digits")
    return Fraction(text) if not text.endswith(".") else Fraction(text[:-1])


def whole_names(text: str) -> frozenset[str]:
    """The variables that stand for whole numbers: those in bounds of sums; nearly all, where there is a factorial.

    Beside a factorial, x, y and z stay real numbers unless they are in its argument: |x| n! is not x n!.
    """
    parts = [group for pattern in _WHOLE for match in pattern.findall(text) for group in match]
    counts = ALL_WHOLE if parts or re.search(r"!|binom|\\choose", text) else frozenset()
    bounds = re.findall(r"\\(?:sum|prod)_\{[A-Za-z]=([^{}]*)\}\^(?:\{([^{}]*)\}|(\w))", text.replace(" ", ""))
    parts += [part for bound in bounds for part in bound]
    return counts | {letter for part in parts for letter in re.findall(r"[A-Za-z]", part)}
