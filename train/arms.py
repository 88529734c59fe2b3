"""An arm of a recipe with everything it takes from the study filled in. The trainers read it and the matching gate
compares it. Needs no torch.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from recipes.errors import UserError
from recipes.layout import run_folder
from recipes.schema import Recipe
from recipes.suggestions import did_you_mean
from recipes.training_schema import MethodSpec, PromptSpec, TrainSpec

Trainer = Literal["sft", "grpo"]
TRAINER_MODULES: dict[Trainer, str] = {"sft": "train.sft", "grpo": "train.grpo"}
"""The modules whose `run` trains an arm."""


class ResolvedArm(MethodSpec, TrainSpec):
    """One arm: its method, its budget and optimizer, and what it takes from the study.

    A setting that is added to `MethodSpec` or `TrainSpec` is a setting of every arm, part of its stage's inputs and
    compared by the matching gate, without a change here.
    """

    prompt: PromptSpec
    """The arm's own prompt, or the study's."""
    problem_set: str
    """Problems that are presented: "all" or "teacher_solvable"."""
    dtype: str
    """Format of the saved weights and of sampling: "float32" or "bfloat16"."""
    attention: str
    """Attention implementation, as transformers names it."""

    @property
    def trainer(self) -> Trainer:
        """What trains this arm: SFT on a teacher's correct completions, GRPO on everything else."""
        return "sft" if self.sampling == "teacher" and self.credit == "uniform" else "grpo"

    @property
    def adapter_rank(self) -> int | None:
        """The rank of LoRA's adapters; None where the weights themselves are trained."""
        return None if self.lora is None else self.lora.rank

    def start_dir(self, study_dir: Path, seed: int) -> Path:
        """Directory of the weights that the run starts from: the base, or the final checkpoint of another arm."""
        if self.start_from is None:
            return study_dir / "base"
        return run_folder(study_dir, self.start_from, seed) / "final"

    def matched_on(self) -> dict[str, Any]:
        """Every setting as JSON values, by name."""
        return self.model_dump(mode="json")

    def weights_dtype_with(self, deepspeed: bool) -> str:
        """Format in which weights are loaded for training: float32, unless DeepSpeed keeps float32 copies itself."""
        return self.dtype if deepspeed else "float32"

    def tokens_per_micro_batch(self, ranks: int) -> int:
        """Most tokens of a micro-batch: those of the recipe, or of `micro_batch_size` rows at the length limits."""
        rows = self.micro_batch_size or max(1, self.problems_per_step * self.completions_per_problem // ranks)
        return self.micro_batch_tokens or rows * (self.prompt.max_prompt_tokens + self.prompt.max_completion_tokens)

    def require_problems(self, available: int) -> None:
        """Raise UserError if a step presents more problems than there are."""
        if available < self.problems_per_step:
            raise UserError(
                f"a step presents train.problems_per_step={self.problems_per_step} problems but the set "
                f"{self.problem_set!r} has only {available}; lower it, or build a larger corpus"
            )

    def snapshot_steps(self) -> list[int]:
        """Steps with a snapshot, evenly spaced in their logarithm; without the last one, which is `final`."""
        count = self.snapshots
        return sorted({round(self.steps ** (index / count)) for index in range(1, count)} - {self.steps})

    @property
    def kept_weights(self) -> int:
        """How often the run leaves its weights: the snapshots and `final`."""
        return len(self.snapshot_steps()) + 1


def overruled(recipe: Recipe, key: str) -> list[str]:
    """The keys of the arms' own values of a setting of `train`, if every arm has one, so that it changes nothing."""
    section, _, setting = key.partition(".")
    own = []
    for name, spec in recipe.trained.items() if section == "train" else ():
        if setting in ("learning_rate", "steps") and getattr(spec, setting) is not None:
            own.append(f"arms.{name}.{setting}")
        elif setting in spec.train:
            own.append(f"arms.{name}.train.{setting}")
    return own if len(own) == len(recipe.trained) else []


def resolve_arm(recipe: Recipe, name: str) -> ResolvedArm:
    """Fill in an arm from its study.

    Raises:
        UserError: the study trains no such arm, or its settings contradict each other.
    """
    if name not in recipe.trained:
        raise UserError(
            f"{name!r} is not an arm that {recipe.study} trains; {did_you_mean(name, recipe.trained, 'those are')}"
        )
    arm, model = recipe.arms[name], recipe.require_model()
    own = {"steps": arm.steps, "learning_rate": arm.learning_rate}
    own = arm.train | {key: value for key, value in own.items() if value is not None}
    train = _own_train(name, recipe.require_train(), own)
    resolved = ResolvedArm(
        **{field: getattr(arm, field) for field in MethodSpec.model_fields},
        **dict(train),
        prompt=arm.prompt or recipe.prompt,
        problem_set=arm.problem_set or recipe.corpus.problem_set,
        dtype=model.dtype,
        attention=model.attention,
    )
    _require_trainable(recipe, name, resolved)
    return resolved


def completions_of_problem(recipe: Recipe, arm: ResolvedArm) -> int:
    """Completions of a problem that a step of an arm learns from, at most.

    `completions_per_problem`, the size of a group. No sample of a teacher is read twice in a step, so not more than the
    teacher has written; for SFT one where `corpus.demonstrations` chooses one.
    """
    teacher = recipe.corpus.teacher
    if arm.sampling != "teacher" or teacher is None:
        return arm.completions_per_problem
    chosen = arm.trainer == "sft" and recipe.corpus.demonstrations != "all"
    return min(1 if chosen else teacher.samples_per_problem, arm.completions_per_problem)


def _own_train(name: str, train: TrainSpec, changes: dict[str, Any]) -> TrainSpec:
    """The study's training settings with the arm's own."""
    if not changes:
        return train
    try:
        return TrainSpec.model_validate(train.model_dump() | changes)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("arms", name, "train", *first["loc"])))
        raise UserError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def _require_trainable(recipe: Recipe, name: str, arm: ResolvedArm) -> None:
    """Raise UserError for settings that are valid alone but not together."""
    for limit in ("max_prompt_tokens", "max_completion_tokens"):
        if getattr(arm.prompt, limit) > getattr(recipe.prompt, limit):
            raise UserError(
                f"arm {name!r}: its own prompt.{limit} is {getattr(arm.prompt, limit)} but the corpus is filtered at "
                f"{getattr(recipe.prompt, limit)}; raise the study's prompt.{limit}"
            )
    if arm.completions_per_problem < 2 and arm.trainer == "grpo":
        raise UserError(f"arm {name!r}: completions_per_problem is 1 but a group needs at least 2")
    if arm.sampling != "teacher" and arm.credit == "uniform" and arm.temperature != 1:
        raise UserError(
            f"arm {name!r}: train.temperature is {arm.temperature} but must be 1; TRL divides the logits by it, so "
            "on-policy SFT would not optimise the likelihood that off-policy SFT does"
        )
    if arm.sampling == "teacher" and arm.trainer == "grpo" and arm.temperature != 1:
        raise UserError(
            f"arm {name!r}: train.temperature is {arm.temperature} but must be 1; TRL divides the logits by it, and "
            "the teacher's samples were not drawn from the policy at that temperature"
        )
    for setting, value in (("steps", arm.steps), ("save_every_steps", arm.save_every_steps)):
        if value % arm.updates_per_batch:  # a run resumed within a batch would sample the rest of it again
            raise UserError(
                f"arm {name!r}: {setting} {value} must be a multiple of updates_per_batch {arm.updates_per_batch}"
            )
    longest = arm.prompt.max_prompt_tokens + arm.prompt.max_completion_tokens
    if arm.micro_batch_tokens is not None and arm.micro_batch_tokens < longest:
        raise UserError(
            f"arm {name!r}: train.micro_batch_tokens is {arm.micro_batch_tokens} but must be at least {longest}, a row "
            "at the length limits (prompt.max_prompt_tokens + prompt.max_completion_tokens)"
        )
    if arm.overlong_tokens >= arm.prompt.max_completion_tokens:
        raise UserError(
            f"train.overlong_tokens is {arm.overlong_tokens} but must be below prompt.max_completion_tokens "
            f"{arm.prompt.max_completion_tokens}"
        )
