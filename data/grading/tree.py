"""The tree that an answer is read into, and how its text is split."""

import re
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from data.grading.clock import check
from data.grading.marks import SET_CLOSE, SET_OPEN, TEXT_CLOSE, TEXT_OPEN


class UnparseableError(ValueError):
    """The text is not an answer: it is empty, unbalanced, too long, or has no letter, digit or symbol."""


@dataclass(frozen=True)
class Leaf:
    """One value. `text` is the value without unit, percent sign, base and name.

    name: the left side of `x = 5` or `m + n = 5`.
    """

    kind: ClassVar[str] = "value"
    items: ClassVar[tuple["Node", ...]] = ()
    text: str
    is_words: bool = False
    unit: str = ""
    percent: bool = False
    base: str = ""
    name: str = ""


Kind = Literal[
    "ordered",  # a tuple or an interval, by its brackets
    "sequence",  # a list with an ellipsis
    "answers",  # 1, 2
    "set", "union", "intersection", "difference", "product",
    "ratio",
    "matrix", "row",  # a matrix has rows
    "cases", "branch",  # a function by cases has branches; a branch has a value and a condition
    "congruence",  # a value and a modulus
    "compound",  # 3 hours 30 minutes
]  # fmt: skip


@dataclass(frozen=True)
class Collection:
    """Several values.

    name: what has these values: the variable of an interval that was written as an inequality, the left side of an
        equation, A of the point A(2, 3).
    item_names: the left side of `(x, y) = (1, 2)`.
    joined_by_and: of an intersection, whether it was written as conditions on one variable: `x < 5 and x > 2`.
    """

    text: ClassVar[str] = ""
    kind: Kind
    items: tuple["Node", ...]
    brackets: str = ""
    name: str = ""
    item_names: tuple[str, ...] = ()
    joined_by_and: bool = False

    def called(self, name: str) -> "Collection":
        """The same values under a name; `(x, y)` names each of them."""
        if not enclosed(name, "(", ")"):
            return replace(self, name=name)
        return replace(self, item_names=tuple(part.strip() for part in split(name[1:-1], ",")))


@dataclass(frozen=True)
class Relation:
    """An equation or inequality other than those read as a value or an interval; `sign` is =, <, \\le or \\ne."""

    kind: ClassVar[str] = "relation"
    text: ClassVar[str] = ""
    items: ClassVar[tuple["Node", ...]] = ()
    left: str
    sign: str
    right: str


Node = Leaf | Collection | Relation

_MARKS = re.compile(rf"[{TEXT_OPEN}{TEXT_CLOSE}]|(?<![\d.])\s+|\s+(?![\d.])")  # 1 2 is not 12
OPENING, CLOSING = "([{" + SET_OPEN, ")]}" + SET_CLOSE
SETS = ("union", "difference", "intersection")
NO_LETTER = "(?![A-Za-z])"


def balanced(text: str) -> bool:
    """Whether braces come in pairs."""
    return text.count("{") == text.count("}") and text.count(SET_OPEN) == text.count(SET_CLOSE)


def split(text: str, separators: str) -> list[str]:
    """Parts of `text` between the matches of the regular expression `separators` that are outside all brackets."""
    pattern = re.compile(separators)
    check()
    if not pattern.search(text):
        return [text]
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        letter = text[position]
        if letter in OPENING:
            depth += 1
        elif letter in CLOSING:
            depth = max(0, depth - 1)
        elif text.startswith("\\begin{", position):
            depth += 1
        elif text.startswith("\\end{", position):
            depth = max(0, depth - 1)
        if depth == 0 and letter not in CLOSING and (separator := pattern.match(text, position)):
            parts.append(text[start:position])
            start = position = separator.end()
            continue
        position += 1
    return [*parts, text[start:]]


def enclosed(text: str, opening: str, closing: str) -> bool:
    """Whether the first character of `text` is a bracket that its last character closes."""
    if len(text) < 2 or text[0] not in opening or text[-1] not in closing:
        return False
    depth = 0
    for position, letter in enumerate(text):
        depth += letter in OPENING
        depth -= letter in CLOSING
        if depth == 0:
            return position == len(text) - 1
    return False


def canonical(text: str) -> str:
    """A text without spaces, marks of words, and braces around single characters, for comparison as text."""
    return re.sub(r"\{(\w)\}(?!\w)", r"\1", _MARKS.sub("", text))


def described(node: Node | str) -> str:
    """A tree in one line; a sentence stays as it is."""
    if isinstance(node, Leaf):
        kind = "words" if node.is_words else "value"
        details = [("name", node.name), ("unit", node.unit), ("base", node.base), ("percent", "yes" * node.percent)]
        return f"{kind} {node.text}" + "".join(f", {name} {detail}" for name, detail in details if detail)
    if isinstance(node, Relation):
        return f"relation {node.left} {node.sign} {node.right}"
    if isinstance(node, Collection):
        items = "; ".join(map(described, node.items))
        name = node.name or f"({', '.join(node.item_names)})" * bool(node.item_names)
        about = f" {node.brackets}" * bool(node.brackets) + f" in {name}" * bool(name)
        return f"{node.kind}{about} of [{items}]"
    return f"unreadable: {node}"
