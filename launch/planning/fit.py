"""Whether a recipe fits on its GPUs, and which settings would make it fit. Needs no torch."""

from collections.abc import Iterator
from itertools import combinations
from math import gcd
from typing import Any, assert_never

from launch.planning.analysis_plan import DiagnosticsPlan, DriftPlan, diagnostics_plan, drift_plan
from launch.stages import Stage
from recipes.diagnostics_schema import DiagnosticsSpec
from recipes.loading import apply_override
from recipes.schema import Recipe
from train.accounting.cost import GPUS, ModelShape, bytes_per_weight, with_article
from train.accounting.memory import USABLE, memory_of_arm, resolve_vllm
from train.arms import ResolvedArm, resolve_arm

_LIBRARIES_BYTES = 900_000_000
"""Of the host, by torch, transformers and what they allocate: the stages of the pocket study took up to 860 MB beside
what their models need (docs/performance.md)."""


def fit_mistakes(recipe: Recipe, shape: ModelShape | None) -> list[str]:
    """Why a recipe cannot work, as sentences; the last one names settings under which it would, if any were found."""
    sentences = _mistakes(recipe, shape)
    if sentences and (settings := nearest_setting(recipe, shape)):
        sentences[-1] += f"; the nearest setting that works: {settings}"
    return sentences


def _mistakes(recipe: Recipe, shape: ModelShape | None) -> list[str]:
    """Batches that do not divide among the ranks, sequences beyond the model's context, and too little memory."""
    arms = [resolve_arm(recipe, name) for name in recipe.trained]
    sentences = [text for arm in arms for text in _not_divided(recipe, arm)]
    if shape is not None:
        sentences += _too_long(recipe, arms, shape)
        sentences += _too_large(recipe, arms, shape)
    return list(dict.fromkeys(sentences))


def _not_divided(recipe: Recipe, arm: ResolvedArm) -> list[str]:
    rows, ranks = _rows(arm), recipe.resources.ranks
    return [f"a step has {rows} completions, which {ranks} ranks do not divide"] if rows % ranks else []


def _too_long(recipe: Recipe, arms: list[ResolvedArm], shape: ModelShape) -> list[str]:
    if shape.context is None:
        return []
    limits: list[tuple[str, int, int, str, str]] = []
    """What reads the sequences, tokens of prompt and completion, keys of both."""
    for name, arm in zip(recipe.trained, arms, strict=True):
        of_prompt, of_completion = (
            f"{_prompt_key(recipe, name)}.max_{part}_tokens" for part in ("prompt", "completion")
        )
        read = (arm.prompt.max_prompt_tokens, arm.prompt.max_completion_tokens)
        limits.append(("training", *read, of_prompt, of_completion))
    suite, diagnostics = recipe.suite, recipe.diagnostics if recipe.with_diagnostics else None
    if suite is not None and suite.engine.kind != "endpoint":  # a server has a model and limits of its own
        read = (suite.max_prompt_tokens, suite.max_response_tokens)
        limits.append(("the evaluation", *read, "suite.max_prompt_tokens", "suite.max_response_tokens"))
    if diagnostics is not None and recipe.corpus.sources:
        read = (recipe.prompt.max_prompt_tokens, diagnostics.max_completion_tokens)
        limits.append(
            ("the section diagnostics", *read, "prompt.max_prompt_tokens", "diagnostics.max_completion_tokens")
        )
    sentences = []
    for what, prompt, completion, prompt_key, completion_key in limits:
        if prompt + completion > shape.context:
            room = shape.context - prompt
            remedy = f"{completion_key} to {room:,} or less"
            if 8 * room < shape.context:  # little or nothing, whatever the completions are
                of_prompt_too, rest = _split(shape.context)
                remedy = f"{prompt_key} to {of_prompt_too:,} and {completion_key} to {rest:,}"
            sentences.append(
                f"{what} allows sequences of {prompt + completion:,} tokens (prompt and completion), the model's "
                f"context is {shape.context:,}; lower {remedy}"
            )
    return sentences


def _split(context: int) -> tuple[int, int]:
    """Tokens of prompt and completion that fill a context, as the default suite divides them."""
    return context // 4, context - context // 4


def _prompt_key(recipe: Recipe, name: str) -> str:
    """The section that sets the prompt of an arm."""
    return f"arms.{name}.prompt" if recipe.trained[name].prompt is not None else "prompt"


