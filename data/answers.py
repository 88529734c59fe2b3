r"""When two final answers are the same: notation, structure, and values.

An answer is read into a tree. Inner nodes are collections: a tuple or interval (ordered, with its brackets), a list
of several answers, a set or a union (unordered), a matrix (rows). Leaves are values with what may stand around them:
a unit, a percent sign, the base of a numeral, the name in front of an equals sign. Trees are compared node by node and
leaves by `data/latex_value.py`; what that cannot decide goes to `ask`, an algebra system in another process.

Choices where mathematics leaves room (examples in tests/golden/grading.jsonl, reasons in docs/grading.md): a unit on
one side only is ignored; a bare number is read in the other side's unit, so 10 is 10 % and 0.1 is not; a numeral with a
base equals only the same numeral in the same base; several answers are a set; a decimal is exact, so 0.33 is not 1/3.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from data.latex_value import NotReadableError, OutOfRangeError, evaluate, proportional, same_value

MAX_ANSWER_CHARS = 2000  # longer "answers" are text the model forgot to end
_MAX_ITEMS = 60  # of a list; more are compared as text only
_MAX_DEPTH = 6  # of collections in collections; comparing unordered ones doubles the work with every level
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SINGLE_NAME = re.compile(r"\\?[A-Za-z](?:_\S+)?(?:\(.*\))?$")

Ask = Callable[[str, str], bool]
"""Whether two expressions are equal, by an algebra system; may raise."""


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
    """Several values: kind "ordered" (with brackets), "several", "set", "union" or "matrix" (its items are rows)."""

    kind: str
    items: tuple["Node", ...]
    brackets: str = ""


@dataclass(frozen=True)
class Equation:
    """An equation that does not just name a value."""

    left: str
    right: str


Node = Leaf | Collection | Equation

_TEXT_OPEN, _TEXT_CLOSE = "\ue000", "\ue001"  # private-use characters that keep words apart from letters of formulas
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mbox|hbox|emph)\s*\{([^{}]*)\}")
_FONT_COMMAND = re.compile(
    r"\\(?:mathrm|mathbf|mathit|mathsf|mathcal|mathbb|boldsymbol|bm|operatorname)\s*\{([^{}]*)\}"
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
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)$")
_BASE = re.compile(r"([0-9A-Fa-f]+)_(?:\{([^{}]+)\}|(\d+))$")
_NAME = re.compile(
    r"(?:\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|\w))?'*|[A-Za-z]'*\((?:\\?[A-Za-z]+|[A-Za-z](?:,\s*[A-Za-z])+)\))$"
)
_TRAILING_TEXT = re.compile(rf"\s*{_TEXT_OPEN}([^{_TEXT_CLOSE}]*){_TEXT_CLOSE}\s*(\^\{{?-?\d+\}}?)?$")
_LEADING_TEXT = re.compile(rf"^\s*{_TEXT_OPEN}[^{_TEXT_CLOSE}]*{_TEXT_CLOSE}\s*(?=.*[\d\\A-Za-z])")
_TRAILING_WORDS = re.compile(r"(?<=[\d)}.\]])\s+([A-Za-z]{2,}(?:[ ./]+[A-Za-z]{2,}\.?)*\.?)\s*(\^\{?-?\d\}?)?$")
_TRAILING_UNIT = re.compile(
    r"(?<=[\d)}.\]])(cm|mm|km|kg|ft|in|mph|inches|degrees|dollars|cents|units?)\s*(\^\{?-?\d\}?)?$"
)
_GROUPED = re.compile(r"([\ue004£€]?\s*-?)(\d{1,3}(?:,\d{3})+)((?:\.\d+)?(?!\d)[^,()\[\]]*)")
_REALS = re.compile(r"\\(?:mathbb|mathbf)\s*(?:\{R\}|R)|\\R(?![A-Za-z])")
_TRIGONOMETRIC = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*$")
_MATH_WORDS = set("sqrt pi sin cos tan cot sec csc log ln exp mod infinity arcsin arccos arctan binom or and".split())
_UNITS = {
    "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm", "meter": "m", "metre": "m",
    "kilometer": "km", "kilometre": "km", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "gram": "g", "kilogram": "kg", "pound": "lb", "second": "s", "sec": "s", "minute": "min",
    "hour": "h", "hr": "h", "liter": "l", "litre": "l", "degree": "deg", "dollar": "usd", "cent": "cent",
    "percent": "%", "unit": "", "euro": "eur",
}  # fmt: skip
_INEQUALITY = re.compile(r"\\(?:le|ge|leq|geq|ne|neq|lt|gt)(?![A-Za-z])|[<>]")


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
    text = _SPACING.sub(lambda match: " " if match.group() in ("\\ ", "~", "\\quad", "\\qquad") else "", text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = text.replace("\\%", "%").replace("\\$", "\ue004").replace("\\lvert", "|").replace("\\rvert", "|")
    text = re.sub(r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le", re.sub(r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge", text))
    for _ in range(3):  # nested, as in \text{\textbf{(C)}}
        text = _TEXT_COMMAND.sub(f"{_TEXT_OPEN}\\1{_TEXT_CLOSE}", _FONT_COMMAND.sub(r"\1", text))
    text = re.sub(r"(?<!\\)\$", "", text) if text.count("$") > 1 else text.replace("$", "\ue004")
    text = text.strip().removesuffix(".").strip()
    return " ".join(text.split())


def plain(answer: str) -> str:
    """The undressed answer as it would be typed, with one space between words: equal texts are equal answers."""
    text = undress(answer)
    for mark, replacement in (
        (_TEXT_OPEN, ""),
        (_TEXT_CLOSE, ""),
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


_AND = rf",|;|\b(?:and|or)\b|{_TEXT_OPEN}\s*,?\s*(?:and|or)\s*{_TEXT_CLOSE}"


def _read(text: str, depth: int = 0, grouped: bool = True) -> Node:
    """The tree of an undressed answer. `grouped`: whether 100,200 is a number; else it is a list of two."""
    if depth > _MAX_DEPTH:
        raise UnparseableError("nested too deeply")
    text = text.strip().strip(",;").strip()
    if not text:
        raise UnparseableError("empty part")
    if _enclosed(text, "{", "}"):
        return _read(text[1:-1], depth + 1, grouped)
    if _enclosed(text, "\ue002", "\ue003"):
        inner = text[1:-1].strip()
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
    parts = [part for part in _split(text, _AND) if part.strip()]
    if len(parts) > 1 and not _only_words(text):
        return _collection("several", parts, depth)
    if _enclosed(text, "([", ")]"):
        parts = _split(text[1:-1], ",")
        if len(parts) > 1:
            return _collection("ordered", parts, depth, text[0] + text[-1])
        if text[0] == "(" and text[-1] == ")":
            return _read(text[1:-1], depth + 1, grouped)
    if interval := _interval(text):
        return interval
    removed = re.fullmatch(r"\(-\\infty,\s*\\infty\)\s*(?:\\setminus|\\backslash|-)\s*\ue002(.+)\ue003", text)
    if removed:
        return _without(_split(removed.group(1), ","))
    if not _INEQUALITY.search(text):
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
    label = left.replace(_TEXT_OPEN, "").replace(_TEXT_CLOSE, "").strip()
    if _TEXT_OPEN in left or _NAME.match(label):
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
    return _collection("ordered", [terms[0], terms[2]], 0, ("[" if closed[0] else "(") + ("]" if closed[1] else ")"))


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


def _only_words(text: str) -> bool:
    """Whether a text is prose: words alone, perhaps with a "v." or a number behind a word, and no mathematics."""
    bare = text.replace(_TEXT_OPEN, " ").replace(_TEXT_CLOSE, " ").strip()
    # A leading word of two letters that is not the name of a function; several single letters are an order of options.
    if re.fullmatch(r"[A-Za-z](?:\s+[A-Za-z])+", bare):
        return True
    first = re.match(r"[^\W\d_]{2,}[\w'.-]*|[^\W\d_]\.", bare)
    if not first or first.group().rstrip(".").lower() in _MATH_WORDS or re.search(r"[=^\\{}_+*/|\ue002]", bare):
        return False
    return "(" not in bare or " " in bare


def _leaf(text: str) -> Leaf:
    if _only_words(text):
        return Leaf(_words(text), is_words=True)
    unit, percent = "", False
    text = _LEADING_TEXT.sub("", text).strip() or text
    if text[:1] in "\ue004£€":
        text, unit = text[1:].strip(), {"\ue004": "usd", "£": "gbp", "€": "eur"}[text[0]]
    text = text.replace("\ue004", "")
    for _ in range(2):
        if text.endswith("%"):
            text, percent = text[:-1].strip(), True
        elif (found := _DEGREES.search(text)) and not _TRIGONOMETRIC.search(text):
            text, unit = text[: found.start()].strip(), "deg"
        elif found := _TRAILING_TEXT.search(text) or _TRAILING_WORDS.search(text) or _TRAILING_UNIT.search(text):
            words = found.group(1)
            if not text[: found.start()].strip() or words.strip().lower() in _MATH_WORDS:
                break
            if {"squared", "cubed"} & set(words.lower().split()):
                break
            text, words = _scaled(text[: found.start()].strip(), words)
            unit = _unit(words, found.group(2) or "") or unit
    percent, unit = (True, "") if unit == "%" else (percent, unit)
    text = text.replace(_TEXT_OPEN, "").replace(_TEXT_CLOSE, "").strip()
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


def _scaled(text: str, words: str) -> tuple[str, str]:
    """A value times the number words behind it, and the words that are left: 5 million dollars is 5,000,000 dollars."""
    rest = []
    for word in words.split():
        if word.lower().rstrip("s.") in _SCALES:
            text = f"({text})*10^{{{_SCALES[word.lower().rstrip('s.')]}}}"
        elif word.lower().rstrip("s.") == "dozen":
            text = f"({text})*12"
        else:
            rest.append(word)
    return text, " ".join(rest)


def _words(text: str) -> str:
    bare = text.replace(_TEXT_OPEN, " ").replace(_TEXT_CLOSE, " ").casefold()
    return " ".join(bare.split()).strip(" .,;:!'\"()")


def _unit(words: str, power: str) -> str:
    """A unit in one spelling: cm, centimeter and centimeters are one."""
    parts = []
    for word in words.lower().replace(".", " ").split():
        stem = word[:-1] if word.endswith("s") and len(word) > 2 else word
        parts.append(_UNITS.get(stem, _UNITS.get(word, stem)))
    text = " ".join(part for part in parts if part)
    for prefix, exponent in (("square ", "^2"), ("cubic ", "^3"), ("sq ", "^2"), ("cu ", "^3")):
        if text.startswith(prefix):
            text, power = text.removeprefix(prefix), exponent
    return text + power.replace("{", "").replace("}", "")


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


def same(answer: Node, reference: Node, ask: Ask) -> bool:
    """Whether two answers are the same. `ask` is called for leaves that need algebra; what it raises passes through."""
    if isinstance(answer, Equation) or isinstance(reference, Equation):
        return _same_equation(answer, reference, ask)
    if isinstance(answer, Leaf) and isinstance(reference, Leaf):
        return _same_leaf(answer, reference, ask)
    if isinstance(answer, Leaf) or isinstance(reference, Leaf):
        leaf, other = (answer, reference) if isinstance(answer, Leaf) else (reference, answer)
        assert isinstance(leaf, Leaf)
        assert isinstance(other, Collection)
        if other.kind in ("several", "set"):
            return all(same(item, leaf, ask) for item in other.items)  # the same value written twice
        intervals = other.kind == "union" or (other.kind == "ordered" and len(other.items) == 2)
        return intervals and bool(_INEQUALITY.search(leaf.text)) and ask(_text(answer), _text(reference))
    return _same_collection(answer, reference, ask)


def _same_collection(answer: Collection, reference: Collection, ask: Ask) -> bool:
    unordered = ("several", "set", "union")
    if answer.kind in unordered and reference.kind in unordered:
        return all(any(same(item, other, ask) for other in reference.items) for item in answer.items) and all(
            any(same(item, other, ask) for item in answer.items) for other in reference.items
        )
    if answer.kind in unordered or reference.kind in unordered:  # a set of one pair is that pair
        several, one = (answer, reference) if answer.kind in unordered else (reference, answer)
        return all(same(item, one, ask) for item in several.items)
    if (answer.kind, answer.brackets, len(answer.items)) != (reference.kind, reference.brackets, len(reference.items)):
        return False
    return all(same(item, other, ask) for item, other in zip(answer.items, reference.items, strict=True))


def _same_leaf(answer: Leaf, reference: Leaf, ask: Ask) -> bool:
    if answer.is_words or reference.is_words:
        if answer.is_words and reference.is_words:
            return answer.text == reference.text
        return _words(answer.text) == _words(reference.text) and not (answer.unit or reference.unit)
    if answer.name != reference.name and all(_SINGLE_NAME.match(leaf.name) for leaf in (answer, reference)):
        # Two quantities, unless each is the other's equation, as y = x and x = y are.
        sides = [f"({leaf.name})-({leaf.text})" for leaf in (answer, reference)]
        return "(" not in answer.name + reference.name and proportional(*sides) is True
    if answer.base or reference.base:
        return (answer.base, answer.text) == (reference.base, reference.text)
    if answer.unit and reference.unit and answer.unit != reference.unit:
        return False
    if answer.text.replace(" ", "") == reference.text.replace(" ", ""):
        return True
    if _NUMBER.match(answer.text) and _NUMBER.match(reference.text) and not answer.percent:
        return same_value(answer.text, reference.text) is True
    if len(reference.text) == 1 and reference.text.isalpha():  # an option letter, or the name of a quantity
        return answer.text.casefold() == reference.text.casefold()
    found = same_value(answer.text, reference.text)
    if answer.percent and not reference.percent and found is not True:
        found = same_value(f"({answer.text})/100", reference.text)
    return ask(answer.text, reference.text) if found is None else found


def _same_equation(answer: Node, reference: Node, ask: Ask) -> bool:
    sides = []
    for node in (answer, reference):
        if isinstance(node, Equation):
            sides.append((node.left, node.right))
        elif isinstance(node, Leaf) and node.name:
            sides.append((node.name, node.text))
        else:
            return False
    (left, right), (other_left, other_right) = sides
    if sides[0] == sides[1]:
        return True
    found = proportional(f"({left})-({right})", f"({other_left})-({other_right})")
    return ask(f"{left}={right}", f"{other_left}={other_right}") if found is None else found


def _text(node: Node) -> str:
    """A node as LaTeX again, for the algebra system."""
    if isinstance(node, Leaf):
        return node.text
    if isinstance(node, Equation):
        return f"{node.left}={node.right}"
    items = [_text(item) for item in node.items]
    if node.kind == "union":
        return " \\cup ".join(items)
    return node.brackets[:1] + ", ".join(items) + node.brackets[1:]


def is_readable_reference(reference: str) -> bool | None:
    """Whether a reference answer can be graded against; None if only the algebra system can tell.

    Raises:
        UnparseableError: it says nothing.
    """
    return _readable(read_answer(reference))


def _readable(node: Node) -> bool | None:
    if isinstance(node, Collection):
        found = [_readable(item) for item in node.items]
        return None if None in found else all(found)
    text = node.text if isinstance(node, Leaf) else f"({node.left})-({node.right})"
    if isinstance(node, Leaf) and (node.is_words or node.base):
        return True
    try:
        evaluate(text)
    except OutOfRangeError:
        return True
    except NotReadableError:
        return None
    return True
