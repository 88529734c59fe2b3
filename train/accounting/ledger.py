"""The budget ledger of a run: what every step presented, generated, trained on and spent.

TRL's own counters restart on resume (SFT) or stay zero (GRPO FLOPs), so the comparison of arms cannot use them.
`ledger.jsonl` has one row per step with cumulative totals and the problem ids of that step; a resumed run continues
from the row of its checkpoint.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from recipes.errors import UserError
from recipes.files import read_json_lines, write_json_lines
from train.accounting.cost import forward_flops, train_flops

LEDGER = "ledger.jsonl"
COUNTERS = (
    "exposures",  # problems presented, each as often as it was
    "completions",  # graded, or demonstrations trained on
    "correct_completions",
    "prompt_tokens",  # once per completion, as the model processes them
    "generated_tokens",  # sampled from the policy
    "trained_tokens",  # completion tokens with a gradient, see train/weights.py
    "generate_flops",
    "reference_flops",  # forward passes of the base model, for the KL term
    "train_flops",  # of all completions, also those without a gradient (see `skipped_tokens`)
)


class Completion(NamedTuple):
    """A completion, or a demonstration, as the ledger counts it."""

    problem_id: str
    prompt_tokens: int
    tokens: int
    correct: bool
    has_gradient: bool = False


class Ledger:
    """Cumulative counters of one run, written row by row.

    Args:
        directory: of the run.
        parameters: of the policy, for FLOPs.
        resumed_step: rows after this step are dropped; 0 starts an empty ledger.
        write: False on all ranks but the first.

    Attributes:
        totals: the counters so far.
        skipped_tokens: tokens, prompts included, of completions without a gradient, for which no forward and backward
            pass was made, so far.
        last_step: the last step whose row was written.
        last_presented: ids of the problems it was presented.

    Raises:
        UserError: the file does not reach `resumed_step`.
    """

    def __init__(self, directory: Path, parameters: int, resumed_step: int = 0, write: bool = True) -> None:
        self.path, self.parameters = directory / LEDGER, parameters
        self.totals, self.skipped_tokens = dict.fromkeys(COUNTERS, 0), 0
        self.last_step = resumed_step
        self._presented: list[str] = []
        self._contributed: list[str] = []
        self.last_presented: list[str] = []
        self.write = write
        rows = truncate_rows(self.path, resumed_step) if write else []
        if write and resumed_step and (not rows or rows[-1]["step"] != resumed_step):
            raise UserError(
                f"{self.path} has lost rows: it must reach step {resumed_step} of the checkpoint to continue from; "
                f"delete {directory} to train this run again"
            )
        if rows:
            self.totals = {name: rows[-1][name] for name in COUNTERS}
            self.skipped_tokens = rows[-1].get("skipped_tokens", 0)

    def enter(
        self,
        presented: Sequence[str],
        contributed: Sequence[str],
        completions: Sequence[Completion],
        *,
        sampled: bool = False,
        with_reference: bool = False,
        trained: bool = True,
    ) -> None:
        """Enter a batch: ids of its problems, of those with a non-zero gradient, and the completions of all ranks.

        `sampled`: whether the policy has just written them; the cost of stored ones is entered when they are sampled.
        `with_reference`: whether the base model reads them too. `trained`: False where they are dropped unread.
        """
        prompt_tokens, tokens = sum(row.prompt_tokens for row in completions), sum(row.tokens for row in completions)
        forward = forward_flops(self.parameters, prompt_tokens + tokens)
        self.spend(
            presented=presented,
            contributed=contributed,
            exposures=len(presented),
            completions=len(completions),
            correct_completions=sum(row.correct for row in completions),
            prompt_tokens=prompt_tokens,
            generated_tokens=tokens if sampled else 0,
            trained_tokens=sum(row.tokens for row in completions if row.has_gradient),
            generate_flops=forward if sampled else 0,
            reference_flops=forward if with_reference else 0,
            train_flops=train_flops(self.parameters, prompt_tokens + tokens) if trained else 0,
        )

    def spend(self, presented: Iterable[str] = (), contributed: Iterable[str] = (), **counts: int) -> None:
        """Add to the totals of the current step; `contributed` are the ids with a non-zero gradient."""
        self._presented += presented
        self._contributed += contributed
        for name, count in counts.items():
            self.totals[name] += count

    def problems(self, kind: Literal["presented", "contributed"]) -> list[str]:
        """Ids of the problems that were presented, or had a non-zero gradient, in any finished step, sorted."""
        return sorted({identity for row in read_json_lines(self.path) for identity in row[kind]})

    def close_step(self, step: int) -> None:
        """Write the row of a finished step."""
        row: dict[str, Any] = {"step": step, **self.totals, "skipped_tokens": self.skipped_tokens}
        row |= {"presented": self._presented, "contributed": self._contributed}
        if self.write:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        # Steps that share a sampling are entered with its first one.
        self.last_presented = list(dict.fromkeys(self._presented)) or self.last_presented
        self._presented, self._contributed = [], []
        self.last_step = step


def truncate_rows(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Keep the rows up to `last_step` in a file of rows with a `step`; returns them."""
    rows = [row for row in read_json_lines(path) if row["step"] <= last_step]
    write_json_lines(path, rows)
    return rows
