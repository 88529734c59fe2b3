"""Forgetting curves: what every checkpoint gained in the trained group and lost elsewhere, with joint bootstrap draws.

Equal gain is located on held-out problems of the corpus and everything is reported on the suite's slice, which are
other questions. Shapes: D draws, T checkpoints (the base first, with gain 0), G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from eval.forgetting.schema import (
    EqualGain,
    EqualGainArm,
    GroupContrast,
    RazorFit,
    Trajectory,
    TrajectoryArm,
)
from eval.forgetting.trajectory import HELDOUT, checkpoints_of, scores_file, slice_parts
from eval.responses.readings import stacked_scores
from eval.scorers.records import read_scores
from eval.statistics.bootstrap import BenchmarkScores, bootstrap_scores, generator, seed_deviations, seed_noise
from eval.statistics.decisions import comparable
from eval.statistics.inference import percentile_interval
from eval.statistics.values import Estimate, PartialEstimate
from recipes.files import read_json_lines
from recipes.layout import run_folder
from recipes.schema import Recipe
from train.accounting.ledger import LEDGER
from train.drift import DRIFT
from train.runtime.recorder import CLOCK

Array = np.ndarray
AXES = {
    "kl_from_base": "KL(base || model) on held-out problems, nats a token",
    "kl_to_base": "KL(model || base) on held-out problems, nats a token",
    "generated_tokens": "tokens sampled from the policy",
    "trained_tokens": "tokens with a weight in the loss",
    "flops": "FLOPs of the run, without a teacher's",
    "gpu_hours": "hours of GPUs (of CPU processes where there are none)",
}
CLOCKED = "gpu_hours"  # the one axis that two runs of one recipe do not share
FRACTIONS = (0.5, 0.8)  # of the held-out gain that every arm reaches, at which arms are compared
_REACHED = 0.9  # share of draws that must reach a gain for an interval there


@dataclass(frozen=True)
class Slice:
    """Scores of every checkpoint on the slice; model columns as in `models`, the base first."""

    benchmarks: list[BenchmarkScores]
    models: list[tuple[str, int, int]]
    """(arm, seed, step) of every column but the base's."""
    halves: list[Array]
    """For each benchmark, whether each question is in the half that choices are made on."""

    @property
    def names(self) -> list[str]:
        """What the columns are called where random numbers are drawn for each."""
        return ["base", *(f"{arm}/{seed}/{step}" for arm, seed, step in self.models)]

    def columns(self, arm: str, seeds: Sequence[int], step: int) -> list[int]:
        """Columns of one checkpoint of all seeds of an arm."""
        return [1 + self.models.index((arm, seed, step)) for seed in seeds]

    def half(self, chosen: bool) -> "list[BenchmarkScores]":
        """The scores on one half of the questions; a question with others of its context."""
        return [
            BenchmarkScores(
                item.name,
                item.group,
                item.score_QM[keep == chosen],
                None if item.clusters_Q is None else item.clusters_Q[keep == chosen],
                None if item.weight_Q is None else item.weight_Q[keep == chosen],
            )
            for item, keep in zip(self.benchmarks, self.halves, strict=True)
        ]


def read_slice(recipe: Recipe, study_dir: Path) -> Slice:
    """The finished trajectories of a study."""
    folders = {("base", 0): study_dir / "trajectory" / "base"}
    models: list[tuple[str, int, int]] = []
    for arm in recipe.trained:
        for seed in recipe.seeds:
            folders[arm, seed] = run_folder(study_dir, arm, seed, "trajectory")
            models += [(arm, seed, step) for step in checkpoints_of(study_dir, arm, seed)]
    benchmarks, halves = [], []
    for part in slice_parts(recipe, study_dir):
        tables = {
            f"{arm} seed {seed} step {step}": read_scores(scores_file(folders[arm, seed], step, part.benchmark.name))
            for arm, seed, step in [("base", 0, 0), *models]
        }
        benchmarks.append(stacked_scores(part.benchmark.name, part.benchmark.group, tables))
        first = tables["base seed 0 step 0"]
        contexts = {row.question_id: row.cluster for row in first}
        halves.append(np.array([sha256(str(context).encode()).digest()[0] % 2 == 0 for context in contexts.values()]))
    return Slice(benchmarks, models, halves)


