"""What blocks a study on the machines it will run on, checked before anything is spent. Needs no torch.

`findings` is used by `transfer plan`, `transfer run` and `transfer doctor --recipe`. `launch/planning/node.py` checks
what only a GPU node can tell.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from data.attention import FLASH, REMEDY, missing
from data.prompts.prompt import chat_template
from eval.scorers.version import by_other_rules, judged_by
from launch.hardware import LOOPBACK, gpu_models, gpus_wanted, teacher_on
from launch.planning.calibration import group_of
from launch.planning.disk import Disk, disk_needed, gpus_of_node
from launch.planning.fit import stage_memory
from launch.planning.hours import checkpoint_hours, plan_context, stage_hours
from launch.planning.node import free_bytes, needs_vllm, require_sandbox_of
from launch.planning.units import hours_text
from launch.site_file import SiteSpec, hours_of
from launch.stage_kinds import KINDS, STAGE_KINDS
from launch.stages import Stage, build_stages, stage_states
from recipes.errors import collected
from recipes.schema import Recipe
from train.accounting.cost import ModelShape, model_shape, with_article
from train.accounting.memory import memory_of_arm, size_text
from train.arms import resolve_arm

_FAMILY = re.compile(
    r"(?i)(?<![a-z0-9])(v100|t4|a10g?|a30|a40|l4|l40s?|a100|h100|h200|h800|h20|gh200|b200|gb200|mi\d+\w*)(?![0-9])"
)
_USUAL_GPUS = 8  # of a node
_MANY_REQUEUES = 10  # every one waits in the queue and loads the model again


@dataclass(frozen=True)
class Finding:
    """What was found about a planned study."""

    severity: Literal["error", "missing", "warning", "note"]
    """error: the study cannot end well. missing: to be fetched. warning: probably not meant. note: good to know."""
    sentence: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.sentence}; {self.remedy}" if self.remedy else self.sentence


def findings(
    recipe: Recipe,
    stages: Sequence[Stage],
    study_dir: Path,
    site: SiteSpec | None,
    gpus: Sequence[str],
    elsewhere: bool = False,
) -> list[Finding]:
    """What the stages that are not done will lack, and that scores are by other rules than those of today.

    `stages` are those that are meant to run, and the folder need not exist. `site`: the cluster; None: this machine,
    whose GPUs are `gpus`. `elsewhere`: the plan is made on a machine without the recipe's GPUs, where it will not run;
    what is missing here is a warning then. The disk, which several studies may share, is left to `disk_of_studies`.
    """
    shape = model_shape(recipe)
    states = stage_states(build_stages(recipe), study_dir)  # all: some of `stages` may need others
    waiting = [stage for stage in stages if states[stage.name].state != "done"]
    evaluations = [stage.name for stage in stages if stage.kind == "eval" and states[stage.name].state == "done"]
    judged = [name.removeprefix("eval/") for name in evaluations if judged_by(study_dir / name) == "other"]
    by_others = [Finding("warning", *by_other_rules(judged, study_dir))] if judged else []
    of_this_machine: list[Finding] = []
    if site is None or site.container is None:  # what an image has installed, only its jobs can tell
        of_this_machine += _software(recipe, waiting, site is not None and site.offline)
    if elsewhere:
        of_this_machine = [*_as_warnings(of_this_machine), *_larger_than_usual(recipe, waiting)]
    of_this_machine += by_others
    if site is not None:
        return [*of_this_machine, *_site(recipe, waiting, site), *_time_limits(recipe, waiting, shape, site)]
    return of_this_machine if elsewhere else [*of_this_machine, *_this_machine(recipe, shape, waiting, gpus)]


def _as_warnings(found: Sequence[Finding]) -> list[Finding]:
    """Findings about a machine on which the study will not run."""
    return [Finding("warning", f"on this machine {finding.sentence}", finding.remedy) for finding in found]


def _software(recipe: Recipe, waiting: Sequence[Stage], offline: bool) -> Iterator[Finding]:
    kinds, facts = {stage.kind for stage in waiting}, [stage.facts for stage in waiting]
    model = recipe.model
    if model is not None and any(fact.uses_attention for fact in facts) and (reason := missing(model, offline)):
        if model.attention_fallback is None:
            yield Finding("error", f"model.attention={model.attention} cannot be used: {reason}", REMEDY)
        else:
            instead = f"{model.attention_fallback} is used instead, as model.attention_fallback says"
            yield Finding("warning", f"model.attention={model.attention} cannot be used ({reason}): {instead}")
    with_vllm = sorted(kind for kind in kinds if needs_vllm(recipe, kind))
    if with_vllm and find_spec("vllm") is None:
        yield Finding(
            "error",
            f"vllm is not installed; it is needed for {', '.join(with_vllm)}",
            "run pip install -r requirements-gpu.lock",
        )
    unusable: list[str] = []
    if model is not None and model.chat_template is not None and "base" in kinds:
        with collected(unusable):
            chat_template(model.chat_template)
    if any(fact.samples_with == "suite.engine" for fact in facts):
        with collected(unusable):
            require_sandbox_of(recipe)
    yield from (Finding("error", sentence) for sentence in unusable)


def disk_of_studies(
    studies: Sequence[tuple[Recipe, Sequence[Stage], Path]],
    site: SiteSpec | None,
    gpus: Sequence[str],
    elsewhere: bool = False,
) -> list[Finding]:
    """Whether the disk has room for what is not done of all these studies, which share it.

    `elsewhere`: they will not run on this machine, so that it is a warning.
    """
    needs: dict[Path, Disk] = {}
    for recipe, stages, study_dir in studies:
        states = stage_states(build_stages(recipe), study_dir)
        waiting = [stage for stage in stages if states[stage.name].state != "done"]
        need = disk_needed(recipe, model_shape(recipe), waiting, gpus_of_node(recipe, site, gpus), site)
        if waiting and need is not None:
            needs[study_dir] = need
    if not needs:
        return []
    folder = Path(os.path.commonpath(needs))
    total, free = sum(need.total for need in needs.values()), free_bytes(folder)
    if total <= free:
        return []
    what, parts, lower = "the study needs", "", "train.snapshots, seeds or arms"
    if len(studies) > 1:
        listed = ", ".join(f"{study_dir.name} {size_text(need.total)}" for study_dir, need in needs.items())
        what, parts, lower = "all points together need", f" ({listed})", "train.snapshots, seeds, arms or points"
    found = Finding(
        "error",
        f"{what} up to {size_text(total)} of disk{parts} and {folder} has {size_text(free)} free",
        f"free some, choose another --out, or lower {lower}"
        + (", or max_running in the site file" if site is not None else ""),
    )
    return _as_warnings([found]) if elsewhere else [found]


def disk_text(need: Disk) -> str:
    """Bytes in all, and what takes them."""
    runs, models = need.runs_at_once, need.models_at_once
    kept = {"base": need.base, "corpus": need.corpus, "weights of runs": need.runs, "responses": need.responses}
    temporary = {
        f"checkpoints of {runs} run{'s' * (runs > 1)} at a time": need.while_training,
        f"hidden states of {models} model{'s' * (models > 1)} at a time": need.while_diagnosing,
    }
    kept_text, temporary_text = (
        [f"{name} {size_text(value)}" for name, value in by_use.items() if value] for by_use in (kept, temporary)
    )
    listed = ", ".join([*kept_text, " or later ".join(temporary_text)] if temporary_text else kept_text)
    return f"{size_text(need.total)} ({listed})"


def _this_machine(
    recipe: Recipe, shape: ModelShape | None, waiting: Sequence[Stage], gpus: Sequence[str]
) -> Iterator[Finding]:
    """GPUs of this machine against those the recipe is for; without any, its memory."""
    model = recipe.model
    arms = [resolve_arm(recipe, name) for name in recipe.trained if any(stage.kind == "arms" for stage in waiting)]
    memories = [memory for arm in arms if (memory := memory_of_arm(recipe, arm, shape)) is not None]
    on_node = max((memory.offloaded for memory in memories), default=0) * recipe.resources.ranks
    if on_node // recipe.resources.nodes > memory_of_machine():
        yield Finding(
            "error",
            f"resources.offload keeps at least {size_text(on_node // recipe.resources.nodes)} in the memory of a node "
            f"and this machine has {size_text(memory_of_machine())}",
            "use more nodes, or set resources.offload=false and more ranks",
        )
    if not gpus:
        need = recipe.resources.ranks * max((memory.states for memory in memories), default=0)
        if need > memory_of_machine():
            yield Finding(
                "error",
                f"weights, gradients and optimizer of an arm take {size_text(need)} and this machine has "
                f"{size_text(memory_of_machine())} of memory",
                "choose a smaller model, or a machine with GPUs (resources.gpu names them)",
            )
        at_limits = recipe.resources.ranks * max((memory.total for memory in memories), default=0)
        if need <= memory_of_machine() < at_limits:
            yield Finding(
                "warning",
                f"a micro-batch whose texts all reach their limits takes an arm to {size_text(at_limits)} and this "
                f"machine has {size_text(memory_of_machine())} of memory",
                _smaller_batches(recipe, shape),
            )
        yield from _evaluation(recipe, shape, waiting)
        flash = model is not None and model.attention in FLASH and model.attention_fallback is None
        if flash and any(stage.facts.uses_attention for stage in waiting):
            yield Finding("error", f"{model and model.attention} needs a GPU and none is visible here", REMEDY)
        return
    for kind in dict.fromkeys(stage.kind for stage in waiting):
        wanted = gpus_wanted(recipe, kind)
        if wanted > len(gpus):
            setting = STAGE_KINDS[kind].gpus_set_by
            yield Finding(
                "error", f"{kind} need {wanted} GPUs ({setting}) and this machine has {len(gpus)}",
                f"set {setting}={len(gpus)}, or use a machine with more",
            )  # fmt: skip
    asked = recipe.resources.gpu
    models = gpu_models()
    if asked is not None and (others := [name for name in models if _other_family(asked, name)]):
        yield Finding(
            "warning", f"the plan is for {with_article(asked)} and this machine has {others[0]}",
            "set resources.gpu to what is here, so that its memory and hours are checked",
        )  # fmt: skip
    if (server := teacher_on(recipe)) is not None and any(stage.kind == "corpus" for stage in waiting):
        yield Finding(
            "warning", f"the teacher's server at {server} is on this machine, and no model finds room beside it",
            "make the corpus first (--until corpus), stop the server, then run the rest",
        )  # fmt: skip


def _smaller_batches(recipe: Recipe, shape: ModelShape | None) -> str:
    """The largest micro-batch, in a power of two of tokens, with which every arm fits into this machine."""
    train, arms = recipe.require_train(), [resolve_arm(recipe, name) for name in recipe.trained]
    tokens, row = 65_536, max(arm.prompt.max_prompt_tokens + arm.prompt.max_completion_tokens for arm in arms)
    while tokens >= row:
        smaller = train.model_copy(update={"micro_batch_tokens": tokens, "micro_batch_size": None})
        changed = recipe.model_copy(update={"train": smaller})
        memories = (memory_of_arm(changed, resolve_arm(changed, name), shape) for name in recipe.trained)
        if recipe.resources.ranks * max(memory.total for memory in memories if memory) <= memory_of_machine():
            return f"set train.micro_batch_tokens={tokens} or less"
        tokens //= 2
    return "lower prompt.max_completion_tokens, because one row is too long"


def memory_of_machine() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _nodes_for(ranks: int, gpus: int) -> int:
    """The fewest nodes of so many GPUs among which the ranks are divided evenly."""
    return next(nodes for nodes in range(1, ranks + 1) if ranks % nodes == 0 and ranks // nodes <= gpus)


def _larger_than_usual(recipe: Recipe, waiting: Sequence[Stage]) -> Iterator[Finding]:
    """More ranks on a node than nodes usually have GPUs, where nothing says what the node has."""
    ranks, nodes = recipe.resources.ranks, recipe.resources.nodes
    if ranks // nodes > _USUAL_GPUS and any(stage.kind == "arms" for stage in waiting):
        yield Finding(
            "warning",
            f"{ranks} ranks on {nodes} node(s) are {ranks // nodes} GPUs a node, and a node usually has {_USUAL_GPUS}",
            f"set resources.nodes={_nodes_for(ranks, _USUAL_GPUS)}, or leave it if your nodes have more",
        )


def _evaluation(recipe: Recipe, shape: ModelShape | None, waiting: Sequence[Stage]) -> Iterator[Finding]:
    """An evaluation by transformers that needs more memory at its limits than this machine without GPUs has."""
    stage = next((stage for stage in waiting if stage.kind in ("eval", "trajectory")), None)
    if stage is None or recipe.suite is None or recipe.suite.engine.kind != "hf":
        return

    def need(batch: int) -> int:
        suite = recipe.require_suite()
        engine = suite.engine.model_copy(update={"batch_size": batch})
        smaller = recipe.model_copy(update={"suite": suite.model_copy(update={"engine": engine})})
        return stage_memory(smaller, stage, shape) or 0

    batch, have = recipe.suite.engine.batch_size, memory_of_machine()
    if need(batch) <= have:
        return
    sizes = [size for size in (batch >> shift for shift in range(1, batch.bit_length())) if need(size) <= have]
    way = f"set suite.engine.batch_size={sizes[0]} or less, or lower" if sizes else "lower"
    yield Finding(
        "warning",
        f"an evaluation batch whose texts all reach their limits takes {size_text(need(batch))} and this machine has "
        f"{size_text(have)} of memory",
        f"{way} suite.max_prompt_tokens and suite.max_response_tokens to what the texts need",
    )


def _other_family(asked: str, name: str) -> bool:
    """Whether the name of a GPU names another family than the recipe's GPU; False for a name without a family."""
    match = _FAMILY.search(name)
    return match is not None and match[1].lower() != asked.split("-")[0].lower()


