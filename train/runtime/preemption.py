"""Stopping a run on a signal without losing work: at the end of a step, with a checkpoint, on all ranks at once.

Cluster schedulers send SIGTERM or SIGUSR1 some time before they kill. Ranks receive it at different moments, so they
exchange the signals they received after every step; otherwise one rank would exit while the others wait for it.

A step of a large model may take longer than the time until the kill, which the batch script sets in
TRANSFER_SIGNAL_SECONDS. Then the run ends without saving and loses the work since the last checkpoint; a killed job
would not be requeued. Ranks cannot agree on that within a step, so the process that started them ends them
(`launch/execution/ranks.py`); a process without ranks ends itself at its next heartbeat.
"""

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipes.files import write_json
from train.runtime.pace import PACE, Pace
from train.runtime.ranks import PreemptedError, gathered, noted_signal, rank, seconds_left


class PaceKeeper(TrainerCallback):
    """Measures a run's pace; the first rank also writes it where the launching process reads it.

    `saved_step`: step of the checkpoint it continues from. A run stops after whole generation batches, of
    `steps_per_generation` steps: resumed within one, it would sample it again.

    Attributes:
        pace: the latest measurement.
        saved_at: when the last checkpoint was written, or the run began, in seconds since the epoch.
    """

    def __init__(self, directory: Path, steps: int, saved_step: int = 0, steps_per_generation: int = 1) -> None:
        self.path = directory / "ranks" / PACE
        self.steps_per_generation = steps_per_generation
        self.pace = Pace(saved_step, steps, saved_step, time.time(), None, 0.0)
        self._ended, self._measured, self.saved_at = time.time(), 0, time.time()
        if rank() == 0:
            self.path.unlink(missing_ok=True)  # of an earlier attempt

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        """Start the clock."""
        self._ended = self.saved_at = time.time()
        self._note(since=self._ended)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Update the mean if the run could stop here."""
        self._ended = time.time()
        if state.global_step % self.steps_per_generation:
            self._note(step=state.global_step)
            return
        self._measured += 1
        mean = self.pace.seconds or 0.0
        mean += (self._ended - self.pace.since - mean) / self._measured
        self._note(step=state.global_step, since=self._ended, seconds=mean)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Record the checkpoint and how long it took; the next step begins now."""
        now = self.saved_at = time.time()
        self._note(saved_step=state.global_step, since=now, save_seconds=now - self._ended)

    def _note(self, **changes: Any) -> None:
        self.pace = self.pace._replace(**changes)
        if rank() == 0 and self.path.parent.is_dir():
            write_json(self.path, self.pace._asdict())


class StopOnSignal(TrainerCallback):
    """Ends training with a checkpoint once a rank has received SIGTERM or SIGUSR1 (`ranks.listen` records them).

    It also saves when the last checkpoint is old by the first rank's clock, which bounds what a killed run loses.

    `keeper`: of the run, before this one among the trainer's callbacks. `save_minutes`: age of the last checkpoint at
    which another one is written.
    """

    def __init__(self, keeper: PaceKeeper, save_minutes: float = float("inf")) -> None:
        self.keeper, self.save_minutes = keeper, save_minutes
        self.received: str | None = None
        self.stopped_at: int | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Save and stop if any rank received a signal.

        Raises:
            PreemptedError: there is no time to save.
        """
        if state.global_step % self.keeper.steps_per_generation:
            return
        left = seconds_left()
        late = left is not None and left < self.keeper.pace.save_seconds
        due = time.time() - self.keeper.saved_at >= 60 * self.save_minutes
        answers = gathered([(noted_signal(), late, due)])
        signals = [(name, late) for name, late, _ in answers if name]
        control.should_save = control.should_save or answers[0][2]  # ranks' clocks differ; the first one decides
        if not signals:
            return
        self.received = signals[0][0]
        if any(late for _, late in signals) and state.global_step < state.max_steps:
            saved = self.keeper.pace.saved_step
            raise PreemptedError(
                f"stopped by {self.received} after step {state.global_step}, too late to save it; the same command "
                f"continues from {f'step {saved}' if saved else 'the beginning'}"
            )
        self.stopped_at = state.global_step
        control.should_save = True
        control.should_training_stop = True

    def require_finished(self, steps: int) -> None:
        """Raise PreemptedError if the run was stopped before step `steps`."""
        if self.stopped_at is not None and self.stopped_at < steps:
            raise PreemptedError(
                f"stopped by {self.received} after step {self.stopped_at} of {steps}, which is saved; "
                "the same command continues"
            )
