r"""Sums, products, powers and numbers of a formula, and what surrounds them.

`formula.py` adds commands, functions and variables.
"""

import re
from collections.abc import Mapping
from typing import Any

from data.grading import arithmetic
from data.grading.arithmetic import MATH, NotReadableError
from data.grading.functions import FUNCTIONS, LISTS
from data.grading.tokens import GREEK, Cursor, parsed_number

_MAX_DEPTH = 60

FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac")
BINOMIALS = ("binom", "dbinom", "tbinom")
LOGARITHMS = ("log", "ln", "lg")
ACCENTS = ("overline", "bar", "vec", "hat", "tilde", "widehat", "angle", "triangle", "measuredangle", "overrightarrow")
CLOSING = {"(": ")", "[": "]", "{": "}"}
_AROUND = {"\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
NUMBER_WORDS = ("sqrt", "pi", "binom", "exp", "infinity", "cbrt")
_OPERATIONS = {
    **dict.fromkeys(("*", "\\cdot", "\\times", "\\ast"), arithmetic.multiply),
    **dict.fromkeys(("/", "\\div", "\\over"), arithmetic.divide),
    "\\choose": arithmetic.binomial,
}
_FACTORS = {
    *(f"\\{name}" for name in (*GREEK, *FUNCTIONS, *LISTS, *FRACTIONS, *BINOMIALS, *LOGARITHMS, *ACCENTS)),
    *(f"\\{name}" for name in ("sqrt", "pi", "sum", "prod", "begin")),
    *_AROUND,
}
"""Commands that can start a factor of a product without a sign."""


class Expression(Cursor):
    """Reads sums, products and powers, and computes their value on the way.

    Methods take `stop`, the token that closes the enclosing |...|, because `|` both opens and closes.
    """

    def __init__(self, text: str, variables: Mapping[str, Any], odd_roots: bool = False) -> None:
        super().__init__(text)
        self.depth = 0
        self.variables = variables
        self.bound: dict[str, Any] = {}  # variables of sums
        self.odd_roots = odd_roots
        self.names: set[str] = set()
        self.has_odd_root = False

    def sum(self, stop: str = "") -> Any:
        """A sum, up to what cannot belong to it."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise NotReadableError("nested too deeply")
        total = self.product(stop)
        while sign := self.accept("+", "-"):
            term = self.product(stop)
            total = arithmetic.add(total, term if sign == "+" else -term)
        self.depth -= 1
        return total

    def product(self, stop: str) -> Any:
        """A product or quotient, also without a sign between its factors."""
        value = self.signed(stop)
        while token := self.peek():
            if token in _OPERATIONS:
                self.take()
                if token == "\\times":
                    self.refuse_products_of_sets()
                value = _OPERATIONS[token](value, self.signed(stop))
            elif token != stop and (token in _FACTORS or token[0].isalnum() or token[0] in "([{|."):
                self.refuse_adjacent_numbers(token)
                value = arithmetic.multiply(value, self.power(stop))
            else:
                break
        return value

    def refuse_adjacent_numbers(self, token: str) -> None:
        """`2 3` and `x 2` are no products: a sign between them is missing."""
        before = self.tokens[self.position - 1]
        if token[0].isdigit() and (before[-1].isdigit() or before.isalpha()):
            raise NotReadableError("a number behind a number")

    def refuse_products_of_sets(self) -> None:
        r"""`A \times B` and `\vec a \times \vec b` are not `B \times A`."""
        names = self.peek(-2), self.peek()
        if names[1] == "\\vec" or all(name.isalpha() and name.isupper() for name in names):
            raise NotReadableError("a product of sets or vectors")

    def signed(self, stop: str) -> Any:
        """A power with signs in front."""
        negative = False
        while sign := self.accept("+", "-"):
            negative ^= sign == "-"
        value = self.power(stop)
        return -value if negative else value

    def power(self, stop: str) -> Any:
        """A value with its factorials and exponent."""
        base = self.atom(stop)
        while self.accept("!"):
            base = arithmetic.factorial(base, double=bool(self.accept("!")))
        if self.accept("^"):
            for degrees in (["\\circ"], ["{", "\\circ", "}"]):
                if self.tokens[self.position : self.position + len(degrees)] == degrees:
                    self.position += len(degrees)
                    return arithmetic.multiply(base, MATH.pi / 180)
            return self.raised(base, self.argument(exponent=True))
        return base

    def raised(self, base: Any, exponent: Any) -> Any:
        """A power; remembers whether a root of a negative number made it ambiguous."""
        self.has_odd_root |= arithmetic.is_odd_root(base, exponent)
        return arithmetic.power(base, exponent, self.odd_roots)

    def argument(self, exponent: bool = False) -> Any:
        """Argument of a command or of ^: a group, one digit, one letter, or one command with its arguments.

        An exponent may have a sign, several digits and a factorial.
        """
        token = self.peek()
        if token in ("{", "("):
            value = self.group()
        elif exponent and (sign := self.accept("-", "+")):
            value = self.argument(exponent=True)
            return -value if sign == "-" else value
        else:
            # \frac12 and x^23 read single digits, as TeX does; plain-text exponents such as 2^10 are whole numbers.
            is_digit = token[:1].isdigit()
            single = not exponent if is_digit else token[:1].isalpha() and token not in NUMBER_WORDS
            if single and len(token) > 1:
                self.tokens[self.position : self.position + 1] = [token[0], token[1:]]
            value = parsed_number(self.take()) if is_digit else self.atom("")
        while exponent and self.accept("!"):
            value = arithmetic.factorial(value)
        if exponent and token not in ("{", "(") and self.accept("^"):  # 2^3^2
            value = self.raised(value, self.argument(exponent=True))
        return value

    def group(self) -> Any:
        """The sum in brackets."""
        closing = CLOSING[self.take()]
        value = self.sum()
        self.take(closing)
        return value

    def atom(self, stop: str) -> Any:
        """A number, a group, a command or a name."""
        token = self.peek()
        if (token == "{" and self.peek(1) == "}") or (token == "^" and stop != "^"):
            return self.combinations()
        if token in CLOSING:
            return self.group()
        if self.accept("|"):
            value = self.sum("|")
            self.take("|")
            return abs(value)
        if token[:1].isdigit() or token[:1] == ".":
            return self.number()
        if token in _AROUND:
            self.take()
            value = self.sum()
            self.take(_AROUND[token])
            return arithmetic.floor(value, up=token == "\\lceil")
        if token[:1] == "\\":
            return self.command(self.take()[1:])
        if token[:1].isalpha() and token.isascii():
            return self.word()
        raise NotReadableError(f"{token!r} is not a value")

    def combinations(self) -> Any:
        """`{}^{10}C_3` and `{}_{10}C_3`, the number of choices of 3 among 10."""
        if self.accept("{"):
            self.take("}")
        if not self.accept("^", "_"):
            raise NotReadableError("an empty group")
        top = self.argument()
        self.take("C", "_")
        return arithmetic.binomial(top, self.argument())

    def number(self) -> Any:
        """A number, repeating decimal or mixed number."""
        text = self.take()
        value = parsed_number(text)
        following = self.peek()
        if "." in text and self.accept("\\overline"):  # repeating decimal
            self.take("{")
            digits = self.take()
            self.take("}")
            if not digits.isdigit():
                raise NotReadableError("repeating part")
            decimals = len(text.partition(".")[2])
            return value + parsed_number(digits) / (10**decimals * (10 ** len(digits) - 1))
        if text.isdigit() and following[1:] in FRACTIONS and following[:1] == "\\":  # mixed number: 3\frac{1}{2}
            self.take()
            start = self.position
            fraction = self.fraction()
            if all(token.isdigit() or token in "{}" for token in self.tokens[start : self.position]):
                return value + fraction
            return arithmetic.multiply(value, fraction)
        if text.isdigit() and following.isdigit() and self.peek(1) == "/" and self.peek(2).isdigit():
            self.position += 3  # mixed number: 3 1/2
            return value + arithmetic.divide(parsed_number(following), parsed_number(self.tokens[self.position - 1]))
        return value

    def fraction(self) -> Any:
        """The two arguments of a fraction."""
        start = self.position
        top = self.argument()
        middle = self.position
        bottom = self.argument()
        parts = self.tokens[start:middle], self.tokens[middle : self.position]
        differentials = (re.match(r"d[A-Za-z]?$|\\partial$", "".join(part).strip("{")[:2]) for part in parts)
        if all(differentials) and len(parts[1]) > 1:
            raise NotReadableError("a derivative")
        return arithmetic.divide(top, bottom)

    def command(self, name: str) -> Any:
        """The value of a command, whose name is taken."""
        raise NotImplementedError

    def word(self) -> Any:
        """The value of a name or of a product of letters."""
        raise NotImplementedError
