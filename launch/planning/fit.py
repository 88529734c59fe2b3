"""Whether a recipe fits on its GPUs, and which settings would make it fit. Needs no torch."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations
from typing import Any

from data.hub import locate_model
from recipes.errors import UserError
from recipes.loading import apply_override
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


def bytes_per_weight(recipe: Recipe) -> int:
    """Bytes of a weight as it is stored and loaded."""
    return 2 if recipe.model is not None and recipe.model.dtype == "bfloat16" else 4


def expected_tokens(recipe: Recipe, limit: int) -> int:
    """Tokens that a plan assumes for a text of at most `limit`: the expected length if the recipe states it."""
    return min(limit, recipe.resources.expected_completion_tokens or limit)


def memory_of_arm(recipe: Recipe, arm: ResolvedArm, shape: ModelShape | None) -> dict[str, int] | None:
    """Bytes on one rank while an arm trains, by component, for the longest micro-batch that its limits allow.

    `total` is the sum of the components; `margin` is what is kept free on the recipe's GPU.
    """
    if shape is None or recipe.model is None:
        return None
    resources = recipe.resources
    memory = training_memory(
        shape,
        ranks=resources.ranks,
        zero_stage=resources.zero_stage,
        offload=resources.offload,
        bfloat16=recipe.model.dtype == "bfloat16",
        checkpointing=recipe.model.pocket is None,
        tokens=arm.tokens_per_micro_batch(resources.ranks),
        adapter_rank=arm.lora.rank if arm.lora is not None else None,
    )
    reference = 0
    if arm.beta > 0 and arm.lora is None:  # with adapters, the reference is the model without them
        bytes_each = 2 if arm.weights_dtype_with(resources.zero_stage > 0) == "bfloat16" else 4
        reference = bytes_each * shape.parameters() // (resources.ranks if resources.zero_stage == 3 else 1)
    margin = 0 if resources.gpu is None else round((1 - USABLE) * GPUS[resources.gpu].memory_bytes)
    return asdict(memory) | {"reference_model": reference, "total": memory.total + reference, "margin": margin}


def sampling_memory(recipe: Recipe, arm: ResolvedArm, shape: ModelShape | None) -> dict[str, int] | None:
    """Bytes of a colocated vLLM on one GPU while an arm samples, and the tokens and sequences its cache has room for.

    `sequences_at_once` have the expected length, and prompts of a quarter of their limit; `sequences_asked` is what one
    copy of the model generates for a batch. None: the arm uses no such vLLM, or the model or the GPU is unknown.
    """
    vllm, gpu = recipe.resources.vllm, recipe.resources.gpu
    if shape is None or vllm is None or gpu is None or vllm.mode != "colocate" or arm.sampling == "teacher":
        return None
    weights = 2 * shape.parameters() // vllm.tensor_parallel
    cache = max(0, round(vllm.memory_share * GPUS[gpu].memory_bytes) - weights)
    tokens = cache // (shape.kv_cache_bytes_per_token() // vllm.tensor_parallel)
    sequence = arm.prompt.max_prompt_tokens // 4 + expected_tokens(recipe, arm.prompt.max_completion_tokens)
    sampled = arm.problems_per_step * arm.completions_per_problem * arm.updates_per_batch
    return {
        "weights": weights,
        "kv_cache": cache,
        "cached_tokens": tokens,
        "sequences_at_once": tokens // sequence,
        "sequences_asked": sampled * vllm.tensor_parallel // recipe.resources.ranks,
    }


def obstacles(recipe: Recipe, shape: ModelShape | None) -> list[str]:
    """Why a recipe cannot work, as sentences; the last one names settings under which it would, if any were found."""
    sentences = problems(recipe, shape)
    if sentences and (settings := nearest_setting(recipe, shape)):
        sentences[-1] += f"; the nearest setting that works: {settings}"
    return sentences


def problems(recipe: Recipe, shape: ModelShape | None) -> list[str]:
    """Batches that do not divide among the ranks, sequences beyond the model's context, and too little memory."""
    arms = [resolve_arm(recipe, name) for name in recipe.trained]
    sentences = [text for arm in arms for text in _not_divided(recipe, arm)]
    if shape is not None:
        sentences += _too_long(recipe, arms, shape)
        sentences += _too_large(recipe, arms, shape)
    return list(dict.fromkeys(sentences))


def _not_divided(recipe: Recipe, arm: ResolvedArm) -> list[str]:
    rows, ranks = arm.problems_per_step * arm.completions_per_problem, recipe.resources.ranks
    return [f"an update has {rows} completions, which {ranks} ranks do not divide"] if rows % ranks else []


