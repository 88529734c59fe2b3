"""The study recipe: one YAML file that declares a base model, a corpus, the arms and the evaluation.

What the arms share is stated once, outside `arms`, so that they cannot differ in it by accident. An arm is a
point in the unified loss of arXiv 2507.00432 (v2, Sec. 5):

    L = - E_x E_{y ~ q} [ w(x, y) log pi(y|x) ] + beta * KL(pi || pi_base)

`recipes/loading.py` reads YAML into these classes. `study.json` of a study holds the resolved values.
"""

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, PrivateAttr, field_validator

from recipes.consistency import recipe_checks
from recipes.corpus_schema import CorpusSpec
from recipes.diagnostics_schema import DiagnosticsSpec, TrajectorySpec
from recipes.errors import UserError
from recipes.resource_schema import ResourceSpec, WandbSpec
from recipes.spec import Spec
from recipes.suite_schema import AnalysisSpec, BenchmarkSpec, StatisticsSpec, SuiteSpec
from recipes.training_schema import ArmSpec, DriftSpec, ExternalSpec, PromptSpec, TrainSpec


class PocketModelSpec(Spec):
    """A tiny Qwen3-architecture model, pre-trained from nothing on the synthetic world by the first stage."""

    hidden_size: int = Field(128, ge=16)
    """Width of the residual stream."""
    num_layers: int = Field(3, ge=1)
    """Number of decoder layers."""
    vocab_size: int = Field(640, ge=400)
    """Upper bound of the byte-level BPE vocabulary, special tokens included."""
    documents: int = Field(80000, ge=1)
    """Documents of the pre-training text, for one epoch."""
    batch_size: int = Field(16, ge=1)
    """Rows of 128 tokens per optimizer step; a row holds about four documents."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak of the cosine schedule (5 % warm-up)."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the initial weights and of the pre-training text."""
    save_every_steps: int = Field(200, ge=1)
    """Optimizer steps between resumable checkpoints."""


class ModelSpec(Spec):
    """The base model every arm and the evaluation start from: a local or hub checkpoint, or the pocket model."""

    path: str | None = None
    """Local directory, relative to the recipe's file, or to the working directory if it is not there; or Hugging Face
    model id (safetensors). null: `pocket` is built instead."""
    revision: str | None = None
    """Commit of the hub repository. null for a local directory."""
    pocket: PocketModelSpec | None = None
    """Settings of the pocket model; null when `path` is given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of training arithmetic, saved weights and generation; optimizers keep float32 weights."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Implementation of attention; flash attention needs bfloat16, a GPU and a package (the `flash` extra)."""
    attention_fallback: Literal["sdpa", "eager"] | None = None
    """Used where flash attention is not available; the run records which was used. null: such a run is refused."""
    eos_token: str | None = "<|im_end|>"
    """Token that ends a turn and thus a completion, from the tokenizer's vocabulary. null: the token with which the
    chat template ends a turn, otherwise the tokenizer's."""
    pad_token: str | None = "<|endoftext|>"
    """Padding token, different from `eos_token`; generation also stops at it. null: the tokenizer's, or a special one
    that no text contains."""
    chat_template: str | None = None
    """A template that TRL ships (qwen3, llama3, ...) or a .jinja file. null: the checkpoint's, otherwise qwen3."""

    def checks(self) -> Iterable[Iterator[str]]:
        """That there is one base, with tokens and an attention it can have."""
        return self._one_kind(), self._tokens_differ(), self._attention_fits()

    def _one_kind(self) -> Iterator[str]:
        if self.path is not None and self.pocket is not None:
            yield "`path` and `pocket` are both given; set model.pocket=null or model.path=null"
        if self.path is None and self.pocket is None:
            yield "neither `path` nor `pocket` is given; set model.path to a model, or model.pocket={} for the toy base"

    def _tokens_differ(self) -> Iterator[str]:
        if self.eos_token == self.pad_token and self.eos_token is not None:
            yield f"`eos_token` and `pad_token` are both {self.eos_token!r}; they must differ"

    def _attention_fits(self) -> Iterator[str]:
        if self.attention.startswith("flash") and self.dtype == "float32" and self.attention_fallback is None:
            yield (
                f"`attention` is {self.attention}, which needs bfloat16, and `dtype` is float32; set "
                "model.dtype=bfloat16 or model.attention=sdpa"
            )


Variable = Literal[
    "sampling", "credit", "negatives", "beta", "learning_rate", "reward", "round_steps", "start_from", "strip_thinking",
    "updates_per_batch",
]  # fmt: skip


