"""Trainer callback that records a run: metrics.jsonl, the ledger's rows, and progress for the command line."""

import json
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipes.manifest import Progress
from train.ledger import Ledger, truncate_rows
from train.ranks import rank

METRICS = "metrics.jsonl"


class RunRecorder(TrainerCallback):
    """Appends every logged metric to `metrics.jsonl` and closes the ledger's step.

    Args:
        directory: of the run.
        steps: optimizer updates of the run.
        resumed_step: metrics after this step are dropped, because they will be computed again.
        ledger: closed after every update, if given.
        before_close: called with the step number before the ledger's row is written.
    """

    def __init__(
        self,
        directory: Path,
        steps: int,
        resumed_step: int = 0,
        ledger: Ledger | None = None,
        before_close: Callable[[int], None] | None = None,
    ) -> None:
        self.path = directory / METRICS
        self.progress = Progress(directory, steps, "steps")
        self.ledger = ledger
        self.before_close = before_close
        self.note = ""
        if rank() == 0:
            truncate_rows(self.path, resumed_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Append one row; the summary the Trainer logs at the end, with run times, is left out."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        # The logged loss of a policy-gradient step says nothing (its value is not minimised); the reward does.
        shown = "reward" if "reward" in logs else "loss"
        self.note = f"{shown} {float(logs[shown]):.3g}" if shown in logs else ""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Close the ledger's row and report progress."""
        if self.ledger is not None:
            if self.before_close is not None:
                self.before_close(state.global_step)
            self.ledger.close_step(state.global_step)
        if state.is_world_process_zero:
            self.progress.update(state.global_step, self.note)
