"""Which checkpoint to ship: chosen on one half of the trajectory's questions, checked on the other."""

from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval.forgetting.curves import Array, Slice, read_slice
from eval.forgetting.schema import Candidate, Pick
from eval.forgetting.trajectory import HELDOUT
from eval.questions.guessing import guess_levels
from eval.statistics.bootstrap import BenchmarkScores, bootstrap_scores, generator
from eval.statistics.decisions import (
    gained,
    limit_shown,
    may_lose,
    preferred,
    refused_groups,
    rounded_up,
    safe_limit,
    worst_group,
)
from eval.statistics.inference import Interval, percentile_interval
from eval.statistics.values import Estimate, number_text
from recipes.errors import UserError
from recipes.schema import Recipe
from recipes.suite_schema import StatisticsSpec
from train.no_gradient import NoGradient, runs_without_gradient


def pick(recipe: Recipe, study_dir: Path, max_drop: float) -> Pick:
    """The checkpoint to ship, by the rules of `eval/statistics/decisions.py`.

    Every candidate is one model, the base among them. One half of the slice's questions proposes: of the candidates
    with a gain in the trained group that stay within the limit, the preferred one. The other half and the whole slice
    must agree, else the base is kept; no second candidate is tried, because that would choose on the check. A run that
    learned nothing proposes none, because its checkpoints are what it started from, and a gain up to what guessing
    scores is none.

    Raises:
        UserError: the suite has no group but the trained one, or a benchmark has too few questions for two halves.
    """
    spec = recipe.require_trajectory()
    settings = recipe.statistics.model_copy(update={"draws": spec.draws, "seed": spec.seed})
    idle = runs_without_gradient(recipe, study_dir)
    guess = guess_levels(recipe, study_dir, recipe.analysis.reading)
    return choose(read_slice(recipe, study_dir), recipe.analysis.trained_group, max_drop, settings, idle, guess)


class _Gains(NamedTuple):
    """Gains of all models over the base on some questions, by group, with their joint draws."""

    estimate: dict[str, Array]
    """[models]"""
    drawn: dict[str, Array]
    """[draws, models]"""
    confidence: float
    beyond: tuple[Array, Array] | None
    """Of the trained group, how far the scores lie above guessing, with draws; None where guessing is not known."""

    def above_guessing(self, model: int) -> bool:
        """Whether a model's score on the trained group is above guessing, as far as that is known."""
        if self.beyond is None:
            return True
        estimate, drawn = self.beyond
        return gained(percentile_interval(estimate[model], drawn[:, model], self.confidence))

    def of(self, model: int) -> dict[str, Interval]:
        """Gains of one model with intervals."""
        return {group: self._interval(group, model, None) for group in self.estimate}

    def difference(self, group: str, first: int, second: int) -> Interval:
        """How much more one model gained in a group than another."""
        return self._interval(group, first, second)

    def limit(self, model: int, seed: Sequence[int]) -> float:
        """The smallest limit at which a model can be expected to pass on further questions, in points."""
        groups = [group for group in self.estimate if group != HELDOUT]
        estimate_G = np.array([self.estimate[group][model] for group in groups])
        drawn_DG = np.stack([self.drawn[group][:, model] for group in groups], axis=1)
        return safe_limit(estimate_G, drawn_DG, self.confidence, generator(seed, "limit"))

    def _interval(self, group: str, model: int, other: int | None) -> Interval:
        estimate, drawn = self.estimate[group], self.drawn[group]
        if other is None:
            return percentile_interval(estimate[model], drawn[:, model], self.confidence)
        return percentile_interval(
            estimate[model] - estimate[other], drawn[:, model] - drawn[:, other], self.confidence
        )


