r"""Value of a formula written in LaTeX or plain text, at given values of its variables.

A recursive-descent parser that computes while it reads. It reads the whole text or refuses: a command, word or sign
that it does not know raises `NotReadableError`, so nothing beside a value is ever skipped.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from data.grading import arithmetic
from data.grading.arithmetic import MATH, FormulaError, NotReadableError, OutOfRangeError, real
from data.grading.expressions import ACCENTS, BINOMIALS, CLOSING, FRACTIONS, LOGARITHMS, NUMBER_WORDS, Expression
from data.grading.functions import FUNCTIONS, LISTS, apply, determinant
from data.grading.marks import ROW_END
from data.grading.tokens import GREEK

_MAX_TERMS = 2000  # of a sum
_MAX_MATRIX = 6
_UNKNOWN_FUNCTIONS = frozenset("fghFGH")  # f(x) is a value of f, a(x) a product
_COMMAND_WORDS = {*NUMBER_WORDS, *FUNCTIONS, *LISTS, *LOGARITHMS}


class Formula(Expression):
    """Reads one formula."""

    def read(self) -> Any:
        """The value of the whole text."""
        value = self.sum()
        if self.position != len(self.tokens):
            raise NotReadableError(f"unexpected {self.peek()!r}")
        return arithmetic.checked(value)

    def command(self, name: str) -> Any:
        """The value of a command, whose name is taken."""
        if name in FRACTIONS:
            return self.fraction()
        if name in ("sqrt", "cbrt"):
            index = self.group() if self.peek() == "[" else Fraction(3 if name == "cbrt" else 2)
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
        if name in FUNCTIONS or name in LOGARITHMS:
            return self.function(name)
        if name in LISTS:
            return self.listed(name)
        if name in GREEK:
            return self.variable("\\" + name)
        if name in ACCENTS:  # \overline{AB}, \angle A: a variable of its own
            inner = self.written()
            if not re.fullmatch(r"[A-Za-z0-9_\\]+", inner):
                raise NotReadableError(f"\\{name}")
            return self.variable(f"\\{name} {inner}")
        if name in ("sum", "prod"):
            return self.series(arithmetic.add if name == "sum" else arithmetic.multiply, Fraction(name == "prod"))
        if name == "begin":
            return self.matrix()
        raise NotReadableError(f"\\{name}")

    def matrix(self) -> Any:
        """The determinant written as a vmatrix."""
        self.take("{", "vmatrix", "}")
        rows: list[list[Any]] = []
        while not self.accept("\\end"):
            row = [self.sum()]
            while self.accept("&"):
                row.append(self.sum())
            rows.append(row)
            if not self.accept(ROW_END) and self.peek() != "\\end":
                raise NotReadableError("a matrix")
        self.take("{", "vmatrix", "}")
        if not 0 < len(rows) <= _MAX_MATRIX or any(len(row) != len(rows) for row in rows):
            raise NotReadableError("a matrix that is not square or too large")
        return determinant(rows)

    def series(self, combine: Callable[[Any, Any], Any], value: Any) -> Any:
        """`\\sum_{k=1}^{n} k^2`: the sum of a product for whole bounds; a sum in it needs brackets."""
        self.take("_", "{")
        name = self.take()
        self.take("=")
        first = arithmetic.whole(self.sum())
        self.take("}", "^")
        last = arithmetic.whole(self.argument(exponent=True))
        if first is None or last is None or not name.isalpha() or len(name) > 1:
            raise NotReadableError("bounds of a sum")
        if last - first > _MAX_TERMS:
            raise OutOfRangeError("too many terms")
        if last < first:
            raise NotReadableError("an empty sum")
        start, outer = self.position, self.bound
        for number in range(first, last + 1):
            # A term may have split tokens (\frac12), which reads the same the second time.
            self.position = start
            self.bound = outer | {name: Fraction(number)}
            value = combine(value, self.product(""))
        self.bound = outer
        return value

    def function(self, name: str) -> Any:
        """A function of one argument, a logarithm also to a base; the exponent may stand behind the name."""
        base = Fraction(10) if name == "lg" else None
        if name in LOGARITHMS and self.accept("_"):
            base = self.argument()
        exponent = self.argument(exponent=True) if self.accept("^") else None
        value = self.function_argument()
        if name in LOGARITHMS:
            if value == 0 or base == 0:
                raise NotReadableError("log 0")
            result = apply("ln", value)
            result = result if base is None else arithmetic.divide(result, apply("ln", base))
        elif exponent == -1 and name in ("sin", "cos", "tan"):  # the inverse function, not the reciprocal
            return apply("arc" + name, value)
        else:
            result = apply(name, value)
        return result if exponent is None else arithmetic.power(result, exponent)

    def function_argument(self) -> Any:
        """`\\sin 2x` reads the product up to the next sign; `\\sin(2x)y` the parenthesis only."""
        if self.peek() in CLOSING:
            value = self.group()
            if self.peek() == "^":
                raise NotReadableError("a power behind the argument of a function")
            return value
        value = self.signed("") if self.peek() == "-" else self.power("")
        while self.peek()[:1].isalnum() or self.peek() in ("\\pi", "\\frac") or self.peek()[1:] in GREEK:
            value = arithmetic.multiply(value, self.power(""))
        return value

    def listed(self, name: str) -> Any:
        """A function of several arguments, such as `\\gcd(12, 18)`."""
        closing = CLOSING.get(self.accept("(", "{"))
        if not closing:
            raise NotReadableError(name)
        values = [self.sum()]
        while self.accept(","):
            values.append(self.sum())
        self.take(closing)
        return LISTS[name](values)

    def word(self) -> Any:
        """The value of a name or of a product of letters."""
        word = self.take()
        if word in _COMMAND_WORDS:
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
        except FormulaError:
            top = None
        if top is None or not self.accept("^"):
            self.position = start
            return self.variable("C")
        return arithmetic.binomial(top, self.argument())

    def variable(self, name: str) -> Any:
        """The value of a variable, whose index and primes follow."""
        if self.accept("_"):
            name += "_" + self.written()
        while self.accept("'"):
            name += "'"
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
