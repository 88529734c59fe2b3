"""What a recipe will do, before anything is spent: stages, updates, samples, tokens, FLOPs. Needs no torch."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.hub import locate_model
from launch.preflight import warnings
from launch.stages import Stage, stage_states
from recipes.errors import UserError
from recipes.schema import Recipe
from train.arms import ResolvedArm, resolve_arm
from train.cost import ModelShape, forward_flops, pocket_shape, shape_from_config, train_flops, training_memory
from train.matching import recipe_differences

_MEAN_ROW_TOKENS = 125  # of the 128 of a packed pre-training row


def build_plan(recipe: Recipe, stages: list[Stage], study_dir: Path) -> dict[str, Any]:
    """The plan as JSON values. Token counts are upper bounds from the length limits."""
    states = stage_states(stages, study_dir)
    arms = {}
    pocket = recipe.model.pocket if recipe.model else None
    shape = model_shape(recipe)
    parameters = shape.parameters() if shape else None
    for name in recipe.arms:
        arm = resolve_arm(recipe, name)
        exposures = arm.steps * arm.problems_per_step
        completions = exposures * arm.completions_per_problem
        completion_tokens = completions * arm.prompt.max_completion_tokens
        tokens = completion_tokens + completions * arm.prompt.max_prompt_tokens
        arms[name] = {
            "updates": arm.steps,
            "problems_presented": exposures,
            "completions": completions,
            "generated_tokens_at_most": completion_tokens if arm.sampling != "teacher" else 0,
            "train_tokens_at_most": tokens,
            "teraflops_at_most": None
            if parameters is None
            else round(
                (
                    train_flops(parameters, tokens)
                    + (forward_flops(parameters, tokens) if arm.sampling != "teacher" else 0)
                )
                / 1e12,
                1,
            ),
            "learning_rate": arm.learning_rate,
            "runs": len(recipe.seeds),
            "memory_per_rank": memory_of_arm(recipe, arm, shape),
        }
    suite = recipe.suite
    models = 1 + len(recipe.arms) * len(recipe.seeds)
    return {
        "study": recipe.study,
        "directory": str(study_dir),
        "stages": [
            {"name": stage.name, "state": states[stage.name].state, "reasons": list(states[stage.name].reasons)}
            for stage in stages
        ],
        "parameters": parameters,
        "pretraining_tokens": None if pocket is None else pocket.documents // 4 * _MEAN_ROW_TOKENS,
        "arms": arms,
        "responses_at_most": models * len(suite.benchmarks) * suite.questions * suite.samples_per_question
        if suite
        else 0,
        "warnings": warnings(recipe),
        "differences": recipe_differences(recipe),
    }


def model_shape(recipe: Recipe) -> ModelShape | None:
    """Shape of the recipe's model: the pocket model's, or from `config.json`; None if that is not on this machine."""
    model = recipe.model
    if model is None:
        return None
    if model.pocket is not None:
        return pocket_shape(model.pocket)
    try:
        folder = locate_model(str(model.path), recipe.lock.get("models", {}).get(model.path), model.revision)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (UserError, OSError, ValueError):
        return None  # not fetched yet: the plan says so
    return shape_from_config(config)


def memory_of_arm(recipe: Recipe, arm: ResolvedArm, shape: ModelShape | None) -> dict[str, int] | None:
    """Bytes on one rank while an arm trains, by component; the longest micro-batch its limits allow."""
    if shape is None or recipe.model is None:
        return None
    resources = recipe.resources
    rows = arm.micro_batch_size or arm.problems_per_step * arm.completions_per_problem // resources.ranks
    memory = training_memory(
        shape,
        ranks=resources.ranks,
        zero_stage=resources.zero_stage,
        offload=resources.offload,
        bfloat16=recipe.model.dtype == "bfloat16",
        checkpointing=recipe.model.pocket is None,
        tokens=rows * (arm.prompt.max_prompt_tokens + arm.prompt.max_completion_tokens),
    )
    reference = 2 * shape.parameters() // (resources.ranks if resources.zero_stage == 3 else 1) if arm.beta > 0 else 0
    return asdict(memory) | {"reference_model": reference, "total": memory.total + reference}


def format_plan(plan: dict[str, Any]) -> str:
    """The plan as text."""
    lines = [f"{plan['study']} -> {plan['directory']}", ""]
    for stage in plan["stages"]:
        reasons = f"  ({'; '.join(stage['reasons'])})" if stage["reasons"] else ""
        lines.append(f"  {stage['state']:<8} {stage['name']}{reasons}")
    if plan["parameters"]:
        tokens = plan["pretraining_tokens"]
        pretraining = "" if tokens is None else f", {tokens:,} pre-training tokens"
        lines += ["", f"base: about {plan['parameters']:,} parameters{pretraining}"]
    width = max([20, *(len(name) + 2 for name in plan["arms"])])
    if plan["arms"]:
        lines += [
            "",
            f"{'arm':<{width}}{'runs':>6}{'updates':>9}{'problems':>10}{'completions':>13}{'generated tokens':>18}"
            f"{'TFLOPs':>9}{'lr':>10}",
        ]
    for name, arm in plan["arms"].items():
        flops = "?" if arm["teraflops_at_most"] is None else f"{arm['teraflops_at_most']:.1f}"
        lines.append(
            f"{name:<{width}}{arm['runs']:>6}{arm['updates']:>9,}{arm['problems_presented']:>10,}{arm['completions']:>13,}"
            f"{arm['generated_tokens_at_most']:>18,}{flops:>9}{arm['learning_rate']:>10.1e}"
        )
    if plan["arms"]:
        lines.append("tokens and FLOPs are upper bounds from the length limits, for one run")
        lines += ["", *_memory_lines(plan)]
    if plan["responses_at_most"]:
        lines.append(f"evaluation: at most {plan['responses_at_most']:,} responses")
    if plan["arms"]:
        matched = "matched: the arms differ only in what the study varies"
        lines += ["", "UNMATCHED:" if plan["differences"] else matched]
    lines += [f"  {text}" for text in plan["differences"]]
    lines += [f"warning: {text}" for text in plan["warnings"]]
    return "\n".join(lines)


def _memory_lines(plan: dict[str, Any]) -> list[str]:
    """Memory per rank, one line for all arms that need the same."""
    by_need: dict[str, list[str]] = {}
    for name, arm in plan["arms"].items():
        memory = arm["memory_per_rank"]
        if memory is None:
            return ["memory: unknown until `transfer fetch` has brought the model's config.json to this machine"]
        parts = ", ".join(f"{part.replace('_', ' ')} {value / 1e9:.2f}" for part, value in memory.items() if value)
        by_need.setdefault(f"memory per rank, GB (activations estimated): {parts}", []).append(name)
    return [text if len(by_need) == 1 else f"{text}  ({', '.join(names)})" for text, names in by_need.items()]
