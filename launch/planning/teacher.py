"""What a teacher's samples cost: an estimate before the corpus is built, what was spent afterwards. Needs no torch."""

from dataclasses import dataclass
from math import ceil, log
from pathlib import Path

from recipes.manifest import finished_manifest
from recipes.schema import Recipe
from train.accounting.cost import GPUS, KNOWN_SHAPES, Gpu, expected_prompt_tokens, expected_tokens, forward_flops
from train.accounting.rates import Rates, Sampling, engine_seconds, rates_for

_SERVER_SHARE = 0.9  # of its GPUs' memory
_COUNTED = 1000  # problems, for a corpus that has not counted its own


@dataclass(frozen=True)
class TeacherPlan:
    """Samples, tokens and hours of a corpus's teacher."""

    model: str
    kind: str
    """endpoint or transformers."""
    spent: bool
    """Whether this is what the finished corpus spent; else it is planned."""
    samples: int | None
    """None: the problems are not counted yet."""
    tokens: int | None
    """Generated; planned: at most."""
    flops: int | None
    """None: its parameters are not given."""
    gpu_hours: float | None
    """Planned: for completions of the expected length, with vLLM on the recipe's GPU."""
    gpu_hours_per_thousand_problems: float | None


def teacher_plan(
    recipe: Recipe, study_dir: Path | None, gpu: Gpu | None = None, rates: Rates | None = None
) -> TeacherPlan | None:
    """What the demonstrations cost; None without a sampler.

    `study_dir`: where the corpus may be finished. None for `gpu` and `rates`: the recipe's GPU, the usual assumptions.
    """
    teacher = recipe.corpus.teacher
    if teacher is None or teacher.kind not in ("endpoint", "transformers"):
        return None
    manifest = finished_manifest(study_dir / "corpus") if study_dir is not None else None
    facts = manifest["facts"] if manifest is not None else {}
    spent = next((row for row in facts.get("sampling", []) if row["phase"] == "teacher"), None)
    problems = facts.get("train_problems") or recipe.corpus.train_problems
    limit = teacher.max_completion_tokens or recipe.prompt.max_completion_tokens
    samples = spent["samples"] if spent else None if problems is None else problems * teacher.samples_per_problem
    tokens = spent["generated_tokens"] if spent else None if samples is None else samples * limit
    known = None if not teacher.parameters else round(teacher.parameters)
    gpu = gpu or (GPUS[recipe.resources.gpu] if recipe.resources.gpu else None)
    hours = hours_per_thousand = None
    if gpu is not None and known is not None and recipe.resources.gpu is not None:
        rates = rates or rates_for(gpu)[1]
        mean = expected_tokens(recipe, limit, rates.completion_share)
        load = Sampling(
            _COUNTED * teacher.samples_per_problem, expected_prompt_tokens(recipe.prompt.max_prompt_tokens), mean, limit
        )
        hours_per_thousand = _hours(str(teacher.model), known, gpu, rates, load)
        if tokens is not None and samples is not None:
            length = round(tokens / max(1, samples)) if spent else mean
            hours = _hours(str(teacher.model), known, gpu, rates, Sampling(samples, load.prompt, length, limit))
    flops = None if tokens is None or known is None else forward_flops(known, tokens)
    return TeacherPlan(
        str(teacher.model), teacher.kind, spent is not None, samples, tokens, flops, hours, hours_per_thousand
    )  # fmt: skip


def _hours(name: str, parameters: int, gpu: Gpu, rates: Rates, load: Sampling) -> float:
    """GPU-hours of a copy that answers everything; for an unknown model those of the known one nearest in size."""
    near = min(KNOWN_SHAPES, key=lambda other: abs(log(KNOWN_SHAPES[other].parameters() / parameters)))
    shape = KNOWN_SHAPES.get(name, KNOWN_SHAPES[near])
    scale = parameters / shape.parameters()
    weights = 2 * shape.parameters()
    gpus = ceil(weights / (0.6 * gpu.memory_bytes))  # leaves a third of the memory for the cache
    cache = gpus * _SERVER_SHARE * gpu.memory_bytes - weights
    return scale * gpus * engine_seconds(shape, gpu, rates, load, cache, gpus) / 3600
