"""Transfer scores: gains of groups of benchmarks, and the transferability index.

A transferability index is a ratio, TI_g = 100 * D_g / D_t with t the trained group; the definitions differ in D. With
R0_b and R_b the scores of base and tuned model on benchmark b in points (0 to 100), d_b = R_b - R0_b, and the mean
taken over the benchmarks of group g:

    points    D_g = mean d_b
    relative  D_g = mean d_b / R0_b                                     arXiv 2507.00432 v1
    literal   D_g = sum_b w_b sign(d_b) sqrt(|d_b| / s_g)               arXiv 2507.00432 v2, Sec. 2.1
              w_b = (100 - R0_b) / sum_u (100 - R0_u),  s_g = standard deviation of d_b within the group
    paper     the same without s_g, and TI_g multiplied by a constant c_g

The published tables do not follow from `literal`; they follow from one scale per group for all models, which
leaves a single constant per group in the ratio. `PAPER_SCALES` holds these constants. They were fitted to the
six published UniReason indices (all six to the printed decimal), not derived, because the pool of models behind
the published scale is unknown.

Intervals: joint cluster bootstrap over questions (each benchmark resampled on its own, the same draw for base
and all arms), plus training-seed variance as a multivariate t term, since a handful of seeds is too few to
resample. An index needs a trained gain above zero, in points (rule 2 of `eval/statistics/decisions.py`) and by its own
definition, else it is "not identified". Where the gain cannot be told from zero, a ratio has no bounded interval with
the promised coverage (Fieller 1954); where the trained group fell, the ratio would call a common loss transfer. For
`points` and `relative`, ratios of means, the interval is Fieller's, for the others the percentiles of the draws.
"""

from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from eval.statistics.bootstrap import ArmScores, Array
from eval.statistics.decisions import fell, gained
from eval.statistics.inference import Interval, linear_interval, percentile_interval, weights_of
from eval.statistics.values import NOT_IDENTIFIED, UNDEFINED

Definition = Literal["points", "relative", "literal", "paper"]
DEFINITIONS: tuple[Definition, ...] = ("points", "relative", "literal", "paper")
LINEAR = ("points", "relative")
MATH = "math"  # the trained group of the published comparison, and the default
PAPER_SCALES = {MATH: 1.0, "other_reasoning": 0.9384, "non_reasoning": 0.8855}  # fitted, see the docstring


class Index(NamedTuple):
    """A transferability index, in percent; `interval` is None when it is not identified."""

    estimate: float | None = None
    interval: Interval | None = None
    method: str | None = None
    """How the interval was computed; None where there is none."""
    status: str = "identified"
    """`identified`, `not identified` or `undefined`."""
    reason: str | None = None
    """Why there is no interval."""


