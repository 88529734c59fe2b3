r"""Parse a final answer into a tree.

Inner nodes are collections: tuples and intervals (ordered, with brackets), several answers, sets, unions and
differences of sets, matrices and congruences. Leaves are values with their unit, percent sign, base of the numeral, and
name (the left side of `x = 5`).
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from data.grading.arithmetic import NotReadableError, OutOfRangeError
from data.grading.latex_value import evaluate
from data.grading.marks import DOLLAR, ROW_END, SET_CLOSE, SET_OPEN, TEXT_CLOSE, TEXT_OPEN
from data.grading.notation import undress
from data.grading.units import split_unit
from data.grading.words import canonical_words, is_everything, is_nothing, is_prose, named_option, number_of

MAX_ANSWER_CHARS = 2000  # longer ones are unfinished text, not answers
_MAX_ITEMS = 60  # of a collection; longer ones are compared as text only
_MAX_DEPTH = 6  # of nested collections; each unordered level doubles the cost of a comparison


class UnparseableError(ValueError):
    """The text is not an answer: it is empty, unbalanced, too long, or has no letter, digit or symbol."""


@dataclass(frozen=True)
class Leaf:
    """One value. `text` is the value without unit, percent sign, base and name."""

    text: str
    is_words: bool = False
    unit: str = ""
    percent: bool = False
    base: str = ""
    name: str = ""


@dataclass(frozen=True)
class Collection:
    """Several values.

    kind: "ordered" (tuple or interval, by `brackets`), "several" (answers), "set", "union", "difference" (of two sets),
        "matrix" (items are rows), "row" or "congruence" (value, modulus).
    """

    kind: str
    items: tuple["Node", ...]
    brackets: str = ""
    name: str = ""  # the variable of an interval that was written as an inequality


@dataclass(frozen=True)
class Equation:
    """An equation other than `name = value`."""

    left: str
    right: str


Node = Leaf | Collection | Equation

_OPENING, _CLOSING = "([{" + SET_OPEN, ")]}" + SET_CLOSE
_BASE = re.compile(r"([0-9A-Fa-f]+)_(?:\{([^{}]+)\}|(\d+))$")
_NAME = re.compile(
    r"(?:\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|\w))?'*|[A-Za-z]'*\((?:\\?[A-Za-z]+|[A-Za-z](?:,\s*[A-Za-z])+)\)"
    r"|m?\s*\\(?:angle|measuredangle|triangle)\s*[A-Z]{1,3}|\\overline\{[A-Z]{2}\}|\|[A-Z]{2}\|)$"
)
_GROUPED = re.compile(rf"([{DOLLAR}£€]?\s*-?)(\d{{1,3}}(?:,\d{{3}})+)((?:\.\d+)?(?!\d)[^,()\[\]]*)")
INEQUALITY = re.compile(r"\\(?:le|ge|leq|geq|ne|neq|lt|gt)(?![A-Za-z])|[<>]")


def _balanced(text: str) -> bool:
    return text.count("{") == text.count("}") and text.count(SET_OPEN) == text.count(SET_CLOSE)


def _split(text: str, separators: str) -> list[str]:
    """Parts of `text` between the matches of the regular expression `separators` that are outside all brackets."""
    parts, depth, start = [], 0, 0
    pattern = re.compile(separators)
    position = 0
    while position < len(text):
        letter = text[position]
        if letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth = max(0, depth - 1)
        elif depth == 0 and (separator := pattern.match(text, position)):
            parts.append(text[start:position])
            start = position = separator.end()
            continue
        position += 1
    return [*parts, text[start:]]


def _enclosed(text: str, opening: str, closing: str) -> bool:
    """Whether the first character of `text` is a bracket that its last character closes."""
    if len(text) < 2 or text[0] not in opening or text[-1] not in closing:
        return False
    depth = 0
    for position, letter in enumerate(text):
        depth += letter in _OPENING
        depth -= letter in _CLOSING
        if depth == 0:
            return position == len(text) - 1
    return False


def _collection(kind: str, parts: list[str], depth: int, brackets: str = "") -> Collection:
    if len(parts) > _MAX_ITEMS:
        raise UnparseableError("too many parts")
    items: list[Node] = []
    for node in (_read(part, depth + 1) for part in parts):
        # One of several answers may itself be two, as in \\pm 1, 3.
        flat = kind == "several" and isinstance(node, Collection) and node.kind == "several"
        items += node.items if flat and isinstance(node, Collection) else [node]
    return Collection(kind, tuple(items), brackets)


_BOTH = rf",|;|\band\b|\\(?:land|wedge)(?![A-Za-z])|{TEXT_OPEN}\s*,?\s*and\s*{TEXT_CLOSE}"
_AND = rf"{_BOTH}|\bor\b|\\(?:lor|vee)(?![A-Za-z])|{TEXT_OPEN}\s*,?\s*or\s*{TEXT_CLOSE}"
_INTEGER_PARAMETER = re.compile(
    rf"[,\s(]*(?:{TEXT_OPEN}[^{TEXT_CLOSE}]*{TEXT_CLOSE}\s*|\b(?:where|for|with)\s+)?\(?\b[a-z]\s*"
    rf"(?:\\in\s*Z|(?:{TEXT_OPEN}\s*)?\bis an (?:arbitrary )?integer\.?\s*{TEXT_CLOSE}?)\s*\)?$"
)
_PERIODIC = re.compile(r"^(?!.*(?:<|>|\\(?:le|ge|lt|gt|ne)(?![A-Za-z]))).*(?:\\pi|\\circ|\bpi\b)", re.DOTALL)
_CASES = re.compile(r"\\begin\{(?:cases|aligned|array)\}(?:\{[^}]*\})?(.*)\\end\{(?:cases|aligned|array)\}", re.DOTALL)
_CONGRUENCE = re.compile(r"(?:\\?[A-Za-z]\w*\s*\\equiv\s*)?(.+?)\s*\(?\s*\\(?:pmod|mod|bmod)(?![A-Za-z])\s*(.+?)\)?$")


def _read(text: str, depth: int = 0, grouped: bool = True) -> Node:
    """The tree of an undressed answer. `grouped`: read 100,200 as one number; else as two."""
    if depth > _MAX_DEPTH:
        raise UnparseableError("nested too deeply")
    text = text.strip().strip(",;").strip()
    if not text:
        raise UnparseableError("empty part")
    if _enclosed(text, "{", "}"):
        return _read(text[1:-1], depth + 1, grouped)
    cases = _CASES.fullmatch(text.removeprefix(SET_OPEN).strip())
    if cases and "=" in cases.group(1):
        rows = [row.replace("&", "") for row in cases.group(1).split(ROW_END) if row.strip()]
        if all("=" in row for row in rows):
            return _collection("several", rows, depth)
    if (parameter := _INTEGER_PARAMETER.search(text)) and _PERIODIC.search(text[: parameter.start()]):
        text = text[: parameter.start()].strip()
    if _enclosed(text, SET_OPEN, SET_CLOSE):
        inner = text[1:-1].strip()
        builder = re.fullmatch(r"(\\?[A-Za-z])(?:\s*\\in\s*\(-\\infty,\s*\\infty\))?\s*(?:\||\\mid|:)(.+)", inner)
        if builder and (interval := _interval(builder.group(2))):
            return interval
        if inner and not re.search(r"\||\\mid|:", inner):
            return _collection("set", _split(inner, ","), depth)
        return Leaf(text if inner else "\\emptyset")
    matrix = re.fullmatch(r"\\begin\{([pbv]?matrix|array)\}(?:\{[^}]*\})?(.*)\\end\{\1\}", text, re.DOTALL)
    if matrix is None and _enclosed(text, "([", ")]"):
        inner = text[1:-1].strip()
        matrix = re.fullmatch(r"\\begin\{(array)\}(?:\{[^}]*\})?(.*)\\end\{\1\}", inner, re.DOTALL)
    if matrix:
        rows = [row for row in matrix.group(2).split(ROW_END) if row.strip()]
        return Collection("matrix", tuple(_collection("row", row.split("&"), depth) for row in rows))
    if grouped and (number := _GROUPED.fullmatch(text)):
        text = number.group(1) + number.group(2).replace(",", "") + number.group(3)
    parts = _split(text, r"\\cup(?![A-Za-z])")
    if len(parts) > 1:
        return _collection("union", parts, depth)
    parts = _split(text, r"\\(?:setminus|backslash)(?![A-Za-z])")
    if len(parts) == 2:
        return _collection("difference", parts, depth)
    if between := _between([part for part in _split(text, _BOTH) if part.strip()]):
        return between
    parts = [part for part in _split(text, _AND) if part.strip()]
    if len(parts) > 1 and not is_prose(text):
        return _collection("several", parts, depth)
    if _enclosed(text, "([", ")]"):
        parts = _split(text[1:-1], ",")
        if len(parts) > 1:
            return _collection("ordered", parts, depth, text[0] + text[-1])
        if text[0] == "(" and text[-1] == ")":
            return _read(text[1:-1], depth + 1, grouped)
    if interval := _interval(text):
        return interval
    removed = re.fullmatch(rf"\(-\\infty,\s*\\infty\)\s*-\s*{SET_OPEN}(.+){SET_CLOSE}", text)
    if removed:
        return _without(_split(removed.group(1), ","))
    if unequal := re.fullmatch(r"(.+?)\\(?:ne|neq)(?![A-Za-z])(.+)", text):
        name, value = unequal.group(1).strip(), unequal.group(2).strip()
        if _NAME.match(name) and _is_number(value):
            return _without([value])
    if congruence := _CONGRUENCE.fullmatch(text):
        return _collection("congruence", [part.strip() for part in congruence.groups()], depth)
    if not INEQUALITY.search(text):
        sides = [side.strip() for side in _split(text, "=")]
        if len(sides) >= 2 and all(sides):
            return _equation(sides, depth)
        member = re.fullmatch(r"(\\?[A-Za-z]\w*)\s*\\in(?![A-Za-z])(.+)", text)
        if member:
            return _read(member.group(2), depth + 1, grouped)
    sign = re.search(r"\\(?:pm|mp)(?![A-Za-z])", text)
    if sign and not re.search(r"\\(?:pm|mp)(?![A-Za-z])", text[sign.end() :]):
        both = [f"{text[: sign.start()]}{s}{text[sign.end() :]}" for s in "+-"]
        return _collection("several", [part.removeprefix("+") for part in both], depth)
    return _leaf(text)


def _equation(sides: list[str], depth: int) -> Node:
    """`x = 5` is the named value 5, `3 + 8 = 11` is 11, `(x, y) = (1, 2)` is a pair; anything else is an equation."""
    left, right = sides[0], sides[-1]
    label = left.replace(TEXT_OPEN, "").replace(TEXT_CLOSE, "").strip()
    if TEXT_OPEN in left or _NAME.match(label):
        node = _read(right, depth + 1)
        return Leaf(**{**vars(node), "name": label}) if isinstance(node, Leaf) else node
    if _enclosed(left, "(", ")") or len(sides) > 2 or (_is_number(left) and _is_number(right)):
        return _read(right, depth + 1)
    return Equation(left, right)


def _is_number(text: str) -> bool:
    try:
        return not evaluate(text)[1]
    except (NotReadableError, OutOfRangeError):
        return False


def _interval(text: str) -> Node | None:
    """`1 < x \\le 2` and `x > 3` as the intervals (1, 2] and (3, infinity); None for other inequalities."""
    parts = re.split(r"(\\(?:le|ge|lt|gt)(?![A-Za-z])|<=|>=|<|>)", text)
    if len(parts) not in (3, 5):
        return None
    terms, signs = [part.strip() for part in parts[::2]], parts[1::2]
    rising = ["<" in sign or "l" in sign for sign in signs]
    closed = ["=" in sign or "e" in sign for sign in signs]
    if len(set(rising)) > 1 or not all(terms):
        return None
    if not rising[0]:
        terms, closed = terms[::-1], closed[::-1]
    if len(terms) == 2:
        named = [bool(_NAME.match(term)) for term in terms]
        if named == [True, False]:
            terms, closed = ["-\\infty", *terms], [False, *closed]
        elif named == [False, True]:
            terms, closed = [*terms, "\\infty"], [*closed, False]
        else:
            return None
    if not _NAME.match(terms[1]):
        return None
    brackets = ("[" if closed[0] else "(") + ("]" if closed[1] else ")")
    return replace(_collection("ordered", [terms[0], terms[2]], 0, brackets), name=terms[1])


def _between(parts: list[str]) -> Node | None:
    """`x > 2 and x < 5` as one interval; None unless the two parts bound one variable from both sides."""
    if len(parts) != 2:
        return None
    bounds = []
    for part in parts:
        bounded = re.match(r"\s*(\\?[A-Za-z]\w*)\s*(?:\\(?:le|ge|lt|gt)(?![A-Za-z])|<|>)", part)
        ray = _interval(part) if bounded else None
        if bounded is None or not isinstance(ray, Collection):
            return None
        bounds.append((bounded.group(1), ray))
    (name, first), (other, second) = bounds
    if first.items[1] != Leaf("\\infty"):
        first, second = second, first
    low, high = first.items[0], second.items[1]
    rays = first.items[1] == Leaf("\\infty") and second.items[0] == Leaf("-\\infty")
    if name != other or not rays or not (isinstance(low, Leaf) and isinstance(high, Leaf)):
        return None
    if not _size(low.text) < _size(high.text):
        return None
    return Collection("ordered", (low, high), first.brackets[0] + second.brackets[1])


def _without(points: list[str]) -> Node:
    """All real numbers except `points`, as a union of intervals."""
    ends = sorted(points, key=_size)
    bounds = ["-\\infty", *ends, "\\infty"]
    rays = [_collection("ordered", list(pair), 0, "()") for pair in pairwise(bounds)]
    return Collection("union", tuple(rays))


def _size(text: str) -> float:
    try:
        value, names = evaluate(text)
        return float("nan") if names else float(value.real)
    except (NotReadableError, OutOfRangeError, OverflowError, AttributeError):
        return float("nan")


def _leaf(text: str) -> Node:
    if is_prose(text):
        words = canonical_words(text)
        if is_everything(words):
            return _collection("ordered", ["-\\infty", "\\infty"], 0, "()")
        meant = number_of(words) or named_option(words) or ("\\emptyset" if is_nothing(words) else None)
        if meant is not None:
            return Leaf(meant)
        return Leaf(words, is_words=True)
    text, unit, percent = split_unit(text)
    text = text.replace(TEXT_OPEN, "").replace(TEXT_CLOSE, "").strip()
    while _enclosed(text, "{", "}") or (_enclosed(text, "(", ")") and "," not in text):
        text = text[1:-1].strip()
    base = _BASE.match(text)
    if base and (text[0].isdigit() or len(base.group(1)) > 1):
        written = (base.group(2) or base.group(3)).strip().lower()
        radix = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
                 "nine": "9", "ten": "10", "twelve": "12", "sixteen": "16"}.get(written, written)  # fmt: skip
        if radix.isdigit():
            return Leaf(base.group(1).lower().lstrip("0") or "0", unit=unit, base=radix)
    if not re.search(r"\w|\\[A-Za-z]", text):
        raise UnparseableError("no value")
    return Leaf(text, unit=unit, percent=percent)


@lru_cache(maxsize=65536)
def read_answer(answer: str, grouped: bool = True) -> Node:
    """The tree of an answer. `grouped`: read 100,200 as one number; else as two.

    Raises:
        UnparseableError: the answer is empty, too long, unbalanced, or has no letter, digit or symbol.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        raise UnparseableError("too long")
    text = undress(answer)
    if not _balanced(text):
        raise UnparseableError("unbalanced braces")
    if not re.search(rf"\w|\\(?:infty|emptyset|varnothing)|{SET_OPEN}\s*{SET_CLOSE}", text):
        raise UnparseableError("no letter, digit or symbol")
    try:
        return _read(text, grouped=grouped)
    except RecursionError:
        raise UnparseableError("nested too deeply") from None
