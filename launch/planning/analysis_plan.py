"""What the probe, trajectories and diagnostics will need: responses, tokens, memory, disk, hours. Needs no torch."""

from typing import Any

from data.sampling.engine import ENGINE_SHARE
from launch.planning.fit import USABLE
from recipes.diagnostics_schema import LOGITS_TOKENS
from recipes.schema import Recipe
from train.accounting.cost import GPUS, TRAIN_UTILISATION, ModelShape, generation_hours
from train.arms import resolve_arm

DRIFT_POSITIONS = 512  # whose logits the probe has at the same time
_LOGITS_COPIES = 6  # two models' logits, log-probabilities and probabilities of a chunk, in float32
_POOLINGS = 2


def _checkpoints(recipe: Recipe) -> int:
    """Checkpoints of all runs, and the base."""
    runs = [1 + len(resolve_arm(recipe, arm).snapshot_steps()) for arm in recipe.trained]
    return 1 + len(recipe.seeds) * sum(runs)


def drift_plan(recipe: Recipe, shape: ModelShape | None) -> dict[str, Any] | None:
    """What the probe of all checkpoints needs; None without one.

    Each checkpoint samples once a problem; then it and the base read its completions and the base's. With
    `resources.vllm` an engine has the GPU to itself while it samples, else the cache of a whole batch at its longest
    lies beside both models. Memory is an upper bound in bytes; numbers of an unknown model are None.
    """
    spec = recipe.probe
    if spec is None or not recipe.trained:
        return None
    checkpoints, problems = _checkpoints(recipe), min(spec.problems, recipe.corpus.heldout_problems)
    plan: dict[str, Any] = {
        "checkpoints": checkpoints,
        "completions": checkpoints * problems,
        "engine": "transformers" if recipe.resources.vllm is None else "vllm",
        "memory": None,
        "gpu_hours": None,
        "fits": None,
    }
    if shape is None:
        return plan
    size = 2 if recipe.model is not None and recipe.model.dtype == "bfloat16" else 4
    asked, limit = recipe.prompt.max_prompt_tokens, recipe.prompt.max_completion_tokens
    models, cache = 2 * shape.parameters() * size, (asked + limit) * shape.kv_cache_bytes_per_token(size)
    logits = _LOGITS_COPIES * DRIFT_POSITIONS * shape.vocab_size * 4
    memory = {"models": models, "logits": logits, "sampling_cache": 0}
    if recipe.resources.vllm is None:
        memory["sampling_cache"] = spec.batch_size * cache
    peak = models + max(logits, memory["sampling_cache"])
    plan["memory"] = memory | {"peak": peak}
    if recipe.resources.gpu is not None:
        gpu = GPUS[recipe.resources.gpu]
        length = min(limit, recipe.resources.expected_completion_tokens or 1 << 60)
        sampled = generation_hours(shape, gpu, checkpoints * problems, length)
        tokens = checkpoints * problems * 4 * (asked // 4 + length)
        read = shape.forward_flops(tokens, asked // 4 + length) / (gpu.peak_flops * TRAIN_UTILISATION) / 3600
        plan["gpu_hours"] = round(sampled + read, 1)
        plan["fits"] = peak <= USABLE * gpu.memory_bytes
        if recipe.resources.vllm is not None:
            plan["fits"] = plan["fits"] and shape.parameters() * size + cache <= ENGINE_SHARE * gpu.memory_bytes
    return plan


def trajectory_plan(recipe: Recipe, shape: ModelShape | None) -> dict[str, Any] | None:
    """Checkpoints, responses and GPU-hours of all trajectories; hours are None where they are not known."""
    spec, suite = recipe.trajectory, recipe.suite
    if spec is None or suite is None or not recipe.with_trajectories:
        return None
    checkpoints = _checkpoints(recipe)
    per_checkpoint = min(spec.heldout_problems, recipe.corpus.heldout_problems) * spec.samples
    benchmarks = [item for item in suite.benchmarks if item.name != "heldout"]
    per_checkpoint += sum(
        spec.questions * (spec.samples if suite.temperature_of(item) > 0 else 1) for item in benchmarks
    )
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
    """All of them as lines of text."""
    lines = []
    if (p := plan.get("drift")) is not None:
        text = f"probe: {p['checkpoints']} checkpoints, {p['completions']:,} completions by {p['engine']}"
        text += "" if p["memory"] is None else f", {p['memory']['peak'] / 1e9:.1f} GB of memory"
        lines.append(text + ("" if p["gpu_hours"] is None else f", {p['gpu_hours']:,.0f} GPU-hours"))
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
    """Why the probe or the diagnostics cannot work."""
    obstacles = []
    probe = plan.get("drift")
    if probe is not None and probe["fits"] is False:
        need = f"{probe['memory']['peak'] / 1e9:.0f} GB and the {gpu} has less"
        way = "set resources.vllm or lower probe.batch_size" if probe["engine"] == "transformers" else "set probe=null"
        obstacles.append(f"the probe needs {need}; {way}")
    found = plan["diagnostics"]
    if found is None or found["fits"] is not False:
        return obstacles
    return [
        *obstacles,
        f"the diagnostics need {found['memory']['peak'] / 1e9:.0f} GB and the {gpu} has less; lower "
        "diagnostics.batch_tokens or diagnostics.batch_size",
    ]