def _too_large(recipe: Recipe, arms: list[ResolvedArm], shape: ModelShape) -> list[str]:
    """Why memory does not suffice."""
    gpu = recipe.resources.gpu
    if gpu is None:
        return []
    sentences = []
    usable, size = USABLE * GPUS[gpu].memory_bytes, bytes_per_weight(recipe)
    for arm in arms:
        vllm, (engine, training, needed) = resolve_vllm(recipe, arm, shape), _bytes_of_run(recipe, arm, shape)
        if vllm is not None and engine:
            longest = arm.prompt.max_prompt_tokens + arm.prompt.max_completion_tokens
            weights = size * shape.parameters() / vllm.tensor_parallel
            cache = longest * shape.kv_cache_bytes_per_token(size) / vllm.tensor_parallel
            if weights + cache > engine:
                sentences.append(
                    f"vLLM's share of {engine / 1e9:.0f} GB cannot hold {weights / 1e9:.1f} GB of weights and the "
                    f"cache of one sequence of {longest:,} tokens ({cache / 1e9:.1f} GB)"
                )
        if needed > usable:
            when = "while training" if training > usable else f"beside vLLM's {engine / 1e9:.0f} GB"
            sentences.append(
                f"an arm with sampling {arm.sampling} needs {needed / 1e9:.0f} GB per rank {when}, {_room(gpu)}"
            )
    return sentences


def _bytes_of_run(recipe: Recipe, arm: ResolvedArm, shape: ModelShape) -> tuple[int, int, int]:
    """Bytes on the GPU of a rank: vLLM's share of it, the most while the arm trains, and the most.

    While vLLM samples, weights, gradients and optimizer states stay on the GPU, as DeepSpeed keeps them; activations
    are gone. While the arm trains, a vLLM with sleep mode has freed its weights and cache.
    """
    memory, vllm, engine = memory_of_arm(recipe, arm, shape), resolve_vllm(recipe, arm, shape), 0
    assert memory is not None
    if vllm is not None and vllm.mode == "colocate" and recipe.resources.gpu is not None:
        assert vllm.memory_share is not None
        engine = round(vllm.memory_share * GPUS[recipe.resources.gpu].memory_bytes)
    training = memory.total + (engine if vllm is not None and not vllm.sleep else 0)
    return engine, training, max(training, memory.states + engine)


def stage_memory(recipe: Recipe, stage: Stage, shape: ModelShape | None) -> int | None:
    """Bytes that a stage needs at its peak on one GPU, or of the host without one.

    On a GPU what libraries take is not counted.
    """
    needed = _model_memory(recipe, stage, shape)
    return needed if needed is None or recipe.resources.gpu is not None else needed + _LIBRARIES_BYTES


def _model_memory(recipe: Recipe, stage: Stage, shape: ModelShape | None) -> int | None:
    """The same without libraries."""
    if shape is None or recipe.model is None:
        return None
    size, gpu = bytes_per_weight(recipe), recipe.resources.gpu
    weights = size * shape.parameters()
    match stage.kind:
        case "base" | "external":
            return weights
        case "arms":
            return _bytes_of_run(recipe, resolve_arm(recipe, stage.arm), shape)[2]
        case "eval" | "trajectory":
            suite = recipe.require_suite()
            if suite.engine.kind == "vllm" and gpu is not None:
                return round(suite.engine.memory_share * GPUS[gpu].memory_bytes)
            longest = suite.max_prompt_tokens + suite.max_response_tokens
            return weights + suite.engine.batch_size * longest * shape.kv_cache_bytes_per_token(size)
        case "drift":
            drift = drift_plan(recipe, shape)
            return None if drift is None else drift.memory
        case "diagnostics":
            diagnostics = diagnostics_plan(recipe, shape)
            return None if diagnostics is None else diagnostics.memory
        case "corpus" | "questions" | "report":  # no model, or a sampler's, of which nothing is known
            return None
        case _:
            assert_never(stage.kind)


def analysis_mistakes(recipe: Recipe, shape: ModelShape | None) -> list[str]:
    """Why drift or the diagnostics do not fit, as sentences with a setting under which they do."""
    gpu = recipe.resources.gpu
    if gpu is None or shape is None:
        return []
    plans = {"drift": drift_plan, "diagnostics": diagnostics_plan}
    sentences = []
    for section, plan_of in plans.items():
        plan = plan_of(recipe, shape)
        if plan is None or plan.memory is None or plan.fits is not False:
            continue
        ways = (_changed(recipe, (override,)) for override in _smaller(recipe, section))
        found = zip(_smaller(recipe, section), ways, strict=True)
        way = next((text for text, other in found if other and _fits(plan_of(other, shape))), f"{section}=null")
        sentences.append(
            f"{section} need{'s' * (section == 'drift')} {plan.memory / 1e9:.0f} GB on one GPU, "
            f"{_room(gpu)}; the nearest setting that works: {way}"
        )
    return sentences


def _fits(plan: DriftPlan | DiagnosticsPlan | None) -> bool:
    return plan is not None and plan.fits is True


