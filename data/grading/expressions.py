r"""Sums, products, powers and numbers of a formula, and what surrounds them.

`formula.py` adds commands, functions and variables.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from data.grading import arithmetic
from data.grading.arithmetic import MATH, NotReadableError, real
from data.grading.functions import FUNCTIONS, LISTS
from data.grading.tokens import GREEK, Cursor, number_of

_MAX_DEPTH = 60

FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac")
BINOMIALS = ("binom", "dbinom", "tbinom")
ACCENTS = ("overline", "bar", "vec", "hat", "tilde", "widehat", "angle", "triangle", "measuredangle", "overrightarrow")
CLOSING = {"(": ")", "[": "]", "{": "}"}
_AROUND = {"\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
NUMBER_WORDS = ("sqrt", "pi", "binom", "exp", "infinity", "cbrt")


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
        while self.peek() in ("+", "-"):
            sign = self.take()
            term = self.product(stop)
            total = arithmetic.add(total, term if sign == "+" else -term)
        self.depth -= 1
        return total

    def product(self, stop: str) -> Any:
        """A product or quotient, also without a sign between its factors."""
        value = self.signed(stop)
        while True:
            token = self.peek()
            if token in ("*", "\\cdot", "\\times", "\\ast"):
                self.take()
                self.refuse_products_of_sets(token)
                value = arithmetic.multiply(value, self.signed(stop))
            elif token in ("/", "\\div", "\\over"):
                self.take()
                value = arithmetic.divide(value, self.signed(stop))
            elif token == "\\choose":
                self.take()
                value = arithmetic.binomial(value, self.signed(stop))
            elif token and token != stop and self.starts_atom(token):
                self.refuse_adjacent_numbers(token)
                value = arithmetic.multiply(value, self.power(stop))
            else:
                return value

    def refuse_adjacent_numbers(self, token: str) -> None:
        """`2 3` and `x 2` are no products: a sign between them is missing."""
        before = self.tokens[self.position - 1]
        if token[0].isdigit() and (before[-1].isdigit() or before.isalpha()):
            raise NotReadableError("a number behind a number")

    def refuse_products_of_sets(self, sign: str) -> None:
        r"""`A \times B` and `\vec a \times \vec b` are not `B \times A`."""
        names = self.peek(-2), self.peek()
        if sign == "\\times" and (names[1] == "\\vec" or all(name.isalpha() and name.isupper() for name in names)):
            raise NotReadableError("a product of sets or vectors")

    def signed(self, stop: str) -> Any:
        """A power with signs in front."""
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.power(stop)
        return -value if negative else value

    def starts_atom(self, token: str) -> bool:
        """Whether a token can start a factor of a product without a sign."""
        if token[0] == "\\":
            name = token[1:]
            known = name in GREEK or name in FUNCTIONS or name in LISTS or name in FRACTIONS or name in BINOMIALS
            return known or name in ACCENTS or token in _AROUND or name in ("sqrt", "pi", "log", "ln", "lg", "sum",
                                                                            "prod", "begin")  # fmt: skip
        return token[0].isalnum() or token[0] in "([{|."

    def power(self, stop: str) -> Any:
        """A value with its factorials and exponent."""
        base = self.atom(stop)
        while self.peek() == "!":
            self.take()
            if self.peek() == "!":
                self.take()
                base = arithmetic.double_factorial(base)
            else:
                base = arithmetic.factorial(base)
        if self.peek() == "^":
            self.take()
            if self.degrees():
                return arithmetic.multiply(base, MATH.pi / 180)
            exponent = self.argument(negative=True)
            return self.raised(base, exponent)
        return base

    def raised(self, base: Any, exponent: Any) -> Any:
        """A power; remembers whether a root of a negative number made it ambiguous."""
        if isinstance(exponent, Fraction) and exponent.denominator % 2 and exponent.denominator > 1:
            self.has_odd_root |= not MATH.im(real(base)) and base < 0
        return arithmetic.power(base, exponent, self.odd_roots)

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
        elif negative and token in ("-", "+"):
            sign = self.take()
            value = self.argument(negative=True)
            return -value if sign == "-" else value
        elif token[:1].isdigit():
            # \frac12 and x^23 read single digits, as TeX does; plain-text exponents such as 2^10 are whole numbers.
            if not negative and len(token) > 1:
                self.tokens[self.position : self.position + 1] = [token[0], token[1:]]
            value = number_of(self.take())
        elif token[:1].isalpha() and len(token) > 1 and token not in NUMBER_WORDS:
            self.tokens[self.position : self.position + 1] = [token[0], token[1:]]
            value = self.atom("")
        else:
            value = self.atom("")
        while negative and self.peek() == "!":
            self.take()
            value = arithmetic.factorial(value)
        if negative and self.peek() == "^" and token not in ("{", "("):  # 2^3^2
            self.take()
            value = self.raised(value, self.argument(negative=True))
        return value

    def group(self) -> Any:
        """The sum in brackets."""
        opening = self.take()
        value = self.sum()
        self.take(CLOSING[opening])
        return value

    def atom(self, stop: str) -> Any:
        """A number, a group, a command or a name."""
        token = self.peek()
        if (token == "{" and self.peek(1) == "}") or (token == "^" and stop != "^"):
            return self.combinations()
        if token in CLOSING:
            return self.group()
        if token == "|":
            self.take()
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
        if self.peek() == "{":
            self.position += 2
        if self.take() not in ("^", "_"):
            raise NotReadableError("an empty group")
        top = self.argument()
        self.take("C")
        self.take("_")
        return arithmetic.binomial(top, self.argument())

    def number(self) -> Any:
        """A number, repeating decimal or mixed number."""
        text = self.take()
        value = number_of(text)
        following = self.peek()
        if following == "\\overline" and "." in text:  # repeating decimal
            self.take()
            self.take("{")
            digits = self.take()
            self.take("}")
            if not digits.isdigit():
                raise NotReadableError("repeating part")
            decimals = len(text.partition(".")[2])
            return value + number_of(digits) / (10**decimals * (10 ** len(digits) - 1))
        if text.isdigit() and following[1:] in FRACTIONS and following[:1] == "\\":  # mixed number: 3\frac{1}{2}
            self.take()
            start = self.position
            fraction = self.fraction()
            if all(token.isdigit() or token in "{}" for token in self.tokens[start : self.position]):
                return value + fraction
            return arithmetic.multiply(value, fraction)
        if text.isdigit() and following.isdigit() and self.peek(1) == "/" and self.peek(2).isdigit():
            self.position += 3  # mixed number: 3 1/2
            return value + arithmetic.divide(number_of(following), number_of(self.tokens[self.position - 1]))
        return value

    def fraction(self) -> Any:
        """The two arguments of a fraction."""
        start = self.position
        top = self.argument()
        middle = self.position
        bottom = self.argument()
        parts = self.tokens[start:middle], self.tokens[middle : self.position]
        if (
            all(re.match(r"d[A-Za-z]?$|\\partial$", "".join(part).strip("{")[:2]) for part in parts)
            and len(parts[1]) > 1
        ):
            raise NotReadableError("a derivative")
        return arithmetic.divide(top, bottom)

    def command(self, name: str) -> Any:
        """The value of a command, whose name is taken."""
        raise NotImplementedError

    def word(self) -> Any:
        """The value of a name or of a product of letters."""
        raise NotImplementedError
