r"""Names of quantities, and answers that differ only in the name of a variable."""

import re

from data.grading.tree import Collection, Leaf, Node
from data.grading.values import same_value, variables
from data.grading.words import canonical_words

_CONSTANT = re.compile(r"\+\s*[CcKk]$")
_INTEGER_NAMES = frozenset("nkm")


def is_quantity(name: str) -> bool:
    """Whether a name is mathematics, such as x, AB or m + n, rather than a word."""
    return not re.search(r"[A-Za-z]{4,}|[a-z]{3,}", re.sub(r"\\[A-Za-z]+|_\{[^}]*\}", "", name))


def renamed(answer: Leaf, reference: Leaf) -> str | None:
    """The text of `f(n) = n + 1` with the variable of `f(x) = ...`; None unless both define the same function."""
    functions = [re.fullmatch(r"(\\?[A-Za-z]+'*)\s*[_({]+([A-Za-z])[)}]?", leaf.name) for leaf in (answer, reference)]
    first, second = functions
    if first is None or second is None or first.group(1) != second.group(1):
        return None
    own, other = first.group(2), second.group(2)
    if re.search(rf"(?<![A-Za-z\\]){other}(?![A-Za-z])", answer.text):
        return None
    names = variables(answer.text)
    if names is None or other in names:
        return None
    return re.sub(rf"(?<!\\)(?<![A-Za-z]){own}(?![A-Za-z])", f"({other})", answer.text)


def named_apart(node: Collection) -> dict[str, Node]:
    """The items by name, if each has its own (Alice = 7, Bob = 5); else nothing."""
    named = {canonical_words(item.name): item for item in node.items if isinstance(item, Leaf) and item.name}
    return dict(named) if len(named) == len(node.items) > 1 else {}


def same_but_for_name(left: str, right: str) -> bool:
    r"""Whether two formulas differ only in the name of an integer (`2k\pi`, `2n\pi`) or constant (`x^2+C`, `x^2+c`)."""
    first, second = variables(left), variables(right)
    if first is None or second is None:
        return False
    own, other = first - second, second - first
    if len(own) != 1 or len(other) != 1:
        return False
    periodic = own | other <= _INTEGER_NAMES and "pi" in left
    antiderivatives = all(_CONSTANT.search(text) for text in (left, right))
    if not periodic and not (antiderivatives and own | other <= frozenset("CcKk")):
        return False
    renamed = re.sub(rf"(?<![A-Za-z\\]){min(own)}(?![A-Za-z])", min(other), left)
    return same_value(renamed, right) is True