def _site(recipe: Recipe, waiting: Sequence[Stage], site: SiteSpec) -> Iterator[Finding]:
    """GPUs of the cluster against those the recipe is for, and the teacher's address, which jobs must reach."""
    if any(stage.kind == "corpus" for stage in waiting):
        for key, sampler in recipe.corpus.samplers.items():
            if sampler.kind == "endpoint" and urlsplit(sampler.base_url).hostname in LOOPBACK:
                yield Finding(
                    "error",
                    f"corpus.{key}.base_url is {sampler.base_url}, and no server is there on the node that a job runs "
                    "on",
                    f"set corpus.{key}.base_url to the server's node, as http://NODE:8000/v1",
                )
    asked = recipe.resources.gpu
    if not site.gpus_per_node:
        if asked is not None:
            yield Finding(
                "error", f"the recipe is for {with_article(asked)} and the site file says gpus_per_node: 0",
                "set gpus_per_node in the site file, or resources.gpu=null for a cluster without GPUs",
            )  # fmt: skip
        return
    if asked is not None and site.gpu_type is not None and _other_family(asked, site.gpu_type):
        yield Finding(
            "error", f"the plan is for {with_article(asked)} and the site file requests gpu_type {site.gpu_type}",
            "set resources.gpu to what the cluster has, and look at the plan again",
        )  # fmt: skip
    resources = recipe.resources
    wanted = resources.ranks // resources.nodes
    if resources.launched and wanted > site.gpus_per_node:
        nodes = _nodes_for(resources.ranks, site.gpus_per_node)
        yield Finding(
            "error",
            f"{resources.ranks} ranks on {resources.nodes} node(s) are {wanted} GPUs a node, but the site has "
            f"{site.gpus_per_node}",
            f"set resources.nodes={nodes}",
        )
    parallel = max(gpus_wanted(recipe, kind) for kind in KINDS if kind != "arms")
    if recipe.suite is not None and parallel > site.gpus_per_node:
        yield Finding(
            "error", f"an evaluation needs {parallel} GPUs and a node of the site has {site.gpus_per_node}",
            f"set suite.engine.tensor_parallel={site.gpus_per_node} or less",
        )  # fmt: skip


