"""What trajectories and diagnostics will need: responses, tokens, memory, disk, hours. Needs no torch."""

from typing import Any

from launch.fit import USABLE
from recipes.diagnostics_schema import LOGITS_TOKENS
from recipes.schema import Recipe
from train.arms import resolve_arm
from train.cost import GPUS, TRAIN_UTILISATION, ModelShape, generation_hours

_LOGITS_COPIES = 6  # two models' logits, log-probabilities and probabilities of a chunk, in float32
_POOLINGS = 2


def trajectory_plan(recipe: Recipe, shape: ModelShape | None) -> dict[str, Any] | None:
    """Checkpoints, responses and GPU-hours of all trajectories; hours are None where they are not known."""
    spec, suite = recipe.trajectory, recipe.suite
    if spec is None or suite is None or not recipe.with_trajectories:
        return None
    checkpoints = 1 + len(recipe.seeds) * sum(
        1 + len(resolve_arm(recipe, arm).snapshot_steps()) for arm in recipe.trained
    )
    per_checkpoint = min(spec.heldout_problems, recipe.corpus.heldout_problems) * spec.samples
    benchmarks = [item for item in suite.benchmarks if item.name != "heldout"]
    per_checkpoint += sum(spec.questions * (spec.samples if suite.heat(item) > 0 else 1) for item in benchmarks)
    responses, gpu = checkpoints * per_checkpoint, recipe.resources.gpu
    length = min(suite.max_response_tokens, recipe.resources.expected_completion_tokens or 1 << 60)
    hours = None if shape is None or gpu is None else round(generation_hours(shape, GPUS[gpu], responses, length), 1)
    return {"checkpoints": checkpoints, "responses_at_most": responses, "gpu_hours": hours}


def diagnostics_plan(recipe: Recipe, shape: ModelShape | None) -> dict[str, Any] | None:
    """What the diagnostics of all models read and write, and what one needs; None without `diagnostics`.

    Memory and disk are upper bounds in bytes for one tuned model; completions as long as their limit, prompts as a
    quarter of theirs. Numbers of an unknown model are None.
    """
    spec, suite = recipe.diagnostics, recipe.suite
    if spec is None or suite is None or not recipe.with_diagnostics:
        return None
    sets = len(suite.benchmarks) + bool(recipe.corpus.sources)
    models = sum(len(recipe.labels(arm)) for arm in recipe.arms)
    prompts, length = sets * spec.prompts, spec.max_completion_tokens
    asked = max(1, max(suite.max_prompt_tokens, recipe.prompt.max_prompt_tokens) // 4)
    kinds = 4 if spec.paper else 3  # own, base's, references, greedy
    plan: dict[str, Any] = {
        "models": models,
        "prompts_per_model": prompts,
        "tokens_per_model_at_most": prompts * (2 * kinds * (asked + length) + 2 * asked),
        "memory": None,
        "disk_bytes": None,
        "gpu_hours": None,
        "fits": None,
    }
    if shape is None:
        return plan
    size = 2 if recipe.model is not None and recipe.model.dtype == "bfloat16" else 4
    head = shape.vocab_size * shape.hidden_size * size
    longest = max(spec.batch_tokens, suite.max_prompt_tokens + length)
    memory = {
        "weights": shape.parameters() * size,
        "other_output_layer": head,
        "hidden_states": (shape.num_layers + 2) * longest * shape.hidden_size * size,
        "logits": _LOGITS_COPIES * LOGITS_TOKENS * shape.vocab_size * 4,
        "sampling_cache": spec.batch_size * (suite.max_prompt_tokens + length) * shape.kv_cache_bytes_per_token(size),
    }
    # Sampling, pooling and comparing follow one another.
    peak = memory["weights"] + max(
        memory["hidden_states"], memory["sampling_cache"], memory["other_output_layer"] + memory["logits"]
    )
    states = (shape.num_layers + 1) * _POOLINGS * prompts * shape.hidden_size * 4
    plan["memory"] = memory | {"peak": peak}
    plan["disk_bytes"] = 2 * states + kinds * prompts * length * shape.hidden_size * size + head
    if recipe.resources.gpu is not None:
        gpu = GPUS[recipe.resources.gpu]
        read = shape.forward_flops(plan["tokens_per_model_at_most"], asked + length)
        sampled = generation_hours(shape, gpu, prompts * (1 + spec.paper), length)
        plan["gpu_hours"] = round(models * (sampled + read / (gpu.peak_flops * TRAIN_UTILISATION) / 3600), 1)
        plan["fits"] = peak <= USABLE * gpu.memory_bytes
    return plan


def analysis_lines(plan: dict[str, Any]) -> list[str]:
    """Both as lines of text."""
    lines = []
    if (t := plan["trajectory"]) is not None:
        hours = (
            "" if t["gpu_hours"] is None else f", {t['gpu_hours']:,.0f} GPU-hours if they are as long as completions"
        )
        lines.append(f"trajectory: {t['checkpoints']} checkpoints, {t['responses_at_most']:,} responses{hours}")
    if (d := plan["diagnostics"]) is not None:
        text = f"diagnostics: {d['models']} models, {d['prompts_per_model']:,} prompts each"
        text += f", at most {d['tokens_per_model_at_most']:,} tokens read"
        if d["memory"] is not None:
            text += f"; one model at a time, {d['memory']['peak'] / 1e9:.1f} GB of memory"
            text += f", {d['disk_bytes'] / 1e9:.1f} GB of disk while it runs"
        text += "" if d["gpu_hours"] is None else f"; {d['gpu_hours']:,.1f} GPU-hours in all"
        lines.append(text)
    return lines


def analysis_obstacles(plan: dict[str, Any], gpu: str | None) -> list[str]:
    """Why the diagnostics cannot work."""
    found = plan["diagnostics"]
    if found is None or found["fits"] is not False:
        return []
    return [
        f"the diagnostics need {found['memory']['peak'] / 1e9:.0f} GB and the {gpu} has less; lower "
        "diagnostics.batch_tokens or diagnostics.batch_size"
    ]
