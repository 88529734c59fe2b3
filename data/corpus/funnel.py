"""The rows of a corpus on their way through the filters: what is left, what was removed, when and why."""

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from data.corpus.rows import problem_id
from data.corpus.sources import RawRow
from data.corpus.stored import PassedOver
from data.corpus.text_match import Text
from data.corpus.values import figure_mark

_SHOWN_CHARS = 300
_SHOWN_ON_CONSOLE = 160
WITHHELD = "(not copied: too close to a restricted benchmark)"
_DECIDED_BY = {"benchmark_overlap": "corpus.decontamination", "near_duplicate": "corpus.near_duplicate"}
Reason = tuple[str, str | None]
"""Why a row is removed, and more about it."""


class Funnel:
    """Rows that passed every filter so far, and a record of what each filter removed.

    A filter names rows by their index in `kept`.

    Attributes:
        total: rows that were read.
        kept: the rows that passed every filter so far, in their first order.
        steps: per filter its name, the rows left after it, and the removed rows by reason.
        repaired: rows by the kind of damage that was undone in them, among those that were not rejected.
        prompt_tokens: tokens of the prompts that the length filter looked at, before it removed any.
        rejects: every removed row with source, row number and reason, in the order of the filters.
        passed_over: rows of stored completions without a demonstration.
    """

    def __init__(self) -> None:
        self.total = 0
        self.kept: list[RawRow] = []
        self.steps: list[dict[str, Any]] = []
        self.repaired: dict[str, int] = {}
        self.prompt_tokens: list[int] = []
        self.rejects: list[dict[str, Any]] = []
        self.passed_over = PassedOver()
        self._first: dict[str, str] = {}
        self._values: list[tuple[str, ...]] = []  # of the rejects

    def take(self, rows: list[RawRow]) -> None:
        """Add rows and remove those that their source rejected; the first filter, called `mapped`."""
        self.total = len(rows)
        self.kept = rows
        self.repaired = dict(sorted(Counter(kind for row in rows if not row.reject for kind in row.repairs).items()))
        self.drop("mapped", {index: (row.reject, row.detail) for index, row in enumerate(rows) if row.reject})

    def drop(self, step: str, reasons: dict[int, Reason], withheld: Collection[int] = ()) -> None:
        """Remove rows.

        `reasons`: index in `kept` -> why the row is removed. `withheld`: rows whose texts must not be written.
        """
        for index, (reason, detail) in sorted(reasons.items()):
            row = self.kept[index]
            reject: dict[str, Any] = {"source": row.source, "row": row.row_number, "reason": reason}
            if row.line is not None:
                reject["line"] = row.line
            if detail is not None:
                reject["detail"] = detail
            texts = {"problem": row.problem, "reference_answer": row.reference_answer}
            shown = {key: WITHHELD if index in withheld else text[:_SHOWN_CHARS] for key, text in texts.items()}
            self.rejects.append(reject | shown)
            self._values.append(row.values)
            self._first.setdefault(reason, row.at if detail is None else f"{row.at}: {detail}")
        self.kept = [row for index, row in enumerate(self.kept) if index not in reasons]
        counts = dict(sorted(Counter(reason for reason, _ in reasons.values()).items()))
        self.steps.append({"step": step, "left": len(self.kept), "removed": counts})

    def withhold(self, is_close: Callable[[Text], bool]) -> None:
        """Take the texts out of the removed rows that are close to a question no file may hold."""
        for reject, values in zip(self.rejects, self._values, strict=True):
            text = Text(reject["problem"])
            if is_close(text) or (values and is_close(text._replace(values=values))):
                reject |= dict.fromkeys(("problem", "reference_answer"), WITHHELD)
                if reject.pop("detail", None) is not None:  # may quote them
                    self._first[reject["reason"]] = f"{reject['source']}, row {reject['row'] + 1}"

    def rejected(self) -> dict[str, int]:
        """Removed rows by reason."""
        return dict(sorted(Counter(row["reason"] for row in self.rejects).items()))

    def first_rejects(self) -> dict[str, str]:
        """Reason -> the first row that was removed for it, with the detail."""
        return dict(sorted(self._first.items()))

    def losses_text(self) -> str:
        """How many rows were removed, for a sentence, with the most frequent reason and the first row that has it."""
        removed = f"the filters removed {len(self.rejects):,} of {self.total:,} rows"
        if not self.rejects:
            return removed
        reason, count = max(self.rejected().items(), key=lambda item: item[1])
        decides = f"; {_DECIDED_BY[reason]} decides" if reason in _DECIDED_BY else ""
        return f"{removed}, most often as {reason} ({count:,}; the first: {self._first[reason]}{decides})"

    def report(self) -> list[str]:
        """Lines for the console: repairs, and each reason with its count and the first row that has it."""
        lines = [f"{self.total:,} rows read, {len(self.kept):,} kept"]
        lines += [f"{count:,} repaired: {kind}" for kind, count in self.repaired.items()]
        if marks := Counter(mark for row in self.kept if (mark := figure_mark(row.problem)) is not None):
            lines.append(
                f"{sum(marks.values()):,} kept with a figure "
                f"({', '.join(f'{mark} {count:,}' for mark, count in marks.items())}), "
                "listed in figures.jsonl; corpus.figures=reject removes them"
            )
        for reason, count in self.rejected().items():
            lines.append(f"{count:,} {reason} (the first: {_short(self._first[reason])})")
        if self.passed_over.rows:
            lines.append(f"{self.passed_over} (the first: {_short(self.passed_over.first)})")
        return lines


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_ON_CONSOLE else f"{line[: _SHOWN_ON_CONSOLE - 3]}..."


def figure_rows(rows: list[RawRow]) -> list[dict[str, Any]]:
    """The problems that need a figure, or give one as drawing code, for a person to read."""
    marked = [(row, figure_mark(row.problem)) for row in rows]
    return [
        {"problem_id": problem_id(row.problem), "source": row.source, "row": row.row_number, "figure": mark,
         "problem": row.problem}
        for row, mark in marked if mark is not None
    ]  # fmt: skip