def _smaller(recipe: Recipe, section: str) -> Iterator[str]:
    """Settings with which an analysis needs less memory, those that change no result first."""
    spec = recipe.require_drift() if section == "drift" else recipe.require_diagnostics()
    limits = {"batch_size": (spec.batch_size, 1)}
    if isinstance(spec, DiagnosticsSpec):
        limits["batch_tokens"] = (spec.batch_tokens, 512)
    for key, (value, least) in limits.items():
        while value > least:
            value //= 2
            yield f"{section}.{key}={value}"
    if bytes_per_weight(recipe, spec.dtype) > 2:
        yield f"{section}.dtype=bfloat16"


def _room(gpu: str) -> str:
    """What a GPU has, and how much of it may be planned."""
    memory = GPUS[gpu].memory_bytes
    return f"{with_article(gpu)} has {memory / 1e9:.0f}, of which about {USABLE * memory / 1e9:.0f} without the margin"


def nearest_setting(recipe: Recipe, shape: ModelShape | None) -> str | None:
    """The first one or two settings that leave no mistake, as overrides; None if none do."""
    candidates = list(dict.fromkeys([*_shorter(recipe, shape), *_dividing(recipe), *_remedies(recipe)]))
    for count in (1, 2):
        for overrides in combinations(candidates, count):
            changed = _changed(recipe, overrides)
            if changed is not None and not _mistakes(changed, shape):
                return " ".join(overrides)
    return None


def _remedies(recipe: Recipe) -> Iterator[str]:
    """Settings worth trying, in the order a user would: what costs nothing first, then more GPUs, then less text."""
    resources, vllm = recipe.resources, recipe.resources.vllm
    colocated = vllm is not None and vllm.mode == "colocate"
    if vllm is not None and vllm.memory_share is not None:
        yield "resources.vllm.memory_share=null"  # derived, which is never slower than a share that only just works
    if colocated:
        yield from (f"resources.vllm.memory_share={percent / 100}" for percent in range(25, 75, 5))
    yield from (f"train.micro_batch_size={size}" for size in (16, 8, 4, 2, 1))
    yield "resources.zero_stage=3"
    if colocated:
        yield from (f"resources.vllm.tensor_parallel={gpus}" for gpus in (2, 4, 8))
    yield "resources.offload=true"
    yield from (f"resources.ranks={count * resources.ranks}" for count in (2, 4))
    yield from (f"prompt.max_completion_tokens={tokens}" for tokens in (16384, 8192, 4096, 2048)
                if tokens < recipe.prompt.max_completion_tokens)  # fmt: skip


def _dividing(recipe: Recipe) -> Iterator[str]:
    """Numbers of ranks that divide the completions of a step, and of problems whose completions the ranks divide."""
    ranks, rows = recipe.resources.ranks, [_rows(resolve_arm(recipe, name)) for name in recipe.trained]
    if not any(count % ranks for count in rows):
        return
    divisors = [count for count in range(1, min(rows) + 1) if not any(row % count for row in rows)]
    yield from (f"resources.ranks={count}" for count in sorted(divisors, key=lambda count: abs(count - ranks))[:2])
    assert recipe.train is not None
    problems, group = recipe.train.problems_per_step, recipe.train.completions_per_problem
    of_a_step = ranks // gcd(ranks, group)
    if problems >= of_a_step:
        yield f"train.problems_per_step={problems // of_a_step * of_a_step}"


def _rows(arm: ResolvedArm) -> int:
    """Completions of a step."""
    return arm.problems_per_step * arm.completions_per_problem


def _shorter(recipe: Recipe, shape: ModelShape | None) -> Iterator[str]:
    """The longest completions and responses that the model's context has room for."""
    if shape is None or shape.context is None:
        return
    if recipe.suite is not None and recipe.suite.max_prompt_tokens >= shape.context:  # both, to be tried together
        prompt, response = _split(shape.context)
        yield from (f"suite.max_prompt_tokens={prompt}", f"suite.max_response_tokens={response}")
    context, suite, diagnostics = shape.context, recipe.suite, recipe.diagnostics
    limits = [("prompt.max_completion_tokens", recipe.prompt.max_completion_tokens, recipe.prompt.max_prompt_tokens)]
    if suite is not None:
        limits.append(("suite.max_response_tokens", suite.max_response_tokens, suite.max_prompt_tokens))
    if diagnostics is not None:
        key = "diagnostics.max_completion_tokens"
        limits.append((key, diagnostics.max_completion_tokens, recipe.prompt.max_prompt_tokens))
    yield from (f"{key}={context - prompt}" for key, limit, prompt in limits if 0 < context - prompt < limit)


def _changed(recipe: Recipe, overrides: tuple[str, ...]) -> Recipe | None:
    """The recipe with these overrides; None if they are not valid together."""
    values: dict[str, Any] = recipe.dump()
    for override in overrides:
        apply_override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValueError:
        return None
