"""How long each stage takes on the GPUs it gets, by what it does. Needs no torch.

Hours are expectations, where memory, disk and tokens are upper bounds: texts are shorter than their limits. They rest
on `train/accounting/rates.py` and on `resources.expected_completion_tokens`. None: not known yet, because the model is
unknown or the questions are not counted.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, assert_never

from data.sampling.engine import ENGINE_SHARE
from eval.questions.suite_size import answering_seconds, evaluation_responses
from launch.hardware import gpus_wanted
from launch.planning.analysis_plan import diagnosed_tokens, diagnostics_plan, trajectory_plan
from launch.planning.teacher import teacher_plan
from launch.stage_kinds import StageKind
from launch.stages import Stage
from recipes.schema import Recipe
from train.accounting.cost import (
    GPUS,
    Gpu,
    ModelShape,
    bytes_per_weight,
    expected_prompt_tokens,
    expected_tokens,
    train_flops,
)
from train.accounting.memory import resumable_bytes, sampling_memory
from train.accounting.rates import Rates, Sampling, batches_seconds, engine_seconds, forward_seconds, rates_for
from train.arms import ResolvedArm, completions_of_problem, resolve_arm

_TABLES_SECONDS = {"corpus": (60.0, 8.0), "questions": (10.0, 0.0), "report": (60.0, 4.0)}
"""Of stages that read and write tables, for a GPU, and without one, where data are made up and small; assumed."""
PACKED_ROW_TOKENS = 125  # of the 128 of a packed pre-training row


WorkPart = Literal[
    "start", "loading", "generation", "old log-probabilities", "reference model", "forward and backward",
    "recomputation", "weight synchronisation", "checkpoints", "reading", "reading and writing", "tables", "teacher",
]  # fmt: skip
"""What a stage does, by which `transfer plan --json` divides its seconds."""


@dataclass(frozen=True)
class StageHours:
    """The time a stage takes and the GPUs it holds."""

    gpus: int
    """GPUs that it holds from start to end; 0 on a CPU."""
    seconds: dict[WorkPart, float]
    """Seconds of wall clock, by what is done."""

    @property
    def hours(self) -> float:
        """Hours of wall clock."""
        return sum(self.seconds.values()) / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs it holds, busy or not."""
        return self.gpus * self.hours


@dataclass(frozen=True)
class PlanContext:
    """What all stages of a plan share."""

    recipe: Recipe
    shape: ModelShape
    gpu: Gpu
    rates: Rates
    node: int
    """GPUs of a node; 0: none."""

    @property
    def weights(self) -> int:
        """Bytes of the model's weights."""
        return self.shape.parameters() * bytes_per_weight(self.recipe)

    @property
    def loading(self) -> float:
        """Seconds of reading the weights."""
        return self.weights / self.rates.disk_bandwidth

    def cache(self, share: float) -> float:
        """Bytes for keys and values in an engine with this share of the memory of a GPU."""
        return max(1.0, share * self.gpu.memory_bytes - self.weights)

    def forward(self, tokens: float, length: int, dtype: str | None = None) -> float:
        """Seconds of a forward pass on one GPU. `dtype`: `float32` where the models are loaded in that on purpose."""
        gpu = replace(self.gpu, peak_flops=self.gpu.float32_flops) if dtype == "float32" else self.gpu
        return forward_seconds(self.shape, gpu, self.rates, tokens, length)

    def batches(self, load: Sampling, batch: int, dtype: str | None = None) -> float:
        """Seconds of sampling with transformers on one GPU; `dtype`: where it is not the recipe's."""
        return batches_seconds(self.shape, self.gpu, self.rates, load, batch, bytes_per_weight(self.recipe, dtype))

    def engine(self, load: Sampling, cache_bytes: float, gpus: int = 1) -> float:
        """Seconds of sampling with an engine on so many GPUs."""
        return engine_seconds(self.shape, self.gpu, self.rates, load, cache_bytes, gpus, bytes_per_weight(self.recipe))


def plan_context(recipe: Recipe, shape: ModelShape | None, node: int = 0) -> PlanContext | None:
    """The context at the default assumptions; None for an unknown model."""
    if shape is None:
        return None
    gpu, rates = rates_for(GPUS[recipe.resources.gpu] if recipe.resources.gpu else None)
    return PlanContext(recipe, shape, gpu, rates, node)


