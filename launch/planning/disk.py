"""Disk of a study at its fullest, and how many stages run at the same time. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from eval.questions.suite_size import evaluation_responses
from launch.hardware import CPU_STAGES, gpus_wanted
from launch.planning.analysis_plan import diagnostics_plan
from launch.site_file import SiteSpec
from launch.stage_kinds import StageKind
from launch.stages import Stage
from recipes.schema import Recipe
from train.accounting.cost import ModelShape, bytes_per_weight
from train.accounting.memory import checkpoint_bytes
from train.arms import resolve_arm

_BYTES_PER_TOKEN = 5  # of text, before compression


@dataclass(frozen=True)
class Disk:
    """Bytes of a study at its fullest, by what takes them."""

    base: int
    corpus: int
    runs: int
    """Snapshots and final weights of all runs: what stays."""
    while_training: int
    """Resumable checkpoints of the runs that train at the same time."""
    responses: int
    while_diagnosing: int
    """Hidden states of the models that are diagnosed at the same time."""
    runs_at_once: int
    models_at_once: int
    """That are diagnosed at the same time."""

    @property
    def total(self) -> int:
        """At the fullest moment; checkpoints are gone when diagnostics begin."""
        kept = self.base + self.corpus + self.runs + self.responses
        return kept + max(self.while_training, self.while_diagnosing)


def disk_needed(
    recipe: Recipe, shape: ModelShape | None, waiting: Sequence[Stage], gpus: int, site: SiteSpec | None = None
) -> Disk | None:
    """What stages that are not done will write, at most; None for an unknown model.

    On the cluster of `site` whole arrays run at the same time; on this machine as many stages as its `gpus` allow.
    """
    if shape is None or recipe.model is None:
        return None
    weights = shape.parameters() * bytes_per_weight(recipe)
    base = corpus = kept = evaluated = diagnosed = 0
    temporary = []
    for stage in waiting:
        match stage.kind:
            case "base" | "external":
                base += weights
            case "corpus":
                for sampler in recipe.corpus.samplers.values():
                    limit = sampler.max_completion_tokens or recipe.prompt.max_completion_tokens
                    texts = (recipe.corpus.train_problems or 0) * sampler.samples_per_problem
                    corpus += texts * limit * _BYTES_PER_TOKEN
            case "arms":
                arm = resolve_arm(recipe, stage.arm)
                kept += arm.kept_weights * weights
                temporary.append(checkpoint_bytes(shape, 0, arm.dtype == "bfloat16", arm.adapter_rank))
            case "eval":
                evaluated += 1
            case "diagnostics":
                diagnosed += 1
            case "drift" | "questions" | "trajectory" | "report":
                pass  # small beside the rest
            case _:
                assert_never(stage.kind)
    responses = 0
    if recipe.suite is not None:
        count = evaluation_responses(recipe, evaluated) or 0
        responses = count * recipe.suite.max_response_tokens * _BYTES_PER_TOKEN
    diagnosis = diagnostics_plan(recipe, shape) if diagnosed else None
    of_one_diagnosis = diagnosis.disk_bytes or 0 if diagnosis is not None else 0
    runs_at_once = side_by_side(recipe, "arms", gpus, site, len(temporary))
    models_at_once = side_by_side(recipe, "diagnostics", gpus, site, diagnosed)
    return Disk(
        base=base,
        corpus=corpus,
        runs=kept,
        while_training=sum(sorted(temporary)[-runs_at_once:]),
        responses=responses,
        while_diagnosing=of_one_diagnosis * models_at_once,
        runs_at_once=runs_at_once,
        models_at_once=models_at_once,
    )


def side_by_side(recipe: Recipe, kind: StageKind, gpus: int, site: SiteSpec | None, count: int) -> int:
    """Stages of a kind that run at the same time: on `gpus` GPUs (0: a CPU), or as tasks of arrays, one an arm."""
    if site is not None:
        seeds = len(recipe.seeds)
        arrays = -(-count // seeds)
        return max(1, min(count, arrays * min(seeds, site.max_running or seeds)))
    wanted, workers = gpus_wanted(recipe, kind), recipe.resources.workers
    slots = gpus // wanted if gpus and wanted else workers or CPU_STAGES
    return max(1, min(count, slots, workers or slots))


def gpus_of_node(recipe: Recipe, site: SiteSpec | None, gpus: Sequence[str]) -> int:
    """GPUs of the machine that a plan is for; 0: none."""
    if site is not None:
        return site.gpus_per_node
    training = recipe.resources.ranks // recipe.resources.nodes
    return len(gpus) or (training if recipe.resources.gpu is not None else 0)
