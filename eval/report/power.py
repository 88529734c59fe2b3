"""What difference a suite can detect, before anyone pays for it.

A group gain is the mean over its benchmarks of paired differences between tuned model and base. With C independent
questions, k responses to each and s training seeds its variance is

    sum_b [ (w_b^2 + (v_b / k)(1 + 1/s)) / C_b ] / B^2  +  seed^2 / s        (Miller 2024, arXiv 2411.00640, Sec. 5)

w^2: variance between questions of the true paired difference, v: variance of one response given its question, seed:
standard deviation of the group score between training seeds. The smallest detectable difference at level a with the
wanted power is (q_{1-a/2} + q_power) times the standard error; the quantiles are Student's with Satterthwaite's degrees
of freedom when seeds vary. Where a study has been evaluated w and v come from its scores, else from the assumptions.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from eval.questions.suite_size import answering_seconds, suite_sizes
from recipes.errors import UserError
from recipes.schema import Recipe

ASSUMED_BETWEEN = 0.09  # variance of a question's true paired difference: 30 points of standard deviation
ASSUMED_WITHIN = 0.12  # variance of one response: questions are solved 14 or 86 times in a hundred, on average
SAMPLES, SEEDS, SEED_SPREADS = (1, 4, 16), (1, 3, 5), (0.0, 1.0, 3.0)


class Spread(NamedTuple):
    """Variances on one benchmark, scores between 0 and 1."""

    clusters: int
    between: float
    """Between questions, of the true difference to the base."""
    within: float
    """Of one response, given its question; the mean of base and tuned model."""
    measured: bool
    greedy: bool = False
    """Whether one response is all there is, because decoding draws nothing."""


def power_table(recipe: Recipe, study_dir: Path, power: float) -> dict[str, Any]:
    """Smallest detectable group gains in points, by samples per question, seeds and spread between seeds.

    Raises:
        UserError: the recipe has no suite, or its benchmarks are not counted yet.
    """
    if recipe.suite is None:
        raise UserError(f"{recipe.study} has no suite, so there is nothing to detect; name a recipe with one")
    spreads = _spreads(recipe, study_dir)
    groups: dict[str, list[str]] = {}
    for benchmark in recipe.suite.benchmarks:
        groups.setdefault(benchmark.group, []).append(benchmark.name)
    rows = []
    for samples in SAMPLES:
        for seeds in SEEDS:
            for spread in SEED_SPREADS if seeds > 1 else SEED_SPREADS[:1]:
                smallest_gains = {
                    group: round(detectable([spreads[name] for name in names], samples, seeds, spread, power), 2)
                    for group, names in groups.items()
                }
                rows.append({"samples": samples, "seeds": seeds, "seed_spread": spread, "detectable": smallest_gains})
    return {
        "study": recipe.study,
        "power": power,
        "measured": all(spread.measured for spread in spreads.values()),
        "assumed": {"between": ASSUMED_BETWEEN, "within": ASSUMED_WITHIN},
        "clusters": {name: spread.clusters for name, spread in spreads.items()},
        "rows": rows,
        "cost": evaluation_cost(recipe),
    }


def detectable(spreads: list[Spread], samples: int, seeds: int, seed_spread: float, power: float) -> float:
    """Smallest gain of a group's mean in points that is found with the wanted power at the 5 % level.

    `seed_spread`: standard deviation of the group score between training seeds, in points.
    """
    count = len(spreads)
    variances = [(s.between + s.within / (1 if s.greedy else samples) * (1 + 1 / seeds)) / s.clusters for s in spreads]
    question = sum(variances) / count**2
    seed = (seed_spread / 100) ** 2 / seeds
    error = float(np.sqrt(question + seed))
    if seed > 0:
        freedom = (question + seed) ** 2 / (seed**2 / (seeds - 1))
        return 100 * error * float(stats.t.ppf(0.975, freedom) + stats.t.ppf(power, freedom))
    return 100 * error * float(stats.norm.ppf(0.975) + stats.norm.ppf(power))


def _spreads(recipe: Recipe, study_dir: Path) -> dict[str, Spread]:
    suite = recipe.require_suite()
    if (study_dir / "report" / "transfer.json").is_file() and recipe.arms:
        return measured_spreads(recipe, study_dir)
    spreads = {}
    greedy = {benchmark.name: suite.temperature_of(benchmark) == 0 for benchmark in suite.benchmarks}
    for name, size in suite_sizes(recipe).items():
        if size.questions is None:
            raise UserError(
                f"benchmark {name} is not counted yet; run `transfer fetch RECIPE`, or set data.published_rows"
            )
        spreads[name] = Spread(size.questions, ASSUMED_BETWEEN, ASSUMED_WITHIN, False, greedy[name])
    return spreads


def measured_spreads(recipe: Recipe, study_dir: Path) -> dict[str, Spread]:
    """The variances of a study that has been evaluated, averaged over its arms' first models."""
    from eval.responses.readings import read_benchmark_scores, reading_cells

    suite = recipe.require_suite()
    labels = ["base", *(recipe.labels(arm)[0] for arm in recipe.arms)]
    benchmarks, _ = read_benchmark_scores(recipe, study_dir, labels, reading_cells(recipe, recipe.analysis.reading))
    spreads = {}
    for item, benchmark in zip(benchmarks, suite.benchmarks, strict=True):
        score_QM = item.score_QM / 100
        samples = suite.samples(benchmark)
        # Of k responses with mean p the variance of one is estimated by p (1 - p) k / (k - 1).
        within_M = (score_QM * (1 - score_QM)).mean(axis=0) * samples / (samples - 1) if samples > 1 else None
        difference_QA = score_QM[:, 1:] - score_QM[:, :1]
        observed = float(difference_QA.var(axis=0, ddof=1).mean())
        # One response cannot separate sampling noise from the question; then all variance is that of the question.
        within = float(within_M.mean()) if within_M is not None else 0.0
        between = max(0.0, observed - 2 * within / samples)
        greedy = suite.temperature_of(benchmark) == 0
        spreads[item.name] = Spread(item.clusters, between, within, samples > 1 or greedy, greedy)
    return spreads