class _Rule:
    """The rule of `pick` on one slice, at any limit. Models are columns of the slice, the base is 0.

    Raises:
        UserError: as `pick` does.
    """

    def __init__(
        self,
        scores: Slice,
        trained: str,
        settings: StatisticsSpec,
        excluded: Container[tuple[str, int]],
        guess: Mapping[str, float],
    ) -> None:
        """`excluded`: arm and seed of the runs that propose nothing."""
        _require_halves(scores)
        self.trained = trained
        self.draw_seed = (settings.seed, 2)
        parts = (scores.half(True), scores.half(False), scores.benchmarks)
        self.proposing, self.checking, self.whole = (
            _gains(benchmarks, settings, (*self.draw_seed, number), scores.names, trained, guess)
            for number, benchmarks in enumerate(parts)
        )
        if not set(self.proposing.estimate) - {trained, HELDOUT}:
            raise UserError(
                f"the suite has no group but {trained}, so there is nothing a checkpoint could have lost; add a "
                "benchmark of another group to suite.benchmarks and run `transfer trajectory`"
            )
        self.limits = {0: 0.0} | {n: self.proposing.limit(n, self.draw_seed) for n in range(1, len(scores.names))}
        self.rows = self._candidates(scores)
        self.trained_models = [n for n, run in enumerate(scores.models, 1) if run[:2] not in excluded]
        self.able = [model for model in self.trained_models if self.proposing.above_guessing(model)]
        self._checked: dict[int, float] = {}

    def _candidates(self, scores: Slice) -> list[Candidate]:
        rows = []
        for model, (arm, seed, step) in enumerate([(None, None, 0), *scores.models]):
            gains = _without_heldout(self.proposing.of(model))
            worst = worst_group(gains, self.trained)
            assert worst is not None
            row = Candidate(
                arm=arm,
                seed=seed,
                step=step,
                trained_gain=Estimate.of(gains[self.trained]),
                worst_group=worst,
                worst_gain=Estimate.of(gains[worst]),
                passes_from=round(self.limits[model], 3),
                on_frontier=False,
            )
            rows.append(row)
        return [
            row.model_copy(update={"on_frontier": not any(_dominates(other, row) for other in rows)}) for row in rows
        ]

    def limit_checked(self, model: int) -> float:
        """`passes from` of a model by the half that checks."""
        if model not in self._checked:
            self._checked[model] = self.checking.limit(model, self.draw_seed)
        return self._checked[model]

    def propose(self, limit: float) -> int | None:
        """The preferred model of those within a limit; None if none has a gain."""
        return preferred(
            {model: self.rows[model].trained_gain for model in self.able if self.limits[model] <= limit},
            self.limits,
            lambda first, second: self.proposing.difference(self.trained, first, second),
        )

    def refuse(self, model: int, limit: float) -> list[str]:
        """What speaks against a proposed model; nothing: it ships."""
        other_half = self.limit_checked(model)
        against = _contradictions(self.checking, model, other_half, limit, self.trained, "the other half")
        return against + _contradictions(self.whole, model, 0.0, limit, self.trained, "all questions of the slice")

    def losses(self, model: int) -> list[float]:
        """The limits at which what is said of a model can change."""
        gains = [gain for of in (self.checking, self.whole) for gain in _without_heldout(of.of(model)).values()]
        return [self.limits[model], self.limit_checked(model), *map(may_lose, gains)]

    def first_shipping(self, max_drop: float) -> str:
        """The smallest limit above `max_drop` at which a model ships, in words."""
        gaining = [model for model in self.able if gained(self.rows[model].trained_gain)]
        needed = {model: (self.limits[model], self.limit_checked(model)) for model in gaining}
        losses = {loss for model in gaining for loss in self.losses(model)}
        return _first_shipping(losses, max_drop, self.propose, self.refuse, needed)

    def why_none(self, max_drop: float) -> str:
        """Why no model is proposed at a limit."""
        return _nothing_to_propose(
            [self.rows[model] for model in self.trained_models],
            [self.rows[model] for model in self.able],
            max_drop,
            self.trained,
            lambda: self.first_shipping(max_drop),
        )


def choose(
    scores: Slice,
    trained: str,
    max_drop: float,
    settings: StatisticsSpec,
    idle: Sequence[NoGradient] = (),
    guess: Mapping[str, float] | None = None,
) -> Pick:
    """The checkpoint to ship from the scores of all checkpoints; see `pick`.

    `idle`: runs that learned nothing. `guess`: what guessing scores, by benchmark.
    """
    rule = _Rule(scores, trained, settings, {(run.arm, run.seed) for run in idle}, guess or {})
    proposed, rows = rule.propose(max_drop), rule.rows
    tied: list[Candidate] = []
    if proposed is None:
        refused = [rule.why_none(max_drop)]
    else:
        refused = rule.refuse(proposed, max_drop)
        if refused:
            refused.append(rule.first_shipping(max_drop))
        within = [rows[model] for model in rule.able if rule.limits[model] <= max_drop]
        tied = [row for row in within if row.trained_gain.estimate > rows[proposed].trained_gain.estimate]
    # Held-out problems of the corpus are scored with the slice and are not part of it.
    own = [half for item, half in zip(scores.benchmarks, scores.halves, strict=True) if item.group != HELDOUT]
    questions = sum(int(half.sum()) for half in own)
    return Pick(
        max_drop=max_drop,
        choice=rows[0] if refused or proposed is None else rows[proposed],
        proposed=None if proposed is None else rows[proposed],
        refused=refused,
        reported={group: Estimate.of(gain) for group, gain in rule.checking.of(proposed or 0).items()},
        tied=tied,
        questions=questions,
        checked=sum(map(len, own)) - questions,
        candidates=rows,
        learned_nothing=[str(run) for run in idle],
    )


def _require_halves(scores: Slice) -> None:
    for item, half in zip(scores.benchmarks, scores.halves, strict=True):
        if half.all() or not half.any():
            raise UserError(
                f"all {len(half)} questions of {item.name} are in one half of the slice, so a choice could not be "
                "checked on the other; raise trajectory.questions and trajectory.heldout_problems"
            )


