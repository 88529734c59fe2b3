r"""Compare two final answers, given as trees of `answer_tree.py`.

Leaves are compared by `latex_value.py` and sets of real numbers by `real_sets.py`. What these cannot decide goes to an
algebra system in another process.

Conventions (examples in tests/golden/grading.jsonl, reasons in docs/grading.md): a unit on one side only is ignored; a
bare number is read in the other side's unit, so 10 equals 10 % and 0.1 does not; a numeral with a base equals only the
same numeral in the same base; several answers are a set; a decimal is exact, so 0.33 is not 1/3; a row or column of a
matrix is the tuple of its entries.
"""

import re
from collections.abc import Callable

from data.grading.answer_tree import INEQUALITY, Collection, Equation, Leaf, Node, read_answer
from data.grading.arithmetic import NotReadableError, OutOfRangeError
from data.grading.latex_value import evaluate, proportional, same_value
from data.grading.real_sets import same_set
from data.grading.units import without_symbol
from data.grading.words import canonical_words

Algebra = Callable[[str, str], bool]
"""Whether two LaTeX expressions are equal according to an algebra system. May raise."""

_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)$")
_SINGLE_NAME = re.compile(r"\\?[A-Za-z](?:_\S+)?(?:\(.*\))?$")
_QUANTITY = re.compile(rf"(?:{_SINGLE_NAME.pattern[:-1]}|[A-Z]{{2,3}}|m?\s*\\(?:measured)?angle.*|\\overline.*|\|.*)$")
_INTEGER_NAMES = frozenset("nkm")
_SETS = ("union", "difference")


def same(answer: Node, reference: Node, algebra: Algebra) -> bool:
    """Whether two answers are equal. `algebra` compares leaves that need it; its exceptions pass through."""
    if isinstance(answer, Equation) or isinstance(reference, Equation):
        return _same_equation(answer, reference, algebra)
    if isinstance(answer, Leaf) and isinstance(reference, Leaf):
        return _same_leaf(answer, reference, algebra)
    if isinstance(answer, Leaf) or isinstance(reference, Leaf):
        leaf, other = (answer, reference) if isinstance(answer, Leaf) else (reference, answer)
        assert isinstance(leaf, Leaf)
        assert isinstance(other, Collection)
        if other.kind == "congruence":  # 3 (mod 5) for 3
            return same(leaf, other.items[0], algebra)
        if other.kind in _SETS and (equal := same_set(answer, reference)) is not None:
            return equal
        if other.kind in ("several", "set"):
            return all(same(item, leaf, algebra) for item in other.items)  # the same value written twice
        intervals = other.kind == "union" or (other.kind == "ordered" and len(other.items) == 2)
        return intervals and bool(INEQUALITY.search(leaf.text)) and algebra(_text(answer), _text(reference))
    return _same_collection(answer, reference, algebra)


def _same_collection(answer: Collection, reference: Collection, algebra: Algebra) -> bool:
    unordered = ("several", "set", "union")
    kinds = {answer.kind, reference.kind}
    if kinds & set(_SETS) and (equal := same_set(answer, reference)) is not None:
        return equal
    if kinds == {"congruence"}:
        return _same_congruence(answer, reference, algebra)
    if answer.name and reference.name and _names_differ(answer.name, reference.name):
        return False  # x > 2 is not y > 2
    if (names := _named_apart(answer)) and names == _named_apart(reference):
        pairs = [
            (item, other)
            for item in answer.items
            for other in reference.items
            if isinstance(item, Leaf)
            and isinstance(other, Leaf)
            and canonical_words(item.name) == canonical_words(other.name)
        ]
        return all(same(item, other, algebra) for item, other in pairs)
    if kinds == {"matrix", "ordered"}:
        answer, reference = _entries(answer), _entries(reference)
    if kinds == {"several", "ordered"}:
        answer, reference = _solution(answer), _solution(reference)
    if answer.kind in unordered and reference.kind in unordered:
        return all(any(same(item, other, algebra) for other in reference.items) for item in answer.items) and all(
            any(same(item, other, algebra) for item in answer.items) for other in reference.items
        )
    if answer.kind in unordered or reference.kind in unordered:  # a set of one pair is that pair
        several, one = (answer, reference) if answer.kind in unordered else (reference, answer)
        return all(same(item, one, algebra) for item in several.items)
    if (answer.kind, answer.brackets, len(answer.items)) != (reference.kind, reference.brackets, len(reference.items)):
        return False
    return all(same(item, other, algebra) for item, other in zip(answer.items, reference.items, strict=True))


def _names_differ(left: str, right: str) -> bool:
    """Whether two names denote different quantities, such as x and y or AB and BC; words such as "the area" do not."""
    names = [re.sub(r"\\(?:measuredangle|angle|overline)|[\s{}|]|^m(?=\s*\\)", "", name) for name in (left, right)]
    return names[0] != names[1] and all(_QUANTITY.match(name) for name in (left, right))


