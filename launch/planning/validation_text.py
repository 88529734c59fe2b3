"""A validation as text and as JSON."""

from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from eval.questions.forms import LETTERS
from launch.planning.validated import Validation

_SHOWN_CHARS = 700  # of a text as the model sees it
_REFERENCE_CHARS = 200  # of a reference answer


def as_json(validation: Validation) -> dict[str, Any]:
    """As JSON values, with every text whole."""
    found = {key: value for key, value in asdict(validation).items() if key not in ("unresolved", "absent")}
    return {"study": validation.study, "valid": not validation.mistakes} | found


def format_validation(validation: Validation) -> str:
    """A summary: what was read, lengths, one text of each kind, and at the end the verdict with every mistake."""
    paragraphs = [
        _corpus_lines(validation),
        _group_lines(validation),
        _length_lines(validation),
        *_sample_lines(validation),
        _verdict(validation),
    ]
    return "\n\n".join("\n".join(paragraph) for paragraph in paragraphs if paragraph)


def _corpus_lines(validation: Validation) -> list[str]:
    corpus = validation.corpus
    if corpus is None:
        return []
    lines = [f"corpus: {corpus['rows']:,} rows, {corpus['problems']:,} problems after the filters{_split(corpus)}"]
    lines += _reference_lines(validation, "", "  ")
    removed = sorted(corpus["removed"].items(), key=lambda item: -item[1])
    lines += [f"  removed: {sum(count for _, count in removed):,} rows"] if removed else []
    lines += [
        f"    {count:,} {reason} (the first: {_one_line(corpus['first_removed'][reason])})" for reason, count in removed
    ]
    if "demonstrations" in corpus:
        lines.append(
            f"  demonstrations: {corpus['demonstrations']:,}, of which {corpus['usable_demonstrations']:,} are correct "
            f"and fit, for {corpus['teacher_solvable']:,} of the {corpus['train_problems']:,} problems for training"
        )
        if first := corpus.get("first_unusable"):
            lines.append(f"    {first}")
    if passed := corpus.get("stored_passed_over"):
        rows = f"{passed['rows']:,} row{'s' * (passed['rows'] != 1)}"
        lines.append(f"  {rows} of the stored completions passed over (the first: {_one_line(passed['first'])})")
    return lines


def _split(corpus: dict[str, Any]) -> str:
    """How many problems of those after the filters are used, and for what; the references are theirs."""
    train, heldout = (corpus.get(key, 0) for key in ("train_problems", "heldout_problems"))
    if not train + heldout:
        return ""
    sampled = f", {train + heldout:,} of them sampled" if train + heldout != corpus["problems"] else ""
    return f"{sampled}: {train:,} for training, {heldout:,} held out"


def _group_lines(validation: Validation) -> list[str]:
    lines = []
    for group, names in validation.groups.items():
        trained = " (trained)" if group == validation.trained_group else ""
        lines.append(f"group {group}{trained}: {', '.join(names)}")
        for name in names:
            if counts := validation.benchmarks.get(name):
                lines += [f"  {_counted(name, **counts)}", *_reference_lines(validation, name, "    ")]
    return lines


def _reference_lines(validation: Validation, name: str, indent: str) -> list[str]:
    """How often each reference answer of the corpus ("") or a benchmark occurs, where there are few."""
    counts = validation.references.get(name)
    listed = ", ".join(f"{_one_line(text)} ({count:,}×)" for text, count in counts.items()) if counts else ""
    return [f"{indent}references: {listed}"] if listed else []


def _counted(name: str, questions: int, clusters: int) -> str:
    """How many questions a benchmark has; clusters where questions share one."""
    text = f"{name}: {questions:,} question{'s' * (questions != 1)}"
    return text if clusters == questions else f"{text}, {clusters:,} cluster{'s' * (clusters != 1)}"


def _length_lines(validation: Validation) -> list[str]:
    if not validation.lengths:
        return []
    width = max(len("tokens"), *(len(row.name) for row in validation.lengths))
    lines = [f"{'tokens':{width}}  median    p95    max  limit"]
    for row in validation.lengths:
        lines.append(
            f"{row.name:{width}}  {row.median:6,.0f} {row.p95:6,} {row.longest:6,}  {row.limit:,} ({row.setting}): "
            f"{row.over:,} of {row.texts:,} longer"
        )
    return lines


def _sample_lines(validation: Validation) -> list[list[str]]:
    paragraphs = []
    for sample in validation.samples:
        lines = [f"{sample.name}:", *(f"  | {line}" for line in _shortened(sample.text, _SHOWN_CHARS).split("\n"))]
        if sample.choices is not None:
            listed = ", ".join(f"({letter}) {text}" for letter, text in zip_longest(LETTERS, sample.choices) if text)
            lines.append(f"  choices: {_one_line(listed)}")
        if sample.reference is not None:
            lines.append(f"  reference: {_one_line(sample.reference)}")
        paragraphs.append(lines)
    return paragraphs


def _one_line(text: str) -> str:
    return _shortened(" ".join(text.split()), _REFERENCE_CHARS)


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters, whole with --json ...] {text[-half:]}"


def _verdict(validation: Validation) -> list[str]:
    lines = [f"missing: {text}" for text in validation.missing]
    lines += [f"not checked: {text}" for text in validation.not_checked]
    lines += [f"warning: {text}" for text in validation.warnings]
    lines += [f"mistake: {text}" for text in validation.mistakes]
    count = len(validation.mistakes)
    verdict = f"has {count} mistake{'s' * (count > 1)}" if count else "is valid"
    if validation.missing and not count:
        verdict = "has no mistakes as far as it could be checked; fetch what is missing and validate again"
    return [*lines, f"{validation.study} {verdict}"]
