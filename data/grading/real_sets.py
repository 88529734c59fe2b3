r"""Compare sets of real numbers that are written as unions and differences of intervals and points.

`(-1, 2) \cup (1, 3)` is `(-1, 3)`, and `[-1, 1] \setminus \{0\}` is `[-1, 0) \cup (0, 1]`.

An interval is a pair of cuts of the line. A cut lies just before or just after a value: `[0, 1)` reaches from the cut
before 0 to the cut before 1, the point 0 from the cut before it to the cut after it.
"""

from collections.abc import Iterable
from fractions import Fraction
from functools import cmp_to_key
from typing import Any

from data.grading.arithmetic import close, real
from data.grading.tree import Collection, Leaf, Node
from data.grading.values import number

_Interval = tuple[Any, Any]


class _NotASetError(ValueError):
    """The node is not a set of real numbers with known bounds."""


def same_set(left: Node, right: Node) -> bool | None:
    """Whether two nodes are the same set of real numbers; None if one of them is not such a set."""
    try:
        return _merged(_intervals(left)) == _merged(_intervals(right))
    except _NotASetError:
        return None


def _order(left: Any, right: Any) -> int:
    """-1, 0 or 1; values that agree to a thousand digits are equal."""
    return 0 if close(left, right) else -1 if real(left) < real(right) else 1


def _order_of_cuts(left: tuple[Any, bool], right: tuple[Any, bool]) -> int:
    return _order(left[0], right[0]) or left[1] - right[1]


_cut = cmp_to_key(_order_of_cuts)
"""A cut, from a value and whether it lies after that value."""


def _real(node: Node) -> Any:
    if not isinstance(node, Leaf) or node.is_words or node.base or node.percent:
        raise _NotASetError
    value = number(node.text)
    if value is None or real(value).imag:
        raise _NotASetError
    return value if isinstance(value, Fraction) else value.real


def _intervals(node: Node) -> list[_Interval]:
    if node.text == "\\emptyset":
        return []
    if not isinstance(node, Collection):
        value = _real(node)
        return [(_cut((value, False)), _cut((value, True)))]
    if node.kind == "ordered" and len(node.items) == 2 and node.brackets:
        low, high = map(_real, node.items)
        if _order(low, high) > 0:
            raise _NotASetError
        return [(_cut((low, node.brackets[0] == "(")), _cut((high, node.brackets[1] == "]")))]
    if node.kind not in ("union", "set", "answers", "intersection", "difference"):
        raise _NotASetError
    parts = [_intervals(item) for item in node.items]
    union = [interval for part in parts for interval in part]
    if node.kind == "intersection":
        kept = parts[0]
        for other in parts[1:]:
            both = ((max(low, start), min(high, end)) for low, high in kept for start, end in other)
            kept = _not_empty(both)
        # "x < 2 and x > 5" is written for the union, as nothing is in both.
        return kept or (union if node.joined_by_and else [])
    if node.kind == "difference":
        kept = parts[0]
        for start, end in parts[1]:
            rest = (part for low, high in kept for part in ((low, min(high, start)), (max(low, end), high)))
            kept = _not_empty(rest)
        return kept
    return union


def _not_empty(intervals: Iterable[_Interval]) -> list[_Interval]:
    return [(low, high) for low, high in intervals if low < high]


def _merged(intervals: list[_Interval]) -> list[_Interval]:
    """Disjoint intervals in ascending order; touching ones are joined."""
    merged: list[_Interval] = []
    for low, high in sorted(_not_empty(intervals), key=lambda interval: interval[0]):
        if merged and low <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return merged
