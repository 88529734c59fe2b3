"""The kinds of stages, and the plain facts of each in one table.

What is computed for a kind is a `match` that ends with `assert_never`: mypy names each that lacks a new kind.
"""

from dataclasses import dataclass
from typing import Literal, cast, get_args

from train.arms import TRAINER_MODULES

StageKind = Literal[
    "base", "corpus", "arms", "drift", "external", "questions", "trajectory", "eval", "diagnostics", "report"
]
KINDS: tuple[StageKind, ...] = get_args(StageKind)
"""In the order of the stages."""


def kind_of(name: str) -> StageKind:
    """The kind of a stage by its name, of which it is the first part."""
    return cast(StageKind, name.split("/")[0])


@dataclass(frozen=True, kw_only=True)
class KindFacts:
    """What holds for every stage of a kind."""

    modules: tuple[str, ...]
    """Modules whose `run(recipe, study_dir, stage_dir, resume, **arguments)` does the work, one for each stage."""
    writes: str
    """What its folder holds beside manifest.json."""
    uses_attention: bool
    """Whether it loads a model with `model.attention`."""
    samples_with: Literal["corpus.samplers", "trainer", "resources.vllm", "suite.engine", "transformers"] | None
    """What samples. `trainer`: TRL, as `resources.vllm` says. `resources.vllm`: a vLLM in the stage's own process, or
    transformers without that section."""
    gpus_set_by: Literal["resources.ranks", "suite.engine.tensor_parallel"] | None
    """The setting with the number of its GPUs; None: it uses one at most."""
    makes_model: bool = False
    """Whether its folder is the directory of a model that no arm has trained."""
    in_place: bool = False
    """Whether its folder stays when inputs change, because its parts know their own inputs."""
    progress: str | None = None
    """What a job completes piece by piece: one of which two starts completed none is not started again. None: nothing
    that is counted."""


STAGE_KINDS: dict[StageKind, KindFacts] = {
    "base": KindFacts(
        modules=("train.models.prepared_base", "train.models.pocket_base"),
        writes="weights (*.safetensors), config.json, generation_config.json, tokenizer, chat template",
        uses_attention=False, samples_with=None, gpus_set_by=None, makes_model=True,
    ),
    "corpus": KindFacts(
        modules=("data.corpus.build",),
        writes="problems.parquet, demonstrations.parquet, rejects.jsonl, contamination.jsonl, figures.jsonl, "
        "ledger.jsonl, README.md",
        uses_attention=False, samples_with="corpus.samplers", gpus_set_by=None,
    ),
    "arms": KindFacts(
        modules=tuple(TRAINER_MODULES.values()),
        writes="final/, snapshots/, checkpoint-*/ (while it runs), metrics.jsonl, ledger.jsonl",
        uses_attention=True, samples_with="trainer", gpus_set_by="resources.ranks", progress="checkpoint",
    ),
    "drift": KindFacts(
        modules=("train.drift",), writes="drift.jsonl",
        uses_attention=True, samples_with="resources.vllm", gpus_set_by=None,
    ),
    "external": KindFacts(
        modules=("train.models.prepared_base",), writes="as base",
        uses_attention=False, samples_with=None, gpus_set_by=None, makes_model=True,
    ),
    "questions": KindFacts(
        modules=("eval.questions.build",), writes="the questions of every benchmark, fixed",
        uses_attention=False, samples_with=None, gpus_set_by=None,
    ),
    "trajectory": KindFacts(
        modules=("eval.forgetting.trajectory",), writes="scores of every checkpoint on the slice",
        uses_attention=False, samples_with="suite.engine", gpus_set_by="suite.engine.tensor_parallel",
    ),
    "eval": KindFacts(
        modules=("eval.responses.generate",), writes="a folder for each benchmark with every response and its score",
        uses_attention=False, samples_with="suite.engine", gpus_set_by="suite.engine.tensor_parallel",
        in_place=True, progress="response",
    ),
    "diagnostics": KindFacts(
        modules=("eval.shifts.diagnostics",),
        writes="shift-*.json, tokens-*.parquet, draws-*.safetensors, samples-*.json",
        uses_attention=True, samples_with="transformers", gpus_set_by=None,
    ),
    "report": KindFacts(
        modules=("eval.report.build",), writes="transfer.json, index.html, figures/",
        uses_attention=False, samples_with=None, gpus_set_by=None,
    ),
}  # fmt: skip
