"""Training in micro-batches by length, under TRL's two trainers: the update is the same, the padding is not computed.

transformers asks the trainer for one batch a step, all rows of this rank (`gradient_accumulation_steps` is 1), and
`compute_loss` runs forward and backward for all its micro-batches but the last, whose backward transformers runs. So
the number of micro-batches may differ from step to step. Gradients are exchanged between ranks with the last one,
as in transformers' own accumulation.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from transformers import Trainer

from train.arms import ResolvedArm
from train.micro_batches import Work, micro_batches, split_to
from train.runtime.ranks import gathered, world_size
from train.runtime.throughput import StepClock, device_peak, throughput

Batch = dict[str, Any]
"""Rows of a step, or of a micro-batch, on this rank: tensors by TRL's names.

SFT:
    input_ids, attention_mask, labels: [rows, tokens]; a label of -100 has no loss. The micro-batches of `padding_free`
        are one row, [1, tokens], with position_ids in place of attention_mask.

GRPO:
    prompt_ids, prompt_mask: [rows, prompt tokens], padded on the left.
    completion_ids, completion_mask: [rows, completion tokens], padded on the right; the mask is 0 for completions that
        the loss leaves out.
    advantages: [rows], the weights of `train/weights.py`.
    row_tokens: [rows], prompt and completion; 0 for surplus rows.
    num_items_in_batch: [], what the loss is divided by.
    old_per_token_logps, ref_per_token_logps, sampling_per_token_logps: [rows, completion tokens], where TRL needs them.
    importance_sampling_ratio: the same, or [rows, 1] where it is that of whole completions.
"""
IDLE_TOKENS = 2
"""Tokens that a rank without rows reads, to stay in step with the others; the fewest that predict one."""


class OwnRank:
    """An accelerator whose collectives return what they are given: TRL's metrics of a micro-batch, of this rank alone.

    TRL exchanges about six numbers between the ranks for every micro-batch. Here they are exchanged once a step,
    weighted by the tokens of each micro-batch.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, tensor: torch.Tensor, *unused: Any, **also_unused: Any) -> torch.Tensor:
        """The tensor itself."""
        return tensor

    gather_for_metrics = reduce = gather