def transfer_gain(definition: Definition, base_B: Array, model_B: Array) -> Array:
    """D_g of one group. `base_B`, `model_B`: scores in points, shape [..., benchmarks]; returns shape [...].

    Undefined values (a base score of 0 for `relative`, a zero spread for `literal`) are NaN.
    """
    gain_B = model_B - base_B
    if definition == "points":
        return np.asarray(gain_B.mean(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        if definition == "relative":
            ratio_B = np.where(base_B == 0, np.nan, gain_B / base_B)
            return np.asarray(ratio_B.mean(axis=-1))
        weight_B = (100 - base_B) / (100 - base_B).sum(axis=-1, keepdims=True)
        if definition == "literal":
            spread = gain_B.std(axis=-1, keepdims=True)
            gain_B = np.where(spread == 0, np.nan, gain_B / spread)
        return np.asarray((weight_B * np.sign(gain_B) * np.sqrt(np.abs(gain_B))).sum(axis=-1))


def transfer_index(definition: Definition, group: str, gain_group: Array, gain_trained: Array) -> Array:
    """TI_g in percent from D_g and D_t; NaN where it is undefined, or for `paper` in a group without constant."""
    scale = PAPER_SCALES.get(group, np.nan) if definition == "paper" else 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(gain_trained == 0, np.nan, 100 * scale * gain_group / gain_trained))


def fieller_interval(
    numerator: float, denominator: float, variances: tuple[float, float, float], quantile: float
) -> tuple[float, float] | None:
    """Fieller's confidence set for numerator / denominator; None if it is unbounded.

    `variances`: var(numerator), cov, var(denominator). The set holds every ratio r with
    (N - r D)^2 <= q^2 (V_N - 2 r C + r^2 V_D)  (Fieller 1954, J. R. Stat. Soc. B 16, 175).
    """
    var_num, cov, var_den = variances
    a = denominator**2 - quantile**2 * var_den
    if a <= 0:
        return None
    b = numerator * denominator - quantile**2 * cov
    c = numerator**2 - quantile**2 * var_num
    root = np.sqrt(max(0.0, b * b - a * c))
    return (b - root) / a, (b + root) / a


def group_gain(scores: ArmScores, members: list[int]) -> Interval:
    """Mean gain over the benchmarks of a group, in points."""
    return linear_interval(scores, weights_of(members, len(scores.base_B)))


def index_with_interval(
    definition: Definition, scores: ArmScores, groups: dict[str, list[int]], group: str, trained: str = MATH
) -> Index:
    """TI of one group with its interval, or the reason why it is not identified."""
    both = groups[group], groups[trained]
    trained_gain = group_gain(scores, groups[trained])
    if not gained(trained_gain):
        why = f"{trained} fell" if fell(trained_gain) else f"the interval of the gain on {trained} contains zero"
        return Index(status=NOT_IDENTIFIED, reason=why)
    estimate = float(_index(definition, group, scores.base_B, scores.arm_B, both))
    if not np.isfinite(estimate):
        return Index(status=UNDEFINED, reason=_why_undefined(definition, group, scores.base_B[[*both[0], *both[1]]]))
    if definition != "points":
        divisor, divisor_D = (
            transfer_gain(definition, base[..., groups[trained]], arm[..., groups[trained]])
            for base, arm in ((scores.base_B, scores.arm_B), (scores.base_DB, scores.arm_DB))
        )
        if not gained(percentile_interval(float(divisor), divisor_D[np.isfinite(divisor_D)], scores.confidence)):
            why = f"the gain on {trained} as `{definition}` counts it is not above zero"
            return Index(status=NOT_IDENTIFIED, reason=why)
    if definition in LINEAR:
        bounds = _fieller(definition, scores, both)
        if bounds is None:
            return Index(estimate, status=NOT_IDENTIFIED, reason="Fieller's set is unbounded")
        return Index(estimate, Interval(estimate, *bounds), "Fieller")
    drawn = _index(definition, group, scores.base_DB, scores.arm_DB, both)
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < 0.95 * len(drawn):
        return Index(estimate, status=NOT_IDENTIFIED, reason="undefined in more than 5 % of the draws")
    return Index(estimate, percentile_interval(estimate, finite, scores.confidence), "percentile")


def index_difference(
    definition: Definition,
    first: ArmScores,
    second: ArmScores,
    groups: dict[str, list[int]],
    group: str,
    trained: str = MATH,
) -> Index:
    """TI of one arm minus TI of another, taken inside each draw: the arms share base and questions.

    It needs the index of both.
    """
    both = groups[group], groups[trained]
    for scores in (first, second):
        index = index_with_interval(definition, scores, groups, group, trained)
        if index.interval is None:
            return Index(status=index.status, reason=index.reason)
    points = [_index(definition, group, scores.base_B, scores.arm_B, both) for scores in (first, second)]
    drawn = [_index(definition, group, scores.base_DB, scores.arm_DB, both) for scores in (first, second)]
    estimate, difference = float(points[0] - points[1]), drawn[0] - drawn[1]
    finite = difference[np.isfinite(difference)]
    if not np.isfinite(estimate) or len(finite) < 0.95 * len(difference):
        return Index(status=NOT_IDENTIFIED, reason="undefined for one of the arms")
    return Index(estimate, percentile_interval(estimate, finite, first.confidence), "percentile")


def without_each(
    definition: Definition, scores: ArmScores, groups: dict[str, list[int]], group: str, trained: str = MATH
) -> dict[int, Index]:
    """The index with each benchmark of the group or of the trained one left out; one that is alone stays."""
    result = {}
    for left_out in [b for name in (trained, group) if len(groups[name]) > 1 for b in groups[name]]:
        rest = {name: [b for b in members if b != left_out] for name, members in groups.items()}
        result[left_out] = index_with_interval(definition, scores, rest, group, trained)
    return result


def _why_undefined(definition: Definition, group: str, base_B: Array) -> str:
    if definition == "relative" and not base_B.all():
        return "the base scores zero on a benchmark, and a relative gain divides by it"
    if definition == "paper" and group not in PAPER_SCALES:
        return f"the published tables have no constant for the group {group}"
    return "all gains of a group are equal, and the definition divides by their spread"


Pair = tuple[list[int], list[int]]
"""The benchmarks of a group, and those of the trained one."""


def _index(definition: Definition, group: str, base: Array, arm: Array, both: Pair) -> Array:
    gain, trained_gain = (transfer_gain(definition, base[..., members], arm[..., members]) for members in both)
    return transfer_index(definition, group, gain, trained_gain)


def _fieller(definition: Definition, scores: ArmScores, both: Pair) -> tuple[float, float] | None:
    """Fieller's bounds of a ratio of means in percent.

    The covariance is that of the question draws plus that of the seed mean, and the quantile is Student's with
    Satterthwaite's degrees of freedom for the trained gain (the normal one for a single seed).
    """
    weights_GB = np.stack([weights_of(members, len(scores.base_B)) for members in both])
    if definition == "relative":
        weights_GB = np.divide(weights_GB, scores.base_B, out=np.zeros_like(weights_GB), where=weights_GB != 0)
    gain_G = weights_GB @ (scores.arm_B - scores.base_B)
    drawn_GD = np.stack([transfer_gain(definition, scores.base_DB[:, m], scores.question_DB[:, m]) for m in both])
    drawn_GD = drawn_GD[:, np.isfinite(drawn_GD).all(axis=0)]
    if drawn_GD.shape[1] < 0.95 * len(scores.base_DB):
        return None
    question_GG = np.cov(drawn_GD)
    seed_GG = weights_GB @ scores.seed_variance_BB @ weights_GB.T
    tail = (1 + scores.confidence) / 2
    quantile = stats.norm.ppf(tail)
    if scores.seeds > 1 and seed_GG[1, 1] > 0:
        freedom = (question_GG[1, 1] + seed_GG[1, 1]) ** 2 / (seed_GG[1, 1] ** 2 / (scores.seeds - 1))
        quantile = stats.t.ppf(tail, freedom)
    (var_num, cov), (_, var_den) = question_GG + seed_GG
    bounds = fieller_interval(gain_G[0], gain_G[1], (var_num, cov, var_den), quantile)
    return None if bounds is None else (float(100 * bounds[0]), float(100 * bounds[1]))
