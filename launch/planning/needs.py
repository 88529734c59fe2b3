"""What the stages of a study need: disk in all, and hours of each and of the whole. Needs no torch.

Hours rest on the rates that the plan assumes and on `resources.expected_completion_tokens`; they are for comparing with
limits, not promises. None stands for what nobody can know yet, such as an unknown model or uncounted questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from eval.questions.suite_size import evaluation_responses
from launch.hardware import CPU_STAGES, gpus_wanted
from launch.planning.analysis_plan import diagnostics_plan, trajectory_plan
from launch.planning.preflight import completions_of_problem
from launch.site_file import SiteSpec
from launch.stages import Stage
from recipes.manifest import read_manifest
from recipes.schema import Recipe
from train.accounting.cost import GPUS, ModelShape, checkpoint_bytes, generation_hours, run_hours
from train.accounting.matching import attention_of
from train.arms import resolve_arm

_BYTES_PER_TOKEN = 5  # of text, before compression
_START_HOURS = 0.25  # a job on a cluster: importing, loading, compiling kernels
_WRITE_BYTES_PER_SECOND = 1e9  # of a checkpoint, by all ranks together; assumed, a slow one for a parallel file system


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

    @property
    def total(self) -> int:
        """At the fullest moment; checkpoints are gone when diagnostics begin."""
        kept = self.base + self.corpus + self.runs + self.responses
        return kept + max(self.while_training, self.while_diagnosing)


def disk_needed(
    recipe: Recipe, shape: ModelShape | None, waiting: Sequence[Stage], gpus: int, site: SiteSpec | None = None
) -> Disk | None:
    """What stages that are not done will write, at most; None for an unknown model.

    Args:
        recipe: of the study.
        shape: of its model.
        waiting: the stages.
        gpus: of this machine, which decide how many run at the same time.
        site: the cluster it runs on, where whole arrays run at the same time; None: this machine.
    """
    if shape is None or recipe.model is None:
        return None
    kinds = [stage.kind for stage in waiting]
    weights = shape.parameters() * (2 if recipe.model.dtype == "bfloat16" else 4)
    kept, temporary = 0, []
    for stage in waiting:
        if stage.kind == "arms":
            arm = resolve_arm(recipe, str(stage.arguments["arm"]))
            stays = (arm.snapshots + 1) * weights
            kept += stays
            temporary.append(checkpoint_bytes(shape, arm.snapshots, arm.dtype == "bfloat16") - stays)
    corpus = 0
    if "corpus" in kinds:
        samplers = [recipe.corpus.teacher, recipe.corpus.pass_rate.sampler if recipe.corpus.pass_rate else None]
        problems = recipe.corpus.train_problems or 0
        for sampler in samplers:
            if sampler is not None:
                limit = sampler.max_completion_tokens or recipe.prompt.max_completion_tokens
                corpus += problems * sampler.samples_per_problem * limit * _BYTES_PER_TOKEN
    responses = 0
    if recipe.suite is not None:
        asked = evaluation_responses(recipe, kinds.count("eval")) or 0
        responses = asked * response_tokens(recipe) * _BYTES_PER_TOKEN
    diagnosed = diagnostics_plan(recipe, shape) if "diagnostics" in kinds else None
    each = (diagnosed or {}).get("disk_bytes") or 0
    return Disk(
        base=weights * (kinds.count("base") + kinds.count("external")),
        corpus=corpus,
        runs=kept,
        while_training=sum(sorted(temporary)[-side_by_side(recipe, "arms", gpus, site, len(temporary)) :]),
        responses=responses,
        while_diagnosing=each * side_by_side(recipe, "diagnostics", gpus, site, kinds.count("diagnostics")),
    )


def side_by_side(recipe: Recipe, kind: str, gpus: int, site: SiteSpec | None, count: int) -> int:
    """Stages of a kind that run at the same time: on `gpus` GPUs (0: a CPU), or as tasks of arrays, one an arm."""
    if site is not None:
        seeds = len(recipe.seeds)
        arrays = -(-count // seeds)
        return max(1, min(count, arrays * min(seeds, site.max_running or seeds)))
    wanted, workers = gpus_wanted(recipe, kind), recipe.resources.workers
    places = gpus // wanted if gpus and wanted else workers or CPU_STAGES
    return max(1, min(count, places, workers or places))


def response_tokens(recipe: Recipe) -> int:
    """Tokens of a response that hours and bytes assume."""
    assert recipe.suite is not None
    return min(recipe.suite.max_response_tokens, recipe.resources.expected_completion_tokens or 1 << 60)


def gpu_hours_of_run(recipe: Recipe, name: str, shape: ModelShape | None) -> float | None:
    """GPU-hours of one run of an arm at the assumed rates; None for an unknown model or GPU."""
    if shape is None or recipe.resources.gpu is None:
        return None
    arm = resolve_arm(recipe, name)
    completions = arm.steps * arm.problems_per_step * completions_of_problem(recipe, arm)
    length = min(arm.prompt.max_completion_tokens, recipe.resources.expected_completion_tokens or 1 << 60)
    prompts = completions * arm.prompt.max_prompt_tokens // 4  # limits are rarely reached
    gpu, sampled = GPUS[recipe.resources.gpu], arm.sampling != "teacher"
    return run_hours(shape, gpu, prompts, completions * length, length, sampled, arm.beta > 0)


def stage_hours(recipe: Recipe, stage: Stage, shape: ModelShape | None) -> float | None:
    """Hours of one stage on the GPUs it gets; None where they are not known."""
    if shape is None or recipe.resources.gpu is None:
        return None
    gpu, wanted = GPUS[recipe.resources.gpu], max(1, gpus_wanted(recipe, stage.kind))
    if stage.kind == "arms":
        hours = gpu_hours_of_run(recipe, str(stage.arguments["arm"]), shape)
        return None if hours is None else hours / recipe.resources.ranks
    if stage.kind == "eval":
        responses = evaluation_responses(recipe, 1)
        if responses is None:
            return None
        return generation_hours(shape, gpu, responses, response_tokens(recipe)) / wanted
    if stage.kind == "trajectory":
        plan = trajectory_plan(recipe, shape)
        if plan is None or plan["gpu_hours"] is None:
            return None
        models = len(resolve_arm(recipe, stage.arguments["arm"]).snapshot_steps()) + 1 if stage.arguments else 1
        return float(plan["gpu_hours"]) * models / plan["checkpoints"] / wanted
    if stage.kind == "diagnostics":
        plan = diagnostics_plan(recipe, shape)
        return None if plan is None or plan["gpu_hours"] is None else float(plan["gpu_hours"]) / plan["models"]
    if stage.kind == "drift" and recipe.probe is not None:
        models = len(resolve_arm(recipe, stage.arguments["arm"]).snapshot_steps()) + 1 if stage.arguments else 1
        length = min(recipe.prompt.max_completion_tokens, recipe.resources.expected_completion_tokens or 1 << 60)
        return generation_hours(shape, gpu, models * recipe.probe.problems, length) / wanted
    return None


def wall_clock(recipe: Recipe, stages: Sequence[Stage], shape: ModelShape | None, gpus: int) -> dict[str, float]:
    """Hours of each phase on one machine with `gpus` GPUs: training first, then everything else side by side."""
    hours = {stage.name: stage_hours(recipe, stage, shape) for stage in stages}
    found: dict[str, float] = {}
    phases = {"training": ("arms",), "measuring": ("drift", "trajectory", "eval", "diagnostics")}
    for phase, kinds in phases.items():
        known = [(hours[stage.name], gpus_wanted(recipe, stage.kind)) for stage in stages if stage.kind in kinds]
        rows = sorted(((spent, wanted) for spent, wanted in known if spent is not None), reverse=True)
        if not rows or gpus < 1:
            continue
        places = max(1, gpus // max(1, max(wanted for _, wanted in rows)))
        ends = [0.0] * min(places, recipe.resources.workers or places)
        for spent, _ in rows:  # the longest first, each where a place is free
            ends[ends.index(min(ends))] += spent
        found[phase] = round(max(ends), 1)
    return found


def update_seconds(recipe: Recipe, name: str, shape: ModelShape | None) -> float | None:
    """Seconds of the updates of an arm after which it can stop, at the assumed rates: those of one sampling."""
    hours = gpu_hours_of_run(recipe, name, shape)
    if hours is None:
        return None
    arm = resolve_arm(recipe, name)
    return hours * 3600 / recipe.resources.ranks / arm.steps * arm.updates_per_batch


def checkpoint_seconds(recipe: Recipe, name: str, shape: ModelShape) -> float:
    """Seconds of writing a resumable checkpoint of an arm."""
    bfloat16 = resolve_arm(recipe, name).dtype == "bfloat16"
    one = (checkpoint_bytes(shape, 0, bfloat16) - shape.parameters() * (2 if bfloat16 else 4)) / 3
    return one / _WRITE_BYTES_PER_SECOND


def hours_between_checkpoints(recipe: Recipe, name: str, shape: ModelShape | None) -> float | None:
    """Hours of a run between two resumable checkpoints of an arm: so many updates, or the first to end that late."""
    hours, arm = gpu_hours_of_run(recipe, name, shape), resolve_arm(recipe, name)
    if hours is None:
        return None
    batch = hours / recipe.resources.ranks / arm.steps * arm.updates_per_batch
    batches = min(arm.save_every_steps / arm.updates_per_batch, ceil(arm.save_every_minutes / 60 / batch))
    return min(hours / recipe.resources.ranks, batch * batches)


def checkpoint_hours(recipe: Recipe, name: str, shape: ModelShape | None) -> float | None:
    """Hours from a job's start to its first checkpoint."""
    between = hours_between_checkpoints(recipe, name, shape)
    return None if between is None else _START_HOURS + between


def gpus_of_node(recipe: Recipe, site: SiteSpec | None, gpus: Sequence[str]) -> int:
    """GPUs of the machine that a plan is for; 0: none."""
    if site is not None:
        return site.gpus_per_node
    training = recipe.resources.ranks // recipe.resources.nodes
    return len(gpus) or (training if recipe.resources.gpu is not None else 0)


def attention_of_runs(recipe: Recipe, name: str, study_dir: Path | None) -> list[str]:
    """What the finished runs of an arm computed attention with."""
    folders = [] if study_dir is None else [study_dir / "arms" / name / f"seed-{seed}" for seed in recipe.seeds]
    manifests = [manifest for folder in folders if (manifest := read_manifest(folder)) and manifest["completed"]]
    return sorted({attention_of(manifest["facts"]) for manifest in manifests if "matched_on" in manifest["facts"]})