STUDY_NAME = r"^[a-z0-9][a-z0-9._-]*$"


class Recipe(Spec):
    """A study: one base, one corpus, several arms, one evaluation suite."""

    study: str = Field(pattern=STUDY_NAME)
    """Name of the study and of its folder under `runs/`."""
    title: str = ""
    """One line for the report."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = (0,)
    """Training seeds; every arm runs once per seed."""
    model: ModelSpec | None = None
    """The base model. null: a recipe that only builds a corpus."""
    prompt: PromptSpec = PromptSpec()
    """Prompt and length limits."""
    corpus: CorpusSpec = CorpusSpec()
    """The training corpus. Without `sources` nothing is trained, and all arms are `external`."""
    train: TrainSpec | None = None
    """Budget and optimizer; needed when there are arms."""
    lock: dict[str, Any] = Field(default_factory=dict)
    """Commits and checksums from the `.lock.json` beside the recipe, which `transfer fetch` writes."""
    arms: dict[str, ArmSpec] = Field(default_factory=dict)
    """The training methods by name. An arm set to null is left out."""
    varies: tuple[Variable, ...] = ("sampling", "credit", "negatives", "beta")
    """Settings in which the arms may differ. Any other difference makes the study unmatched."""
    unmatched: Literal["refuse", "stamp"] = "refuse"
    """refuse: an unmatched study does not run. stamp: it runs and its report says UNMATCHED."""
    drift: DriftSpec | None = Field(None, validation_alias=AliasChoices("drift", "probe"))  # `probe`: its earlier name
    """Distance from the base at every checkpoint. null: not measured."""
    diagnostics: DiagnosticsSpec | None = None
    """Representation and token shift of every final model, with a suite. null: not measured."""
    trajectory: TrajectorySpec | None = None
    """Every snapshot of trained arms on a slice of the suite, with a suite. null: not measured."""
    suite: SuiteSpec | None = None
    """The evaluation. null: models are trained and not scored."""
    analysis: AnalysisSpec = AnalysisSpec()
    """Definitions of the report's conclusions, fixed before the evaluation."""
    statistics: StatisticsSpec = StatisticsSpec()
    """How intervals are computed."""
    resources: ResourceSpec = ResourceSpec()
    """Where the study runs."""
    wandb: WandbSpec | None = None
    """Settings of Weights & Biases; giving them turns it on. null: its defaults, if `tracking` names it."""
    _read_from: str | None = PrivateAttr(default=None)
    _fetches_models: bool = PrivateAttr(default=True)
    tracking: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Where metrics are mirrored: one name or a list. tensorboard: event files in each run's folder."""
    rehearsal: bool = False
    """Set by `transfer rehearse`: models are tiny and random, and the study has no results."""

    @field_validator("arms", mode="before")
    @classmethod
    def _leave_out_null_arms(cls, arms: Any) -> Any:
        return {name: arm for name, arm in arms.items() if arm is not None} if isinstance(arms, dict) else arms

    @field_validator("tracking", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value or []

    @property
    def wandb_settings(self) -> WandbSpec | None:
        """Settings of Weights & Biases; None where it is off."""
        return WandbSpec() if self.wandb is None and "wandb" in self.tracking else self.wandb

    def checks(self) -> Iterable[Iterator[str]]:
        """That the sections fit together."""
        return recipe_checks(self)

    def require_model(self) -> ModelSpec:
        """The base model. Raises UserError if there is none."""
        return self._required("model", "give one with `path` or `pocket`")

    def require_train(self) -> TrainSpec:
        """Budget and optimizer. Raises UserError if there are none."""
        return self._required("train", "it is needed to train arms")

    def require_suite(self) -> SuiteSpec:
        """The evaluation suite. Raises UserError if there is none."""
        return self._required("suite", "give one to evaluate models")

    def require_drift(self) -> DriftSpec:
        """The settings of drift. Raises UserError if there are none."""
        return self._required("drift", "give it to measure drift, for instance {}")

    def require_trajectory(self) -> TrajectorySpec:
        """The settings of trajectories. Raises UserError if there are none."""
        return self._required("trajectory", "give it to evaluate every checkpoint, for instance {}")

    def require_diagnostics(self) -> DiagnosticsSpec:
        """The settings of representation and token shift. Raises UserError if there are none."""
        return self._required("diagnostics", "give it to measure shifts, for instance {}")

    def _required(self, section: str, remedy: str) -> Any:
        if getattr(self, section) is None:
            raise UserError(f"recipe {self.study!r} has no `{section}`; {remedy}")
        return getattr(self, section)

    @property
    def with_trajectories(self) -> bool:
        """Whether the study has trajectories: trained arms, a suite and `trajectory`."""
        return self.trajectory is not None and self.suite is not None and bool(self.trained)

    @property
    def with_diagnostics(self) -> bool:
        """Whether the study has diagnostics: arms, a suite and `diagnostics`."""
        return self.diagnostics is not None and self.suite is not None and bool(self.arms)

    @property
    def trained(self) -> dict[str, ArmSpec]:
        """The arms this study trains."""
        return {name: arm for name, arm in self.arms.items() if arm.external is None}

    @property
    def external(self) -> dict[str, ExternalSpec]:
        """The checkpoints trained elsewhere, by the names of their arms."""
        return {name: arm.external for name, arm in self.arms.items() if arm.external is not None}

    def models_read(self) -> list[tuple[str, str | None]]:
        """Path or hub id, and revision, of the models that are loaded: the base, external checkpoints, samplers."""
        models = [(external.path, external.revision) for external in self.external.values()]
        if self.model is not None and self.model.path is not None:
            models.insert(0, (self.model.path, self.model.revision))
        for sampler in self.corpus.samplers.values():
            if sampler.kind == "transformers" and sampler.model != "base":
                models.append((str(sampler.model), sampler.revision))
        return list(dict.fromkeys(models))

    def lock_key(self, path: str | None, revision: str | None) -> str:
        """The name of a model in the lock: with its revision if the recipe names several of one repository."""
        several = sum(other == path for other, _ in self.models_read()) > 1
        return f"{path}@{revision}" if several and revision is not None else str(path)

    @property
    def fetch_command(self) -> str:
        """The command that resolves the hub's datasets and models of this recipe."""
        return f"transfer fetch {shlex.quote(self._read_from) if self._read_from else 'RECIPE'}"

    @property
    def fetches_models(self) -> bool:
        """Whether that command resolves the models too. Those of a command line are in no file."""
        return self._fetches_models

    def read_from(self, path: str, *, with_models: bool = True) -> Self:
        """This recipe, with the file that a command names for it, and whether the file names the models too."""
        self._fetches_models = with_models
        inside = Path(path).is_absolute() and Path(path).is_relative_to(Path.cwd())
        self._read_from = str(Path(path).relative_to(Path.cwd()) if inside else path)
        return self

    def lock_of_model(self, path: str | None, revision: str | None) -> dict[str, Any] | None:
        """The lock's entry of a model; None: it is not resolved."""
        entry: dict[str, Any] | None = self.lock.get("models", {}).get(self.lock_key(path, revision))
        return entry

    def labels(self, arm: str) -> list[str]:
        """Names of an arm's models in the evaluation: one per training seed, or one if it is external."""
        if arm == "base" or arm in self.external:
            return [arm]
        return [f"{arm}-seed{seed}-final" for seed in self.seeds]

    @property
    def all_labels(self) -> list[str]:
        """Names of all models in the evaluation, the base first."""
        return [label for arm in ("base", *self.arms) for label in self.labels(arm)]

    @property
    def benchmarks(self) -> tuple[BenchmarkSpec, ...]:
        """The benchmarks of the suite; none without one."""
        return self.suite.benchmarks if self.suite is not None else ()

    def dump(self) -> dict[str, Any]:
        """The resolved recipe as plain JSON values."""
        return self.model_dump(mode="json")


_LATER_DEFAULTS: tuple[tuple[str, Any], ...] = (
    ("alternatives", []),
    ("dtype", None),
    ("eager", False),
    ("figures", "keep"),
    ("micro_batch_tokens", None),
    ("rehearsal", False),
    ("require_finished", False),
    ("save_every_minutes", 60.0),
    ("tracking", []),
    ("trained_group", "math"),
)


def without_later_defaults(value: Any) -> Any:
    """JSON values of a recipe without the settings of `_LATER_DEFAULTS` that have their default.

    Stages and the analysis lock hash these values, so that a setting added later leaves finished studies valid.
    """
    if isinstance(value, dict):
        return {
            key: without_later_defaults(inner) for key, inner in value.items() if (key, inner) not in _LATER_DEFAULTS
        }
    return [without_later_defaults(inner) for inner in value] if isinstance(value, list) else value
