"""Which checkpoint to ship: chosen on one half of the trajectory's questions, checked on the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.forgetting.curves import Array, Slice, read_slice
from eval.forgetting.schema import Candidate, Pick
from eval.forgetting.trajectory import HELDOUT
from eval.statistics.bootstrap import BenchmarkScores, bootstrap_scores
from eval.statistics.decisions import (
    gained,
    limit_shown,
    may_lose,
    preferred,
    refused_groups,
    safe_limit,
    worst_group,
)
from eval.statistics.inference import Interval, percentile_interval
from eval.statistics.values import Estimate
from recipes.errors import UserError
from recipes.schema import Recipe
from recipes.suite_schema import StatisticsSpec
from train.no_gradient import NoGradient, runs_without_gradient


def pick(recipe: Recipe, study_dir: Path, max_drop: float) -> Pick:
    """The checkpoint to ship, by the rules of `eval/statistics/decisions.py`.

    Every candidate is one model, the base among them. One half of the slice's questions proposes: of the candidates
    with a gain in the trained group that stay within the limit, the preferred one. The other half and the whole slice
    must agree, else the base is kept; no second candidate is tried, because that would choose on the check. A run that
    learned nothing proposes none, because its checkpoints are what it started from.

    Raises:
        UserError: the suite has no group but the trained one, or a benchmark has too few questions for two halves.
    """
    spec = recipe.require_trajectory()
    settings = recipe.statistics.model_copy(update={"draws": spec.draws, "seed": spec.seed})
    idle = runs_without_gradient(recipe, study_dir)
    return choose(read_slice(recipe, study_dir), recipe.analysis.trained_group, max_drop, settings, idle)


class _Gains(NamedTuple):
    """Gains of all models over the base on some questions, by group, with their joint draws."""

    estimate: dict[str, Array]
    """[models]"""
    drawn: dict[str, Array]
    """[draws, models]"""
    confidence: float

    def of(self, model: int) -> dict[str, Interval]:
        """Gains of one model with intervals."""
        return {group: self._interval(group, model, None) for group in self.estimate}

    def difference(self, group: str, first: int, second: int) -> Interval:
        """How much more one model gained in a group than another."""
        return self._interval(group, first, second)

    def limit(self, model: int, rng: np.random.Generator) -> float:
        """The smallest limit at which a model can be expected to pass on further questions, in points."""
        groups = [group for group in self.estimate if group != HELDOUT]
        estimate_G = np.array([self.estimate[group][model] for group in groups])
        drawn_DG = np.stack([self.drawn[group][:, model] for group in groups], axis=1)
        return safe_limit(estimate_G, drawn_DG, self.confidence, rng)

    def _interval(self, group: str, model: int, other: int | None) -> Interval:
        estimate, drawn = self.estimate[group], self.drawn[group]
        if other is None:
            return percentile_interval(estimate[model], drawn[:, model], self.confidence)
        return percentile_interval(
            estimate[model] - estimate[other], drawn[:, model] - drawn[:, other], self.confidence
        )


def choose(
    scores: Slice, trained: str, max_drop: float, settings: StatisticsSpec, idle: Sequence[NoGradient] = ()
) -> Pick:
    """The checkpoint to ship from the scores of all checkpoints; see `pick`. `idle`: runs that learned nothing."""
    learned_nothing, excluded = [str(run) for run in idle], {(run.arm, run.seed) for run in idle}
    for item, half in zip(scores.benchmarks, scores.halves, strict=True):
        if half.all() or not half.any():
            raise UserError(
                f"all {len(half)} questions of {item.name} are in one half of the slice, so a choice could not be "
                "checked on the other; raise trajectory.questions and trajectory.heldout_problems"
            )
    rng = np.random.default_rng([settings.seed, 2])
    proposing, checking, whole = (
        _gains(benchmarks, settings, rng) for benchmarks in (scores.half(True), scores.half(False), scores.benchmarks)
    )
    if not set(proposing.estimate) - {trained, HELDOUT}:
        raise UserError(
            f"the suite has no group but {trained}, so there is nothing a checkpoint could have lost; add a benchmark "
            "of another group to suite.benchmarks and run `transfer trajectory`"
        )
    models = range(1 + len(scores.models))
    # Held-out problems of the corpus are scored with the slice and are not part of it.
    own = [half for item, half in zip(scores.benchmarks, scores.halves, strict=True) if item.group != HELDOUT]
    questions = sum(int(half.sum()) for half in own)
    checked = sum(map(len, own)) - questions
    rows, limits = [], {}
    for model, (arm, seed, step) in zip(models, [(None, None, 0), *scores.models], strict=True):
        gains = _without_heldout(proposing.of(model))
        worst = worst_group(gains, trained)
        assert worst is not None
        limits[model] = 0.0 if arm is None else proposing.limit(model, rng)
        row = Candidate(
            arm=arm,
            seed=seed,
            step=step,
            trained_gain=Estimate.of(gains[trained]),
            worst_group=worst,
            worst_gain=Estimate.of(gains[worst]),
            passes_from=round(limits[model], 3),
            on_frontier=False,
        )
        rows.append(row)
    rows = [row.model_copy(update={"on_frontier": not any(_dominates(other, row) for other in rows)}) for row in rows]
    trained_rows = [m for m in models if rows[m].arm is not None and (rows[m].arm, rows[m].seed) not in excluded]
    within = [model for model in trained_rows if limits[model] <= max_drop]
    proposed = preferred(
        {model: rows[model].trained_gain for model in within},
        limits,
        lambda first, second: proposing.difference(trained, first, second),
    )
    if proposed is None:
        return Pick(
            max_drop=max_drop,
            choice=rows[0],
            proposed=None,
            refused=[_nothing_to_propose([rows[model] for model in trained_rows], max_drop, trained)],
            reported={group: Estimate.of(gain) for group, gain in checking.of(0).items()},
            tied=[],
            questions=questions,
            checked=checked,
            candidates=rows,
            learned_nothing=learned_nothing,
        )
    check = checking.of(proposed)
    against = _contradictions(check, checking.limit(proposed, rng), max_drop, trained, "the other half")
    against += _contradictions(whole.of(proposed), 0.0, max_drop, trained, "all questions of the slice")
    return Pick(
        max_drop=max_drop,
        choice=rows[0] if against else rows[proposed],
        proposed=rows[proposed],
        refused=against,
        reported={group: Estimate.of(gain) for group, gain in check.items()},
        tied=[rows[m] for m in within if rows[m].trained_gain.estimate > rows[proposed].trained_gain.estimate],
        questions=questions,
        checked=checked,
        candidates=rows,
        learned_nothing=learned_nothing,
    )


def _contradictions(
    gains: Mapping[str, Interval], limit: float, max_drop: float, trained: str, where: str
) -> list[str]:
    """Why a proposed model is not shipped, by the gains on some questions."""
    sentences = []
    if not gained(gains[trained]):
        low, high = gains[trained].low, gains[trained].high
        sentences.append(f"on {where} its gain on {trained} cannot be told from zero [{low:+.1f}, {high:+.1f}]")
    for group in refused_groups(_without_heldout(gains), max_drop):
        sentences.append(f"on {where} it may have lost {limit_shown(may_lose(gains[group])):.1f} points on {group}")
    if not sentences and limit > max_drop:
        sentences.append(
            f"by {where} it can be expected to pass on further questions from --max-drop {limit_shown(limit):.1f} on"
        )
    return sentences


def _nothing_to_propose(rows: Sequence[Candidate], max_drop: float, trained: str) -> str:
    gaining = [row for row in rows if gained(row.trained_gain)]
    if not gaining:
        return f"no checkpoint has a gain on {trained} that can be told from zero"
    least = min(row.passes_from for row in gaining)
    return (
        f"none of the {len(gaining)} checkpoints that gained on {trained} can be expected to stay within {max_drop:g} "
        f"points; the first would from --max-drop {limit_shown(least):.1f} on (more questions lower this: "
        "trajectory.questions)"
    )


def _dominates(other: Candidate, row: Candidate) -> bool:
    """Whether `other` Pareto-dominates `row`.

    Its gain's lower end is no lower and its limit no higher, and one of the two is better.
    """
    no_worse = other.trained_gain.low >= row.trained_gain.low and other.passes_from <= row.passes_from
    return no_worse and (other.trained_gain.low, other.passes_from) != (row.trained_gain.low, row.passes_from)


def _without_heldout(gains: Mapping[str, Interval]) -> dict[str, Interval]:
    return {group: gain for group, gain in gains.items() if group != HELDOUT}


def _gains(benchmarks: Sequence[BenchmarkScores], settings: StatisticsSpec, rng: np.random.Generator) -> _Gains:
    """Gain of every model over the base in every group, in points; the base's own is zero."""
    estimates: dict[str, list[Array]] = {}
    draws: dict[str, list[Array]] = {}
    for item in benchmarks:
        mean_M = item.means()
        drawn_DM = bootstrap_scores(item, settings.draws, rng, settings.confidence)
        estimates.setdefault(item.group, []).append(mean_M - mean_M[0])
        draws.setdefault(item.group, []).append(drawn_DM - drawn_DM[:, :1])
    return _Gains(
        {group: np.mean(of_benchmarks, axis=0) for group, of_benchmarks in estimates.items()},
        {group: np.mean(of_benchmarks, axis=0) for group, of_benchmarks in draws.items()},
        settings.confidence,
    )