def stage_hours(context: PlanContext | None, stage: Stage) -> StageHours | None:
    """Hours of one stage; None where they are not known."""
    if context is None:
        return None
    made = _made(context, stage)
    if made is None:
        return None
    held, seconds = made
    if stage.kind != "arms":
        seconds = {"start": context.rates.start_seconds, **seconds}
    return StageHours(held if context.recipe.resources.gpu is not None else 0, seconds)


_Made = tuple[int, dict[WorkPart, float]]
"""GPUs held and seconds by part, the start left out except for arms."""


def _made(context: PlanContext, stage: Stage) -> _Made | None:
    match stage.kind:
        case "base" | "external":
            return _prepared(context, stage)
        case "corpus":
            return _corpus(context)
        case "questions" | "report":
            return 0, {"tables": _tables_seconds(context, stage.kind)}
        case "arms":
            return _gpus_of_run(context, resolve_arm(context.recipe, stage.arm)), run_parts(context, stage.arm)
        case "eval":
            return _evaluation(context)
        case "trajectory":
            return _trajectory(context, stage)
        case "drift":
            return _drift(context, stage)
        case "diagnostics":
            return _diagnostics(context, stage)
        case _:
            assert_never(stage.kind)


def run_parts(context: PlanContext, name: str) -> dict[WorkPart, float]:
    """Seconds of one run of an arm by what is done."""
    recipe, shape, rates = context.recipe, context.shape, context.rates
    arm = resolve_arm(recipe, name)
    ranks, prompt = recipe.resources.ranks, expected_prompt_tokens(arm.prompt.max_prompt_tokens)
    rows = arm.problems_per_step * completions_of_problem(recipe, arm)
    completions = arm.steps * rows
    mean = expected_tokens(recipe, arm.prompt.max_completion_tokens, rates.completion_share)
    padding = 1.0 if arm.padding_free and arm.trainer == "sft" else rates.padding
    of_busiest = ceil(rows / ranks) / rows  # a step takes as long as the rank with the most rows
    forward = context.forward(completions * (prompt + mean) * padding, prompt + mean) * of_busiest
    backward = 2.0 if arm.lora is None else 1.0  # with adapters no gradients of the weights
    checkpointing = recipe.resources.gpu is not None  # as train/run.py sets it
    seconds: dict[WorkPart, float] = {
        "start": rates.start_seconds + context.loading,
        "generation": _generation_seconds(context, arm, completions, prompt, mean),
        "old log-probabilities": forward * _reads_before_training(recipe, arm),
        "reference model": forward * (arm.beta > 0),
        "forward and backward": forward * (1 + backward),
        "recomputation": forward * checkpointing,
        "weight synchronisation": _samplings(arm) * context.weights / rates.sync_bandwidth
        if recipe.resources.vllm is not None
        else 0.0,
    }
    if arm.sampling != "teacher" and recipe.resources.vllm is not None and recipe.resources.vllm.mode == "colocate":
        seconds["start"] += rates.engine_seconds
    working = sum(seconds.values()) - seconds["start"]
    saves = max(1, int(arm.steps / _steps_between(arm, working / arm.steps)))
    saved = (
        saves * resumable_bytes(shape, arm.dtype == "bfloat16", arm.adapter_rank) + arm.kept_weights * context.weights
    )
    return seconds | {"checkpoints": saved / rates.disk_bandwidth}


def _samplings(arm: ResolvedArm) -> int:
    """How often an arm samples with other weights than before."""
    if arm.sampling == "current":
        return arm.steps // arm.updates_per_batch
    return {"teacher": 0, "base_once": 1, "round": ceil(arm.steps / (arm.round_steps or arm.steps))}[str(arm.sampling)]


def _generation_seconds(context: PlanContext, arm: ResolvedArm, completions: int, prompt: int, mean: int) -> float:
    """Seconds in which an arm waits for its samples. Dynamic sampling draws further batches, which are not counted."""
    samplings, recipe = _samplings(arm), context.recipe
    if not samplings:
        return 0.0
    vllm, ranks = recipe.resources.vllm, recipe.resources.ranks
    limit, per_sampling = arm.prompt.max_completion_tokens, completions / samplings
    if vllm is None or recipe.resources.gpu is None:
        own, batch = Sampling(per_sampling / ranks, prompt, mean, limit), ceil(per_sampling / ranks)
        if arm.sampling != "current":
            batch = arm.problems_per_step * arm.completions_per_problem
        return samplings * context.batches(own, max(1, batch))
    held = sampling_memory(recipe, arm, context.shape)
    assert held is not None
    gpus = ranks if vllm.mode == "colocate" else max(vllm.tensor_parallel, server_gpus(context))
    load = Sampling(per_sampling * vllm.tensor_parallel / gpus, prompt, mean, limit)
    return samplings * context.engine(load, held.kv_cache * vllm.tensor_parallel, vllm.tensor_parallel)


