"""What a recipe will do, before anything is spent: stages, updates, samples, tokens, FLOPs. Needs no torch."""

from pathlib import Path
from typing import Any

from launch.stages import Stage, stage_states
from recipes.schema import Recipe
from train.arms import resolve_arm
from train.cost import forward_flops, pocket_parameters, train_flops
from train.matching import recipe_differences

_MEAN_ROW_TOKENS = 125  # of the 128 of a packed pre-training row


def build_plan(recipe: Recipe, stages: list[Stage], study_dir: Path) -> dict[str, Any]:
    """The plan as JSON values. Token counts are upper bounds from the length limits."""
    states = stage_states(stages, study_dir)
    arms = {}
    pocket = recipe.model.pocket if recipe.model else None
    parameters = pocket_parameters(pocket) if pocket else None
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
        "differences": recipe_differences(recipe),
    }


def format_plan(plan: dict[str, Any]) -> str:
    """The plan as text."""
    lines = [f"{plan['study']} -> {plan['directory']}", ""]
    for stage in plan["stages"]:
        reasons = f"  ({'; '.join(stage['reasons'])})" if stage["reasons"] else ""
        lines.append(f"  {stage['state']:<8} {stage['name']}{reasons}")
    if plan["parameters"]:
        lines += [
            "",
            f"base: about {plan['parameters']:,} parameters, {plan['pretraining_tokens']:,} pre-training tokens",
        ]
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
    if plan["responses_at_most"]:
        lines.append(f"evaluation: at most {plan['responses_at_most']:,} responses")
    if plan["arms"]:
        matched = "matched: the arms differ only in what the study varies"
        lines += ["", "UNMATCHED:" if plan["differences"] else matched]
    lines += [f"  {text}" for text in plan["differences"]]
    return "\n".join(lines)