def _too_long(recipe: Recipe, arms: list[ResolvedArm], shape: ModelShape) -> list[str]:
    longest = {"training": max((arm.prompt.max_prompt_tokens + arm.prompt.max_completion_tokens for arm in arms),
                               default=0)}  # fmt: skip
    suite = recipe.suite
    if suite is not None and suite.engine.kind == "vllm":  # other engines do not refuse longer sequences
        longest["the evaluation"] = suite.max_prompt_tokens + suite.max_response_tokens
    return [
        f"{what} allows sequences of {tokens:,} tokens (prompt and completion), the model's context is "
        f"{shape.context:,}; lower max_completion_tokens or max_response_tokens"
        for what, tokens in longest.items()
        if shape.context is not None and tokens > shape.context
    ]


def _too_large(recipe: Recipe, arms: list[ResolvedArm], shape: ModelShape) -> list[str]:
    """Why memory does not suffice.

    While vLLM samples, weights, gradients and optimizer states stay on the GPU, as DeepSpeed keeps them; activations
    are gone. While the arm trains, a vLLM with sleep mode has freed its weights and cache.
    """
    resources, vllm = recipe.resources, recipe.resources.vllm
    if resources.gpu is None:
        return []
    sentences = []
    gpu_bytes = GPUS[resources.gpu].memory_bytes
    usable = USABLE * gpu_bytes
    sampling = [arm for arm in arms if arm.sampling != "teacher"]
    share = vllm.memory_share * gpu_bytes if vllm is not None and vllm.mode == "colocate" and sampling else 0.0
    if vllm is not None and share:
        longest = max(arm.prompt.max_prompt_tokens + arm.prompt.max_completion_tokens for arm in sampling)
        weights = 2 * shape.parameters() / vllm.tensor_parallel
        cache = longest * shape.kv_cache_bytes_per_token() / vllm.tensor_parallel
        if weights + cache > share:
            sentences.append(
                f"vLLM's share of {share / 1e9:.0f} GB cannot hold {weights / 1e9:.1f} GB of weights and the cache of "
                f"one sequence of {longest:,} tokens ({cache / 1e9:.1f} GB)"
            )
    for arm in arms:
        memory = memory_of_arm(recipe, arm, shape)
        assert memory is not None
        engine = share if arm in sampling else 0.0
        training = memory["total"] + (engine if vllm is not None and not vllm.sleep else 0)
        needed = max(training, memory["total"] - memory["activations"] + engine)
        if needed > usable:
            when = "while training" if training > usable else f"beside vLLM's {engine / 1e9:.0f} GB"
            sentences.append(
                f"an arm with sampling {arm.sampling} needs {needed / 1e9:.0f} GB per rank {when}, "
                f"a {resources.gpu} has about {usable / 1e9:.0f}"
            )
    return sentences


def nearest_setting(recipe: Recipe, shape: ModelShape | None) -> str | None:
    """The first one or two settings that leave no problem, as overrides; None if none do."""
    candidates = list(_remedies(recipe))
    for count in (1, 2):
        for overrides in combinations(candidates, count):
            changed = _changed(recipe, overrides)
            if changed is not None and not problems(changed, shape):
                return " ".join(overrides)
    return None


def _remedies(recipe: Recipe) -> Iterator[str]:
    """Settings worth trying, in the order a user would: what costs nothing first, then more GPUs, then less text."""
    resources, vllm = recipe.resources, recipe.resources.vllm
    colocated = vllm is not None and vllm.mode == "colocate"
    if colocated:
        yield from (f"resources.vllm.memory_share={percent / 100}" for percent in range(25, 75, 5))
    yield from (f"train.micro_batch_size={size}" for size in (16, 8, 4, 2, 1))
    yield "resources.zero_stage=3"
    if colocated:
        yield from (f"resources.vllm.tensor_parallel={gpus}" for gpus in (2, 4, 8))
    yield "resources.offload=true"
    ranks = resources.ranks
    yield from (f"resources.ranks={count}" for count in (ranks - 1, ranks + 1, 2 * ranks, 4 * ranks) if count > 0)
    yield from (f"prompt.max_completion_tokens={tokens}" for tokens in (16384, 8192, 4096, 2048)
                if tokens < recipe.prompt.max_completion_tokens)  # fmt: skip


def _changed(recipe: Recipe, overrides: tuple[str, ...]) -> Recipe | None:
    """The recipe with these overrides; None if they are not valid together."""
    values: dict[str, Any] = recipe.dump()
    for override in overrides:
        apply_override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValueError:
        return None
