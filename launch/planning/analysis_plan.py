"""What drift, trajectories and diagnostics will need: responses, tokens, memory, disk. Needs no torch."""

from dataclasses import dataclass

from data.sampling.engine import ENGINE_SHARE
from recipes.diagnostics_schema import LOGITS_TOKENS, DiagnosticsSpec
from recipes.schema import Recipe
from train.accounting.cost import GPUS, ModelShape, bytes_per_weight, expected_prompt_tokens
from train.accounting.memory import USABLE, size_text
from train.arms import resolve_arm

_LOGITS_COPIES = 6  # two models' logits, log-probabilities and probabilities of a chunk, in float32
_POOLINGS = 2


@dataclass(frozen=True)
class DriftPlan:
    """Drift of all checkpoints. Each samples once a problem; then it and the base read its completions and the
    base's.
    """

    checkpoints: int
    completions: int
    engine: str
    """transformers or vllm."""
    memory: int | None
    """Bytes on one GPU at the peak, at most; None for an unknown model."""
    fits: bool | None
    """None without a GPU to fit on."""


@dataclass(frozen=True)
class TrajectoryPlan:
    """The trajectories of all runs together."""

    checkpoints: int
    responses_at_most: int


@dataclass(frozen=True)
class DiagnosticsPlan:
    """The diagnostics of all models; completions as long as their limit, prompts as a quarter of theirs."""

    models: int
    prompts_per_model: int
    tokens_per_model_at_most: int
    memory: int | None
    """Bytes that one model needs on one GPU at the peak."""
    disk_bytes: int | None
    """Of one model while it runs."""
    fits: bool | None


@dataclass(frozen=True)
class AnalysisPlan:
    """The analyses besides training and evaluation; None for each that the recipe does not have."""

    drift: DriftPlan | None
    trajectory: TrajectoryPlan | None
    diagnostics: DiagnosticsPlan | None


def analysis_plan(recipe: Recipe, shape: ModelShape | None) -> AnalysisPlan:
    """The plans of drift, trajectories and diagnostics."""
    return AnalysisPlan(drift_plan(recipe, shape), trajectory_plan(recipe), diagnostics_plan(recipe, shape))


def _checkpoints(recipe: Recipe) -> int:
    """Number of checkpoints of all runs and of the base, which counts as one."""
    runs = [resolve_arm(recipe, arm).kept_weights for arm in recipe.trained]
    return 1 + len(recipe.seeds) * sum(runs)


def drift_plan(recipe: Recipe, shape: ModelShape | None) -> DriftPlan | None:
    """What measuring drift needs; None where the recipe does not.

    With `resources.vllm` an engine has the GPU to itself while it samples, else the cache of a whole batch at its
    longest lies beside both models.
    """
    spec = recipe.drift
    if spec is None or not recipe.trained:
        return None
    checkpoints, problems = _checkpoints(recipe), min(spec.problems, recipe.corpus.heldout_problems)
    with_engine = recipe.resources.vllm is not None
    memory = fits = None
    if shape is not None:
        size = bytes_per_weight(recipe, spec.dtype)
        longest = recipe.prompt.max_prompt_tokens + recipe.prompt.max_completion_tokens
        cache = longest * shape.kv_cache_bytes_per_token(size)
        logits = _LOGITS_COPIES * LOGITS_TOKENS * shape.vocab_size * 4
        models = 2 * shape.parameters() * size
        memory = models + max(logits, 0 if with_engine else spec.batch_size * cache)  # one after the other
        if recipe.resources.gpu is not None:
            gpu = GPUS[recipe.resources.gpu]
            engine = (shape.parameters() * size + cache) * bytes_per_weight(recipe) // size if with_engine else 0
            fits = memory <= USABLE * gpu.memory_bytes and engine <= ENGINE_SHARE * gpu.memory_bytes
    return DriftPlan(
        checkpoints, checkpoints * problems, "vllm" if with_engine else "transformers", memory, fits
    )  # fmt: skip


