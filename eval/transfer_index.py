"""Transfer scores: gains on math, on other reasoning and on the rest, and the transferability index.

A transferability index is a ratio, TI_g = 100 * D_g / D_math, and the four definitions differ in D. With R0_b
and R_b the scores of base and tuned model on benchmark b in points (0 to 100), d_b = R_b - R0_b, and the mean
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
resample. An index whose math gain is not distinguishable from zero is "not identified": a ratio then has no
bounded interval with the promised coverage (Fieller 1954). For `points` the interval is Fieller's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

Definition = Literal["points", "relative", "literal", "paper"]
DEFINITIONS: tuple[Definition, ...] = ("points", "relative", "literal", "paper")
MATH = "math"
PAPER_SCALES = {MATH: 1.0, "other_reasoning": 0.9384, "non_reasoning": 0.8855}  # fitted, see the docstring
_CHUNK_DRAWS = 500  # draws x questions of the largest benchmark must fit in memory

Array = np.ndarray


class Interval(NamedTuple):
    """An estimate with a confidence interval, in points (gains) or percent (indices)."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


class Index(NamedTuple):
    """A transferability index, in percent; `interval` is None when it is not identified."""

    estimate: float | None
    interval: Interval | None
    method: str
    """How the interval was computed, or why there is none."""


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


def transfer_index(definition: Definition, group: str, gain_group: Array, gain_math: Array) -> Array:
    """TI_g in percent from D_g and D_math; NaN where it is undefined, or for `paper` in a group without constant."""
    scale = PAPER_SCALES.get(group, np.nan) if definition == "paper" else 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(gain_math == 0, np.nan, 100 * scale * gain_group / gain_math))


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


@dataclass(frozen=True)
class Answers:
    """What the models scored on one benchmark, question by question.

    `accuracy_QM`: mean over the samples of a question, in points, shape [questions, models]; the model columns
    are the same for all benchmarks, the base first. `clusters_Q`: cluster number of each question, for questions
    that share a context; None if each stands alone.
    """

    name: str
    group: str
    accuracy_QM: Array
    clusters_Q: Array | None = None


def bootstrap_scores(answers: Answers, draws: int, rng: np.random.Generator) -> Array:
    """Mean scores under resampled clusters, shape [draws, models]; all models share each draw."""
    accuracy_QM = answers.accuracy_QM
    if answers.clusters_Q is None:
        sums_CM, sizes_C = accuracy_QM, np.ones(len(accuracy_QM))
    else:
        _, cluster_Q = np.unique(answers.clusters_Q, return_inverse=True)
        sizes_C = np.bincount(cluster_Q).astype(float)
        sums_CM = np.zeros((len(sizes_C), accuracy_QM.shape[1]))
        np.add.at(sums_CM, cluster_Q, accuracy_QM)
    number = len(sizes_C)
    parts = []
    for start in range(0, draws, _CHUNK_DRAWS):
        counts_DC = rng.multinomial(number, np.full(number, 1 / number), size=min(_CHUNK_DRAWS, draws - start))
        parts.append((counts_DC @ sums_CM) / (counts_DC @ sizes_C)[:, None])
    return np.concatenate(parts)


def seed_deviations(answers: Sequence[Answers], columns: list[int]) -> Array:
    """How far each training seed's scores lie from their mean, without what question sampling explains.

    Returns [seeds, benchmarks] in points. The scores of seeds differ for two reasons: the training, and which
    responses were sampled to which questions. The bootstrap over questions covers the second already, so the
    deviations of each benchmark are shrunk to the variance component of the seed in a two-way analysis of variance
    without replication (Searle, Casella and McCulloch 1992, Sec. 4.3): MS_seeds = Q s_seed^2 + s_residual^2,
    truncated at zero. Zeros for a single seed, whose variance cannot be known.
    """
    deviation_SB = np.zeros((len(columns), len(answers)))
    if len(columns) == 1:
        return deviation_SB
    for number, item in enumerate(answers):
        accuracy_QS = item.accuracy_QM[:, columns]
        questions, seeds = accuracy_QS.shape
        of_seed_S = accuracy_QS.mean(axis=0) - accuracy_QS.mean()
        residual_QS = accuracy_QS - accuracy_QS.mean(axis=1, keepdims=True) - of_seed_S
        residual = (residual_QS**2).sum() / ((questions - 1) * (seeds - 1)) / questions
        observed = (of_seed_S**2).sum() / (seeds - 1)
        kept = max(0.0, 1 - residual / observed) if observed > 0 else 0.0
        deviation_SB[:, number] = np.sqrt(kept) * of_seed_S
    return deviation_SB


def seed_noise(deviation_SB: Array, draws: int, rng: np.random.Generator) -> Array:
    """Uncertainty of the mean over training seeds: multivariate t with S - 1 degrees of freedom, [draws, benchmarks].

    Its covariance is the sample covariance of the deviations over S; a random combination of the deviations has
    just that covariance, also across benchmarks.
    """
    seeds = len(deviation_SB)
    if seeds == 1:
        return np.zeros((draws, deviation_SB.shape[1]))
    normal_DB = rng.standard_normal((draws, seeds)) @ deviation_SB / np.sqrt(seeds * (seeds - 1))
    scale_D = np.sqrt(rng.chisquare(seeds - 1, draws) / (seeds - 1))
    return np.asarray(normal_DB / scale_D[:, None])


