"""Reference answers of a corpus or benchmark: how often each occurs, and letters that no question offers."""

import re
from collections import Counter
from collections.abc import Iterable

from eval.questions.forms import LETTERS

_MOST = 10  # of more, the counts say nothing


def reference_counts(references: Iterable[object]) -> dict[str, int]:
    """How often each reference answer occurs, in order; empty where there are more than ten, or one is no text."""
    given = list(references)
    if not all(isinstance(reference, str) for reference in given):
        return {}
    counts = Counter(map(str, given))
    return {text: counts[text] for text in sorted(counts)} if len(counts) <= _MOST else {}


def letter_not_offered(reference: object, text: str) -> bool:
    """Whether a reference is a letter that the question does not offer.

    Options are told by their marks: "(A)", or "A." and "A)" at the beginning of a line. False where fewer than two
    are found.
    """
    if not isinstance(reference, str) or reference not in tuple(LETTERS):
        return False
    marked = {first or second for first, second in re.findall(r"\(([A-J])\)|^\s*([A-J])[.):]", text, re.MULTILINE)}
    return len(marked) > 1 and reference not in marked


def not_offered(what: str, asked: Iterable[tuple[str, object, str]]) -> list[str]:
    """A warning about references that are letters which no option has; `asked`: name, reference and text of each."""
    found = [(where, letter) for where, letter, text in asked if letter_not_offered(letter, text)]
    if not found:
        return []
    where, letter = found[0]
    more = f" ({len(found)} such references)" if len(found) > 1 else ""
    return [f"{what}: the reference of {where} is {letter!r}, but it has no option {letter}{more}; correct the labels"]
