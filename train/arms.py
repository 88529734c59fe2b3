"""An arm of a recipe with everything it takes from the study filled in: what the trainers read, and what the
matching gate compares. Needs no torch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from recipes.errors import UserError
from recipes.schema import Recipe
from recipes.training_schema import LoraSpec, PromptSpec, TrainSpec
from train.runtime.ranks import device_arguments, gradient_accumulation_steps, with_deepspeed, world_size


@dataclass(frozen=True)
class ResolvedArm:
    """One arm; the first block is what arms are meant to differ in, the second what they must share."""

    sampling: str
    credit: str
    negatives: bool
    beta: float
    learning_rate: float
    reward: str
    round_steps: int | None
    start_from: str | None
    strip_thinking: bool
    dynamic_sampling: int
    updates_per_batch: int

    prompt: PromptSpec
    problem_set: str
    steps: int
    problems_per_step: int
    completions_per_problem: int
    micro_batch_size: int | None
    """Completions per forward pass of a rank; None: all it has of an update."""
    schedule: str
    warmup_steps: int
    weight_decay: float
    adam_beta2: float
    max_grad_norm: float
    temperature: float
    save_every_steps: int
    save_every_minutes: float
    dtype: str
    loss_normalisation: str
    attention: str
    decay_steps: int
    snapshots: int
    lora: LoraSpec | None
    padding_free: bool
    overlong_tokens: int
    clip_low: float
    clip_high: float
    importance_sampling: str
    importance_clip: float

    @property
    def module(self) -> str:
        """The trainer of this arm: SFT's for uniform weights on a teacher's text, GRPO's for everything else."""
        return "train.sft" if self.sampling == "teacher" and self.credit == "uniform" else "train.grpo"

    def start_dir(self, study_dir: Path, seed: int) -> Path:
        """Where the run's first weights are: the base, or the final checkpoint of another arm."""
        if self.start_from is None:
            return study_dir / "base"
        return study_dir / "arms" / self.start_from / f"seed-{seed}" / "final"

    def matched_on(self) -> dict[str, Any]:
        """Every setting as JSON values."""
        specs = {"prompt": self.prompt.model_dump(mode="json"), "lora": self.lora and self.lora.model_dump(mode="json")}
        return asdict(self) | specs

    @property
    def weights_dtype(self) -> str:
        """Format in which weights are loaded for training: float32, unless DeepSpeed keeps float32 copies itself."""
        return self.weights_dtype_with(with_deepspeed())

    def weights_dtype_with(self, deepspeed: bool) -> str:
        """The same for a run with or without DeepSpeed."""
        return self.dtype if deepspeed else "float32"

    def require_problems(self, available: int) -> None:
        """Raise UserError if an update presents more problems than there are."""
        if available < self.problems_per_step:
            raise UserError(
                f"an update presents train.problems_per_step={self.problems_per_step} problems but the set "
                f"{self.problem_set!r} has only {available}; lower it, or build a larger corpus"
            )

    def snapshot_steps(self) -> list[int]:
        """Updates after which weights are kept, evenly spaced in their logarithm; without the last, which is final."""
        count = self.snapshots
        return sorted({round(self.steps ** (place / count)) for place in range(1, count)} - {self.steps})

    def shared_arguments(self, stage_dir: Path, seed: int, use_cpu: bool) -> dict[str, Any]:
        """The Trainer arguments that both TRL trainers take, identical for every arm."""
        rows = self.problems_per_step * self.completions_per_problem
        micro_batch_size = self.micro_batch_size or max(1, rows // world_size())
        return {
            "output_dir": str(stage_dir),
            "seed": seed,
            "max_steps": self.steps,
            "num_train_epochs": 1,
            "per_device_train_batch_size": micro_batch_size,
            "gradient_accumulation_steps": gradient_accumulation_steps(rows, micro_batch_size),
            "learning_rate": self.learning_rate,
            # transformers' `constant` ignores warm-up.
            "lr_scheduler_type": "constant_with_warmup" if self.schedule == "constant" else self.schedule,
            "lr_scheduler_kwargs": {"num_decay_steps": self.decay_steps} if self.decay_steps else None,
            "warmup_steps": self.warmup_steps,
            "weight_decay": self.weight_decay,
            "adam_beta2": self.adam_beta2,
            "max_grad_norm": self.max_grad_norm,
            "bf16": self.dtype == "bfloat16",
            "gradient_checkpointing": not use_cpu,
            **device_arguments(use_cpu),
            "dataloader_pin_memory": not use_cpu,
            "save_strategy": "steps",
            "save_steps": self.save_every_steps,
            "save_total_limit": 2,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,  # it would show the mean of earlier losses in place of nan
            "disable_tqdm": True,
            "report_to": [],
        }


def _own_train(name: str, train: TrainSpec, changes: dict[str, Any]) -> TrainSpec:
    """The study's training settings with an arm's own."""
    try:
        return TrainSpec.model_validate(train.model_dump() | changes)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("arms", name, "train", *first["loc"])))
        raise UserError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def resolve_arm(recipe: Recipe, name: str) -> ResolvedArm:
    """Fill in an arm from its study.

    Raises:
        UserError: there is no such arm, or its settings do not fit each other.
    """
    if name not in recipe.trained:
        raise UserError(
            f"{name!r} is not an arm that {recipe.study} trains; those are {', '.join(recipe.trained) or 'none'}"
        )
    arm, train, model = recipe.arms[name], recipe.train, recipe.model
    assert train is not None and model is not None and arm.sampling is not None
    own = arm.train | ({"steps": arm.steps} if arm.steps else {})
    if own:
        train = _own_train(name, train, own)
    prompt = arm.prompt or recipe.prompt
    for limit in ("max_prompt_tokens", "max_completion_tokens"):
        if getattr(prompt, limit) > getattr(recipe.prompt, limit):
            raise UserError(
                f"arm {name!r}: its own prompt.{limit} is {getattr(prompt, limit)} but the corpus is filtered at "
                f"{getattr(recipe.prompt, limit)}; raise the study's prompt.{limit}"
            )
    if train.completions_per_problem < 2 and (arm.sampling != "teacher" or arm.credit == "advantage"):
        raise UserError(f"arm {name!r}: completions_per_problem is 1 but a group needs 2 at least")
    if arm.sampling != "teacher" and arm.credit == "uniform" and train.temperature != 1:
        raise UserError(
            f"arm {name!r}: train.temperature is {train.temperature} but must be 1; at another one TRL scales the "
            "log-probabilities, and on-policy SFT would no longer optimise the likelihood that off-policy SFT does"
        )
    for setting, value in (("steps", train.steps), ("save_every_steps", train.save_every_steps)):
        if value % arm.updates_per_batch:  # a checkpoint in the middle would sample the rest of the batch anew
            raise UserError(
                f"arm {name!r}: {setting} {value} must be a multiple of updates_per_batch {arm.updates_per_batch}"
            )
    if train.overlong_tokens >= prompt.max_completion_tokens:
        raise UserError(
            f"train.overlong_tokens is {train.overlong_tokens} but must be below prompt.max_completion_tokens "
            f"{prompt.max_completion_tokens}"
        )
    return ResolvedArm(
        sampling=arm.sampling,
        credit=arm.credit,
        negatives=arm.negatives,
        beta=arm.beta,
        learning_rate=arm.learning_rate or train.learning_rate,
        reward=arm.reward,
        round_steps=arm.round_steps,
        start_from=arm.start_from,
        strip_thinking=arm.strip_thinking,
        dynamic_sampling=arm.dynamic_sampling,
        updates_per_batch=arm.updates_per_batch,
        prompt=prompt,
        problem_set=arm.problem_set or recipe.corpus.problem_set,
        steps=train.steps,
        problems_per_step=train.problems_per_step,
        completions_per_problem=train.completions_per_problem,
        micro_batch_size=train.micro_batch_size,
        schedule=train.schedule,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        adam_beta2=train.adam_beta2,
        max_grad_norm=train.max_grad_norm,
        temperature=train.temperature,
        save_every_steps=train.save_every_steps,
        save_every_minutes=train.save_every_minutes,
        dtype=model.dtype,
        loss_normalisation=train.loss_normalisation,
        attention=model.attention,
        decay_steps=train.decay_steps,
        snapshots=train.snapshots,
        lora=train.lora,
        padding_free=train.padding_free,
        overlong_tokens=train.overlong_tokens,
        clip_low=train.clip_low,
        clip_high=train.clip_high,
        importance_sampling=train.importance_sampling,
        importance_clip=train.importance_clip,
    )
