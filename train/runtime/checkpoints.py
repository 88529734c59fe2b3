"""Which checkpoint a killed run may resume from.

The Trainer writes a checkpoint file by file, so a kill can leave an incomplete one, which transformers would resume
from. Here a checkpoint counts only if it holds a marker, which is written last.
"""

import shutil
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from recipes.files import write_atomic
from train.runtime.ranks import barrier, rank

_MARKER = "COMPLETE"


class Checkpoint(NamedTuple):
    """A resumable checkpoint."""

    path: Path
    step: int


class CheckpointMarker(TrainerCallback):
    """Marks each checkpoint once all ranks have finished writing it."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Save as often as the recipe says now; transformers takes over what the resumed checkpoint says."""
        state.compute_steps(args, state.max_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Write the marker into the checkpoint of this step."""
        barrier()  # each rank writes its random state and, under ZeRO, its part of the optimizer's
        if state.is_world_process_zero:
            write_atomic(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / _MARKER, "")


@cache
def accept_indexed_cpu() -> None:
    """Let `torch.load` restore tensors to devices such as `cpu:1`.

    Without DeepSpeed, the Trainer loads the optimizer to its own device, which on a CPU is `cpu:<local rank>`. torch
    knows only `cpu`, and ends with "don't know how to restore data location".
    """

    def deserialize(storage: Any, location: str) -> Any:
        return storage if location.startswith("cpu:") else None

    torch.serialization.register_package(100, lambda storage: None, deserialize)  # after torch's own


def keep_complete_checkpoints(directory: Path) -> Checkpoint | None:
    """Delete incomplete checkpoints; returns the newest complete one, or None to start from the beginning."""
    if rank() != 0:
        barrier()  # until the first rank has deleted them
    complete = []
    for path in directory.glob("checkpoint-*"):
        if (path / _MARKER).exists():
            complete.append(Checkpoint(path, int(path.name.rpartition("-")[2])))
        elif rank() == 0:
            shutil.rmtree(path)
    if rank() == 0:
        barrier()
    return max(complete, key=lambda checkpoint: checkpoint.step, default=None)


def remove_checkpoints(directory: Path) -> None:
    """Delete the resumable checkpoints of a finished run."""
    for path in directory.glob("checkpoint-*"):
        shutil.rmtree(path)