@dataclass(frozen=True)
class ArmScores:
    """Scores of base and arm with their joint draws; B counts the benchmarks."""

    base_B: Array
    arm_B: Array
    base_DB: Array
    question_DB: Array
    """Draws of the arm's seed-mean scores from resampled questions alone."""
    arm_DB: Array
    """`question_DB` plus the uncertainty over training seeds, within 0 to 100."""
    seed_variance_BB: Array
    """Covariance of the seed mean across benchmarks; zeros for one seed."""
    seeds: int


def draw_scores(
    answers: Sequence[Answers], arm_columns: dict[str, list[int]], draws: int, seed: int
) -> dict[str, ArmScores]:
    """Joint draws for all arms. `arm_columns`: the model columns of each arm, one per training seed; base is 0."""
    rng = np.random.default_rng(seed)
    drawn = [bootstrap_scores(item, draws, rng) for item in answers]
    point = [item.accuracy_QM.mean(axis=0) for item in answers]
    base_B = np.array([scores[0] for scores in point])
    base_DB = np.stack([scores[:, 0] for scores in drawn], axis=1)
    result = {}
    for arm, columns in arm_columns.items():
        score_SB = np.array([[scores[column] for scores in point] for column in columns])
        question_DB = np.stack([scores[:, columns].mean(axis=1) for scores in drawn], axis=1)
        seeds = len(columns)
        deviation_SB = seed_deviations(answers, columns)
        variance_BB = deviation_SB.T @ deviation_SB / max(1, seeds * (seeds - 1))
        result[arm] = ArmScores(
            base_B,
            score_SB.mean(axis=0),
            base_DB,
            question_DB,
            # The t noise of few seeds knows no bounds; a score does, and so do the gains made from it.
            np.clip(question_DB + seed_noise(deviation_SB, draws, rng), 0, 100),
            variance_BB,
            seeds,
        )
    return result


def percentile_interval(estimate: float, drawn_D: Array, confidence: float) -> Interval:
    """The central interval of the draws around an estimate."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(drawn_D, [tail, 100 - tail])
    return Interval(float(estimate), float(low), float(high))


def group_gain(scores: ArmScores, members: list[int], confidence: float) -> Interval:
    """Mean gain over the benchmarks of a group, in points."""
    point = transfer_gain("points", scores.base_B[members], scores.arm_B[members])
    drawn = transfer_gain("points", scores.base_DB[:, members], scores.arm_DB[:, members])
    return percentile_interval(float(point), drawn, confidence)


def index_with_interval(
    definition: Definition, scores: ArmScores, groups: dict[str, list[int]], group: str, confidence: float
) -> Index:
    """TI of one group with its interval, or the reason why it is not identified."""
    members, math_members = groups[group], groups[MATH]
    if not group_gain(scores, math_members, confidence).excludes_zero:
        return Index(None, None, "not identified: the interval of the math gain contains zero")
    estimate = _index(definition, group, scores.base_B, scores.arm_B, members, math_members)
    if not np.isfinite(estimate):
        return Index(None, None, "undefined: a base score is zero, a spread is zero, or the group has no constant")
    if definition == "points":
        bounds = _fieller(scores, members, math_members, confidence)
        if bounds is None:
            return Index(float(estimate), None, "not identified: Fieller's set is unbounded")
        return Index(float(estimate), Interval(float(estimate), *bounds), "Fieller")
    drawn = _index(definition, group, scores.base_DB, scores.arm_DB, members, math_members)
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < 0.95 * len(drawn):
        return Index(float(estimate), None, "not identified: undefined in more than 5 % of the draws")
    return Index(float(estimate), percentile_interval(float(estimate), finite, confidence), "percentile")


def _index(
    definition: Definition, group: str, base: Array, arm: Array, members: list[int], math_members: list[int]
) -> Array:
    gain = transfer_gain(definition, base[..., members], arm[..., members])
    return transfer_index(
        definition, group, gain, transfer_gain(definition, base[..., math_members], arm[..., math_members])
    )


def _fieller(
    scores: ArmScores, members: list[int], math_members: list[int], confidence: float
) -> tuple[float, float] | None:
    """Fieller's bounds of TI `points` in percent.

    The covariance is that of the question draws plus that of the seed mean, and the quantile is Student's with
    Satterthwaite's degrees of freedom for the math gain (the normal one for a single seed).
    """
    weights_GB = np.zeros((2, len(scores.base_B)))
    weights_GB[0, members], weights_GB[1, math_members] = 1 / len(members), 1 / len(math_members)
    gain_G = weights_GB @ (scores.arm_B - scores.base_B)
    question_GG = np.cov((scores.question_DB - scores.base_DB) @ weights_GB.T, rowvar=False)
    seed_GG = weights_GB @ scores.seed_variance_BB @ weights_GB.T
    quantile = float(stats.norm.ppf((1 + confidence) / 2))
    if scores.seeds > 1 and seed_GG[1, 1] > 0:
        freedom = (question_GG[1, 1] + seed_GG[1, 1]) ** 2 / (seed_GG[1, 1] ** 2 / (scores.seeds - 1))
        quantile = float(stats.t.ppf((1 + confidence) / 2, freedom))
    total_GG = question_GG + seed_GG
    bounds = fieller_interval(
        gain_G[0], gain_G[1], (float(total_GG[0, 0]), float(total_GG[0, 1]), float(total_GG[1, 1])), quantile
    )
    return None if bounds is None else (float(100 * bounds[0]), float(100 * bounds[1]))
