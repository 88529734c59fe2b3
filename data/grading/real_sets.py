r"""Compare sets of real numbers that are written as unions and differences of intervals and points.

`(-1, 2) \cup (1, 3)` is `(-1, 3)`, and `[-1, 1] \setminus \{0\}` is `[-1, 0) \cup (0, 1]`.
"""

from fractions import Fraction
from functools import cmp_to_key
from typing import Any, NamedTuple

from data.grading.arithmetic import MATH, NotReadableError, OutOfRangeError, close, real
from data.grading.tree import Collection, Leaf, Node
from data.grading.values import evaluate


class _Interval(NamedTuple):
    low: Any
    low_closed: bool
    high: Any
    high_closed: bool


class _NotASetError(ValueError):
    """The node is not a set of real numbers with known bounds."""


def same_set(left: Node, right: Node) -> bool | None:
    """Whether two nodes are the same set of real numbers; None if one of them is not such a set."""
    try:
        first, second = _merged(_intervals(left)), _merged(_intervals(right))
    except _NotASetError:
        return None
    return len(first) == len(second) and all(
        _order(a.low, b.low) == _order(a.high, b.high) == 0
        and (a.low_closed, a.high_closed) == (b.low_closed, b.high_closed)
        for a, b in zip(first, second, strict=True)
    )


def _order(left: Any, right: Any) -> int:
    """-1, 0 or 1; values that agree to a thousand digits are equal."""
    return 0 if close(left, right) else -1 if real(left) < real(right) else 1


def _real(node: Node) -> Any:
    if not isinstance(node, Leaf) or node.is_words or node.base or node.percent:
        raise _NotASetError
    try:
        value, names, _ = evaluate(node.text)
    except (NotReadableError, OutOfRangeError):
        raise _NotASetError from None
    if names or real(value).imag:
        raise _NotASetError
    return value if isinstance(value, Fraction) else value.real


def _intervals(node: Node) -> list[_Interval]:
    if isinstance(node, Leaf) and node.text == "\\emptyset":
        return []
    if not isinstance(node, Collection):
        value = _real(node)
        return [_Interval(value, True, value, True)]
    if node.kind == "ordered" and len(node.items) == 2 and node.brackets:
        low, high = map(_real, node.items)
        if _order(low, high) > 0:
            raise _NotASetError
        return [_Interval(low, node.brackets[0] == "[", high, node.brackets[1] == "]")]
    if node.kind in ("union", "set", "several"):
        return [interval for item in node.items for interval in _intervals(item)]
    if node.kind == "intersection":
        parts = [_merged(_intervals(item)) for item in node.items]
        common = parts[0]
        for part in parts[1:]:
            outside = _complement(part)
            for hole in outside:
                common = [rest for interval in common for rest in _without(interval, hole)]
        # "x < 2 and x > 5" is written for the union, as nothing is in both.
        return common or ([interval for part in parts for interval in part] if node.name else [])
    if node.kind == "difference":
        kept, removed = _intervals(node.items[0]), _intervals(node.items[1])
        for hole in removed:
            kept = [part for interval in kept for part in _without(interval, hole)]
        return kept
    raise _NotASetError


def _complement(intervals: list[_Interval]) -> list[_Interval]:
    """All real numbers outside disjoint ascending intervals."""
    rest = [_Interval(-MATH.inf, False, MATH.inf, False)]
    for hole in intervals:
        rest = [part for interval in rest for part in _without(interval, hole)]
    return rest


def _without(interval: _Interval, hole: _Interval) -> list[_Interval]:
    """What is left of an interval: the part below the hole and the part above it."""
    below = _smaller_end((interval.high, interval.high_closed), (hole.low, not hole.low_closed))
    above = _larger_start((interval.low, interval.low_closed), (hole.high, not hole.high_closed))
    parts = [
        _Interval(interval.low, interval.low_closed, *below),
        _Interval(*above, interval.high, interval.high_closed),
    ]
    return [part for part in parts if not _is_empty(part)]


def _smaller_end(first: tuple[Any, bool], second: tuple[Any, bool]) -> tuple[Any, bool]:
    order = _order(first[0], second[0])
    return (first[0], first[1] and second[1]) if order == 0 else first if order < 0 else second


def _larger_start(first: tuple[Any, bool], second: tuple[Any, bool]) -> tuple[Any, bool]:
    order = _order(first[0], second[0])
    return (first[0], first[1] and second[1]) if order == 0 else first if order > 0 else second


def _is_empty(interval: _Interval) -> bool:
    order = _order(interval.low, interval.high)
    return order > 0 or (order == 0 and not (interval.low_closed and interval.high_closed))


def _merged(intervals: list[_Interval]) -> list[_Interval]:
    """Disjoint intervals in ascending order; touching ones are joined."""

    def by_start(left: _Interval, right: _Interval) -> int:
        return _order(left.low, right.low) or right.low_closed - left.low_closed

    merged: list[_Interval] = []
    for interval in sorted((part for part in intervals if not _is_empty(part)), key=cmp_to_key(by_start)):
        if merged:
            last = merged[-1]
            gap = _order(last.high, interval.low)
            if gap > 0 or (gap == 0 and (last.high_closed or interval.low_closed)):
                order = _order(last.high, interval.high)
                closed = last.high_closed or interval.high_closed if order == 0 else None
                if order < 0:
                    merged[-1] = last._replace(high=interval.high, high_closed=interval.high_closed)
                elif closed is not None:
                    merged[-1] = last._replace(high_closed=closed)
                continue
        merged.append(interval)
    return merged