def _named_apart(node: Collection) -> set[str]:
    """The names of the items, if each has its own (Alice = 7, Bob = 5); else the empty set."""
    names = [canonical_words(item.name) for item in node.items if isinstance(item, Leaf) and item.name]
    return set(names) if len(set(names)) == len(node.items) > 1 else set()


def _same_congruence(answer: Collection, reference: Collection, algebra: Algebra) -> bool:
    (value, modulus), (other_value, other_modulus) = answer.items, reference.items
    if not same(modulus, other_modulus, algebra):
        return False
    texts = [node.text for node in (value, other_value, modulus) if isinstance(node, Leaf)]
    if len(texts) == 3 and all(re.fullmatch(r"-?\d{1,300}", text) for text in texts) and int(texts[2]):
        return (int(texts[0]) - int(texts[1])) % int(texts[2]) == 0
    return same(value, other_value, algebra)


def _entries(node: Collection) -> Collection:
    """A matrix of one row or one column as the tuple of its entries; other nodes unchanged."""
    if node.kind != "matrix":
        return node
    rows = [row.items for row in node.items if isinstance(row, Collection)]
    if len(rows) == 1:
        return Collection("ordered", rows[0], "()")
    return Collection("ordered", tuple(row[0] for row in rows), "()") if all(len(row) == 1 for row in rows) else node


def _solution(node: Collection) -> Collection:
    """`x = 1, y = 2` as the pair (1, 2), in alphabetical order of the names; other nodes unchanged."""
    names = [item.name for item in node.items if isinstance(item, Leaf) and _SINGLE_NAME.match(item.name)]
    if node.kind != "several" or len(set(names)) < len(node.items):
        return node
    items = sorted(node.items, key=lambda item: item.name if isinstance(item, Leaf) else "")
    unnamed = tuple(Leaf(**(vars(item) | {"name": ""})) for item in items)
    return Collection("ordered", unnamed, "()")


def _same_leaf(answer: Leaf, reference: Leaf, algebra: Algebra) -> bool:
    if answer.is_words or reference.is_words:
        if answer.is_words and reference.is_words:
            return answer.text == reference.text
        same_words = canonical_words(answer.text) == canonical_words(reference.text)
        return same_words and not (answer.unit or reference.unit)
    if _names_differ(answer.name, reference.name):
        # Different quantities, unless both are the same equation, such as y = x and x = y.
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
    equal = same_value(answer.text, reference.text)
    if answer.percent and not reference.percent and equal is not True:
        equal = same_value(f"({answer.text})/100", reference.text)
    if equal is False:
        numbers = [without_symbol(leaf.text) for leaf in (answer, reference)]
        if (numbers[0] is None) != (numbers[1] is None):  # 2 s for 2
            return same_value(numbers[0] or answer.text, numbers[1] or reference.text) is True
        return _same_but_for_integer_name(answer.text, reference.text)
    return algebra(answer.text, reference.text) if equal is None else equal


def _same_but_for_integer_name(left: str, right: str) -> bool:
    """Whether two periodic solutions differ only in the name of the integer, such as `2k\\pi` and `2n\\pi`."""
    try:
        names = [evaluate(text)[1] for text in (left, right)]
    except (NotReadableError, OutOfRangeError):
        return False
    own, other = names[0] - names[1], names[1] - names[0]
    if len(own) != 1 or len(other) != 1 or not own | other <= _INTEGER_NAMES or "pi" not in left:
        return False
    renamed = re.sub(rf"(?<![A-Za-z\\]){min(own)}(?![A-Za-z])", min(other), left)
    return same_value(renamed, right) is True


def _same_equation(answer: Node, reference: Node, algebra: Algebra) -> bool:
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
    equal = proportional(f"({left})-({right})", f"({other_left})-({other_right})")
    return algebra(f"{left}={right}", f"{other_left}={other_right}") if equal is None else equal


def _text(node: Node) -> str:
    """A node as LaTeX, for the algebra system."""
    if isinstance(node, Leaf):
        return node.text
    if isinstance(node, Equation):
        return f"{node.left}={node.right}"
    items = [_text(item) for item in node.items]
    if node.kind == "union":
        return " \\cup ".join(items)
    return node.brackets[:1] + ", ".join(items) + node.brackets[1:]


def is_readable_reference(reference: str) -> bool | None:
    """Whether answers can be graded against a reference; None if only the algebra system can tell.

    Raises:
        UnparseableError: see `read_answer`.
    """
    return _readable(read_answer(reference))


def _readable(node: Node) -> bool | None:
    if isinstance(node, Collection):
        items = [_readable(item) for item in node.items]
        return None if None in items else all(items)
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
