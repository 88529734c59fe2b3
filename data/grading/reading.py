r"""Read a final answer into a tree (`tree.py`).

The order of the rules in `_read` matters: a text is tried as the widest structure first. What no rule reads stays a
leaf of text, which equals only the same text.
"""

import re
from dataclasses import replace
from functools import lru_cache, partial

from data.grading.clock import check
from data.grading.marks import DOLLAR, ROW_END, SET_CLOSE, SET_OPEN, TEXT_CLOSE, TEXT_OPEN
from data.grading.matrices import read_matrix
from data.grading.notation import undress
from data.grading.qualifiers import without_qualifiers
from data.grading.statements import INEQUALITY, read_equation, read_inequality, read_rounded, variable_of, without
from data.grading.tokens import GREEK
from data.grading.tree import NO_LETTER, SETS, Collection, Kind, Leaf, Node, UnparseableError, balanced, enclosed, split
from data.grading.units import canonical_unit, converted, split_unit
from data.grading.values import is_formula
from data.grading.words import ADVERBS, EVERYTHING, NOTHING, canonical_words, is_prose, named_option, spelled_number

MAX_ANSWER_CHARS = 2000  # longer ones are unfinished text, not answers
_MAX_ITEMS = 400  # of a collection; longer ones are compared as text only
_MAX_DEPTH = 6  # of nested collections; each unordered level doubles the cost of a comparison

_BASE = re.compile(r"[({]?([0-9A-Fa-f]+)[)}]?_\s*(?:\{([^{}]+)\}|(\d+))$")
_BASE_WORDS = re.compile(
    rf"{TEXT_OPEN}?\(?([0-9A-Fa-f]+)\)?\s*[{TEXT_OPEN}\s(]*"
    rf"(?:in )?base[-\s{TEXT_CLOSE}]*(\d+|[a-z]+)[\s){TEXT_CLOSE}]*$"
)
_GROUPED = re.compile(
    rf"((?:US(?={DOLLAR}))?[{DOLLAR}£€¥₹]?\s*-?[{DOLLAR}]?)(\d{{1,3}}(?:,\d{{3}})+|\d{{1,3}}(?: \d{{3}})+)"
    r"((?:\.\d+)?(?!\d)[^,()\[\]]*)"
)
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!,?\d)")
_BOTH = rf",|;|\band\b|\\(?:land|wedge){NO_LETTER}|{TEXT_OPEN}\s*,?\s*and\s*{TEXT_CLOSE}"
_EITHER = rf"\bor\b|\\(?:lor|vee){NO_LETTER}|{TEXT_OPEN}\s*,?\s*or\s*{TEXT_CLOSE}"
_CONNECTIVE = re.compile(rf"\\(?:land|wedge|lor|vee|lnot|neg|Rightarrow|implies|iff|to|forall|exists){NO_LETTER}")
_CASES = re.compile(r"\\begin\{(cases|dcases|aligned|array)\}(?:\{[^}]*\})?(.*)\\end\{\1\}", re.DOTALL)
_CONGRUENCE = re.compile(
    rf"(?:\\?[A-Za-z]\w*\s*\\equiv\s*)?(.+?)\s*\(?\s*(?:\\(?:pmod|mod|bmod){NO_LETTER}|\bmod\b)\s*([^()]+?|\{{.+?\}}|\(.+?\))\)?$"
)
_UNDER = re.compile(r"\\(?:lim|sup|inf|max|min)\s*_\s*\{[^{}]*\}")
_ALL_BUT = re.compile(rf"(.+?)\b(?:except|other than|excluding)\b(?: for)?[\s{TEXT_CLOSE}]*(?:[a-z]\s*=)?(.+)")
_SIGN = re.compile(rf"\\(?:pm|mp){NO_LETTER}")
_TIME = re.compile(r"\s*\d{1,2}:\d\d(?![\d:])")
_CLOCK = re.compile(r"0?(\d{1,2}):(\d\d)$")
_COMPOUND = re.compile(rf"(-?[\d.,/]+)\s*{TEXT_OPEN}\s*([A-Za-z.]+)\s*(?:,|,?\s*and)?\s*{TEXT_CLOSE}\s*,?\s*")
_IF = re.compile(rf"^[\s{TEXT_OPEN}]*(?:if|when|for|where)\b[\s{TEXT_CLOSE}]*|[{TEXT_OPEN}{TEXT_CLOSE}]")
_ELSE = ("otherwise", "else", "elsewhere", "in all other cases")
_SET_SIGNS: tuple[tuple[Kind, str], ...] = (
    ("union", r"\\cup"),
    ("intersection", r"\\cap"),
    ("difference", r"\\(?:setminus|backslash)"),
)
_VARIABLES = re.compile(r"[a-d]{2,3}|[w-z]{2,3}|[p-t]{2,3}|[k-n]{2,3}")