def _first_shipping(
    losses: set[float],
    max_drop: float,
    propose: Callable[[float], int | None],
    refuse: Callable[[int, float], list[str]],
    needed: Mapping[int, tuple[float, float]],
) -> str:
    """The smallest limit above `max_drop`, in tenths, at which a model ships, found by the rule itself.

    A larger limit may propose another model, which the check refuses, so the limits are tried in order. Between those
    in `losses` nothing changes.

    `needed`: the limits of a model by the half that proposes, which the table of candidates has, and by the other.
    """
    for limit in sorted({limit_shown(loss) for loss in losses if loss > max_drop}):
        model = propose(limit)
        if model is not None and not refuse(model, limit):
            proposing, checking = map(limit_shown, needed[model])
            why = f"{proposing:.1f} by the half that proposes, {checking:.1f} by the other"
            if max(proposing, checking) < limit:
                why = "what is proposed below it is refused"
            lower = "more questions lower it: trajectory.questions"
            return f"a checkpoint first ships at --max-drop {limit:.1f} ({why}; {lower})"
    return "none ships at a larger --max-drop either"


def _contradictions(of: _Gains, model: int, limit: float, max_drop: float, trained: str, where: str) -> list[str]:
    """Why a proposed model is not shipped, by the gains on some questions."""
    sentences, gains = [], of.of(model)
    if not gained(gains[trained]):
        gain = Estimate.of(gains[trained])
        bounds = f"[{number_text(gain.low)}, {number_text(gain.high)}]"
        sentences.append(f"on {where} it has no gain on {trained} that can be told from zero {bounds}")
    elif not of.above_guessing(model):
        sentences.append(f"on {where} its score on {trained} is not above guessing")
    for group in refused_groups(_without_heldout(gains), max_drop):
        loss = f"{limit_shown(may_lose(gains[group])):.1f} points{rounded_up(gains[group])}"
        sentences.append(f"on {where} it may have lost {loss} on {group}")
    if not sentences and limit > max_drop:
        sentences.append(f"by {where} it cannot be expected to stay within {max_drop:g} points on further questions")
    return sentences


def _nothing_to_propose(
    rows: Sequence[Candidate],
    able: Sequence[Candidate],
    max_drop: float,
    trained: str,
    first_shipping: Callable[[], str],
) -> str:
    """Why nothing is proposed. `able`: the checkpoints whose score is above guessing, as far as that is known."""
    if not any(gained(row.trained_gain) for row in rows):
        return f"no checkpoint has a gain on {trained} that can be told from zero"
    if not able:
        return f"no checkpoint scores above guessing on {trained}"
    gaining = sum(gained(row.trained_gain) for row in able)
    if not gaining:
        return f"no checkpoint has both a gain on {trained} and a score above guessing"
    return (
        f"none of the {gaining} checkpoints that gained on {trained} can be expected to stay within {max_drop:g} "
        f"points; {first_shipping()}"
    )


def _dominates(other: Candidate, row: Candidate) -> bool:
    """Whether `other` Pareto-dominates `row`.

    Its gain's lower end is no lower and its limit no higher, and one of the two is better.
    """
    no_worse = other.trained_gain.low >= row.trained_gain.low and other.passes_from <= row.passes_from
    return no_worse and (other.trained_gain.low, other.passes_from) != (row.trained_gain.low, row.passes_from)


def _without_heldout(gains: Mapping[str, Interval]) -> dict[str, Interval]:
    return {group: gain for group, gain in gains.items() if group != HELDOUT}


def _gains(
    benchmarks: Sequence[BenchmarkScores],
    settings: StatisticsSpec,
    seed: Sequence[int],
    models: Sequence[str],
    trained: str,
    guess: Mapping[str, float],
) -> _Gains:
    """Gain of every model over the base in every group, in points; the base's own is zero."""
    estimates: dict[str, list[Array]] = {}
    draws: dict[str, list[Array]] = {}
    beyond: list[tuple[Array, Array]] = []
    for item in benchmarks:
        mean_M = item.means()
        rng = generator(seed, item.name)
        drawn_DM = bootstrap_scores(item, settings.draws, rng, settings.confidence, models)
        estimates.setdefault(item.group, []).append(mean_M - mean_M[0])
        draws.setdefault(item.group, []).append(drawn_DM - drawn_DM[:, :1])
        if item.group == trained:
            level = guess.get(item.name)
            floor, floor_D = (mean_M[0], drawn_DM[:, :1]) if level is None else (level, level)
            beyond.append((mean_M - floor, drawn_DM - floor_D))
    known = any(item.group == trained and item.name in guess for item in benchmarks)
    return _Gains(
        {group: np.mean(of_benchmarks, axis=0) for group, of_benchmarks in estimates.items()},
        {group: np.mean(of_benchmarks, axis=0) for group, of_benchmarks in draws.items()},
        settings.confidence,
        (np.mean([mean for mean, _ in beyond], axis=0), np.mean([drawn for _, drawn in beyond], axis=0))
        if known
        else None,
    )
