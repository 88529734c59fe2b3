r"""Value of a formula written in LaTeX or plain text, at given values of its variables.

A recursive-descent parser that computes while it reads. It reads the whole text or refuses: a command, word or sign
that it does not know raises `NotReadableError`, so nothing beside a value is ever skipped.
"""

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from data.grading import arithmetic
from data.grading.arithmetic import MATH, NotReadableError, OutOfRangeError, real
from data.grading.functions import FUNCTIONS, LISTS, apply, determinant
from data.grading.marks import ROW_END
from data.grading.tokens import GREEK, Cursor, number_of

_MAX_DEPTH = 60
_MAX_TERMS = 2000  # of a sum
MAX_MATRIX = 6

_FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac")
_BINOMIALS = ("binom", "dbinom", "tbinom")
_ACCENTS = ("overline", "bar", "vec", "hat", "tilde", "widehat", "angle", "triangle", "measuredangle", "overrightarrow")
_UNKNOWN_FUNCTIONS = frozenset("fghFGH")  # f(x) is a value of f, a(x) a product
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_AROUND = {"\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_NUMBER_WORDS = ("sqrt", "pi", "binom", "exp", "infinity", "cbrt")


class _Reader(Cursor):
    """Reads one formula, and computes its value on the way.

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

    def read(self) -> Any:
        value = self.sum()
        if self.position != len(self.tokens):
            raise NotReadableError(f"unexpected {self.peek()!r}")
        return arithmetic.checked(value)

    def sum(self, stop: str = "") -> Any:
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
        value = self.signed(stop)
        while True:
            token = self.peek()
            if token in ("*", "\\cdot", "\\times", "\\ast"):
                self.take()
                value = arithmetic.multiply(value, self.signed(stop))
            elif token in ("/", "\\div", "\\over"):
                self.take()
                value = arithmetic.divide(value, self.signed(stop))
            elif token == "\\choose":
                self.take()
                value = arithmetic.binomial(value, self.signed(stop))
            elif token and token != stop and self.starts_atom(token):
                self.refuse_number_behindnumber_of(token)
                value = arithmetic.multiply(value, self.power(stop))
            else:
                return value

    def refuse_number_behindnumber_of(self, token: str) -> None:
        """`2 3` and `x 2` are no products: a sign between them is missing."""
        before = self.tokens[self.position - 1]
        if token[0].isdigit() and (before[-1].isdigit() or before.isalpha()):
            raise NotReadableError("a number behind a number")

    def signed(self, stop: str) -> Any:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.power(stop)
        return -value if negative else value

    def starts_atom(self, token: str) -> bool:
        if token[0] == "\\":
            name = token[1:]
            known = name in GREEK or name in FUNCTIONS or name in LISTS or name in _FRACTIONS or name in _BINOMIALS
            return known or name in _ACCENTS or token in _AROUND or name in ("sqrt", "pi", "log", "ln", "lg", "sum",
                                                                            "prod", "begin")  # fmt: skip
        return token[0].isalnum() or token[0] in "([{|."

    def power(self, stop: str) -> Any:
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
        elif token[:1].isalpha() and len(token) > 1 and token not in _NUMBER_WORDS:
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
        opening = self.take()
        value = self.sum()
        self.take(_CLOSING[opening])
        return value

    def atom(self, stop: str) -> Any:
        token = self.peek()
        if (token == "{" and self.peek(1) == "}") or (token == "^" and stop != "^"):
            return self.combinations()
        if token in _CLOSING:
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
        if text.isdigit() and following[1:] in _FRACTIONS and following[:1] == "\\":  # mixed number: 3\frac{1}{2}
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
        if name in _FRACTIONS:
            return self.fraction()
        if name in ("sqrt", "cbrt"):
            index: Any = Fraction(3 if name == "cbrt" else 2)
            if self.peek() == "[":
                index = self.group()
            return arithmetic.root(self.argument(), index)
        if name in _BINOMIALS:
            if self.peek() == "(":
                return self.listed("binom")
            top = self.argument()
            return arithmetic.binomial(top, self.argument())
        if name == "pi":
            return +MATH.pi
        if name in ("infty", "infinity"):
            return MATH.inf
        if name in ("log", "ln", "lg"):
            return self.logarithm(name)
        if name in LISTS:
            return self.listed(name)
        if name in FUNCTIONS:
            return self.function(name)
        if name in GREEK:
            return self.variable("\\" + name)
        if name in _ACCENTS:
            return self.accented(name)
        if name in ("sum", "prod"):
            return self.series(arithmetic.add if name == "sum" else arithmetic.multiply, Fraction(name == "prod"))
        if name == "operatorname":
            self.take("{")
            inner = self.take()
            self.take("}")
            return self.command(inner)
        if name == "begin":
            return self.matrix()
        raise NotReadableError(f"\\{name}")

    def accented(self, name: str) -> Any:
        """A name with a mark, such as \\overline{AB} or \\angle A, as a variable of its own."""
        if self.peek() == "{":
            start = self.position
            while self.take() != "}":
                pass
            inner = "".join(self.tokens[start + 1 : self.position - 1])
        else:
            inner = self.take()
        if not re.fullmatch(r"[A-Za-z0-9_\\]+", inner):
            raise NotReadableError(f"\\{name}")
        return self.variable(f"\\{name} {inner}")

    def matrix(self) -> Any:
        """The determinant written as a vmatrix."""
        self.take("{")
        if self.take() != "vmatrix":
            raise NotReadableError("a matrix")
        self.take("}")
        rows: list[list[Any]] = [[]]
        while True:
            rows[-1].append(self.sum())
            token = self.take()
            if token == ROW_END and self.peek() != "\\end":
                rows.append([])
            elif token == "\\end" or (token == ROW_END and self.take() == "\\end"):
                break
            elif token != "&" and token != ROW_END:
                raise NotReadableError("a matrix")
        for expected in ("{", "vmatrix", "}"):
            self.take(expected)
        if len(rows) > MAX_MATRIX or any(len(row) != len(rows) for row in rows):
            raise NotReadableError("a matrix that is not square or too large")
        return determinant(rows)

    def series(self, combine: Callable[[Any, Any], Any], value: Any) -> Any:
        """`\\sum_{k=1}^{n} k^2`: the sum of a product for whole bounds; a sum in it needs brackets."""
        self.take("_")
        self.take("{")
        name = self.take()
        self.take("=")
        first = self.sum()
        self.take("}")
        self.take("^")
        last = self.argument(negative=True)
        bounds = [bound for bound in (first, last) if isinstance(bound, Fraction) and bound.denominator == 1]
        if len(bounds) < 2 or not name.isalpha() or len(name) > 1:
            raise NotReadableError("bounds of a sum")
        if last - first > _MAX_TERMS:
            raise OutOfRangeError("too many terms")
        start, outer = self.position, self.bound.get(name)
        terms = range(int(first), int(last) + 1)
        if not terms:
            raise NotReadableError("an empty sum")
        for number in terms:
            # A term may have split tokens (\frac12), which reads the same the second time.
            self.position = start
            self.bound[name] = Fraction(number)
            value = combine(value, self.product(""))
        if outer is None:
            del self.bound[name]
        else:
            self.bound[name] = outer
        return value

    def logarithm(self, name: str) -> Any:
        base = Fraction(10) if name == "lg" else None
        exponent = None
        if self.peek() == "_":
            self.take()
            base = self.argument()
        if self.peek() == "^":
            self.take()
            exponent = self.argument(negative=True)
        value = self.function_argument()
        if value == 0 or base == 0:
            raise NotReadableError("log 0")
        result = apply("ln", value)
        result = result if base is None else arithmetic.divide(result, apply("ln", base))
        return result if exponent is None else arithmetic.power(result, exponent)

    def function(self, name: str) -> Any:
        exponent = None
        if self.peek() == "^":
            self.take()
            exponent = self.argument(negative=True)
        value = self.function_argument()
        if exponent == -1 and name in ("sin", "cos", "tan"):  # the inverse function, not the reciprocal
            name, exponent = "arc" + name, None
        result = apply(name, value)
        return result if exponent is None else arithmetic.power(result, exponent)

    def function_argument(self) -> Any:
        """`\\sin 2x` reads the product up to the next sign; `\\sin(2x)y` the parenthesis only."""
        if self.peek() in _CLOSING:
            value = self.group()
            if self.peek() == "^":
                raise NotReadableError("a power behind the argument of a function")
            return value
        negative = self.peek() == "-"
        value = self.signed("") if negative else self.power("")
        while self.peek()[:1].isalnum() or self.peek() in ("\\pi", "\\frac") or self.peek()[1:] in GREEK:
            value = arithmetic.multiply(value, self.power(""))
        return value

    def listed(self, name: str) -> Any:
        """A function of several arguments, such as `\\gcd(12, 18)`."""
        closing = _CLOSING.get(self.peek(), "")
        if closing not in (")", "}"):
            raise NotReadableError(name)
        self.take()
        values = [self.sum()]
        while self.peek() == ",":
            self.take()
            values.append(self.sum())
        self.take(closing)
        return LISTS[name](values)

    def word(self) -> Any:
        word = self.take()
        if word in _NUMBER_WORDS or word in FUNCTIONS or word in LISTS or word in ("log", "ln", "lg"):
            return self.command(word)
        if word in GREEK:
            return self.variable("\\" + word)
        if word == "C" and self.peek() == "_":
            return self.choices()
        if word == "C" and re.match(r"\(\d+,\d+\)", "".join(self.tokens[self.position : self.position + 5])):
            return self.listed("binom")
        if len(word) > 1:  # a product of letters
            self.tokens[self.position : self.position] = [word[1:]]
        return self.variable(word[0])

    def choices(self) -> Any:
        """`C_{10}^{3}`, the number of choices of 3 among 10; else the variable C with an index."""
        start = self.position
        self.take()
        try:
            top = self.argument()
        except (NotReadableError, OutOfRangeError):
            top = None
        if top is None or self.peek() != "^":
            self.position = start
            return self.variable("C")
        self.take()
        return arithmetic.binomial(top, self.argument())

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
        while self.peek() == "'":
            name += self.take()
        if name in self.bound:
            return self.bound[name]
        if name == "i":
            return MATH.mpc(0, 1)
        if name == "e":
            return +MATH.e
        if name.rstrip("'") in _UNKNOWN_FUNCTIONS and self.peek() == "(":
            # f(x+1) is not f times x+1: a variable of its own, with its argument as the name.
            name += f"({MATH.nstr(real(self.group()), 30)})"
        self.names.add(name)
        return self.variables[name]


class Value(NamedTuple):
    """Value of a formula, the names of its variables, and whether a root of a negative number was ambiguous."""

    value: Any
    names: frozenset[str]
    has_odd_root: bool


def compute(text: str, variables: Mapping[str, Any], odd_roots: bool = False) -> Value:
    """Read a formula and compute it.

    Args:
        text: the formula.
        variables: values of the variables by name.
        odd_roots: read fractional powers of negative numbers as real where the root is odd.

    Raises:
        NotReadableError: the formula is not supported.
        OutOfRangeError: its value is too large, too small or too costly to compute.
    """
    reader = _Reader(text, variables, odd_roots)
    value = reader.read()
    return Value(value, frozenset(reader.names), reader.has_odd_root)