def _collection(kind: Kind, parts: list[str], depth: int, brackets: str = "") -> Collection:
    if len(parts) > _MAX_ITEMS:
        raise UnparseableError("too many parts")
    items: list[Node] = []
    for part in parts:
        node = _read(part, depth + 1)
        # One of several answers may itself be two, as in \\pm 1, 3, and so may a member of a set with \\pm.
        flat = kind == "answers" or (kind == "set" and _SIGN.search(part) is not None)
        items += node.items if flat and node.kind == "answers" else [node]
    return Collection(kind, tuple(items), brackets)


def _points(point: Collection, text: str) -> Collection:
    """A tuple with \\pm at one place, as in (\\pm 1, 0), as two; of several, how the signs go together is unknown."""
    split_items = [i for i, item in enumerate(point.items) if item.kind == "answers"]
    if point.brackets != "()" or len(split_items) != 1 or len(_SIGN.findall(text)) != 1:
        return point
    (place,) = split_items
    items = ((*point.items[:place], value, *point.items[place + 1 :]) for value in point.items[place].items)
    return Collection("answers", tuple(replace(point, items=each) for each in items))


def _read(text: str, depth: int = 0, grouped: bool = True) -> Node:
    """The tree of an undressed answer. `grouped`: read 100,200 as one number; else as two."""
    check()
    if depth > _MAX_DEPTH:
        raise UnparseableError("nested too deeply")
    text = text.strip().strip(",;").strip()
    if not text:
        raise UnparseableError("empty part")
    read = partial(_read, depth=depth + 1)
    if enclosed(text, "{", "}"):
        return _read(text[1:-1], depth + 1, grouped)
    if node := _cases(text, depth):
        return node
    text = without_qualifiers(text)
    if enclosed(text, SET_OPEN, SET_CLOSE):
        return _set(text, depth)
    if (all_but := _ALL_BUT.fullmatch(text)) and canonical_words(all_but.group(1)) in EVERYTHING:
        return without(split(all_but.group(2), f"{_BOTH}|{_EITHER}"), read)
    if "\\begin" in text and len(sides := split(text, "=")) > 1:  # A = ...
        text = sides[-1].strip()
    if rows := read_matrix(text):
        return Collection("matrix", tuple(_collection("row", row, depth) for row in rows))
    if grouped and (number := _GROUPED.fullmatch(text)):
        text = number.group(1) + re.sub("[, ]", "", number.group(2)) + number.group(3)
    for kind, sign in _SET_SIGNS:
        parts = split(text, sign + NO_LETTER)
        if len(parts) > 1 and (kind != "difference" or len(parts) == 2) and "=" not in text:
            return _collection(kind, parts, depth)
    congruence = _CONGRUENCE.fullmatch(text) if "mod" in text and "=" not in text else None
    if congruence and "mod" not in congruence[1]:
        return _collection("congruence", [part.strip(" ()") for part in congruence.groups()], depth)
    if node := _compound(text) or _list(text, depth, grouped) or _product(text, depth):
        return node
    if enclosed(text, "([", ")]"):
        parts = split(text[1:-1], ",|;")
        if len(parts) > 1:
            return _points(_collection("ordered", parts, depth, text[0] + text[-1]), text)
        if text[0] == "(" and text[-1] == ")":
            return _read(text[1:-1], depth + 1, grouped)
    if (point := re.fullmatch(r"([ABD-Z])\s*(\(.+\))", text)) and enclosed(point.group(2), "(", ")"):  # A(2, 3)
        node = read(point.group(2))
        if isinstance(node, Collection) and node.kind == "ordered":
            return replace(node, name=point.group(1))
    if removed := re.fullmatch(rf"\(-\\infty,\s*\\infty\)\s*-\s*{SET_OPEN}(.+){SET_CLOSE}", text):
        return without(split(removed.group(1), ","), read)
    return _statement(text, depth, grouped)


def _statement(text: str, depth: int, grouped: bool) -> Node:
    """An equation, an inequality, x \\in A, two values with \\pm, or a single value."""
    read = partial(_read, depth=depth + 1)
    if is_prose(text):
        return _leaf(text)
    if (node := read_rounded(text, read)) is not None:
        return node
    if _CONNECTIVE.search(_UNDER.sub("", text)):
        return Leaf(text)
    if len(split(text, INEQUALITY.pattern)) > 1:
        if re.search(rf"[{TEXT_OPEN}{SET_OPEN}]", text):
            return Leaf(text)
        return read_inequality(text, read)
    if (node := read_equation(text, read)) is not None:
        return node
    member = re.fullmatch(rf"(\\?[A-Za-z]\w*(?:_\{{\w+\}})?|\([^()]*,[^()]*\))\s*\\in{NO_LETTER}(.+)", text)
    if member:
        node = _read(member.group(2), depth + 1, grouped)
        if isinstance(node, Collection) and node.kind in ("ordered", *SETS) and not node.name:
            return node.called(member.group(1))
        return node
    sign = _SIGN.search(text)
    if sign and not _SIGN.search(text[sign.end() :]):
        signed = [f"{text[: sign.start()]}{s}{text[sign.end() :]}" for s in "+-"]
        return _collection("answers", [part.removeprefix("+") for part in signed], depth)
    return _leaf(text)