class TokenBudgetTrainer(Trainer):
    """What both trainers share. A subclass says which rows a step has and how a micro-batch of them looks.

    Attributes:
        arm: gives the limit of tokens.
        clock: of the step.
        on_work: called once a step with the tokens that all ranks computed, if set.
    """

    arm: ResolvedArm
    accelerator: Any
    on_work: Callable[[Work], None] | None = None
    _work = Work()
    _tr_loss: torch.Tensor  # transformers': the sum of the losses that are not logged yet, one step's
    _norm: Any = None

    def __init__(self, *args: Any, arm: ResolvedArm, **kwargs: Any) -> None:
        self.arm, self.clock = arm, StepClock()
        super().__init__(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: TRL would write a card at every checkpoint that does not know the study; `transfer push` has one."""

    def rows_of(self, inputs: Batch) -> tuple[list[int], list[bool]]:
        """Tokens of each row of a step, prompt included, and whether its gradient is needed."""
        raise NotImplementedError

    def micro_batch(self, inputs: Batch, rows: Sequence[int]) -> Batch:
        """The micro-batch of these rows; of none, the first `IDLE_TOKENS` tokens of some row, without a loss."""
        raise NotImplementedError

    def trained_tokens(self, inputs: Batch) -> int:
        """Tokens of a micro-batch that the loss counts, by which its metrics are weighted."""
        raise NotImplementedError

    @property
    def joins_rows(self) -> bool:
        """Whether the rows of a micro-batch are concatenated into one sequence."""
        return self.arm.padding_free

    def deal(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows of each micro-batch; as many micro-batches on every rank, at least one."""
        own = micro_batches(lengths, self.arm.tokens_per_micro_batch(world_size()), self.joins_rows)
        return split_to(own, max(1, *gathered([len(own)])))

    def compute_loss(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        """The loss of a step. Its value is of all micro-batches, its graph of the last one; the others' gradients
        are already added up.
        """
        if not self.model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        lengths, needed = self.rows_of(inputs)
        chosen = [index for index, need in enumerate(needed) if need]
        dealt = [[chosen[index] for index in rows] for rows in self.deal([lengths[index] for index in chosen])]
        self._report_work(lengths, dealt)
        accelerator, total = self.accelerator, 0.0
        # As transformers calls it: the loss is divided already.
        backward = partial(accelerator.backward, **({"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}))
        with self._own_metrics() as note:
            for position, rows in enumerate(dealt):
                part, last = self.micro_batch(inputs, rows), position == len(dealt) - 1
                with contextlib.nullcontext() if last else self._without_exchange(model, accelerator):
                    tokens = self.trained_tokens(part)
                    loss = super().compute_loss(model, part, *args, **kwargs)
                    note(tokens)
                    if not last:
                        backward(loss)
                        total = total + loss.detach()
        return loss + total

    @contextlib.contextmanager
    def _without_exchange(self, model: Any, accelerator: Any) -> Iterator[None]:
        """Context of a micro-batch that is not the last of its step."""
        accelerator.gradient_state._set_sync_gradients(False)
        # DeepSpeed has no such context; accelerate tells it from `sync_gradients` whether a step ends.
        with contextlib.nullcontext() if self.is_deepspeed_enabled else accelerator.no_sync(model=model):
            yield
        accelerator.gradient_state._set_sync_gradients(True)

    @contextlib.contextmanager
    def _own_metrics(self) -> Iterator[Callable[[int], None]]:
        """Context that collects TRL's metrics of the micro-batches and logs one value of each for the step.

        Means are weighted by the tokens of the micro-batches of all ranks; TRL takes the mean of their means.
        """
        logged, accelerator = self._metrics["train"], self.accelerator
        seen: list[tuple[int, dict[str, list[float]]]] = []

        def note(tokens: int) -> None:
            seen.append((tokens, self._metrics["train"]))
            self._metrics["train"] = defaultdict(list)

        self._metrics["train"], self.accelerator = defaultdict(list), OwnRank(accelerator)
        try:
            yield note
        finally:
            self._metrics["train"], self.accelerator = logged, accelerator
        for name, value in merged(gathered(seen)).items():
            logged[name].append(value)

    def _report_work(self, lengths: Sequence[int], dealt: list[list[int]]) -> None:
        """Add up the work of all ranks."""
        computed = needed = squares = 0
        for rows in dealt:
            tokens = [lengths[index] for index in rows]
            needed += sum(tokens)
            squares += sum(count * count for count in tokens)
            read = tokens or [IDLE_TOKENS]
            computed += sum(read) if self.joins_rows else len(read) * max(read)
        own = Work(computed, computed - needed, sum(lengths) - needed, squares)
        self._work = Work(*map(sum, zip(*gathered([own]), strict=True)))
        if self.on_work is not None:
            self.on_work(self._work)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Transformers' training step, timed until `log`."""
        self.clock.begin()
        return super().training_step(*args, **kwargs)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self._norm = super()._get_grad_norm(*args, **kwargs)
        return self._norm

    def is_finite(self) -> bool:
        """Whether loss and gradient norm of the step are finite on every rank; all ranks must ask."""
        values = [self._tr_loss] if self._norm is None else [self._tr_loss, self._norm]
        return all(gathered([math.isfinite(float(value)) for value in values]))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log a step's metrics with those of `throughput`."""
        if seconds := self.clock.end():
            peak = device_peak(self.arm.dtype)
            logs |= throughput(seconds, self._work, self.model.config, world_size(), peak)
        super().log(logs, *args, **kwargs)


def merged(seen: Sequence[tuple[int, dict[str, list[float]]]]) -> dict[str, float]:
    """One value of each metric from those of micro-batches, each with the number of its tokens.

    Names that end in `_min` and `_max` are extremes, all others means over tokens. nan is left out.
    """
    counted: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for tokens, metrics in seen:
        for name, entries in metrics.items():
            if present := [(tokens, value) for value in entries if tokens > 0 and not math.isnan(value)]:
                counted[name] += present

    def merge(name: str, pairs: list[tuple[int, float]]) -> float:
        if name.endswith(("_min", "_max")):
            return (min if name.endswith("_min") else max)(value for _, value in pairs)
        return sum(tokens * value for tokens, value in pairs) / sum(tokens for tokens, _ in pairs)

    return {name: merge(name, pairs) for name, pairs in counted.items()}
