"""Reference answers of a corpus or benchmark: how often each occurs, and letters that no question offers."""

import re
from collections import Counter
from collections.abc import Iterable

from data.corpus.sources import RawRow
from eval.questions.forms import LETTERS
from recipes.corpus_schema import SourceSpec

_MARK = re.compile(r"\(([A-J])\)|^[^\S\n]*([A-J])[.):]", re.MULTILINE)  # of an option
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

    Options are told by their marks: "(A)", or "A." and "A)" at the beginning of a line. A mark without a text before
    the next one or the end of the line is no option, unless none has one there. False where fewer than two marks are
    found.
    """
    if not isinstance(reference, str) or reference not in tuple(LETTERS):
        return False
    marks = list(_MARK.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    marked, offered = set[str](), set[str]()
    for mark, end in zip(marks, ends, strict=False):
        letter = mark[1] or mark[2]
        marked.add(letter)
        if text[mark.end() : end].partition("\n")[0].strip():
            offered.add(letter)
    return len(marked) > 1 and reference not in (offered or marked)


def not_offered(what: str, asked: Iterable[tuple[str, object, str]]) -> list[str]:
    """A warning about references that are letters which no option has; `asked`: name, reference and text of each."""
    found = [(where, letter) for where, letter, text in asked if letter_not_offered(letter, text)]
    if not found:
        return []
    where, letter = found[0]
    more = f" ({len(found)} such references)" if len(found) > 1 else ""
    return [f"{what}: the reference of {where} is {letter!r}, but it has no option {letter}{more}; correct the labels"]


def whole_solutions(sources: Iterable[SourceSpec], rows: Iterable[RawRow]) -> list[str]:
    """A warning for each source whose reference answers are mostly solutions that contain the answer."""
    by_source: dict[str, list[RawRow]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row)
    warnings = []
    for source in sources:
        mine = by_source.get(source.name, []) if source.answer_in == "value" and source.kind != "pocket" else []
        for mark, setting in (("\\boxed{", "boxed"), ("####", "after_hashes")):
            marked = [
                row
                for row in mine
                if mark in row.reference_answer and not row.reference_answer.lstrip("$ ").startswith(mark)
            ]
            if 2 * len(marked) > len(mine):
                warnings.append(
                    f"the corpus: the reference of {marked[0].at} is a text with {mark}{'}' * (setting == 'boxed')} "
                    f"({len(marked)} such references); if answer_field is a column of solutions, set "
                    f"answer_in: {setting} for this source"
                )
    return warnings
