"""The rows of a corpus on their way through the filters: what is left, what was removed, when and why."""

from collections import Counter
from collections.abc import Collection
from typing import Any

from data.corpus.sources import RawRow

_SHOWN_CHARS = 300
WITHHELD = "(not copied: too close to a restricted benchmark)"


class Funnel:
    """Rows that are still in, and a record of every step.

    Attributes:
        kept: the rows that passed every step so far, in their first order.
        steps: per step its name, the rows left after it, and the removed rows by reason.
    """

    def __init__(self, rows: list[RawRow]) -> None:
        self.kept = rows
        self.steps: list[dict[str, Any]] = []
        self._rejects: list[dict[str, Any]] = []

    def drop(
        self,
        step: str,
        reasons: dict[int, str],
        details: dict[int, str] | None = None,
        withheld: Collection[int] = (),
    ) -> None:
        """Remove the rows numbered in `reasons`; `details` says more about some, texts of `withheld` are left out."""
        for number, reason in sorted(reasons.items()):
            row = self.kept[number]
            reject = {"source": row.source, "row": row.row_number, "reason": reason}
            if details and number in details:
                reject["detail"] = details[number]
            texts = {"problem": row.problem, "reference_answer": row.reference_answer}
            shown = {key: WITHHELD if number in withheld else text[:_SHOWN_CHARS] for key, text in texts.items()}
            self._rejects.append(reject | shown)
        self.kept = [row for number, row in enumerate(self.kept) if number not in reasons]
        counts = dict(sorted(Counter(reasons.values()).items()))
        self.steps.append({"step": step, "left": len(self.kept), "removed": counts})

    def rejects(self) -> list[dict[str, Any]]:
        """Every removed row with source, row number and reason, in the order of the steps."""
        return self._rejects