@dataclass(frozen=True)
class GainCurve:
    """Gains of one arm along its checkpoints, mean over seeds, in points; the first is what it started from."""

    steps: list[int]
    groups: list[str]
    gain_TG: Array
    gain_DTG: Array

    def of(self, group: str) -> tuple[Array, Array]:
        """Gains of a group: [checkpoints] and [draws, checkpoints]."""
        position = self.groups.index(group)
        return self.gain_TG[:, position], self.gain_DTG[:, :, position]


def gain_curves(scores: Slice, recipe: Recipe) -> dict[str, GainCurve]:
    """The curves of all arms, with draws that resample the questions of each benchmark for all models together."""
    spec, confidence = recipe.require_trajectory(), recipe.statistics.confidence
    draws, seed = spec.draws, (spec.seed, 1)
    drawn = [
        bootstrap_scores(item, draws, generator(seed, item.name), confidence, scores.names)
        for item in scores.benchmarks
    ]
    points = [item.means() for item in scores.benchmarks]
    groups = list(dict.fromkeys(item.group for item in scores.benchmarks))
    weight_GB = np.array([[float(item.group == group) for item in scores.benchmarks] for group in groups])
    weight_GB /= weight_GB.sum(axis=1, keepdims=True)
    curves = {}
    for arm in recipe.trained:
        steps = sorted({step for name, _, step in scores.models if name == arm})
        gain_TG, gain_DTG = [], []
        deviations = []
        for columns in [_start_columns(scores, recipe, arm), *(scores.columns(arm, recipe.seeds, s) for s in steps)]:
            gain_B = np.array([score[columns].mean() - score[0] for score in points])
            gain_DB = np.stack([score[:, columns].mean(axis=1) - score[:, 0] for score in drawn], axis=1)
            gain_TG.append(weight_GB @ gain_B)
            gain_DTG.append(gain_DB @ weight_GB.T)
            deviations.append(seed_deviations(scores.benchmarks, columns) @ weight_GB.T)
        rng = generator(seed, "seeds", arm)
        noise = seed_noise(np.concatenate(deviations, axis=1), draws, rng).reshape(draws, -1, len(groups))
        curves[arm] = GainCurve([0, *steps], groups, np.stack(gain_TG), np.stack(gain_DTG, axis=1) + noise)
    return curves


def _start_columns(scores: Slice, recipe: Recipe, arm: str) -> list[int]:
    """Columns of what an arm started from: the base, or another arm's final checkpoints."""
    before = recipe.arms[arm].start_from
    if before is None:
        return [0] * len(recipe.seeds)
    return scores.columns(before, recipe.seeds, max(step for name, _, step in scores.models if name == before))


def crossings(gain_T: Array, target: float) -> list[float]:
    """Where the polygon through the gains passes the target, as fractional positions, in order."""
    positions = []
    for index in range(len(gain_T) - 1):
        low, high = gain_T[index] - target, gain_T[index + 1] - target
        if low == 0 and index == 0:
            positions.append(0.0)
        if low * high < 0 or (high == 0 and low != 0):
            positions.append(index + low / (low - high))
    return positions


def interpolate(values: Array, position: float) -> Any:
    """Linear interpolation along the first axis at a fractional position."""
    left = min(int(position), len(values) - 2)
    share = position - left
    return (1 - share) * values[left] + share * values[left + 1]


def equal_gain(curves: Mapping[str, GainCurve], confidence: float, target: float) -> EqualGain:
    """What each arm has gained in every group where its held-out gain first passes `target`, in points.

    In every draw the position is located again on the resampled held-out problems and the groups are read off the
    resampled slice. An arm whose draws pass the target less often than 90 % has no interval there.
    """
    groups = [group for group in next(iter(curves.values())).groups if group != HELDOUT]
    arms: dict[str, EqualGainArm] = {}
    estimates: dict[str, Array] = {}
    drawn_gains: dict[str, Array] = {}
    for arm, curve in curves.items():
        heldout_T, heldout_DT = curve.of(HELDOUT)
        positions = crossings(heldout_T, target)
        if not positions:
            above: dict[str, Any] = {"began_above": True} if heldout_T[0] > target else {}
            arms[arm] = EqualGainArm(crossings=0, reached=0.0, **above)
            continue
        order = [curve.groups.index(group) for group in groups]
        estimates[arm] = interpolate(curve.gain_TG, positions[0])[order]
        drawn_positions = [crossings(gain_T, target) for gain_T in heldout_DT]
        drawn_gains[arm] = np.array(
            [
                interpolate(curve.gain_DTG[draw], crossed[0])[order] if crossed else np.full(len(groups), np.nan)
                for draw, crossed in enumerate(drawn_positions)
            ]
        )
        left = min(int(positions[0]), len(curve.steps) - 2)
        arms[arm] = EqualGainArm(
            crossings=len(positions),
            reached=round(float(np.mean([bool(crossed) for crossed in drawn_positions])), 3),
            between_updates=[curve.steps[left], curve.steps[left + 1]],
            groups=_intervals(groups, estimates[arm], drawn_gains[arm], confidence),
        )
    contrasts = []
    for first, second in combinations(drawn_gains, 2):
        # Rounded as they are shown, so that the difference shown is that of the two values shown.
        first_gains, second_gains = (
            np.array([round(float(value), 3) for value in estimates[arm]]) for arm in (first, second)
        )
        difference = _intervals(
            groups, first_gains - second_gains, drawn_gains[first] - drawn_gains[second], confidence
        )
        contrasts.append(GroupContrast(first=first, second=second, groups=difference))
    return EqualGain(heldout_gain=round(target, 3), arms=arms, contrasts=contrasts)