def _cases(text: str, depth: int) -> Node | None:
    """A system of equations in braces as several answers, a function by cases as its branches."""
    label, body = "", text
    if re.match(r"[^=]*=\s*\\begin\{d?cases\}", text):
        label, _, body = text.partition("=")
    match = _CASES.fullmatch(body.strip().removeprefix(SET_OPEN).strip())
    if match is None:
        return None
    rows = [row for row in match.group(2).split(ROW_END) if row.strip()]
    if all("=" in row for row in rows) and not label and not any(INEQUALITY.search(row) for row in rows):
        return _collection("answers", [row.replace("&", "") for row in rows], depth)
    if "cases" not in match.group(1) or not all(row.count("&") == 1 for row in rows):
        return None
    return Collection("cases", tuple(_branch(row, depth) for row in rows), name=label.strip())


def _branch(row: str, depth: int) -> Collection:
    value, condition = (part.strip(" ,;.") for part in row.split("&"))
    node = _read(value, depth + 1)
    condition = " ".join(_IF.sub("", condition.strip()).split())
    bare = re.sub(r"\bis\b\s*(?:an?\b)?", "", condition)
    if canonical_words(condition) in _ELSE:
        return Collection("branch", (node, Leaf("otherwise", is_words=True)))
    if re.search(r"\b[a-z]{2,}\b", re.sub(r"\\[A-Za-z]+", "", bare)):
        words = canonical_words(bare).split()  # "n odd" and "odd n" are the same
        return Collection("branch", (node, Leaf(" ".join(sorted(words) if len(words) == 2 else words), is_words=True)))
    return Collection("branch", (node, _read(condition, depth + 1)))


def _set(text: str, depth: int) -> Node:
    inner = text[1:-1].strip()
    if not inner:
        return Leaf("\\emptyset")
    builder = re.fullmatch(
        rf"(\\?[A-Za-z])(?:\s*\\in\s*\(-\\infty,\s*\\infty\))?\s*(?:\||\\mid{NO_LETTER}|:)(.+)", inner, re.DOTALL
    )
    if builder:
        node = _read(builder.group(2), depth + 1)
        if isinstance(node, Collection) and (node.name or node.kind in ("union", "intersection")):
            return replace(node, name="")  # the variable is bound
    if re.search(rf"\||\\mid{NO_LETTER}|:", inner):
        return Leaf(text)
    node = _collection("set", split(inner, ",|;"), depth)
    return replace(node, kind="sequence", brackets="{}") if _has_ellipsis(node) else node


def _has_ellipsis(node: Collection) -> bool:
    return any(item.text == "\\ldots" for item in node.items)


def _list(text: str, depth: int, grouped: bool) -> Node | None:
    """Several answers: `1, 2`, `x = 1 or x = 2`; conditions on one variable as one set of real numbers."""
    if _CONNECTIVE.search(text) and not re.search(r"[=<>]|\\(?:le|ge|ne|lt|gt|in)(?![A-Za-z])", text):
        return None
    if not grouped and re.search(r"\d,0\d\d(?!\d)", text):
        raise UnparseableError("1,000 is no list")
    if grouped and not re.search(r"[(\[]", text):
        text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)  # 1,000 and 2,000
    either = [part for part in split(text, _EITHER) if part.strip()]
    conjuncts = [part for part in split(text, _BOTH) if part.strip()]
    parts = [part for part in split(text, f"{_BOTH}|{_EITHER}") if part.strip()]
    if len(parts) < 2 or is_prose(text):
        return None
    if len(either) > 1 and len(conjuncts) > 1 and INEQUALITY.search(text):
        parts = either
    node = _collection("answers", parts, depth)
    if _has_ellipsis(node):
        return replace(node, kind="sequence")
    if not INEQUALITY.search(text):
        return node
    names = {variable_of(part) for part in parts}
    conditions = all(isinstance(item, Leaf) or (isinstance(item, Collection) and item.name) for item in node.items)
    if len(names) == 1 and None not in names and conditions:
        joined_by_and = len(either) < 2
        kind: Kind = "intersection" if joined_by_and else "union"
        return Collection(kind, node.items, name=names.pop() or "", joined_by_and=joined_by_and)
    return node


