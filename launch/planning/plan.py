"""What a recipe will do, before anything is spent: stages, steps, samples, tokens, memory, hours. Needs no torch."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.questions.suite_size import evaluation_responses
from launch.hardware import gpus_wanted, visible_gpus
from launch.planning.analysis_plan import analysis_plan
from launch.planning.assumptions import UnmeasuredHours, assumed_hours, assumed_lengths, assumptions
from launch.planning.calibration import Calibration, group_of, rehearsed, taken
from launch.planning.disk import disk_needed, gpus_of_node
from launch.planning.findings import disk_of_studies, findings
from launch.planning.fit import analysis_mistakes, fit_mistakes, stage_memory
from launch.planning.hours import (
    PACKED_ROW_TOKENS,
    PlanContext,
    gpu_hours_of_run,
    hours_between_checkpoints,
    plan_context,
)
from launch.planning.plan_schema import ArmPlan, Plan, StagePlan, Totals
from launch.planning.preflight import unresolved_sentences, warnings
from launch.planning.schedule import nodes_of_run, on_one_machine, whole_nodes, with_endless_nodes
from launch.planning.teacher import teacher_plan
from launch.rank_command import Rendezvous, launch_command, launch_files
from launch.reuse import ReusePlan, plan_reuse
from launch.site_file import SiteSpec, hours_of
from launch.stage_kinds import StageKind
from launch.stages import Stage, stage_states
from recipes.files import is_locked
from recipes.layout import run_folder, stage_lock
from recipes.manifest import StageState, finished_manifest
from recipes.schema import Recipe
from train.accounting.arm_facts import ArmFacts
from train.accounting.cost import ModelShape, forward_flops, model_shape, train_flops
from train.accounting.matching import recipe_differences
from train.accounting.memory import (
    checkpoint_bytes,
    memory_of_arm,
    resolve_vllm,
    sampling_memory,
)
from train.arms import completions_of_problem, resolve_arm


def build_plan(
    recipe: Recipe,
    stages: list[Stage],
    study_dir: Path,
    invocation: str = "transfer run RECIPE",
    site: SiteSpec | None = None,
    *,
    with_reuse: bool = False,
) -> Plan:
    """The plan of a study.

    Args:
        recipe: of the study.
        stages: of it, all or those that are meant to run.
        study_dir: its folder, which need not exist; what its stages took calibrates the hours of the rest.
        invocation: the command that runs the study, to say how a single stage is run.
        site: the cluster it is planned for. None: this machine.
        with_reuse: count what studies beside this one have made already as reused.
    """
    gpus = visible_gpus()
    elsewhere = site is None and not gpus and recipe.resources.gpu is not None
    node, shape = gpus_of_node(recipe, site, gpus), model_shape(recipe)
    all_findings = findings(recipe, stages, study_dir, site, gpus, elsewhere)
    all_findings += disk_of_studies([(recipe, stages, study_dir)], site, gpus, elsewhere)
    states = stage_states(stages, study_dir)
    reuse = plan_reuse(recipe, study_dir, stages, on_cluster=site is not None) if with_reuse else ReusePlan({}, [])
    reused = reuse.sources
    waiting = [stage for stage in stages if states[stage.name].state != "done" and stage.name not in reused]
    context = plan_context(recipe, shape, node)
    if context is not None and site is not None:
        context = replace(context, time_limit_hours=lambda kind: _limit(site, kind))
    misfits = fit_mistakes(recipe, shape)
    arms = {name: _arm_plan(recipe, name, context, node) for name in recipe.trained}
    if misfits:  # hours of what cannot work would mislead
        context = None
        arms = {name: replace(arm, gpu_hours=None, hours_between_checkpoints=None) for name, arm in arms.items()}
    rehearsal, not_used = rehearsed(study_dir, recipe.study, recipe.resources.gpu is not None)
    hours = assumed_hours(context, stages, rehearsal)
    measured = {stage.name: taken(recipe, stage, states[stage.name], study_dir) for stage in stages}
    calibration = Calibration(recipe, stages, hours, {name: item for name, item in measured.items() if item})
    rows = []
    for stage in stages:
        row = _stage_plan(recipe, study_dir, stage, states[stage.name], calibration, shape, invocation, site)
        if stage.name in reused:
            row = replace(row, state="reused", reasons=(f"of {reused[stage.name].study}",), left_hours=0.0)
        rows.append(row)
    analyses = analysis_plan(recipe, shape)
    pocket = recipe.model.pocket if recipe.model else None
    good_to_know = [str(finding) for finding in all_findings if finding.severity == "note"]
    good_to_know += [*reuse.refused, *([] if not_used is None else [not_used])]
    totals = _totals(recipe, waiting, rows, node, arms)
    unmeasured = UnmeasuredHours(recipe, context, waiting, rehearsal, calibration)
    return Plan(
        study=recipe.study,
        directory=str(study_dir),
        on_cluster=site is not None,
        gpu=recipe.resources.gpu,
        parameters=shape.parameters() if shape else None,
        pretraining_tokens=None if pocket is None else pocket.documents // 4 * PACKED_ROW_TOKENS,
        stages=tuple(rows),
        totals=totals,
        assumptions=assumptions(unmeasured),
        lengths=assumed_lengths(unmeasured, totals),
        calibration=calibration.factors(),
        rehearsed=rehearsal,
        arms=arms,
        teacher=teacher_plan(recipe, study_dir),
        responses_at_most=None if recipe.suite is None else evaluation_responses(recipe, len(recipe.all_labels)),
        analyses=analyses,
        disk=disk_needed(recipe, shape, waiting, node, site),
        findings=tuple(all_findings),
        errors=(
            *misfits,
            *analysis_mistakes(recipe, shape),
            *(str(finding) for finding in all_findings if finding.severity == "error"),
        ),
        unresolved=tuple(unresolved_sentences(recipe)),
        warnings=(*warnings(recipe), *(str(finding) for finding in all_findings if finding.severity == "warning")),
        notes=tuple(good_to_know),
        external=tuple(recipe.external),
        differences=tuple(recipe_differences(recipe)),
    )


def _limit(site: SiteSpec, kind: StageKind) -> float | None:
    limit = site.job(kind).time_limit
    return None if limit is None else hours_of(limit)


def _stage_plan(
    recipe: Recipe,
    study_dir: Path,
    stage: Stage,
    state: StageState,
    calibration: Calibration,
    shape: ModelShape | None,
    invocation: str,
    site: SiteSpec | None,
) -> StagePlan:
    planned, expected = calibration.planned[stage.name], calibration.expected(stage)
    spent = calibration.measured.get(stage.name)
    on_gpu = recipe.resources.gpu is not None
    running = state.state == "resume" and is_locked(stage_lock(study_dir, stage.name))
    left = None if expected is None else expected.hours * (1.0 - (spent.share if spent is not None else 0.0))
    peak = None if spent is None else spent.gpu_bytes if on_gpu else spent.host_bytes
    return StagePlan(
        name=stage.name,
        group=group_of(stage),
        state="running" if running else state.state,
        reasons=tuple(state.reasons),
        **_how_it_runs(recipe, study_dir, stage, state.state == "resume", invocation),
        gpus=0 if planned is None else planned.gpus,
        requested_gpus=_requested_gpus(recipe, stage, site),
        planned_hours=None if planned is None else planned.hours,
        expected_hours=None if expected is None else expected.hours,
        corrected_by=calibration.corrected_by(stage),
        taken_hours=None if spent is None else spent.hours,
        left_hours=0.0 if state.state == "done" else left,
        seconds={} if expected is None else {part: value for part, value in expected.seconds.items() if value},
        memory_bytes=calibration.memory(stage, lambda other: stage_memory(recipe, other, shape), on_gpu),
        peak_bytes=peak or None,
    )


def _requested_gpus(recipe: Recipe, stage: Stage, site: SiteSpec | None) -> int:
    """GPUs that the job of a stage requests on the cluster, on all its nodes."""
    if site is None or not site.gpus_per_node:
        return 0
    return gpus_wanted(recipe, stage.kind) * (whole_nodes(recipe, stage) or 1)


def _totals(
    recipe: Recipe, waiting: Sequence[Stage], rows: Sequence[StagePlan], node: int, arms: Mapping[str, ArmPlan]
) -> Totals:
    on_gpu = recipe.resources.gpu is not None

    def summed(hours: Mapping[str, float | None]) -> float:
        return sum((row.gpus if on_gpu else 1) * (hours[row.name] or 0.0) for row in rows)

    spent, left = {row.name: row.taken_hours for row in rows}, {row.name: row.left_hours for row in rows}
    return Totals(
        unit="GPU-hours" if on_gpu else "stage-hours",
        hours=summed(spent) + summed(left),
        taken_hours=summed(spent),
        left_hours=summed(left),
        nodes=nodes_of_run(recipe),
        node_gpus=node,
        on_one_machine=on_one_machine(recipe, waiting, left, node),
        with_endless_nodes=with_endless_nodes(waiting, left),
    )


def _arm_plan(recipe: Recipe, name: str, context: PlanContext | None, node: int) -> ArmPlan:
    """Steps, tokens, FLOPs, memory, hours and disk of one run of an arm."""
    arm, shape = resolve_arm(recipe, name), context.shape if context is not None else None
    exposures = arm.steps * arm.problems_per_step
    completions = exposures * completions_of_problem(recipe, arm)
    completion_tokens = completions * arm.prompt.max_completion_tokens
    tokens = completion_tokens + completions * arm.prompt.max_prompt_tokens
    sampled = arm.sampling != "teacher"
    flops = disk = None
    if shape is not None:
        parameters = shape.parameters()
        flops = train_flops(parameters, tokens) + (forward_flops(parameters, tokens) if sampled else 0)
        disk = checkpoint_bytes(shape, arm.kept_weights, arm.dtype == "bfloat16", arm.adapter_rank)
    return ArmPlan(
        runs=len(recipe.seeds),
        updates=arm.steps,
        exposures=exposures,
        completions=completions,
        generated_tokens_at_most=completion_tokens if sampled else 0,
        flops_at_most=flops,
        gpu_hours=gpu_hours_of_run(context, name),
        hours_between_checkpoints=hours_between_checkpoints(context, name),
        save_every_steps=arm.save_every_steps,
        updates_per_batch=arm.updates_per_batch,
        disk_bytes=disk,
        learning_rate=arm.learning_rate,
        memory_per_rank=memory_of_arm(recipe, arm, shape),
        sampling_memory=sampling_memory(recipe, arm, shape, node),
    )


def attention_of_runs(recipe: Recipe, name: str, study_dir: Path) -> list[str]:
    """What the finished runs of an arm computed attention with."""
    folders = [run_folder(study_dir, name, seed) for seed in recipe.seeds]
    manifests = [manifest for folder in folders if (manifest := finished_manifest(folder))]
    return sorted({ArmFacts.of(manifest).attention for manifest in manifests if "matched_on" in manifest["facts"]})


def _how_it_runs(recipe: Recipe, study_dir: Path, stage: Stage, resume: bool, invocation: str) -> dict[str, Any]:
    """The fields of a StagePlan about its command: files it is given, what it reads and writes, and its processes."""
    command, topology, files = f"{invocation} --until {stage.name}", f"one process, {stage.module}", {}
    if stage.kind == "arms" and recipe.resources.launched:
        rendezvous, topology = Rendezvous(nodes=recipe.resources.nodes), topology_text(recipe, stage)
        command = shlex.join(["python", *launch_command(recipe.resources, study_dir, stage.name, resume, rendezvous)])
        files = launch_files(recipe.resources, study_dir / stage.name / "ranks", rendezvous)
    return {
        "command": command,
        "files": {str(path): content for path, content in files.items()},
        "topology": topology,
        "reads": tuple(str(study_dir / name) for name in stage.needs),
        "writes": f"{study_dir / stage.name}: {stage.facts.writes}, manifest.json",
    }


def topology_text(recipe: Recipe, stage: Stage) -> str:
    """Ranks of an arm, what DeepSpeed divides among them, and who generates."""
    resources = recipe.resources
    parts = [f"{resources.ranks} rank{'s' * (resources.ranks > 1)}"]
    parts += [f"DeepSpeed ZeRO-{resources.zero_stage}"] if resources.zero_stage else ["no DeepSpeed"]
    parts += ["offload to the CPU"] if resources.offload else []
    vllm = resolve_vllm(recipe, resolve_arm(recipe, stage.arm))
    if vllm is not None:
        where = vllm.server_url or (
            "a node of its own" if vllm.server_nodes else f"{vllm.memory_share:.0%} of each GPU"
        )
        parts.append(f"vLLM {vllm.mode} ({where}, tensor parallel {vllm.tensor_parallel})")
    return ", ".join(parts)