def trajectory_plan(recipe: Recipe) -> TrajectoryPlan | None:
    """Checkpoints and responses of all trajectories; None without them."""
    spec, suite = recipe.trajectory, recipe.suite
    if spec is None or suite is None or not recipe.with_trajectories:
        return None
    checkpoints = _checkpoints(recipe)
    responses = min(spec.heldout_problems, recipe.corpus.heldout_problems) * spec.samples
    benchmarks = [item for item in suite.benchmarks if item.name != "heldout"]
    responses += sum(spec.questions * (spec.samples if suite.temperature_of(item) > 0 else 1) for item in benchmarks)
    return TrajectoryPlan(checkpoints, checkpoints * responses)


def diagnostics_plan(recipe: Recipe, shape: ModelShape | None) -> DiagnosticsPlan | None:
    """What the diagnostics of all models read and write, and what one needs at most; None without `diagnostics`."""
    spec, suite = recipe.diagnostics, recipe.suite
    if spec is None or suite is None or not recipe.with_diagnostics:
        return None
    sets = len(suite.benchmarks) + bool(recipe.corpus.sources)
    prompts, length = sets * spec.prompts, spec.max_completion_tokens
    prompt_tokens = max(1, expected_prompt_tokens(max(suite.max_prompt_tokens, recipe.prompt.max_prompt_tokens)))
    memory = disk = fits = None
    if shape is not None:
        size = bytes_per_weight(recipe, spec.dtype)
        head = shape.vocab_size * shape.hidden_size * size
        longest = suite.max_prompt_tokens + length
        hidden_states = (shape.num_layers + 2) * max(spec.batch_tokens, longest) * shape.hidden_size * size
        logits = _LOGITS_COPIES * LOGITS_TOKENS * shape.vocab_size * 4
        cache = spec.batch_size * longest * shape.kv_cache_bytes_per_token(size)
        # Pooling, sampling and comparing with the other output layer follow one another.
        memory = shape.parameters() * size + max(hidden_states, cache, head + logits)
        states = (shape.num_layers + 1) * _POOLINGS * prompts * shape.hidden_size * 4
        disk = 2 * states + _completions_of_prompt(spec) * prompts * length * shape.hidden_size * size + head
        if recipe.resources.gpu is not None:
            fits = memory <= USABLE * GPUS[recipe.resources.gpu].memory_bytes
    return DiagnosticsPlan(
        models=sum(len(recipe.labels(arm)) for arm in recipe.arms),
        prompts_per_model=prompts,
        tokens_per_model_at_most=prompts * diagnosed_tokens(spec, prompt_tokens, length),
        memory=memory,
        disk_bytes=disk,
        fits=fits,
    )


def diagnosed_tokens(spec: DiagnosticsSpec, prompt: int, completion: int) -> int:
    """Tokens that are read for one prompt of a tuned model: by two models, with every completion and alone."""
    return 2 * _completions_of_prompt(spec) * (prompt + completion) + 2 * prompt


def _completions_of_prompt(spec: DiagnosticsSpec) -> int:
    return 4 if spec.paper else 3  # own, base's, references, greedy


def analysis_lines(plan: AnalysisPlan) -> list[str]:
    """The plan as text, a line for each analysis."""
    lines = []
    if (p := plan.drift) is not None:
        text = f"drift: {p.checkpoints} checkpoints, {p.completions:,} completions by {p.engine}"
        lines.append(text + ("" if p.memory is None else f", {size_text(p.memory)} of memory"))
    if (t := plan.trajectory) is not None:
        lines.append(f"trajectory: {t.checkpoints} checkpoints, {t.responses_at_most:,} responses")
    if (d := plan.diagnostics) is not None:
        text = f"diagnostics: {d.models} models, {d.prompts_per_model:,} prompts each"
        text += f", at most {d.tokens_per_model_at_most:,} tokens read"
        if d.memory is not None and d.disk_bytes is not None:
            text += f"; one model at a time, {size_text(d.memory)} of memory"
            text += f", {size_text(d.disk_bytes)} of disk while it runs"
        lines.append(text)
    return lines