def _product(text: str, depth: int) -> Node | None:
    """`[0,1] \\times [0,1]` and `[0,1]^2`, products of intervals or sets; a ratio `1 : 2`."""
    parts = [part.strip() for part in split(text, rf"\\times{NO_LETTER}")]
    if power := re.fullmatch(r"([(\[].+[)\]])\s*\^\s*\{?([2-4])\}?", text):
        parts = [power.group(1)] * int(power.group(2))
    if len(parts) > 1 and all(
        (enclosed(part, "([", ")]") and len(split(part[1:-1], ",|;")) > 1) or enclosed(part, SET_OPEN, SET_CLOSE)
        for part in parts
    ):
        return _collection("product", parts, depth)
    terms = split(text, rf":|{TEXT_OPEN}\s*to\s*{TEXT_CLOSE}|(?<=\d)\s+to\s+(?=\d)")
    if len(terms) > 1 and "=" not in text and not _TIME.match(text) and all(_is_short_formula(term) for term in terms):
        return _collection("ratio", terms, depth)
    return None


def _is_short_formula(text: str) -> bool:
    return not re.search(r"(?<!\\)\b[A-Za-z]{3,}", text) and is_formula(text)


def _compound(text: str) -> Node | None:
    """`3 \\text{ hours } 30 \\text{ minutes}`."""
    matches = list(_COMPOUND.finditer(text))
    if len(matches) < 2 or "".join(match.group() for match in matches) != text:
        return None
    units = [canonical_unit(match.group(2)) for match in matches]
    if any(converted(unit, units[0]) is None for unit in units[1:]):
        return None  # 2 boys, 3 girls
    return Collection("compound", tuple(Leaf(m.group(1), unit=unit) for m, unit in zip(matches, units, strict=True)))


def _leaf(text: str) -> Node:
    if text.count(TEXT_OPEN) != text.count(TEXT_CLOSE):  # a part of \\text{B and C}
        text = text.replace(TEXT_OPEN, "").replace(TEXT_CLOSE, "").strip()
    if is_prose(text):
        words = canonical_words(text)
        if words in EVERYTHING:
            return Collection("ordered", (Leaf("-\\infty"), Leaf("\\infty")), "()")
        meant = spelled_number(words) or named_option(words) or ("\\emptyset" if words in NOTHING else None)
        if meant is not None:
            return Leaf(meant)
        if text in GREEK:
            return Leaf("\\" + text)
        if not _VARIABLES.fullmatch(text):
            value, unit, percent = split_unit(text)
            if value == text or not re.match(r"[-\d\\(]", value):
                return Leaf(words, is_words=True)
            return Leaf(value, unit=unit, percent=percent)
    if base := _BASE_WORDS.match(text) or _BASE.match(text.replace(TEXT_OPEN, "").replace(TEXT_CLOSE, "")):
        digits, radix = base[1], (base.groups()[-1] or base[2]).strip(" ()")
        radix = spelled_number(radix.lower()) or radix
        if radix == "10" and digits.isdigit():
            return Leaf(digits)
        if radix.isdigit() and (digits[0].isdigit() or len(digits) > 1):
            return Leaf(digits.lower().lstrip("0") or "0", base=radix)
    text, unit, percent = split_unit(text)
    if re.fullmatch(rf"{TEXT_OPEN}[^{TEXT_OPEN}]*{TEXT_CLOSE}", text):
        text = text[1:-1].strip()
        if is_prose(text):
            return _leaf(text)
    while enclosed(text, "{", "}") or (enclosed(text, "(", ")") and "," not in text):
        text = text[1:-1].strip()
    if time := _CLOCK.match(text):
        text = f"{time.group(1)}:{time.group(2)}"
    if text.strip() != "\\ldots" and not re.search(r"\w|\\[A-Za-z]", text.replace("\\ldots", "")):
        raise UnparseableError("no value")
    return Leaf(text.strip(), unit=unit, percent=percent)


@lru_cache(maxsize=65536)
def read_answer(answer: str, grouped: bool = True) -> Node:
    """The tree of an answer. `grouped`: read 100,200 as one number; else as two.

    Raises:
        UnparseableError: the answer is empty, too long, unbalanced, contradicts itself, or has no letter, digit or
            symbol.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        raise UnparseableError("too long")
    text = ADVERBS.sub("", undress(answer))
    if letter := re.fullmatch(r"([A-J])\)", text):
        return Leaf(letter.group(1))
    if not grouped and not re.search(r"\d[, ]\d{3}", text):
        return read_answer(answer)
    if not balanced(text):
        raise UnparseableError("unbalanced braces")
    if not re.search(rf"\w|\\(?:infty|emptyset|varnothing)|{SET_OPEN}\s*{SET_CLOSE}", text.replace("\\ldots", "")):
        raise UnparseableError("no letter, digit or symbol")
    try:
        return _read(text, grouped=grouped)
    except RecursionError:
        raise UnparseableError("nested too deeply") from None
