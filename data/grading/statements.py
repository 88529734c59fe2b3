r"""Equations, inequalities and congruences, and what they say about one value.

`x = 5` and `m + n = 5` give the value 5 of something; `x > 3`, `|x| < 2` and `x \ne 1` give sets of real numbers; other
equations and inequalities are relations. A sign that is none of these makes the text unread.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from data.grading.arithmetic import close, real
from data.grading.marks import TEXT_CLOSE, TEXT_OPEN
from data.grading.tree import NO_LETTER, Collection, Leaf, Node, Relation, UnparseableError, enclosed, split
from data.grading.values import is_number, number, variables
from data.grading.words import denies

Read = Callable[[str], Node]

INEQUALITY = re.compile(rf"\\(?:le|ge|ne|lt|gt){NO_LETTER}|[<>]")
_SIGNS = rf"\\(?:le|ge|lt|gt){NO_LETTER}|<=|>=|<|>"
_FUNCTION = r"\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|\w))?'*(?:\^\{?-1\}?|\^\{\(\d\)\})?\s*\([^()]*\)"
NAME = re.compile(
    rf"(?:\\?[A-Za-z]+(?:_(?:\{{[^{{}}]*\}}|\w))?'*|{_FUNCTION}"
    r"|m?\s*\\(?:angle|measuredangle|triangle)\s*[A-Z]{1,3}|\\overline\{[A-Z]{2}\}|\|[A-Z]{2}\|"
    r"|\\frac\s*\{d[^{}]*\}\s*\{d[^{}]*\}\s*(?:[A-Za-z](?:\([^()]*\))?|[(\[][^()\[\]]*[)\]])?)$"
)
"""What an equation may define: a variable, a value of a function, a derivative, an angle, a length."""
_VARIABLE = re.compile(r"\\?[A-Za-z]+(?:_(?:\{\w+\}|\w))?$")
_DISTANCE = re.compile(r"\|\s*(\\?[A-Za-z]+)\s*(?:([+-])([^|]+))?\|$")
_ROUNDING = 0.01
"""Relative difference up to which `4\\pi \\approx 12.57` is a value and its rounding."""


def read_equation(text: str, read: Read) -> Node | None:
    """An equation or chain of equations; None for other texts. A chain of numbers must be true."""
    sides = [side.strip() for side in split(text, rf"=|\\equiv{NO_LETTER}")]
    if len(sides) < 2:
        return None
    if not all(sides):
        raise UnparseableError("an equation without a side")
    left, right = sides[0], sides[-1]
    if is_number(left) and not is_number(right) and len(sides) == 2:
        left, right = right, left  # -2 = x
    for side in sides[:-1] if len(sides) > 2 or is_number(left) else []:
        if is_number(side) and is_number(right):
            values = number(side), number(right)
            if None in values:
                raise UnparseableError("an equation of numbers too large to compare")
            if not close(*values):
                raise UnparseableError("an equation that is false")
    if is_number(left) and len(sides) == 2:
        return read(right)
    label = left.replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ").strip()
    if denies(label):
        raise UnparseableError("words that deny an equation")
    named = TEXT_OPEN in left or NAME.match(label) is not None
    node = read(right)
    if enclosed(left, "(", ")") and "," in left:
        return node.called(left) if isinstance(node, Collection) and node.kind == "ordered" else node
    if isinstance(node, Collection) and node.kind == "ratio" and re.search(r":|/|\\frac", left):
        return replace(node, name=left)
    leaf = node if isinstance(node, Leaf) and not node.is_words else None
    if named or len(sides) > 2 or (leaf is not None and is_number(leaf.text)):
        return replace(leaf, name=label) if leaf is not None else node
    return Relation(left, "=", right)


def states_value(leaf: Leaf) -> bool:
    """Whether `name = text` says what a value is, rather than being an equation to be solved.

    Not so `x - y = 0`, the normal form of an equation, and `x^2 = 2x`, which has its variable on both sides.
    """
    if not leaf.name or NAME.match(leaf.name):
        return leaf.name != leaf.text
    names, value = variables(leaf.name), number(leaf.text)
    if names is None:
        return True  # words, or something named in a notation that is not read
    return value is not None and bool(names) and not (value == 0 and _is_normal_form(leaf.name))


def _is_normal_form(text: str) -> bool:
    """Whether a sum has a constant term or a variable in several terms, as `x^2 - 5x + 6` does."""
    seen: set[str] = set()
    for term in (part for part in split(text, "[+-]") if part.strip()):
        names = variables(term)
        if not names or names & seen:
            return True
        seen |= names
    return False


def read_inequality(text: str, read: Read) -> Node:
    """An inequality: of one variable and bounds as an interval, else as a relation."""
    if unequal := re.fullmatch(rf"(.+?)\\ne{NO_LETTER}(.+)", text):
        name, value = unequal.group(1).strip(), unequal.group(2).strip()
        if INEQUALITY.search(value):
            raise UnparseableError("several signs")
        if NAME.match(name) and is_number(value):
            return replace(without([value], read), name=name)
        return Relation(name, "\\ne", value)
    parts = re.split(f"({_SIGNS})", text)
    terms, signs = [part.strip() for part in parts[::2]], parts[1::2]
    if not all(terms) or not signs:
        raise UnparseableError("an inequality without a side")
    rising = ["<" in sign or "l" in sign for sign in signs]
    closed = ["=" in sign or "e" in sign for sign in signs]
    if len(set(rising)) > 1 or len(terms) > 3 or "=" in "".join(terms):
        raise UnparseableError("signs in several directions")
    if not rising[0]:
        terms, closed = terms[::-1], closed[::-1]
    if len(terms) == 2:
        return _one_bound(terms, closed[0], read)
    if not NAME.match(terms[1]):
        raise UnparseableError("a chain of inequalities")
    return _interval(terms[0], closed[0], terms[2], closed[1], terms[1], read)


def _one_bound(terms: list[str], closed: bool, read: Read) -> Node:
    """`low < high` as a ray, as the points at a distance, or as a relation."""
    low, high = terms
    names, numbers = [NAME.match(term) is not None for term in terms], [is_number(term) for term in terms]
    one_is_a_name = (names[0] and numbers[1]) or (names[1] and numbers[0])
    for side, bound, inside in () if one_is_a_name else ((low, high, True), (high, low, False)):
        if (distance := _DISTANCE.match(side)) and is_number(bound):
            name, sign, shift = distance.group(1), distance.group(2), distance.group(3)
            centre = "0" if sign is None else f"({shift})" if sign == "-" else f"-({shift})"
            ends = f"{centre}-({bound})", f"{centre}+({bound})"
            if inside:
                return _interval(ends[0], closed, ends[1], closed, name, read)
            rays = (
                _interval("-\\infty", False, ends[0], closed, name, read),
                _interval(ends[1], closed, "\\infty", False, name, read),
            )
            return Collection("union", rays, name=name)
    if names[0] and (numbers[1] or not names[1]):
        return _interval("-\\infty", False, high, closed, low, read)
    if names[1] and (numbers[0] or not names[0]):
        return _interval(low, closed, "\\infty", False, high, read)
    return Relation(low, "\\le" if closed else "<", high)


def _interval(low: str, low_closed: bool, high: str, high_closed: bool, name: str, read: Read) -> Collection:
    brackets = ("[" if low_closed else "(") + ("]" if high_closed else ")")
    return Collection("ordered", (read(low), read(high)), brackets, name)


def without(points: list[str], read: Read) -> Collection:
    """All real numbers except `points`, as a union of intervals."""
    bounds = ["-\\infty", *sorted(points, key=_size), "\\infty"]
    rays = [Collection("ordered", (read(low), read(high)), "()") for low, high in pairwise(bounds)]
    return Collection("union", tuple(rays))


def _size(text: str) -> float:
    value = number(text)
    return math.nan if value is None else float(real(value).real)


def read_rounded(text: str, read: Read) -> Node | None:
    r"""`4\pi \approx 12.57` as 4 pi; None for texts without the sign. An approximation alone is no value."""
    parts = [part.strip() for part in split(text, rf"\\(?:approx|simeq|doteq){NO_LETTER}")]
    if len(parts) == 1:
        return None
    exact = split(parts[0], "=")[-1].strip()
    for rounded in parts[1:]:
        if not is_number(exact) or not _nearly(exact, rounded):
            raise UnparseableError("an approximation of something else")
    return read(parts[0])


def _nearly(exact: str, rounded: str) -> bool:
    number = re.match(r"-?[\d.,]*\d", rounded)
    first, second = _size(exact), _size(number.group() if number else rounded)
    return abs(first - second) <= _ROUNDING * abs(first)


def variable_of(text: str) -> str | None:
    """The variable that an inequality bounds, if it starts or ends with one."""
    for part in re.split(_SIGNS + rf"|\\ne{NO_LETTER}|=", text):
        if _VARIABLE.match(part.strip()):
            return part.strip()
    return None
