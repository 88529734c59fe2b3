"""Trainer callback that records a run: metrics.jsonl, the ledger's rows, the clock, progress and warnings."""

import json
import math
import time
from pathlib import Path
from typing import NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipes.errors import UserError
from recipes.files import read_json, write_json
from recipes.progress import NOTES, Progress, write_notes
from train.accounting.ledger import Ledger, truncate_rows
from train.runtime.ranks import beat, rank, world_size
from train.runtime.tracking import Tracker

METRICS, CLOCK, WARNINGS = "metrics.jsonl", "clock.jsonl", "warnings.json"
_CLIPPED_LIMIT = 0.05  # share of importance ratios; healthy runs are below 0.01


class DivergedError(UserError):
    """Loss or gradient is not finite."""


class RunWarning(NamedTuple):
    """What a person should look at: a headline, shown with the progress, and the rest of the sentence."""

    headline: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.headline}: {self.detail}" if self.detail else self.headline


def mismatch_warning(logs: dict[str, float]) -> RunWarning | None:
    """A warning about the sampler/trainer mismatch in a step's metrics."""
    if float(logs.get("mismatch/clipped_share", 0.0)) <= _CLIPPED_LIMIT:
        return None
    return RunWarning(
        "vLLM and the trainer disagree about the completions",
        f"in some step more than {_CLIPPED_LIMIT:.0%} of the importance ratios were cut (mismatch/clipped_share in "
        "metrics.jsonl); check that both run the same dtype and attention",
    )


def throughput_text(logs: dict[str, float]) -> str:
    """Tokens per second of a step and where its seconds went, for people."""
    seconds = {name.partition("/")[2]: value for name, value in logs.items() if name.startswith("seconds/")}
    total = sum(seconds.values())
    shares = sorted(seconds.items(), key=lambda item: -item[1])
    spent = ", ".join(
        f"{name.replace('_', ' ')} {value / total:.0%}" for name, value in shares if value >= 0.01 * total
    )
    for name, key in (("MFU", "throughput/mfu"), ("padding", "throughput/padding_share")):
        spent += f", {name} {logs[key]:.0%}" if key in logs else ""
    return f"{logs['throughput/tokens_per_second']:,.0f} tokens/s ({spent})"


class RunRecorder(TrainerCallback):
    """Appends every logged metric to `metrics.jsonl`, closes the ledger's step and records the time.

    `clock.jsonl` has the summed seconds of all processes up to each step. It is not part of the ledger, because it
    differs from run to run. Steps that a resumed run repeats are counted once, and so are samples that it keeps.

    Metrics after `resumed_step` are dropped, because they are computed again.

    Attributes:
        raised: the warnings, also those of earlier attempts; the headline of the latest is shown with the progress.
    """

    def __init__(
        self,
        directory: Path,
        steps: int,
        resumed_step: int = 0,
        ledger: Ledger | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        self.path = directory / METRICS
        self.progress = Progress(directory, steps, "steps")
        self.ledger = ledger
        self.tracker = tracker
        self.note = ""
        self._stored = directory / WARNINGS
        stored = (read_json(self._stored) or {}).get("raised", []) if resumed_step else []
        self.raised = [RunWarning(*parts) for parts in stored]
        self.clock, self._spent, self._started = directory / CLOCK, 0.0, time.monotonic()
        if rank() == 0:
            if not self.raised:
                (directory / NOTES).unlink(missing_ok=True)
            truncate_rows(self.path, resumed_step)
            rows = truncate_rows(self.clock, resumed_step)
            self._spent = rows[-1]["process_seconds"] if rows else 0.0

    def count_earlier(self, process_seconds: float) -> None:
        """Count seconds that an earlier attempt spent, after its last checkpoint, on work that is not repeated."""
        self._spent += process_seconds

    @property
    def warnings(self) -> list[str]:
        """The warnings as sentences."""
        return [str(warning) for warning in self.raised]

    def warn(self, headline: str, detail: str = "") -> None:
        """Show a warning once in the log, its headline with the progress, and all of it when the stage ends."""
        warning = RunWarning(headline, detail)
        if warning not in self.raised:
            self.raised.append(warning)
            if rank() == 0:
                write_json(self._stored, {"raised": self.raised})
                write_notes(self._stored.parent, [f"warning: {text}" for text in self.warnings])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Append one row; the summary the Trainer logs at the end, with run times, is left out.

        Raises:
            DivergedError: the loss or the gradient norm is not finite. No checkpoint has been written since it was.
        """
        if not logs or "train_runtime" in logs:
            return
        self._require_finite(state.global_step, logs)
        if not state.is_world_process_zero:
            return
        if (warning := mismatch_warning(logs)) is not None:
            self.warn(*warning)
        if self.tracker is not None:
            self.tracker.log(state.global_step, logs)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        # The loss of a policy-gradient step is not a measure of progress; the reward is.
        shown = "reward" if "reward" in logs else "loss"
        self.note = f"{shown} {float(logs[shown]):.3g}" if shown in logs else ""
        if "throughput/tokens_per_second" in logs:
            self.note += f", {throughput_text(logs)}"
        if self.raised:
            headline, detail = self.raised[-1]
            self.note += f"; warning: {headline}{' …' if detail else ''}"

    def _require_finite(self, step: int, logs: dict[str, float]) -> None:
        for name in ("loss", "grad_norm"):
            if name in logs and not math.isfinite(float(logs[name])):
                ids = self.ledger.last_presented if self.ledger is not None else []
                raise DivergedError(
                    f"{name} is {float(logs[name])} at step {step}, on the problems {', '.join(ids[:8])}"
                    f"{' and more' if len(ids) > 8 else ''}; the checkpoint before it is kept. A lower "
                    "train.learning_rate or train.max_grad_norm, or longer warm-up, usually helps"
                )

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        """Send a heartbeat."""
        beat(self.path.parent)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Close the ledger's row and report progress."""
        beat(self.path.parent)
        if self.ledger is not None:
            self.ledger.close_step(state.global_step)
        if state.is_world_process_zero:
            seconds = self._spent + (time.monotonic() - self._started) * world_size()
            with self.clock.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, "process_seconds": round(seconds, 3)}) + "\n")
            self.progress.update(state.global_step, self.note)
