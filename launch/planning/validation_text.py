"""A validation as text and as JSON."""

from typing import Any

from launch.planning.validation import Validation

_SHOWN_CHARS = 700  # of a text as the model sees it


def as_json(found: Validation) -> dict[str, Any]:
    """As JSON values, with every text whole."""
    return {
        "study": found.study,
        "valid": not found.mistakes,
        "mistakes": found.mistakes,
        "warnings": found.warnings,
        "not_checked": found.not_checked,
        "corpus": found.corpus,
        "groups": found.groups,
        "trained_group": found.trained_group,
        "lengths": [row._asdict() for row in found.lengths],
        "samples": [row._asdict() for row in found.samples],
    }


def format_validation(found: Validation) -> str:
    """A summary: what was read, lengths, one text of each kind, and at the end the verdict with every mistake."""
    parts = [_corpus_lines(found), _group_lines(found), _length_lines(found), *_sample_lines(found), _verdict(found)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _corpus_lines(found: Validation) -> list[str]:
    corpus = found.corpus
    if corpus is None:
        return []
    lines = [f"corpus: {corpus['rows']:,} rows, {corpus['problems']:,} problems after the filters"]
    if corpus["first_removed"]:
        lines.append(f"  removed: {corpus['first_removed']}")
    if "demonstrations" in corpus:
        lines.append(
            f"  demonstrations: {corpus['demonstrations']:,}, of which {corpus['usable_demonstrations']:,} are correct "
            f"and fit, for {corpus['teacher_solvable']:,} problems"
        )
    return lines


def _group_lines(found: Validation) -> list[str]:
    return [
        f"group {group}{' (trained)' if group == found.trained_group else ''}: {', '.join(names)}"
        for group, names in found.groups.items()
    ]


def _length_lines(found: Validation) -> list[str]:
    if not found.lengths:
        return []
    width = max(len("tokens"), *(len(row.name) for row in found.lengths))
    lines = [f"{'tokens':{width}}  median    p95    max  limit"]
    for row in found.lengths:
        lines.append(
            f"{row.name:{width}}  {row.median:6,.0f} {row.p95:6,} {row.longest:6,}  {row.limit:,} ({row.setting}): "
            f"{row.over:,} of {row.texts:,} longer"
        )
    return lines


def _sample_lines(found: Validation) -> list[list[str]]:
    parts = []
    for sample in found.samples:
        text = sample.text
        if len(text) > _SHOWN_CHARS:
            half = _SHOWN_CHARS // 2
            text = f"{text[:half]} [... {len(text) - 2 * half:,} characters, whole with --json ...] {text[-half:]}"
        parts.append([f"{sample.name}:", *(f"  | {line}" for line in text.split("\n"))])
    return parts


def _verdict(found: Validation) -> list[str]:
    lines = [f"not checked: {text}" for text in found.not_checked]
    lines += [f"warning: {text}" for text in found.warnings]
    lines += [f"mistake: {text}" for text in found.mistakes]
    count = len(found.mistakes)
    verdict = "is valid" if not count else f"has {count} mistake{'s' * (count > 1)}"
    return [*lines, f"{found.study} {verdict}"]
