r"""Compare two final answers, given as trees of `tree.py`.

Values are compared by `values.py` and sets of real numbers by `real_sets.py`. Integrals, limits and infinite sums go to
an algebra system in another process. What is not read as mathematics equals the same text only.

The conventions are listed in docs/grading.md; the debatable ones are switches of `policy.py`.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from data.grading.clock import check
from data.grading.names import is_quantity, named_apart, renamed, same_but_for_name
from data.grading.policy import Policy, rounds_to
from data.grading.real_sets import same_set
from data.grading.statements import NAME, states_value
from data.grading.tree import NO_LETTER, SETS, Collection, Leaf, Node, Relation, canonical
from data.grading.units import converted, spaced_symbol
from data.grading.values import is_formula, proportional, same_value, size
from data.grading.words import canonical_words

Algebra = Callable[[str, str], bool]
"""Whether two LaTeX expressions are equal according to an algebra system. May raise."""
Note = Callable[[str], object]
"""Called with every rule that is applied."""

_SINGLE_NAME = re.compile(r"\\?[A-Za-z](?:_\S+)?(?:\(.*\))?$")
_CALCULUS = re.compile(rf"\\(?:i?int|oint|lim|sum|prod){NO_LETTER}")
_ONLY_FORMULA = re.compile(r"[\x20-\x7e]+")
_DEGREE = r"*\pi/180"
_UNORDERED = ("answers", "set", "union")


def ignore(rule: str) -> None:
    """Take no note of a rule."""


class Comparison:
    """One comparison of two trees.

    Args:
        algebra: compares what needs an algebra system; its exceptions pass through.
        policy: the switches.
        note: called with the rule that decided a comparison, for explanations.
    """

    def __init__(self, algebra: Algebra, policy: Policy, note: Note = ignore) -> None:
        self.algebra, self.policy, self.note = algebra, policy, note

    def same(self, answer: Node, reference: Node) -> bool:
        """Whether two answers are equal."""
        check()
        match answer, reference:
            case Leaf(), Leaf():
                return self._same_leaf(answer, reference)
            case Collection(), Collection():
                return self._same_collection(answer, reference)
            case (Leaf() as leaf, Collection() as other) | (Collection() as other, Leaf() as leaf):
                return self._leaf_and_collection(leaf, other)
        return self._same_relation(answer, reference)

    def _leaf_and_collection(self, leaf: Leaf, other: Collection) -> bool:
        if other.kind == "congruence":  # 3 (mod 5) for 3
            value, modulus = other.items
            number, whole = _whole(leaf), _whole(modulus)
            self.note("a residue")
            if number is None or whole is None or abs(number) >= whole:
                return False
            return _residues(leaf, whole) == _residues(value, whole)
        if other.kind in SETS and (equal := same_set(leaf, other)) is not None:
            self.note("sets of real numbers")
            return equal
        if other.kind == "ratio" and len(other.items) == 2 and not leaf.name:
            return same_value(leaf.text, f"({other.items[0].text})/({other.items[1].text})") is True
        if other.kind in ("answers", "set") and leaf.text != "\\emptyset":  # the same value written twice
            return all(self.same(item, leaf) for item in other.items)
        self.note("one value against something of several parts")
        return False

    def _same_collection(self, answer: Collection, reference: Collection) -> bool:
        kinds = {answer.kind, reference.kind}
        if answer.item_names or reference.item_names:
            answer = _in_order_of(answer, reference)
        elif answer.name and reference.name and self._names_differ(answer.name, reference.name):
            self.note("names of different quantities")
            return False  # x > 2 is not y > 2
        if kinds & set(SETS) and (equal := same_set(answer, reference)) is not None:
            self.note("sets of real numbers")
            return equal
        if kinds == {"congruence"}:
            return self._same_congruence(answer, reference)
        if kinds == {"ratio"}:
            return self._same_ratio(answer, reference)
        if kinds == {"cases"}:
            return self._same_cases(answer, reference)
        named, others = named_apart(answer), named_apart(reference)
        if named and named.keys() == others.keys():
            return all(self.same(item, others[name]) for name, item in named.items())
        if kinds == {"matrix", "ordered"}:
            answer, reference = _entries(answer), _entries(reference)
        if kinds == {"answers", "ordered"}:
            answer, reference = _solution(answer), _solution(reference)
            if self.policy.list_for_tuple and {answer.kind, reference.kind} == {"answers", "ordered"}:
                answer, reference = (Collection("ordered", node.items, "()") for node in (answer, reference))
        if answer.kind in _UNORDERED and reference.kind in _UNORDERED:
            if kinds == {"answers"} and len(answer.items) < len(reference.items):
                self.note("fewer answers")
                return False  # 2, 3 is not 2, 2, 3
            if "answers" in kinds and len(answer.items) == len(reference.items):
                return self._same_numbers_of_each(answer.items, reference.items)
            return self._same_items(answer.items, reference.items)
        if {answer.kind, reference.kind} <= {"sequence", *_UNORDERED} and "sequence" in kinds:
            return self._in_order(answer, reference)
        if answer.kind in _UNORDERED or reference.kind in _UNORDERED:  # a set of one pair is that pair
            unordered, single = (answer, reference) if answer.kind in _UNORDERED else (reference, answer)
            return all(self.same(item, single) for item in unordered.items)
        if kinds == {"intersection"}:
            return self._same_items(answer.items, reference.items)
        self.note("the same parts in the same order")
        alike = (answer.kind, answer.brackets) == (reference.kind, reference.brackets)
        return alike and self._in_order(answer, reference)

    def _in_order(self, answer: Collection, reference: Collection) -> bool:
        pairs = zip(answer.items, reference.items, strict=False)
        return len(answer.items) == len(reference.items) and all(self.same(item, other) for item, other in pairs)

    def _same_items(self, left: tuple[Node, ...], right: tuple[Node, ...]) -> bool:
        """Whether two collections have the same members, however often and in whatever order."""
        self.note("the same members in any order")
        common = set(left) & set(right)
        return all(item in common or any(self._same_member(item, other) for other in right) for item in left) and all(
            other in common or any(self._same_member(item, other) for item in left) for other in right
        )

    def _same_member(self, left: Node, right: Node) -> bool:
        """Whether two members are equal; the set of 1 is not 1."""
        return (left.kind == "set") == (right.kind == "set") and self.same(left, right)

    def _same_numbers_of_each(self, left: tuple[Node, ...], right: tuple[Node, ...]) -> bool:
        """Whether two lists of the same length are permutations of each other: 2, 2, 3 is not 2, 3, 3."""
        self.note("the same members in any order")
        missing = Counter(right)
        missing.subtract(left)
        rest = list((-missing).elements())
        for other in missing.elements():
            equal = next((item for item in rest if self.same(item, other)), None)
            if equal is None:
                return False
            rest.remove(equal)
        return True

    def _names_differ(self, left: str, right: str) -> bool:
        """Whether two names denote different quantities, such as x and y, AB and BC; words such as "area" do not."""
        if not all(is_quantity(name) for name in (left, right)):
            return False
        bare = [re.sub(r"\\(?:measuredangle|angle|overline)|[\s{}]|^m(?=\s*\\)", "", name) for name in (left, right)]
        names = [re.sub(r"\|([A-Z]{2})\|", r"\1", name) for name in bare]  # |AB| is AB, but |x| is not x
        if names[0] == names[1] and (
            re.fullmatch(r"\\?(?!frac|sqrt)[\w']+", names[0]) or canonical(left) == canonical(right)
        ):
            return False
        return same_value(left, right) is not True

    def _same_congruence(self, answer: Collection, reference: Collection) -> bool:
        (value, modulus), (other_value, other_modulus) = answer.items, reference.items
        if not self.same(modulus, other_modulus):
            return False
        self.note("residues")
        number = _whole(modulus)
        own, other = _residues(value, number), _residues(other_value, number)
        return self.same(value, other_value) if own is None or other is None else own == other

    def _same_ratio(self, answer: Collection, reference: Collection) -> bool:
        if len(answer.items) != len(reference.items):
            return False
        self.note("ratios")
        terms, others = ([item.text for item in node.items] for node in (answer, reference))
        scale = next((n for n, text in enumerate(others) if same_value(text, "0") is False), None)
        if scale is None or same_value(terms[scale], "0") is not False:  # 0:0 is no ratio
            return False
        return all(
            same_value(f"({a})*({others[scale]})", f"({b})*({terms[scale]})") is True
            for a, b in zip(terms, others, strict=True)
        )

    def _same_cases(self, answer: Collection, reference: Collection) -> bool:
        """Branches in any order; an "otherwise" stands for the one condition that is left."""
        self.note("branches of a function by cases")
        left = list(answer.items)
        if len(left) != len(reference.items):
            return False
        for branch in reference.items:
            value, condition = branch.items
            otherwise = len(left) == 1 and "otherwise" in (condition.text, left[0].items[1].text)
            fits = [
                other
                for other in left
                if (self.same(condition, other.items[1]) or otherwise) and self.same(other.items[0], value)
            ]
            if not fits:
                return False
            left.remove(fits[0])
        return True

    def _same_leaf(self, answer: Leaf, reference: Leaf) -> bool:
        if answer.is_words or reference.is_words:
            self.note("words")
            if answer.is_words and reference.is_words:
                return answer.text == reference.text
            same_words = canonical_words(answer.text) == canonical_words(reference.text)
            return same_words and not (answer.unit or reference.unit)
        if answer.name and reference.name and (answer.name, answer.text) != (reference.name, reference.text):
            decided = self._same_named(answer, reference)
            if decided is not None:
                return decided
        elif answer.name != reference.name and not states_value(answer if answer.name else reference):
            self.note("an equation to be solved is no value")
            return False
        if (answer.base or reference.base) and not (self.policy.missing_base and not (answer.base and reference.base)):
            self.note("numerals with a base")
            return (answer.base, answer.text) == (reference.base, reference.text)
        if answer.unit and reference.unit and answer.unit != reference.unit:
            self.note("units that differ")
            factor = converted(answer.unit, reference.unit) if self.policy.convert_units else None
            return factor is not None and same_value(f"({answer.text})*{factor}", reference.text) is True
        if answer.percent != reference.percent and (answer.unit or reference.unit):
            self.note("a percent sign and a unit")
            return False
        if bool(answer.unit) != bool(reference.unit) and not self.policy.missing_unit:
            self.note("a unit on one side only")
            return False
        if "deg" in (answer.unit, reference.unit) and "" in (answer.unit, reference.unit):
            left, right = (f"({leaf.text}){_DEGREE if leaf.unit == 'deg' else ''}" for leaf in (answer, reference))
            if "pi" in answer.text + reference.text or same_value(left, right):
                self.note("degrees and radians")  # 120 degrees are 2 pi/3
                return same_value(left, right) is True
        return self._same_number(answer, reference)

    def _same_named(self, answer: Leaf, reference: Leaf) -> bool | None:
        """Two statements about values; None if they are about the same quantity, so that the values decide."""
        if not (is_quantity(answer.name) and is_quantity(reference.name)):
            return None  # "the area" may be x
        if not self._names_differ(answer.name, reference.name):
            return None
        if (text := renamed(answer, reference)) is not None:
            self.note("the variable of a function has another name")
            return same_value(text, reference.text) is True
        self.note("equations up to a constant factor")
        first, second = (f"({leaf.name})-({leaf.text})" for leaf in (answer, reference))
        a_function = "(" in answer.name + reference.name and NAME.match(answer.name)
        return not a_function and proportional(first, second) is True

    def _same_number(self, answer: Leaf, reference: Leaf) -> bool:
        left, right = answer.text, reference.text
        if not (answer.unit and reference.unit) and {answer.unit, reference.unit} & {"am", "pm"}:
            left, right = left.removesuffix(":00"), right.removesuffix(":00")  # 7 AM for 7
        if canonical(left) == canonical(right) and answer.percent == reference.percent:
            self.note("the same formula")
            return _can_equal_itself(left)
        if len(right) == 1 and right.isalpha() and right not in "ei" and left.casefold() == right.casefold():
            self.note("a letter")  # of an option, or the name of a quantity
            return True
        equal = same_value(left, right)
        self.note("values")
        if answer.percent != reference.percent:
            equal = self._same_percent(answer, reference, equal)
        if equal is None and self._for_algebra(left, right):
            self.note("math-verify and numbers")
            return self.algebra(left, right)
        if not equal and self.policy.rounded and rounds_to(left, right):
            self.note("rounded")
            return True
        if equal is False:
            spaced = [spaced_symbol(text) for text in (left, right)]
            if (spaced[0] is None) != (spaced[1] is None):  # 2 s for 2
                number, unit = spaced[0] or spaced[1] or ("", "")
                other = reference if spaced[0] else answer
                return other.unit in ("", unit) and same_value(number, other.text) is True
            return same_but_for_name(left, right)
        return equal is True

    def _same_percent(self, answer: Leaf, reference: Leaf, equal: bool | None) -> bool | None:
        """A bare number is read in the unit of the reference; 10 % is also 0.1."""
        hundredth = same_value(f"({answer.text})/100", reference.text)
        if answer.percent:  # a reference below 1 is no percentage
            return hundredth or (equal if self.policy.bare_percent and size(reference.text) >= 1 else False)
        if self.policy.fraction_for_percent and same_value(answer.text, f"({reference.text})/100"):
            return True
        return equal if self.policy.bare_percent else False

    def _for_algebra(self, left: str, right: str) -> bool:
        """Whether math-verify may decide: calculus on one side, and on both nothing but formulas."""
        calculus = [_CALCULUS.search(text) is not None for text in (left, right)]
        return any(calculus) and all(
            (has or is_formula(text)) and _ONLY_FORMULA.fullmatch(text) is not None
            for has, text in zip(calculus, (left, right), strict=True)
        )

    def _same_relation(self, answer: Node, reference: Node) -> bool:
        self.note("equations and inequalities up to a factor")
        first, second = _as_relation(answer), _as_relation(reference)
        if first is None or second is None or first.sign != second.sign:
            return False
        if (canonical(first.left), canonical(first.right)) == (canonical(second.left), canonical(second.right)):
            return True
        left, right = (f"({side.left})-({side.right})" for side in (first, second))
        return proportional(left, right, positive=first.sign in ("<", "\\le")) is True


def _can_equal_itself(text: str) -> bool:
    """Whether a text has a value or is not a formula at all: 1/0 equals nothing."""
    return not re.search(r"(?:/\s*|\\frac\s*(?:\{[^{}]*\}|\w)\s*)\{?0+\}?\s*$", text)


def _as_relation(node: Node) -> Relation | None:
    if isinstance(node, Relation):
        return node
    if isinstance(node, Leaf) and node.name and not node.is_words:
        return Relation(node.name, "=", node.text)
    if isinstance(node, Collection) and node.kind == "ordered" and node.name and len(node.items) == 2:
        low, high = (item.text for item in node.items)
        if low == "-\\infty":
            return Relation(node.name, "\\le" if node.brackets[1] == "]" else "<", high)
        if high == "\\infty":
            return Relation(low, "\\le" if node.brackets[0] == "[" else "<", node.name)
    return None


def _whole(node: Node) -> int | None:
    text = node.text.replace(" ", "")
    return int(text) if re.fullmatch(r"-?\d{1,300}", text) else None


def _residues(node: Node, modulus: int | None) -> set[int] | None:
    items = node.items if node.kind in ("answers", "set") else (node,)
    numbers = [_whole(item) for item in items]
    return {number % modulus for number in numbers if number is not None} if modulus and None not in numbers else None


def _entries(node: Collection) -> Collection:
    """A matrix of one row or one column as the tuple of its entries; other nodes unchanged."""
    rows = [row.items for row in node.items]
    if node.kind != "matrix" or (len(rows) > 1 and any(len(row) > 1 for row in rows)):
        return node
    return Collection("ordered", tuple(item for row in rows for item in row), "()")


def _in_order_of(answer: Collection, reference: Collection) -> Collection:
    """The pair of `(y, x) = (1, 2)` in the order of a reference `(x, y) = ...`; unchanged where the names differ."""
    own, other = answer.item_names, reference.item_names
    if own == other or sorted(own) != sorted(other) or not len(set(own)) == len(own) == len(answer.items):
        return answer
    return replace(answer, items=tuple(answer.items[own.index(name)] for name in other))


def _solution(node: Collection) -> Collection:
    """`x = 1, y = 2` as the pair (1, 2), in alphabetical order of the names; other nodes unchanged."""
    leaves = [item for item in node.items if isinstance(item, Leaf) and _SINGLE_NAME.match(item.name)]
    if node.kind != "answers" or len({leaf.name for leaf in leaves}) < len(node.items):
        return node
    unnamed = (replace(leaf, name="") for leaf in sorted(leaves, key=lambda leaf: leaf.name))
    return Collection("ordered", tuple(unnamed), "()")
