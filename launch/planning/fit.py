"""Does a recipe fit on its GPUs, and what is the nearest setting that would? Needs no torch."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations
from typing import Any

from data.hub import locate_model
from recipes.errors import UserError
from recipes.schema import Recipe
from train.accounting.cost import GPUS, KNOWN_SHAPES, ModelShape, pocket_shape, shape_from_config, training_memory
from train.arms import ResolvedArm, resolve_arm

USABLE = 0.94  # of a GPU's memory; the rest is a margin for the driver, the libraries and fragmentation


def model_shape(recipe: Recipe) -> ModelShape | None:
    """Shape of the recipe's model: the pocket model's, from `config.json`, or a published one; None if unknown."""
    model = recipe.model
    if model is None:
        return None
    if model.pocket is not None:
        return pocket_shape(model.pocket)
    try:
        folder = locate_model(str(model.path), recipe.lock.get("models", {}).get(model.path), model.revision)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (UserError, OSError, ValueError):
        return KNOWN_SHAPES.get(str(model.path))
    return shape_from_config(config)


def memory_of_arm(recipe: Recipe, arm: ResolvedArm, shape: ModelShape | None) -> dict[str, int] | None:
    """Bytes on one rank while an arm trains, by component; the longest micro-batch its limits allow.

    `total` is the sum of what the formulas count, `margin` what is kept free of it on the GPU that the recipe names.
    """
    if shape is None or recipe.model is None:
        return None
    resources = recipe.resources
    rows = arm.micro_batch_size or max(1, arm.problems_per_step * arm.completions_per_problem // resources.ranks)
    memory = training_memory(
        shape,
        ranks=resources.ranks,
        zero_stage=resources.zero_stage,
        offload=resources.offload,
        bfloat16=recipe.model.dtype == "bfloat16",
        checkpointing=recipe.model.pocket is None,
        tokens=rows * (arm.prompt.max_prompt_tokens + arm.prompt.max_completion_tokens),
        adapter_rank=arm.lora.rank if arm.lora is not None else None,
    )
    reference = 0
    if arm.beta > 0 and arm.lora is None:  # with adapters the base is the model without them
        bytes_each = 2 if arm.weights_dtype_with(resources.zero_stage > 0) == "bfloat16" else 4
        reference = bytes_each * shape.parameters() // (resources.ranks if resources.zero_stage == 3 else 1)
    total = memory.total + reference
    margin = 0 if resources.gpu is None else round((1 - USABLE) * GPUS[resources.gpu].memory_bytes)
    return asdict(memory) | {"reference_model": reference, "total": total, "margin": margin}


def sampling_memory(recipe: Recipe, arm: ResolvedArm, shape: ModelShape | None) -> dict[str, int] | None:
    """Bytes of a colocated vLLM on one GPU while an arm samples, and the tokens its cache has room for.

    `sequences_at_once` are those of the expected length that fit into the cache, with a prompt of a quarter of its
    limit; `sequences_asked` what one copy of the model is asked for in a sampling.
    """
    vllm, gpu = recipe.resources.vllm, recipe.resources.gpu
    if shape is None or vllm is None or gpu is None or vllm.mode != "colocate" or arm.sampling == "teacher":
        return None
    weights = 2 * shape.parameters() // vllm.tensor_parallel
    cache = round(vllm.memory_share * GPUS[gpu].memory_bytes) - weights
    per_token = shape.kv_cache_bytes_per_token() // vllm.tensor_parallel
    tokens = max(0, cache) // per_token
    completion = min(arm.prompt.max_completion_tokens, recipe.resources.expected_completion_tokens or 1 << 60)
    rows = arm.problems_per_step * arm.completions_per_problem * arm.updates_per_batch
    return {
        "weights": weights,
        "kv_cache": max(0, cache),
        "cached_tokens": tokens,
        "sequences_at_once": tokens // (arm.prompt.max_prompt_tokens // 4 + completion),
        "sequences_asked": rows * vllm.tensor_parallel // recipe.resources.ranks,
    }


def obstacles(recipe: Recipe, shape: ModelShape | None) -> list[str]:
    """Why a recipe cannot work, as sentences; the last ends with the nearest setting that does, if one was found."""
    found = problems(recipe, shape)
    if found and (setting := nearest_setting(recipe, shape)):
        found[-1] += f"; the nearest setting that works: {setting}"
    return found


def problems(recipe: Recipe, shape: ModelShape | None) -> list[str]:
    """Batches that do not divide, contexts that are too short, memory that is too small."""
    arms = [resolve_arm(recipe, name) for name in recipe.trained]
    found = [text for arm in arms for text in _not_divided(recipe, arm)]
    if shape is not None:
        found += _too_long(recipe, arms, shape)
        found += _too_large(recipe, arms, shape)
    return list(dict.fromkeys(found))


def _not_divided(recipe: Recipe, arm: ResolvedArm) -> list[str]:
    rows, ranks = arm.problems_per_step * arm.completions_per_problem, recipe.resources.ranks
    micro = arm.micro_batch_size or max(1, rows // ranks)
    if rows % (ranks * micro) == 0:
        return []
    return [f"an update has {rows} completions, which {ranks} ranks with micro-batches of {micro} do not divide"]


def _too_long(recipe: Recipe, arms: list[ResolvedArm], shape: ModelShape) -> list[str]:
    limits = {"training": (arm.prompt.max_prompt_tokens + arm.prompt.max_completion_tokens for arm in arms)}
    if recipe.suite is not None and recipe.suite.engine.kind == "vllm":  # which refuses it; others read what they get
        limits["the evaluation"] = (n for n in [recipe.suite.max_prompt_tokens + recipe.suite.max_response_tokens])
    found = []
    for where, lengths in limits.items():
        longest = max(lengths, default=0)
        if shape.context is not None and longest > shape.context:
            found.append(
                f"{where} allows sequences of {longest:,} tokens (prompt and completion), the model's context is "
                f"{shape.context:,}; lower max_completion_tokens or max_response_tokens"
            )
    return found


def _too_large(recipe: Recipe, arms: list[ResolvedArm], shape: ModelShape) -> list[str]:
    """Memory that is too small.

    While vLLM samples, weights, gradients and optimizer states stay on the GPU, as DeepSpeed keeps them; activations
    are gone. While the weights are trained, a vLLM that sleeps has given back weights and cache.
    """
    resources, vllm = recipe.resources, recipe.resources.vllm
    if resources.gpu is None:
        return []
    found = []
    gpu = GPUS[resources.gpu]
    usable = USABLE * gpu.memory_bytes
    generating = [arm for arm in arms if arm.sampling != "teacher"]
    share = vllm.memory_share * gpu.memory_bytes if vllm is not None and vllm.mode == "colocate" and generating else 0.0
    if vllm is not None and share:
        longest = max(arm.prompt.max_prompt_tokens + arm.prompt.max_completion_tokens for arm in generating)
        weights = 2 * shape.parameters() / vllm.tensor_parallel
        cache = longest * shape.kv_cache_bytes_per_token() / vllm.tensor_parallel
        if weights + cache > share:
            found.append(
                f"vLLM's share of {share / 1e9:.0f} GB cannot hold {weights / 1e9:.1f} GB of weights and the cache of "
                f"one sequence of {longest:,} tokens ({cache / 1e9:.1f} GB)"
            )
    for arm in arms:
        memory = memory_of_arm(recipe, arm, shape)
        assert memory is not None
        states = memory["total"] - memory["activations"]
        own_share = share if arm in generating else 0.0
        training = memory["total"] + (own_share if vllm is not None and not vllm.sleep else 0)
        if max(training, states + own_share) > usable:
            what = "while training" if training > usable else f"beside vLLM's {own_share / 1e9:.0f} GB"
            found.append(
                f"an arm with sampling {arm.sampling} needs {max(training, states + own_share) / 1e9:.0f} GB per rank "
                f"{what}, a {resources.gpu} has about {usable / 1e9:.0f}"
            )
    return found


def nearest_setting(recipe: Recipe, shape: ModelShape | None) -> str | None:
    """The smallest change of settings under which nothing is wrong, as overrides; None if up to three do not help.

    Changes come in the order in which one would try them: what only rearranges first, more GPUs last.
    """
    options = list(_options(recipe, shape))
    for size in (1, 2, 3):
        for chosen in combinations(options, size):
            if len({key for key, _ in chosen}) < size:
                continue
            changed = _changed(recipe, dict(chosen))
            if changed is not None and not problems(changed, shape):
                return " ".join(f"{key}={json.dumps(value)}" for key, value in chosen)
    return None


def _options(recipe: Recipe, shape: ModelShape | None) -> Iterator[tuple[str, Any]]:
    resources, vllm = recipe.resources, recipe.resources.vllm
    if vllm is not None and vllm.mode == "colocate":
        for share in (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7):
            if share != vllm.memory_share:
                yield "resources.vllm.memory_share", share
    arms = [resolve_arm(recipe, name) for name in recipe.trained]
    rows = [arm.problems_per_step * arm.completions_per_problem for arm in arms]
    now = min((arm.micro_batch_size or max(1, row // resources.ranks) for arm, row in zip(arms, rows, strict=True)),
              default=1)  # fmt: skip
    for micro in range(now - 1, 0, -1):
        if all(row % (micro * resources.ranks) == 0 for row in rows):
            yield "train.micro_batch_size", micro
    if resources.zero_stage < 3:
        yield "resources.zero_stage", 3
    if vllm is not None and vllm.mode == "colocate":
        for parallel in (2, 4, 8):
            if parallel > vllm.tensor_parallel:
                yield "resources.vllm.tensor_parallel", parallel
    if not resources.offload:
        yield "resources.offload", True
    for ranks in (resources.ranks - 1, resources.ranks + 1, 2 * resources.ranks, 4 * resources.ranks):
        if ranks > 0:
            yield "resources.ranks", ranks
    for shorter in (16384, 8192, 4096, 2048):
        if shape is not None and shape.context is not None:
            longest = recipe.prompt.max_completion_tokens
            if shorter < longest:
                yield "prompt.max_completion_tokens", shorter


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe | None:
    """A recipe with other settings; None if they do not go together."""
    values = recipe.dump()
    for key, value in changes.items():
        *path, last = key.split(".")
        section = values
        for step in path:
            section = section[step]
        section[last] = value
    try:
        return Recipe.model_validate(values)
    except ValueError:
        return None
