r"""A final answer as a tree.

Inner nodes are collections: a tuple or interval (ordered, with its brackets), a list of several answers, a set, a union
or a difference of sets (unordered), a matrix (rows), a congruence (value and modulus). Leaves are values with what may
stand around them: a unit, a percent sign, the base of a numeral, the name in front of an equals sign.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from data.grading.latex_value import NotReadableError, OutOfRangeError, evaluate
from data.grading.units import TEXT_CLOSE, TEXT_OPEN, is_symbol_behind_value, split_unit
from data.grading.words import canonical_words, is_everything, is_nothing, is_prose, named_option, number_of

MAX_ANSWER_CHARS = 2000  # longer "answers" are text the model forgot to end
_MAX_ITEMS = 60  # of a list; more are compared as text only
_MAX_DEPTH = 6  # of collections in collections; comparing unordered ones doubles the work with every level


class UnparseableError(ValueError):
    """The text is not an answer: empty, unbalanced, or without a letter, digit or symbol."""


@dataclass(frozen=True)
class Leaf:
    """One value. `text` has no unit, percent sign, base or name any more."""

    text: str
    is_words: bool = False
    unit: str = ""
    percent: bool = False
    base: str = ""
    name: str = ""


@dataclass(frozen=True)
class Collection:
    """Several values.

    kind: "ordered" (with brackets), "several", "set", "union", "difference" (a set without another), "matrix" (its
    items are rows) or "congruence" (value, modulus).
    """

    kind: str
    items: tuple["Node", ...]
    brackets: str = ""
    name: str = ""  # of an interval that was an inequality


@dataclass(frozen=True)
class Equation:
    """An equation that does not just name a value."""

    left: str
    right: str


Node = Leaf | Collection | Equation

_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mbox|hbox|emph)\s*\{([^{}]*)\}")
_FONT_COMMAND = re.compile(
    r"\\(?:mathrm|mathbf|mathit|mathsf|mathcal|mathbb|boldsymbol|bm|operatorname|underline|textcolor\{\w+\})"
    r"\s*\{([^{}]*)\}"
)
_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "∞": r"\infty ", "π": r"\pi ", "√": r"\sqrt ",
        "∪": r"\cup ", "°": r"^\circ ", "±": r"\pm ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∈": r"\in ",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "²": "^2", "³": "^3", "\u00a0": " ",
        "（": "(", "）": ")", "，": ",", "θ": r"\theta ", "∅": r"\emptyset ", "’": "'",
    }
)  # fmt: skip
_SPACING = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|displaystyle|textstyle|limits|quad|qquad"
    r"|hspace\{[^}]*\}|phantom\{[^}]*\})(?![A-Za-z])|\\[!,;:> ]|~"
)
_BASE = re.compile(r"([0-9A-Fa-f]+)_(?:\{([^{}]+)\}|(\d+))$")
_NAME = re.compile(
    r"(?:\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|\w))?'*|[A-Za-z]'*\((?:\\?[A-Za-z]+|[A-Za-z](?:,\s*[A-Za-z])+)\)"
    r"|m?\s*\\(?:angle|measuredangle|triangle)\s*[A-Z]{1,3}|\\overline\{[A-Z]{2}\}|\|[A-Z]{2}\|)$"
)
_GROUPED = re.compile(r"([\ue004£€]?\s*-?)(\d{1,3}(?:,\d{3})+)((?:\.\d+)?(?!\d)[^,()\[\]]*)")
_REALS = re.compile(r"\\(?:mathbb|mathbf)\s*(?:\{R\}|R)|\\R(?![A-Za-z])")
INEQUALITY = re.compile(r"\\(?:le|ge|leq|geq|ne|neq|lt|gt)(?![A-Za-z])|[<>]")


def undress(answer: str) -> str:
    r"""An answer without what never changes its meaning: $, \left, spacing, \dfrac, fonts, a final full stop.

    Words inside \text{} stay marked by two private-use characters, so that they are not read as products of letters.
    """
    text = answer.translate(_UNICODE).strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        whole = len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
        if whole and opening not in text[len(opening) : -len(closing)]:
            text = text[len(opening) : -len(closing)].strip()
    text = re.sub(r"(?<=\d)(?:,\s*\\!|\{,\}|\\,|\\!\s*,)\s*(?=\d{3}(?!\d))", "", text)  # LaTeX's thousands separators
    text = _REALS.sub(r"(-\\infty,\\infty)", text).replace("\\varnothing", "\\emptyset").replace("\\\\", "\ue005")
    text = text.replace("\\lbrace", "\\{").replace("\\rbrace", "\\}").replace("\\{", "\ue002").replace("\\}", "\ue003")
    text = re.sub(r"\\left\s*(?:\ue002|\.)(.*)\\right\s*\.", r"\1", text)
    text = _SPACING.sub(lambda match: " " if match.group() in ("\\ ", "~", "\\quad", "\\qquad") else "", text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\color\s*\{\w+\}|\\[lr]angle(?![A-Za-z])", _angle, text)
    text = text.replace("\\%", "%").replace("\\$", "\ue004").replace("\\lvert", "|").replace("\\rvert", "|")
    text = re.sub(r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le", re.sub(r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge", text))
    for _ in range(3):  # nested, as in \text{\textbf{(C)}}
        text = _TEXT_COMMAND.sub(f"{TEXT_OPEN}\\1{TEXT_CLOSE}", _FONT_COMMAND.sub(_font, text))
    text = re.sub(r"(?<!\\)\$", "", text) if text.count("$") > 1 else text.replace("$", "\ue004")
    text = text.strip().removesuffix(".").strip()
    return " ".join(text.split())


def _angle(match: re.Match[str]) -> str:
    return {"\\langle": "(", "\\rangle": ")"}.get(match.group(), "")


def _font(match: re.Match[str]) -> str:
    """The content of a font command; as words if it is the unit of a value."""
    content = match.group(1)
    before = match.string[: match.start()]
    return f"{TEXT_OPEN}{content}{TEXT_CLOSE}" if is_symbol_behind_value(content, before) else content


def plain(answer: str) -> str:
    """The undressed answer as it would be typed, with one space between words: equal texts are equal answers."""
    text = undress(answer)
    for mark, replacement in (
        (TEXT_OPEN, ""),
        (TEXT_CLOSE, ""),
        ("\ue002", "\\{"),
        ("\ue003", "\\}"),
        ("\ue004", "$"),
    ):
        text = text.replace(mark, replacement)
    return " ".join(text.split())


def _balanced(text: str) -> bool:
    return text.count("{") == text.count("}") and text.count("\ue002") == text.count("\ue003")


def _split(text: str, separators: str) -> list[str]:
    """Parts of `text` between separators that are in no bracket; `separators` is a regular expression."""
    parts, depth, start = [], 0, 0
    pattern = re.compile(separators)
    position = 0
    while position < len(text):
        letter = text[position]
        if letter in "([{\ue002":
            depth += 1
        elif letter in ")]}\ue003":
            depth = max(0, depth - 1)
        elif depth == 0 and (found := pattern.match(text, position)):
            parts.append(text[start:position])
            start = position = found.end()
            continue
        position += 1
    return [*parts, text[start:]]


def _enclosed(text: str, opening: str, closing: str) -> bool:
    """Whether the first bracket of `text` is closed by its last character."""
    if len(text) < 2 or text[0] not in opening or text[-1] not in closing:
        return False
    depth = 0
    for position, letter in enumerate(text):
        depth += letter in "([{\ue002"
        depth -= letter in ")]}\ue003"
        if depth == 0:
            return position == len(text) - 1
    return False


def _collection(kind: str, parts: list[str], depth: int, brackets: str = "") -> Collection:
    if len(parts) > _MAX_ITEMS:
        raise UnparseableError("too many parts")
    items: list[Node] = []
    for node in (_read(part, depth + 1) for part in parts):
        # Several answers, one of which is itself two, as in \\pm 1, 3.
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
    """The tree of an undressed answer. `grouped`: whether 100,200 is a number; else it is a list of two."""
    if depth > _MAX_DEPTH:
        raise UnparseableError("nested too deeply")
    text = text.strip().strip(",;").strip()
    if not text:
        raise UnparseableError("empty part")
    if _enclosed(text, "{", "}"):
        return _read(text[1:-1], depth + 1, grouped)
    cases = _CASES.fullmatch(text.removeprefix("\ue002").strip())
    if cases and "=" in cases.group(1):
        rows = [row.replace("&", "") for row in cases.group(1).split("\ue005") if row.strip()]
        if all("=" in row for row in rows):
            return _collection("several", rows, depth)
    if (parameter := _INTEGER_PARAMETER.search(text)) and _PERIODIC.search(text[: parameter.start()]):
        text = text[: parameter.start()].strip()
    if _enclosed(text, "\ue002", "\ue003"):
        inner = text[1:-1].strip()
        builder = re.fullmatch(r"(\\?[A-Za-z])(?:\s*\\in\s*\(-\\infty,\s*\\infty\))?\s*(?:\||\\mid|:)(.+)", inner)
        if builder and (found := _interval(builder.group(2))):
            return found
        if inner and not re.search(r"\||\\mid|:", inner):
            return _collection("set", _split(inner, ","), depth)
        return Leaf(text if inner else "\\emptyset")
    matrix = re.fullmatch(r"\\begin\{([pbv]?matrix|array)\}(?:\{[^}]*\})?(.*)\\end\{\1\}", text, re.DOTALL)
    if matrix is None and _enclosed(text, "([", ")]"):
        inner = text[1:-1].strip()
        matrix = re.fullmatch(r"\\begin\{(array)\}(?:\{[^}]*\})?(.*)\\end\{\1\}", inner, re.DOTALL)
    if matrix:
        rows = [row for row in matrix.group(2).split("\ue005") if row.strip()]
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
    removed = re.fullmatch(r"\(-\\infty,\s*\\infty\)\s*-\s*\ue002(.+)\ue003", text)
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
    """`x = 5` is the value 5 with a name, `3 + 8 = 11` is 11; `(x, y) = (1, 2)` a pair; anything else an equation."""
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
    """`x > 2 and x < 5` as one interval; None if the two do not bound one name from both sides."""
    if len(parts) != 2:
        return None
    found = []
    for part in parts:
        bounded = re.match(r"\s*(\\?[A-Za-z]\w*)\s*(?:\\(?:le|ge|lt|gt)(?![A-Za-z])|<|>)", part)
        ray = _interval(part) if bounded else None
        if bounded is None or not isinstance(ray, Collection):
            return None
        found.append((bounded.group(1), ray))
    (name, first), (other, second) = found
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
    """All real numbers but some, as a union of intervals."""
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
        number = (base.group(2) or base.group(3)).strip().lower()
        number = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
                  "nine": "9", "ten": "10", "twelve": "12", "sixteen": "16"}.get(number, number)  # fmt: skip
        if number.isdigit():
            return Leaf(base.group(1).lower().lstrip("0") or "0", unit=unit, base=number)
    if not re.search(r"\w|\\[A-Za-z]", text):
        raise UnparseableError("no value")
    return Leaf(text, unit=unit, percent=percent)


@lru_cache(maxsize=65536)
def read_answer(answer: str, grouped: bool = True) -> Node:
    """The tree of an answer. `grouped`: whether 100,200 is read as a number or as a list of two.

    Raises:
        UnparseableError: it is empty, too long, unbalanced or says nothing.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        raise UnparseableError("too long")
    text = undress(answer)
    if not _balanced(text):
        raise UnparseableError("unbalanced braces")
    if not re.search(r"\w|\\(?:infty|emptyset|varnothing)|\ue002\s*\ue003", text):
        raise UnparseableError("no letter, digit or symbol")
    try:
        return _read(text, grouped=grouped)
    except RecursionError:
        raise UnparseableError("nested too deeply") from None