def _time_limits(
    recipe: Recipe, waiting: Sequence[Stage], shape: ModelShape | None, site: SiteSpec
) -> Iterator[Finding]:
    """Time limits of jobs against hours; a longer stage continues itself if a job reaches its first checkpoint."""
    context = plan_context(recipe, shape, site.gpus_per_node) if recipe.resources.gpu is not None else None
    longest: dict[str, tuple[float, Stage]] = {}  # of a row of the plan: the base's stages are shorter than a run's
    for stage in waiting:
        planned, group = stage_hours(context, stage), group_of(stage)
        if planned is not None and (group not in longest or planned.hours > longest[group][0]):
            longest[group] = (planned.hours, stage)
    for group, (hours, stage) in longest.items():
        limit = site.job(stage.kind).time_limit
        if limit is None:
            continue
        allowed = hours_of(limit)
        first = checkpoint_hours(context, stage.arm) if stage.kind == "arms" else None
        if first is not None and allowed < first:
            yield Finding(
                "error",
                f"a job of {group} has {limit} and its first checkpoint comes after about {hours_text(first)}",
                f"give stages.{stage.kind}.time_limit more in the site file, or lower train.save_every_minutes",
            )
        elif allowed < hours and not site.requeue:
            yield Finding(
                "error",
                f"{group} takes about {hours_text(hours)}, a job has {limit}, and requeue: false makes it fail then",
                f"set requeue: true in the site file, or give stages.{stage.kind}.time_limit more",
            )
        elif allowed < hours:
            times = int(hours / allowed)
            yield Finding(
                "note" if times <= _MANY_REQUEUES else "warning",
                f"{group} takes about {hours_text(hours)} and a job has {limit}: it goes back to the queue "
                f"{times} time{'s' * (times > 1)}",
                "" if times <= _MANY_REQUEUES else f"give stages.{stage.kind}.time_limit more in the site file",
            )