def evaluation_cost(recipe: Recipe) -> dict[str, Any] | None:
    """What one response per question costs for one model: responses, tokens, and GPU-hours where the GPU is known."""
    from train.accounting.cost import GPUS, KNOWN_SHAPES
    from train.accounting.rates import rates_for

    suite = recipe.require_suite()
    sizes = suite_sizes(recipe).values()
    if any(size.questions is None for size in sizes):
        return None
    promptings = [len(b.promptings) - len(b.likelihood) for b in suite.benchmarks]
    responses = sum((size.questions or 0) * number for size, number in zip(sizes, promptings, strict=True))
    shape = KNOWN_SHAPES.get(str(recipe.model.path)) if recipe.model is not None else None
    gpu = recipe.resources.gpu
    seconds = None
    if shape is not None and gpu is not None:
        seconds = answering_seconds(recipe, shape, *rates_for(GPUS[gpu]), responses)
    hours = None if seconds is None else suite.engine.tensor_parallel * seconds / 3600
    return {
        "responses": responses,
        "tokens_at_most": responses * suite.max_response_tokens,
        "gpu": gpu,
        "gpu_hours": None if hours is None else round(hours, 2),
    }


def format_power(table: dict[str, Any]) -> str:
    """The table as text."""
    groups = list(table["rows"][0]["detectable"])
    how = (
        "measured in this study" if table["measured"] else "assumed: {between} and {within}".format(**table["assumed"])
    )
    lines = [
        f"{table['study']}: smallest gain over the base that is found with power {table['power']:g} at the 5 % level",
        f"variances between questions and within a question {how}",
        "",
        f"{'samples':>8}{'seeds':>7}{'spread of seeds':>17}" + "".join(f"{group:>18}" for group in groups),
    ]
    for row in table["rows"]:
        cells = "".join(f"{row['detectable'][group]:>18.1f}" for group in groups)
        lines.append(f"{row['samples']:>8}{row['seeds']:>7}{row['seed_spread']:>17.1f}{cells}")
    lines.append("in points; spread of seeds: standard deviation of the group's score between training seeds")
    cost = table["cost"]
    if cost is not None:
        text = f"one response to every question costs {cost['responses']:,} responses of one model"
        if cost["gpu_hours"] is not None:
            text += f", {cost['gpu_hours']:,.1f} GPU-hours on {cost['gpu']} (assumptions: docs/training.md)"
        lines.append(text + "; samples multiply it, and every seed is a model more")
    return "\n".join(lines)
