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
from data.grading.expressions import ACCENTS, BINOMIALS, CLOSING, FRACTIONS, NUMBER_WORDS, Expression
from data.grading.functions import FUNCTIONS, LISTS, apply, determinant
from data.grading.marks import ROW_END
from data.grading.tokens import GREEK

_MAX_TERMS = 2000  # of a sum
MAX_MATRIX = 6

_UNKNOWN_FUNCTIONS = frozenset("fghFGH")  # f(x) is a value of f, a(x) a product


class _Reader(Expression):
    """Reads one formula."""

    def read(self) -> Any:
        value = self.sum()
        if self.position != len(self.tokens):
            raise NotReadableError(f"unexpected {self.peek()!r}")
        return arithmetic.checked(value)

    def command(self, name: str) -> Any:
        if name in FRACTIONS:
            return self.fraction()
        if name in ("sqrt", "cbrt"):
            index: Any = Fraction(3 if name == "cbrt" else 2)
            if self.peek() == "[":
                index = self.group()
            return arithmetic.root(self.argument(), index)
        if name in BINOMIALS:
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
        if name in ACCENTS:
            return self.accented(name)
        if name in ("sum", "prod"):
            return self.series(arithmetic.add if name == "sum" else arithmetic.multiply, Fraction(name == "prod"))
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
        if self.peek() in CLOSING:
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
        closing = CLOSING.get(self.peek(), "")
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
        if word in NUMBER_WORDS or word in FUNCTIONS or word in LISTS or word in ("log", "ln", "lg"):
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
