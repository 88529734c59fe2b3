"""The sections of a recipe about training: the prompt, the budget and optimizer, the arms, drift."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from recipes.spec import Spec


class PromptSpec(Spec):
    """How a problem becomes the text the model continues, and the length limits. The same for all arms."""

    system: str | None = None
    """System message. null: none."""
    suffix: str = ""
    """Text after every corpus problem, for instance a request for a boxed answer. In the questions of benchmarks it
    stands where the task file has `{{suffix}}`, as the shipped ones scored `boxed` or `plain` have."""
    thinking: bool | None = None
    """Thinking mode of the chat template. null: the template's default; false: Qwen3 puts an empty thinking block into
    the prompt."""
    max_prompt_tokens: int = Field(512, ge=1)
    """Longest rendered prompt, in tokens; problems with a longer one are rejected for every arm."""
    max_completion_tokens: int = Field(512, ge=1)
    """Longest completion that is trained on or sampled, in tokens, end-of-turn token included."""


class LoraSpec(Spec):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on all linear layers, instead of training every weight."""

    rank: int = Field(32, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(64, ge=1)
    """Scale of the adapters: their output is multiplied by alpha / rank."""


class TrainSpec(Spec):
    """Budget and optimizer, the same for all arms (learning rates may differ if the study `varies` them)."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    problems_per_step: int = Field(ge=1)
    """Problems presented per optimizer step."""
    completions_per_problem: int = Field(8, ge=1)
    """Completions per presented problem: GRPO's group size (at least 2), and the most demonstrations SFT trains on."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Completions per forward and backward pass if all are as long as the limits allow; shorter ones are grouped up to
    the same number of tokens. null: a whole step."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Most tokens per forward and backward pass, prompts and padding included. null: those of `micro_batch_size` rows
    at the length limits. It decides memory and speed; results differ by rounding."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of arms that do not set their own."""
    schedule: Literal["constant", "linear", "cosine", "warmup_stable_decay"] = "constant"
    """Learning-rate schedule after warm-up. warmup_stable_decay: constant until the last `decay_steps` steps."""
    decay_steps: int = Field(0, ge=0)
    """Optimizer steps at the end in which warmup_stable_decay falls to zero."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps of linear warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay."""
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """AdamW second-moment decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping threshold (L2)."""
    loss_normalisation: Literal["weighted_tokens", "all_tokens"] = "weighted_tokens"
    """Denominator of the loss of a step: its completion tokens with nonzero weight, as in SFT, or all its completion
    tokens, as in TRL, where groups without weight make the update smaller."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature during training."""
    save_every_steps: int = Field(50, ge=1)
    """Optimizer steps between resumable checkpoints, of which the newest two are kept."""
    save_every_minutes: float = Field(60.0, gt=0)
    """A checkpoint is also written after the first step that ends this long after the last one, so that a crash costs
    at most this time and a step."""
    snapshots: int = Field(0, ge=0)
    """Number of snapshots (weights only), evenly spaced in the logarithm of the step; the last one is `final`."""
    lora: LoraSpec | None = None
    """Train adapters and merge them into the saved weights. null: train every weight."""
    padding_free: bool = False
    """Concatenate the rows of a micro-batch without padding, with no attention between rows."""
    overlong_tokens: int = Field(0, ge=0)
    """Soft overlong punishment (DAPO, arXiv 2503.14476, Eq. 13): the reward falls by up to 1 over this many tokens
    before the length limit. 0: off."""
    require_finished: bool = False
    """Whether a completion that reached the length limit without an end has a reward of 0, before that punishment, also
    if its answer is right. A teacher's samples that did not finish are never trained on."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """Lower clip of the importance ratio, 1 - clip_low, where several steps share a sampling."""
    clip_high: float = Field(0.2, gt=0)
    """Upper clip, 1 + clip_high."""
    importance_sampling: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "off"] = (
        "token_truncate"
    )
    """With vLLM: importance weights for the sampler/trainer mismatch. The sequence modes multiply the ratios of all
    tokens, which gives long completions almost no weight."""
    importance_clip: float = Field(2.0, gt=1)
    """Largest importance ratio of the sampler/trainer mismatch."""

    def checks(self) -> Iterable[Iterator[str]]:
        """That the schedule fits the steps and the snapshots."""
        return self._schedule_fits(), self._steps_fit(), self._snapshots_fit()

    def _schedule_fits(self) -> Iterator[str]:
        if self.schedule == "warmup_stable_decay" and not self.decay_steps:
            yield "`schedule: warmup_stable_decay` needs `decay_steps` above 0"
        if self.decay_steps and self.schedule != "warmup_stable_decay":
            yield f"`decay_steps` belongs to `schedule: warmup_stable_decay`, not to {self.schedule}"

    def _steps_fit(self) -> Iterator[str]:
        if self.decay_steps and self.warmup_steps + self.decay_steps > self.steps:
            yield (
                f"warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} are more than the "
                f"{self.steps} steps"
            )

    def _snapshots_fit(self) -> Iterator[str]:
        if self.snapshots and self.schedule not in ("constant", "warmup_stable_decay"):
            yield (
                f"`snapshots` need `schedule: constant` or `warmup_stable_decay`: a checkpoint in the middle of a "
                f"{self.schedule} schedule is not a shorter run"
            )


class ExternalSpec(Spec):
    """A checkpoint that was trained elsewhere."""

    path: str
    """Local directory or Hugging Face model id (safetensors)."""
    revision: str | None = None
    """Commit of the hub repository. null: the newest when `transfer fetch` runs; the lock then pins it."""
    eos_token: str | None = None
    """Token that ends a turn. null: the one with which its chat template does, otherwise the tokenizer's."""
    pad_token: str | None = None
    """Token for padding. null: the tokenizer's own, or, if that is `eos_token`, a special one that no text contains."""
    chat_template: str | None = None
    """A template that TRL ships, or a .jinja file. null: the checkpoint's, otherwise that of the base."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class MethodSpec(Spec):
    """A training method: who writes the completions, how they are weighted, and the KL term towards the base."""

    sampling: Literal["teacher", "base_once", "round", "current"] | None = None
    """Who writes the completions: a teacher, the base model once, the policy once per round, or the current policy
    (on-policy)."""
    credit: Literal["uniform", "advantage"] = "uniform"
    """How rewards become weights: 1 for every correct completion, or GRPO's group-normalised advantage."""
    negatives: bool = False
    """Whether completions below the group's mean reward get a negative weight; false: 0. Needs `credit: advantage`."""
    beta: float = Field(0.0, ge=0)
    """Coefficient of the KL term towards the base model. 0: no KL term and no reference model."""
    reward: Literal["correct", "random", "format"] = "correct"
    """The reward. Negative controls: random (a coin flip) and format (a final answer in the required form, right or
    wrong)."""
    round_steps: int | None = Field(None, ge=1)
    """Optimizer steps between resamplings, for `sampling: round`. null for the others."""
    start_from: str | None = None
    """Name of the arm whose final checkpoint this one starts from. null: the base model."""
    strip_thinking: bool = False
    """Whether the thinking is removed from a teacher's completions: one of the two interpretations of no-think SFT."""
    dynamic_sampling: int = Field(0, ge=0)
    """DAPO's dynamic sampling: groups whose completions all have the same reward are replaced by groups of other
    problems, from at most this many further batches per step. 0: off. Makes the study unmatched, because samples then
    decide which problems are presented."""
    updates_per_batch: int = Field(1, ge=1)
    """Optimizer steps that share one sampling, which then covers the problems of all of them. Above 1 the samples are
    slightly off-policy, which the clipped importance ratio corrects."""

    def checks(self) -> Iterable[Iterator[str]]:
        """That the settings are a method."""
        return (
            self._negatives_have_a_sign(),
            self._round_has_steps(),
            self._sft_has_no_rewards(),
            self._sft_has_no_kl(),
            self._dynamic_sampling_fits(),
            self._updates_fit(),
            self._thinking_is_a_teachers(),
            self._kl_is_to_the_base(),
        )

    def _negatives_have_a_sign(self) -> Iterator[str]:
        if self.negatives and self.credit == "uniform":
            yield "`negatives: true` needs `credit: advantage`; uniform weights are never negative"

    def _round_has_steps(self) -> Iterator[str]:
        if (self.sampling == "round") != (self.round_steps is not None):
            yield "`sampling: round` and `round_steps` belong together"

    def _sft_has_no_rewards(self) -> Iterator[str]:
        if self.sampling == "teacher" and self.credit == "uniform" and self.reward != "correct":
            yield "`reward` needs an arm with rewards; SFT on a teacher trains on the correct samples"

    def _sft_has_no_kl(self) -> Iterator[str]:
        if self.sampling == "teacher" and self.credit == "uniform" and self.beta > 0:
            yield "`beta` above 0 needs samples or `credit: advantage`; SFT on a teacher has no KL term"

    def _dynamic_sampling_fits(self) -> Iterator[str]:
        fits = self.sampling == "current" and self.credit == "advantage" and self.reward != "random"
        if self.dynamic_sampling and not fits:
            yield "`dynamic_sampling` needs `sampling: current`, `credit: advantage` and a reward other than `random`"

    def _updates_fit(self) -> Iterator[str]:
        if self.updates_per_batch > 1 and (self.sampling != "current" or self.dynamic_sampling):
            yield "`updates_per_batch` above 1 needs `sampling: current` without `dynamic_sampling`"

    def _thinking_is_a_teachers(self) -> Iterator[str]:
        if self.strip_thinking and self.sampling != "teacher":
            yield "`strip_thinking` needs `sampling: teacher`"

    def _kl_is_to_the_base(self) -> Iterator[str]:
        if self.start_from is not None and self.beta > 0:
            yield "`start_from` excludes `beta` above 0: the KL term would be towards the arm it starts from"


class ArmSpec(MethodSpec):
    """An arm of a study: a training method or an external checkpoint, and settings that differ from the study's."""

    external: ExternalSpec | None = None
    """A checkpoint that was trained elsewhere, or only its path. It is scored like the others; it has no lineage."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate. null: `train.learning_rate`."""
    prompt: PromptSpec | None = None
    """This arm's own prompt. null: the study's. Makes the study unmatched."""
    problem_set: Literal["all", "teacher_solvable"] | None = None
    """This arm's own problem set. null: the corpus's. Makes the study unmatched."""
    steps: int | None = Field(None, ge=1)
    """This arm's own number of optimizer steps. null: `train.steps`. Makes the study unmatched."""
    train: dict[str, Any] = Field(default_factory=dict)
    """This arm's own values of other `train` settings, for instance {schedule: cosine}. Makes the study unmatched."""

    def checks(self) -> Iterable[Iterator[str]]:
        """Those of its method, and that it has one or was trained elsewhere."""
        return (*super().checks(), self._trained_or_external())

    def _trained_or_external(self) -> Iterator[str]:
        if (self.sampling is None) == (self.external is None):
            yield "an arm needs either `sampling` or `external`"


class DriftSpec(Spec):
    """Drift: KL between every checkpoint and the base, on held-out problems of the corpus."""

    problems: int = Field(64, ge=1)
    """Held-out problems that each checkpoint answers once, at temperature 1."""
    batch_size: int = Field(32, ge=1)
    """Completions generated at once. Changes the samples, because random numbers are drawn per batch."""
    seed: int = Field(0, ge=0)
    """Seed of the completions."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format in which both models are loaded; null: `model.dtype`. In bfloat16 rounding alone is a KL of about
    2e-3 nats a token; `rounding_kl` of `drift/base` is what it is for the base."""