def _intervals(
    groups: Sequence[str], estimate_G: Array, drawn_DG: Array, confidence: float
) -> dict[str, PartialEstimate]:
    """An interval for each group, without bounds where too few draws reach the gain."""
    result = {}
    for index, group in enumerate(groups):
        estimate, values_D = float(estimate_G[index]), drawn_DG[~np.isnan(drawn_DG[:, index]), index]
        if len(values_D) < _REACHED * len(drawn_DG):
            result[group] = PartialEstimate(estimate=round(estimate, 3), low=None, high=None)
        else:
            result[group] = PartialEstimate(**shown(estimate, values_D, confidence).dump())
    return result


def shown(estimate: float, drawn_D: Array, confidence: float) -> Estimate:
    """An estimate with the percentile interval of its draws, rounded as in `transfer.json`."""
    return Estimate.of(percentile_interval(estimate, drawn_D, confidence))


def common_reach(curves: Mapping[str, GainCurve]) -> float:
    """The held-out gain that every arm reaches at some checkpoint, in points."""
    return min(float(curve.of(HELDOUT)[0].max()) for curve in curves.values())


def mean_loss(curve: GainCurve, trained: str) -> tuple[Array, Array]:
    """Forgetting: the mean loss over the other groups in points, [checkpoints] and [draws, checkpoints]."""
    others = [curve.groups.index(group) for group in curve.groups if group not in (trained, HELDOUT)]
    return -curve.gain_TG[:, others].mean(axis=1), -curve.gain_DTG[:, :, others].mean(axis=2)


def razor_fit(
    curves: Mapping[str, GainCurve], kl: Mapping[str, Sequence[float]], confidence: float, trained: str
) -> RazorFit:
    """Forgetting as a quadratic of KL(base || model) on the training task, and what each arm adds to it.

    The predictor and the form are those of RL's Razor (Shenfeld et al. 2025, arXiv 2509.04259). Least squares over the
    checkpoints of all arms but the base; residuals are means over an arm's checkpoints, with intervals from draws of
    the questions (the KL is taken as known).

    Where no checkpoint's loss can be told from zero (Bonferroni over checkpoints), a curve would describe noise,
    and there is none.

    `kl`: at each checkpoint but the base, in nats a token. `trained`: the group that is left out of forgetting.
    """
    x = np.concatenate([np.asarray(kl[arm], dtype=float) for arm in curves])
    y = np.concatenate([mean_loss(curve, trained)[0][1:] for curve in curves.values()])
    y_D = np.concatenate([mean_loss(curve, trained)[1][:, 1:] for curve in curves.values()], axis=1)
    if len(x) < 4:
        return RazorFit(points=len(x), r2=None, reason="fewer than four checkpoints")
    quantile = norm.ppf(1 - (1 - confidence) / 2 / len(x))
    if not (abs(y) > quantile * y_D.std(axis=0)).any():
        return RazorFit(points=len(x), r2=None, reason="no checkpoint has a loss that can be told from zero")
    design = np.stack([np.ones_like(x), x, x**2], axis=1)
    solve = np.linalg.pinv(design)
    residual, residual_D = y - design @ (solve @ y), y_D - y_D @ solve.T @ design.T
    total = ((y - y.mean()) ** 2).sum()
    arms, start = {}, 0
    for arm, curve in curves.items():
        part = slice(start, start + len(curve.steps) - 1)
        start = part.stop
        arms[arm] = shown(float(residual[part].mean()), residual_D[:, part].mean(axis=1), confidence)
    return RazorFit(
        points=len(x),
        coefficients=[float(value) for value in solve @ y],
        r2=None if total == 0 else round(1 - float((residual**2).sum() / total), 4),
        residuals=arms,
    )


