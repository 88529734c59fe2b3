"""The corpus card: a page of Markdown for a person, made of nothing that changes between two builds."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data.corpus.filters import prompt_lengths
from data.corpus.rows import Demonstration, Problem
from data.hub import chosen
from recipes.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BINS, _BAR_CHARS = 10, 40


def render_card(
    recipe: Recipe,
    facts: dict[str, Any],
    outputs: dict[str, str],
    problems: Sequence[Problem],
    demonstrations: Sequence[Demonstration],
    tokenizer: "PreTrainedTokenizerBase | None",
) -> str:
    """The card of a built corpus."""
    locks = recipe.lock.get("sources", {})
    lines = [f"# Corpus of {recipe.study}", "", recipe.title, "", "## Sources", ""]
    lines += ["| source | from | revision | licence | problems |", "|---|---|---|---|---|"]
    by_source = Counter(row.source for row in problems)
    for source in recipe.corpus.sources:
        source = chosen(source, locks.get(source.name))
        origin = {"pocket": "synthetic world", "file": "local file", "hub": source.dataset}[source.kind]
        revision = locks.get(source.name, {}).get("revision") or "not locked"
        lines.append(f"| {source.name} | {origin} | {revision} | {source.licence} | {by_source[source.name]:,} |")
    lines += ["", "## Funnel", "", "| step | removed | left |", "|---|---|---|", f"| rows read | | {facts['rows']:,} |"]
    for step in facts["funnel"]:
        removed = ", ".join(f"{reason} {count:,}" for reason, count in step["removed"].items()) or "none"
        lines.append(f"| {step['step']} | {removed} | {step['left']:,} |")
    lines += [
        "",
        f"{facts['train_problems']:,} problems to train on and {facts['heldout_problems']:,} held out. "
        f"Compared with the benchmarks {', '.join(facts['decontaminated_against']) or '(none)'}; "
        f"{facts['contaminated']:,} problems were too close to a question and are in `contamination.jsonl` beside it. "
        + (f"Not compared with {', '.join(facts['not_compared'])} of the suite. " if facts["not_compared"] else "")
        + "Every row that was not used is in `rejects.jsonl` with its reason.",
    ]
    if demonstrations:
        lines += ["", "## Demonstrations", "", _teacher_text(recipe, facts, demonstrations)]
    if tokenizer is not None:
        lengths = prompt_lengths(tokenizer, [row.problem for row in problems], recipe.prompt)
        lines += ["", "## Tokens of the prompts", "", *_histogram(lengths)]
    else:
        lines += ["", "## Characters of the problems", "", *_histogram([len(row.problem) for row in problems])]
    if any(row.tokens for row in demonstrations):
        lines += ["", "## Tokens of the demonstrations", "", *_histogram([row.tokens for row in demonstrations])]
    lines += ["", "## Files", "", "| file | sha256 |", "|---|---|"]
    lines += [f"| {name} | `{digest}` |" for name, digest in outputs.items()]
    return "\n".join([*lines, ""])


def _teacher_text(recipe: Recipe, facts: dict[str, Any], demonstrations: Sequence[Demonstration]) -> str:
    teacher = recipe.corpus.teacher
    assert teacher is not None
    grades = ", ".join(f"{name} {count:,}" for name, count in facts["demonstrations"].items())
    solved, train = facts["teacher_solvable"], facts["train_problems"]
    lost = ", ".join(
        f"level {level}: {count:,} of {facts['train_by_level'][level]:,}"
        for level, count in facts["unsolved_by_level"].items()
    )
    passed = facts.get("stored_passed_over")
    mode = f", thinking {teacher.thinking}" if teacher.thinking else ""
    return (
        f"{len(demonstrations):,} samples of {demonstrations[0].teacher}{mode}, all kept with their grade: {grades}. "
        f"{facts['demonstrations_that_fit']:,} are finished, within the length limit and without control tokens. "
        f"The teacher solved {solved:,} of {train:,} problems"
        + (f" and left {train - solved:,} unsolved" if solved < train else "")
        + (f" ({lost}). " if lost else ". ")
        + (f"Rows of the stored completions that were passed over: {passed['rows']:,}. " if passed else "")
        + f"Arms are presented the set `{recipe.corpus.problem_set}`, where they name no other."
        + f" SFT reads `{recipe.corpus.demonstrations}`."
    )


def _histogram(values: Sequence[int]) -> list[str]:
    """A histogram in text, its last row open so that a few long ones do not flatten it, with the quartiles."""
    if not values:
        return ["none"]
    ordered = sorted(values)
    width = max(1, -(-(ordered[len(ordered) * 99 // 100] + 1) // _BINS))
    counts = Counter(min(value // width, _BINS) for value in values)
    most = max(counts.values())
    rows = []
    for row in range(_BINS + (counts[_BINS] > 0)):
        label = f"{row * width:>7,} to {(row + 1) * width - 1:>7,}" if row < _BINS else f"{row * width:>7,} and more  "
        rows.append(f"{label}  {counts[row]:>8,}  {'#' * round(_BAR_CHARS * counts[row] / most)}".rstrip())
    quartiles = [f"{ordered[len(ordered) * part // 4]:,}" for part in (1, 2, 3)]
    return ["```", *rows, "```", "", f"Quartiles {', '.join(quartiles)}; longest {ordered[-1]:,}."]