def server_gpus(context: PlanContext) -> int:
    """GPUs of the node that a job keeps for its vLLM server; 0: it has none of its own."""
    resources = context.recipe.resources
    nodes = resources.vllm.server_nodes if resources.vllm is not None else 0
    return nodes * (context.node or resources.ranks // resources.nodes)


def _reads_before_training(recipe: Recipe, arm: ResolvedArm) -> bool:
    """Whether TRL reads completions for their log-probabilities before it trains on them.

    It does where several updates share a sampling, or to correct for the sampler/trainer mismatch of vLLM.
    """
    if arm.trainer == "sft":
        return False
    own = arm.sampling == "current"
    corrected = recipe.resources.vllm is not None and own and arm.importance_sampling != "off"
    return corrected or arm.updates_per_batch > 1


def _steps_between(arm: ResolvedArm, update_seconds: float) -> float:
    """Updates between two resumable checkpoints: so many, or the first batch to end that late."""
    batch = max(1e-9, update_seconds * arm.updates_per_batch)
    batches = min(arm.save_every_steps / arm.updates_per_batch, ceil(arm.save_every_minutes * 60 / batch))
    return min(arm.steps, max(1.0, batches * arm.updates_per_batch))


def _gpus_of_run(context: PlanContext, arm: ResolvedArm) -> int:
    return context.recipe.resources.ranks + (server_gpus(context) if arm.trainer == "grpo" else 0)


def _prepared(context: PlanContext, stage: Stage) -> _Made | None:
    recipe = context.recipe
    pocket = recipe.model.pocket if recipe.model is not None and stage.kind == "base" else None
    if pocket is None:
        return 0, {"reading and writing": 2 * context.loading}
    tokens = pocket.documents // 4 * PACKED_ROW_TOKENS
    flops = train_flops(context.shape.parameters(), tokens)
    threads = 1 if recipe.resources.gpu is not None else recipe.resources.base_threads
    arithmetic = flops / (context.gpu.peak_flops * context.rates.train_utilisation * threads)
    steps = pocket.documents // 4 // pocket.batch_size
    return 1, {"forward and backward": arithmetic + steps * context.rates.base_step_seconds}


def _corpus(context: PlanContext) -> _Made | None:
    teacher = teacher_plan(context.recipe, None, context.gpu, context.rates)
    seconds = _tables_seconds(context, "corpus")
    if teacher is None:
        return 0, {"tables": seconds}
    if teacher.gpu_hours is None or context.recipe.resources.gpu is None:
        return None
    held = 1 if teacher.kind == "transformers" else max(1, context.node)  # its server has a node
    return held, {"tables": seconds, "teacher": teacher.gpu_hours * 3600 / held}


def _tables_seconds(context: PlanContext, kind: StageKind) -> float:
    on_gpu, without = _TABLES_SECONDS[kind]
    return on_gpu if context.recipe.resources.gpu is not None else without


def _answers(context: PlanContext, responses: float) -> tuple[int, float, float] | None:
    """GPUs, seconds of starting, and seconds of answering for one model; None: a server of its own answers."""
    recipe, engine = context.recipe, context.recipe.require_suite().engine
    seconds = answering_seconds(recipe, context.shape, context.gpu, context.rates, responses)
    if seconds is None:
        return None
    if engine.kind == "hf" or recipe.resources.gpu is None:
        return 1, context.loading, seconds
    return engine.tensor_parallel, context.rates.engine_seconds + context.loading, seconds


def _evaluation(context: PlanContext) -> _Made | None:
    recipe = context.recipe
    responses, copies = evaluation_responses(recipe, 1), recipe.resources.evaluation_replicas
    made = None if responses is None else _answers(context, responses / copies)
    if made is None:
        return None
    return made[0] * copies, {"start": context.rates.start_seconds + made[1], "generation": made[2]}


def checkpoints_of_stage(context: PlanContext, stage: Stage) -> int:
    """Checkpoints that drift or a trajectory looks at: the base alone, or those of a run."""
    return resolve_arm(context.recipe, stage.arm).kept_weights if stage.arguments else 1


def _trajectory(context: PlanContext, stage: Stage) -> _Made | None:
    plan = trajectory_plan(context.recipe)
    assert plan is not None
    made = _answers(context, plan.responses_at_most / plan.checkpoints)
    models = checkpoints_of_stage(context, stage)
    return None if made is None else (made[0], {"loading": models * made[1], "generation": models * made[2]})


def _drift(context: PlanContext, stage: Stage) -> _Made | None:
    recipe, spec = context.recipe, context.recipe.drift
    assert spec is not None
    problems, models = min(spec.problems, recipe.corpus.heldout_problems), checkpoints_of_stage(context, stage)
    prompt, limit = expected_prompt_tokens(recipe.prompt.max_prompt_tokens), recipe.prompt.max_completion_tokens
    load = Sampling(problems, prompt, expected_tokens(recipe, limit, context.rates.completion_share), limit)
    loads = context.loading * (1 + models)
    if recipe.resources.vllm is None or recipe.resources.gpu is None:
        drawn = context.batches(load, spec.batch_size, spec.dtype)
    else:
        drawn = context.engine(load, context.cache(ENGINE_SHARE))
        loads += models * (context.rates.engine_seconds + context.loading)
    # Checkpoint and base both read the checkpoint's completions and the base's; for the base these are the same.
    length = prompt + load.mean
    read = context.forward(problems * length * (4 if stage.arguments else 2), length, spec.dtype)
    parts: dict[WorkPart, float] = {"loading": loads, "generation": models * drawn, "reading": models * read}
    return gpus_wanted(recipe, "drift"), parts


def _diagnostics(context: PlanContext, stage: Stage) -> _Made | None:
    recipe, spec, plan = context.recipe, context.recipe.diagnostics, diagnostics_plan(context.recipe, context.shape)
    assert spec is not None and plan is not None
    base, limit = stage.name == "diagnostics/base", spec.max_completion_tokens
    longest_prompt = max(recipe.require_suite().max_prompt_tokens, recipe.prompt.max_prompt_tokens)
    prompt = max(1, round(longest_prompt * context.rates.question_share))
    mean = expected_tokens(recipe, limit, context.rates.completion_share)
    load = Sampling(plan.prompts_per_model, prompt, mean, limit)
    drawn = context.batches(load, spec.batch_size, spec.dtype)
    tokens = plan.prompts_per_model * (prompt if base else diagnosed_tokens(spec, prompt, mean))
    return 1, {
        "loading": context.loading * (1 if base else 2),
        "generation": drawn * (1 if base else 1 + spec.paper),
        "reading": context.forward(tokens, prompt + mean, spec.dtype),
    }


def gpu_hours_of_run(context: PlanContext | None, name: str) -> float | None:
    """GPU-hours of one run of an arm; None for an unknown model or without a GPU."""
    if context is None or context.recipe.resources.gpu is None:
        return None
    gpus = _gpus_of_run(context, resolve_arm(context.recipe, name))
    return sum(run_parts(context, name).values()) / 3600 * gpus


def update_seconds(context: PlanContext | None, name: str) -> float | None:
    """Seconds of the updates of an arm after which it can stop: those of one sampling. None without a GPU."""
    if context is None or context.recipe.resources.gpu is None:
        return None
    seconds, arm = run_parts(context, name), resolve_arm(context.recipe, name)
    working = sum(seconds.values()) - seconds["start"] - seconds["checkpoints"]
    return working / arm.steps * arm.updates_per_batch


def checkpoint_seconds(context: PlanContext, name: str) -> float:
    """Seconds of writing a resumable checkpoint of an arm."""
    arm = resolve_arm(context.recipe, name)
    return resumable_bytes(context.shape, arm.dtype == "bfloat16", arm.adapter_rank) / context.rates.disk_bandwidth


def hours_between_checkpoints(context: PlanContext | None, name: str) -> float | None:
    """Hours of a run between two resumable checkpoints of an arm; None without a GPU."""
    batch = update_seconds(context, name)
    if context is None or batch is None:
        return None
    arm = resolve_arm(context.recipe, name)
    update = batch / arm.updates_per_batch
    return update * _steps_between(arm, update) / 3600


def checkpoint_hours(context: PlanContext | None, name: str) -> float | None:
    """Hours from a job's start to its first checkpoint; None without a GPU."""
    between = hours_between_checkpoints(context, name)
    return None if context is None or between is None else between + run_parts(context, name)["start"] / 3600
