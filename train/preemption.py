"""Stopping a run on a signal without losing work: at the end of an update, with a checkpoint, on all ranks at once.

Cluster schedulers send SIGTERM or SIGUSR1 some time before they kill. Ranks get it at different moments, so after every
update they ask each other whether anybody has; else one rank would leave and the others wait for it for ever.
"""

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train.ranks import PreemptedError, gathered, noted_signal


class StopOnSignal(TrainerCallback):
    """Ends training with a checkpoint once a rank has received SIGTERM or SIGUSR1 (`ranks.listen` notes them).

    Args:
        updates_per_batch: updates that share a sampling; a checkpoint inside of one would sample the rest of it anew.
    """

    def __init__(self, updates_per_batch: int = 1) -> None:
        self.updates_per_batch = updates_per_batch
        self.received: str | None = None
        self.stopped_at: int | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ask all ranks; save and stop if one was told to."""
        if state.global_step % self.updates_per_batch:
            return
        names = [name for name in gathered([noted_signal()]) if name]
        if names:
            self.received = names[0]
            self.stopped_at = state.global_step
            control.should_save = True
            control.should_training_stop = True

    def require_finished(self, steps: int) -> None:
        """Raise PreemptedError if the run was stopped before update `steps`."""
        if self.stopped_at is not None and self.stopped_at < steps:
            raise PreemptedError(
                f"stopped by {self.received} after update {self.stopped_at} of {steps}, which is saved; "
                "the same command continues"
            )