def read_axes(recipe: Recipe, study_dir: Path, arm: str, seed: int, steps: Sequence[int]) -> dict[str, list[float]]:
    """What a run had spent and how far it had moved at its start and at each checkpoint.

    Axes that were not measured are left out.
    """
    run_dir = run_folder(study_dir, arm, seed)
    ledger = {row["step"]: row for row in read_json_lines(run_dir / LEDGER)}
    spent: dict[str, list[float]] = {
        "generated_tokens": [ledger[step]["generated_tokens"] for step in steps],
        "trained_tokens": [ledger[step]["trained_tokens"] for step in steps],
        "flops": [sum(ledger[step][f"{part}_flops"] for part in ("generate", "reference", "train")) for step in steps],
    }
    clock = {row["step"]: row for row in read_json_lines(run_dir / CLOCK)}
    if all(step in clock for step in steps):
        spent[CLOCKED] = [clock[step]["process_seconds"] / 3600 for step in steps]
    moved: dict[str, list[float]] = {}
    drift = {row["step"]: row for row in read_json_lines(run_folder(study_dir, arm, seed, "drift") / DRIFT)}
    if all(step in drift for step in steps):
        moved = {name: [drift[step][name] for step in steps] for name in ("kl_from_base", "kl_to_base")}
    before = recipe.arms[arm].start_from
    start = dict.fromkeys((*spent, *moved), 0.0)
    if before is not None:  # what it took to get where this arm starts is part of its cost
        last = list(checkpoints_of(study_dir, before, seed))[-1]
        start = {name: points[-1] for name, points in read_axes(recipe, study_dir, before, seed, [last]).items()}
    costs = {name: [start[name] + value for value in points] for name, points in spent.items() if name in start}
    axes = costs | {name: points for name, points in moved.items() if name in start}
    return {name: [start[name], *points] for name, points in axes.items()}


def summarise_trajectories(recipe: Recipe, study_dir: Path) -> tuple[Trajectory, dict[str, list[float]]]:
    """Forgetting curves, equal-gain comparisons and the fit; apart from them the hours of each arm's checkpoints."""
    scores = read_slice(recipe, study_dir)
    curves = gain_curves(scores, recipe)
    confidence = recipe.statistics.confidence
    arms: dict[str, TrajectoryArm] = {}
    clock: dict[str, list[float]] = {}
    for arm, curve in curves.items():
        per_seed = [read_axes(recipe, study_dir, arm, seed, curve.steps[1:]) for seed in recipe.seeds]
        shared = [name for name in AXES if all(name in axes for axes in per_seed)]
        axes = {name: np.mean([axes[name] for axes in per_seed], axis=0).tolist() for name in shared}
        clock |= {arm: axes.pop(CLOCKED)} if CLOCKED in axes else {}
        arms[arm] = TrajectoryArm(
            steps=curve.steps,
            axes={name: [round(value, 6) for value in values] for name, values in axes.items()},
            gains={
                group: [
                    shown(float(mean), drawn_D, confidence)
                    for mean, drawn_D in zip(curve.of(group)[0], curve.of(group)[1].T, strict=True)
                ]
                for group in curve.groups
            },
        )
    groups = [group for group in next(iter(curves.values())).groups if group != HELDOUT]
    reach = common_reach(curves)
    best_gains = [max(arm.gains[HELDOUT], key=lambda gain: gain.low) for arm in arms.values()]
    kl = {arm: result.axes["kl_from_base"][1:] for arm, result in arms.items() if "kl_from_base" in result.axes}
    best = {arm: round(float(curve.of(HELDOUT)[0].max()), 3) for arm, curve in curves.items()}
    trajectory = Trajectory(
        questions={item.name: len(item.score_QM) for item in scores.benchmarks},
        groups=groups,
        arms=arms,
        best_heldout_gain=best,
        equal_gain=[equal_gain(curves, confidence, share * reach) for share in FRACTIONS]
        if reach > 0 and comparable(best_gains)
        else [],
        razor=razor_fit(curves, kl, confidence, recipe.analysis.trained_group)
        if len(kl) == len(curves) and len(groups) > 1
        else None,
    )
    return trajectory, clock
