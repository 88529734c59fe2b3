"""Intervals, tests and contrasts of gains, from the joint draws of `eval/statistics/bootstrap.py`. All in points."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from eval.statistics.bootstrap import ArmScores, Array


class Interval(NamedTuple):
    """An estimate with a confidence interval, in points (gains) or percent (indices)."""

    estimate: float
    low: float
    high: float


def percentile_interval(estimate: float, drawn_D: Array, confidence: float) -> Interval:
    """The central interval of the draws around an estimate."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(drawn_D, [tail, 100 - tail])
    return Interval(float(estimate), float(low), float(high))


def weights_of(members: Sequence[int], benchmarks: int) -> Array:
    """Weights that average some of the benchmarks, shape [benchmarks]."""
    weight_B = np.zeros(benchmarks)
    weight_B[list(members)] = 1 / len(members)
    return weight_B


def linear_interval(scores: ArmScores, weight_B: Array) -> Interval:
    """A weighted sum of gains over the base, with its interval from the joint draws."""
    estimate = float(weight_B @ (scores.arm_B - scores.base_B))
    return percentile_interval(estimate, (scores.arm_DB - scores.base_DB) @ weight_B, scores.confidence)


def contrast_interval(first: ArmScores, second: ArmScores, weight_B: Array) -> Interval:
    """The difference of two arms' weighted gains, on the same draws."""
    estimate = float(weight_B @ (first.arm_B - second.arm_B))
    return percentile_interval(estimate, (first.arm_DB - second.arm_DB) @ weight_B, first.confidence)


def beyond_guessing(scores: ArmScores, members: Sequence[int], level: Mapping[int, float]) -> Interval:
    """How far an arm's mean score over some benchmarks lies above guessing.

    `level`: what guessing scores, by benchmark. A benchmark without one counts with its gain over the base.
    """
    floor_B, floor_DB = scores.base_B.copy(), scores.base_DB.copy()
    for b, value in level.items():
        floor_B[b] = floor_DB[:, b] = value
    weight_B = weights_of(members, len(floor_B))
    estimate = float(weight_B @ (scores.arm_B - floor_B))
    return percentile_interval(estimate, (scores.arm_DB - floor_DB) @ weight_B, scores.confidence)


def gain_p_value(first: ArmScores, second: ArmScores, weight_B: Array) -> float:
    """Two-sided p-value of a weighted gain of `first` over `second`: another arm, or the base.

    Student's t with the variance of the question draws (without what they were widened by for Student's tails) plus
    that of the training seeds, and Satterthwaite's degrees of freedom (Satterthwaite 1946, Biometrics Bulletin 2, 110):
    the seeds have S - 1, the questions of each benchmark C - 1. 1 where nothing varies and there is no difference, and
    where a benchmark is one cluster, because nothing is known of its variance.
    """
    if (first.clusters_B[weight_B != 0] == 1).any():
        return 1.0
    estimate = float(weight_B @ (first.arm_B - second.arm_B))
    variance_B = np.var(first.question_DB - second.question_DB, axis=0, ddof=1)
    variance_B *= (weight_B / first.student_factors) ** 2
    terms = [*zip(variance_B, first.clusters_B - 1, strict=True)]
    terms += [(weight_B @ scores.seed_variance_BB @ weight_B, scores.seeds - 1) for scores in (first, second)]
    terms = [(part, degrees) for part, degrees in terms if part > 0]
    variance = sum(part for part, _ in terms)
    if variance == 0:
        return 1.0 if estimate == 0 else 0.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in terms)
    return float(2 * stats.t.sf(abs(estimate) / np.sqrt(variance), freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979, Scand. J. Statist. 6, 65), in the order given.

    Comparing them with a level keeps the chance of any false rejection below it, whatever their dependence.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
