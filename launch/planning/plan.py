"""What a recipe will do, before anything is spent: stages, updates, samples, tokens, memory, hours. Needs no torch."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.questions.suite_size import evaluation_responses
from launch.hardware import visible_gpus
from launch.planning.analysis_plan import analysis_obstacles, diagnostics_plan, drift_plan, trajectory_plan
from launch.planning.findings import findings
from launch.planning.fit import memory_of_arm, model_shape, obstacles, sampling_memory
from launch.planning.needs import (
    attention_of_runs,
    disk_needed,
    gpu_hours_of_run,
    gpus_of_node,
    hours_between_checkpoints,
    wall_clock,
)
from launch.planning.preflight import completions_of_problem, unresolved_sentences, warnings
from launch.rank_command import Rendezvous, launch_command, launch_files
from launch.site_file import SiteSpec
from launch.stages import Stage, stage_states
from recipes.manifest import read_manifest
from recipes.schema import Recipe
from train.accounting.cost import (
    GENERATE_UTILISATION,
    GPUS,
    ModelShape,
    checkpoint_bytes,
    forward_flops,
    generation_hours,
    train_flops,
)
from train.accounting.matching import recipe_differences
from train.arms import resolve_arm

_MEAN_ROW_TOKENS = 125  # of the 128 of a packed pre-training row


_WRITES = {
    "base": "weights (*.safetensors), config.json, generation_config.json, tokenizer, chat template",
    "corpus": "problems.parquet, demonstrations.parquet, rejects.jsonl, contamination.jsonl, ledger.jsonl, README.md",
    "arms": "final/, snapshots/, checkpoint-*/ (while it runs), metrics.jsonl, ledger.jsonl",
    "drift": "drift.jsonl",
    "external": "as base",
    "questions": "the questions of every benchmark, fixed",
    "eval": "a folder for each benchmark with every response and its score",
    "trajectory": "scores of every checkpoint on the slice",
    "diagnostics": "shift-*.json, tokens-*.parquet, draws-*.safetensors, samples-*.json",
    "report": "transfer.json, index.html, figures/",
}


def build_plan(
    recipe: Recipe,
    stages: list[Stage],
    study_dir: Path,
    invocation: str = "transfer run RECIPE",
    site: SiteSpec | None = None,
) -> dict[str, Any]:
    """The plan as JSON values. Token counts are upper bounds from the length limits.

    `invocation`: the command that runs the study, to say how a single stage is run. `site`: the cluster it is planned
    for; None: this machine.
    """
    gpus = visible_gpus()
    elsewhere = site is None and not gpus and recipe.resources.gpu is not None
    node = gpus_of_node(recipe, site, gpus)
    found = findings(recipe, stages, study_dir, site, gpus, elsewhere)
    states = stage_states(stages, study_dir)
    pocket = recipe.model.pocket if recipe.model else None
    shape = model_shape(recipe)
    suite = recipe.suite
    labels = [label for arm in ("base", *recipe.arms) for label in recipe.labels(arm)]
    waiting = [stage for stage in stages if states[stage.name].state != "done"]
    disk = disk_needed(recipe, shape, waiting, node, site)
    analysis = {
        "drift": drift_plan(recipe, shape),
        "trajectory": trajectory_plan(recipe, shape),
        "diagnostics": diagnostics_plan(recipe, shape),
    }
    arms = {name: _arm_plan(recipe, name, shape, study_dir) for name in recipe.trained}
    return {
        "study": recipe.study,
        "directory": str(study_dir),
        "stages": [
            {
                "name": stage.name,
                "state": states[stage.name].state,
                "reasons": list(states[stage.name].reasons),
                **how_it_runs(recipe, study_dir, stage, states[stage.name].state == "resume", invocation),
            }
            for stage in stages
        ],
        "parameters": shape.parameters() if shape else None,
        "pretraining_tokens": None if pocket is None else pocket.documents // 4 * _MEAN_ROW_TOKENS,
        "arms": arms,
        "teacher": teacher_plan(recipe, study_dir),
        "gpu": recipe.resources.gpu,
        "gpus": gpus_of(recipe),
        "dropped_problems": dropped_problems(study_dir),
        "certainty": what_certainty_costs(recipe, shape, labels),
        "responses_at_most": None if suite is None else evaluation_responses(recipe, len(labels)),
        "evaluation_gpu_hours": evaluation_hours(recipe, shape, len(labels)),
        **analysis,
        "obstacles": obstacles(recipe, shape)
        + analysis_obstacles(analysis, recipe.resources.gpu)
        + [str(finding) for finding in found if finding.severity == "error"],
        "findings": [finding._asdict() for finding in found],
        "disk": None if disk is None else asdict(disk) | {"total": disk.total},
        "wall_clock": {"gpus": node, "hours": wall_clock(recipe, stages, shape, node)},
        "notes": [str(finding) for finding in found if finding.severity == "note"],
        "warnings": warnings(recipe) + [str(finding) for finding in found if finding.severity == "warning"],
        "unresolved": unresolved_sentences(recipe),
        "differences": recipe_differences(recipe),
    }


def evaluation_hours(recipe: Recipe, shape: ModelShape | None, models: int) -> float | None:
    """GPU-hours of all responses, each as long as `expected_completion_tokens` or the limit; None where unknown."""
    if recipe.suite is None or shape is None or recipe.resources.gpu is None:
        return None
    responses = evaluation_responses(recipe, models)
    length = min(recipe.suite.max_response_tokens, recipe.resources.expected_completion_tokens or 1 << 60)
    return None if responses is None else generation_hours(shape, GPUS[recipe.resources.gpu], responses, length)


def gpus_of(recipe: Recipe) -> dict[str, int]:
    """GPUs that one training run and one evaluation occupy, where there are any."""
    resources = recipe.resources
    server = resources.vllm.server_nodes * resources.ranks // resources.nodes if resources.vllm else 0
    return {"train": resources.ranks + server, "nodes": resources.nodes, "evaluate": resources.evaluation_replicas}


def dropped_problems(study_dir: Path) -> dict[str, int] | None:
    """Problems the corpus left out, by reason; None until it is built."""
    manifest = read_manifest(study_dir / "corpus")
    if manifest is None or not manifest["completed"]:
        return None
    return dict(manifest["facts"].get("rejected", {}))


def what_certainty_costs(recipe: Recipe, shape: ModelShape | None, labels: list[str]) -> dict[str, float] | None:
    """GPU-hours of one more training seed of every arm, and of one more response to every question of every model."""
    if shape is None or recipe.resources.gpu is None or not recipe.trained:
        return None
    hours = [_arm_plan(recipe, name, shape)["gpu_hours"] for name in recipe.trained]
    seed = sum(value for value in hours if value is not None)
    evaluated = evaluation_hours(recipe, shape, len(recipe.trained))
    found = {"seed": seed + (evaluated or 0.0)}
    if recipe.suite is not None:
        once = recipe.model_copy(update={"suite": _asked_once(recipe)})
        more = evaluation_hours(once, shape, len(labels))
        found |= {} if more is None else {"response": more}
    return {name: round(value, 1) for name, value in found.items()}


def _asked_once(recipe: Recipe) -> Any:
    assert recipe.suite is not None
    benchmarks = [item.model_copy(update={"samples_per_question": 1}) for item in recipe.suite.benchmarks]
    return recipe.suite.model_copy(update={"samples_per_question": 1, "benchmarks": tuple(benchmarks)})


def _arm_plan(recipe: Recipe, name: str, shape: ModelShape | None, study_dir: Path | None = None) -> dict[str, Any]:
    """Updates, tokens, FLOPs, memory, hours and disk of one run of an arm."""
    arm = resolve_arm(recipe, name)
    exposures = arm.steps * arm.problems_per_step
    completions = exposures * completions_of_problem(recipe, arm)
    completion_tokens = completions * arm.prompt.max_completion_tokens
    tokens = completion_tokens + completions * arm.prompt.max_prompt_tokens
    sampled = arm.sampling != "teacher"
    flops = hours = disk = None
    if shape is not None:
        parameters = shape.parameters()
        flops = train_flops(parameters, tokens) + (forward_flops(parameters, tokens) if sampled else 0)
        disk = checkpoint_bytes(shape, arm.snapshots, arm.dtype == "bfloat16")
        hours = gpu_hours_of_run(recipe, name, shape)
    return {
        "updates": arm.steps,
        "problems_presented": exposures,
        "completions": completions,
        "generated_tokens_at_most": completion_tokens if sampled else 0,
        "train_tokens_at_most": tokens,
        "teraflops_at_most": None if flops is None else round(flops / 1e12, 1),
        "gpu_hours": None if hours is None else round(hours, 1),
        "hours_between_checkpoints": hours_between_checkpoints(recipe, name, shape),
        "save_every_steps": arm.save_every_steps,
        "updates_per_batch": arm.updates_per_batch,
        "disk_bytes": disk,
        "learning_rate": arm.learning_rate,
        "runs": len(recipe.seeds),
        "memory_per_rank": memory_of_arm(recipe, arm, shape),
        "sampling_memory": sampling_memory(recipe, arm, shape),
        "attention": attention_of_runs(recipe, name, study_dir),
    }


def teacher_plan(recipe: Recipe, study_dir: Path) -> dict[str, Any] | None:
    """What the demonstrations cost: what was spent once they are there, else an upper bound; None without a sampler.

    Numbers are None where the problems are not counted yet or the teacher's parameters are not given.
    """
    teacher = recipe.corpus.teacher
    if teacher is None or teacher.kind not in ("endpoint", "transformers"):
        return None
    manifest = read_manifest(study_dir / "corpus")
    facts = manifest["facts"] if manifest is not None and manifest["completed"] else {}
    spent = next((row for row in facts.get("sampling", []) if row["phase"] == "teacher"), None)
    problems = facts.get("train_problems") or recipe.corpus.train_problems
    samples = spent["samples"] if spent else None if problems is None else problems * teacher.samples_per_problem
    limit = teacher.max_completion_tokens or recipe.prompt.max_completion_tokens
    tokens = spent["generated_tokens"] if spent else None if samples is None else samples * limit
    flops = None if tokens is None or not teacher.parameters else forward_flops(round(teacher.parameters), tokens)
    gpu = GPUS[recipe.resources.gpu] if recipe.resources.gpu else None
    hours = None if flops is None or gpu is None else flops / (gpu.peak_flops * GENERATE_UTILISATION) / 3600
    return {
        "model": teacher.model,
        "spent": spent is not None,
        "samples": samples,
        "generated_tokens": tokens,
        "teraflops": None if flops is None else round(flops / 1e12, 1),
        "gpu_hours": None if hours is None else round(hours, 1),
    }


def how_it_runs(recipe: Recipe, study_dir: Path, stage: Stage, resume: bool, invocation: str) -> dict[str, Any]:
    """The command of a stage, the files it is given, what it reads and writes, and the processes it runs on."""
    folders = {
        "reads": [str(study_dir / name) for name in stage.needs],
        "writes": f"{study_dir / stage.name}: {_WRITES[stage.kind]}, manifest.json",
    }
    if stage.kind == "arms" and recipe.resources.launched:
        rendezvous = Rendezvous(nodes=recipe.resources.nodes)
        command = ["python", *launch_command(recipe.resources, study_dir, stage.name, resume, rendezvous)]
        files = launch_files(recipe.resources, study_dir / stage.name / "ranks", rendezvous)
        return {
            "command": shlex.join(command),
            "files": {str(path): content for path, content in files.items()},
            "topology": topology_text(recipe, stage),
            **folders,
        }
    return {
        "command": f"{invocation} --until {stage.name}",
        "files": {},
        "topology": f"one process, {stage.module}",
        **folders,
    }


def topology_text(recipe: Recipe, stage: Stage) -> str:
    """Ranks of an arm, what DeepSpeed divides among them, and who generates."""
    resources = recipe.resources
    parts = [f"{resources.ranks} rank{'s' * (resources.ranks > 1)}"]
    parts += [f"DeepSpeed ZeRO-{resources.zero_stage}"] if resources.zero_stage else ["no DeepSpeed"]
    parts += ["offload to the CPU"] if resources.offload else []
    arm = resolve_arm(recipe, str(stage.arguments["arm"]))
    if resources.vllm is not None and arm.sampling != "teacher":
        where = resources.vllm.server_url or (
            "a node of its own" if resources.vllm.server_nodes else f"{resources.vllm.memory_share:.0%} of each GPU"
        )
        parts.append(f"vLLM {resources.vllm.mode} ({where}, tensor parallel {resources.vllm.tensor_parallel})")
    return ", ".join(parts)
