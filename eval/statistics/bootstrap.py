"""Joint draws of all scores of a study: questions resampled by cluster, training seeds as a variance component.

Every benchmark is resampled on its own (the benchmarks are fixed: a claim is about these), and all models share each
draw, so what makes a question hard for all cancels in their differences. Per-sample scores go in and nothing else. The
draws of a benchmark depend on its name, and those of chance on the model's, so another benchmark, arm or checkpoint in
the study changes no interval of the others.

At a floor or ceiling, or where two models answer alike, resampling repeats one value and would claim certainty. There
each draw is mixed with pseudo-clusters on which a model does well or badly by chance: on average one for a score, the
weight of the prior of Jeffreys (Brown, Cai and DasGupta 2001, Stat. Sci. 16, 101), and two for a difference (Agresti
and Min 2005, Stat. Med. 24, 729). They fade out with the number of clusters that depart from the common value, so
intervals away from the edges are those of plain resampling.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Array = np.ndarray
_CHUNK = 1_000_000  # draws x clusters that are in memory at a time
PSEUDO_CLUSTERS, PSEUDO_PAIRS = 1.0, 2.0  # added to a draw on average, for scores and for differences to the base
FADE = 5.0  # departing clusters at which the weight has fallen to 1 / e; checked by tests/bench/coverage.py


@dataclass(frozen=True)
class BenchmarkScores:
    """Scores of the models on one benchmark, question by question.

    `score_QM`: mean over the samples of a question, in points, shape [questions, models]; the model columns are the
    same for all benchmarks, the base first. `clusters_Q`: cluster number of each question, for questions that share a
    context; None if each stands alone. `weight_Q`: how much a question counts; None if all count the same.
    """

    name: str
    group: str
    score_QM: Array
    clusters_Q: Array | None = None
    weight_Q: Array | None = None

    def means(self) -> Array:
        """The benchmark's score of each model."""
        return np.average(self.score_QM, axis=0, weights=self.weight_Q)

    def clustered(self) -> tuple[Array, Array]:
        """Weighted sums of scores and sums of weights of each cluster: shapes [clusters, models] and [clusters]."""
        weight_Q = np.ones(len(self.score_QM)) if self.weight_Q is None else self.weight_Q.astype(float)
        weighted_QM = self.score_QM * weight_Q[:, None]
        if self.clusters_Q is None:
            return weighted_QM, weight_Q
        _, cluster_Q = np.unique(self.clusters_Q, return_inverse=True)
        sizes_C = np.bincount(cluster_Q, weights=weight_Q)
        sums_CM = np.zeros((len(sizes_C), self.score_QM.shape[1]))
        np.add.at(sums_CM, cluster_Q, weighted_QM)
        return sums_CM, sizes_C

    @property
    def clusters(self) -> int:
        """How many independent parts it has."""
        return len(self.score_QM) if self.clusters_Q is None else len(np.unique(self.clusters_Q))


def generator(seed: int | Sequence[int], *names: str) -> np.random.Generator:
    """Random numbers that depend on the seed and the names alone, not on what else is drawn."""
    seeds = [seed] if isinstance(seed, int) else seed
    return np.random.default_rng([*seeds, *(zlib.crc32(name.encode()) for name in names)])


def bootstrap_scores(
    scores: BenchmarkScores,
    draws: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
    models: Sequence[str] | None = None,
) -> Array:
    """Mean scores under resampled clusters, shape [draws, models]; all models share each draw.

    Deviations from the score are widened by sqrt(C / (C - 1)) t_{C-1} / z for C clusters: the variance of resampled
    means is too small by (C - 1) / C, and percentiles of few clusters know nothing of Student's tails (Efron and
    Tibshirani 1993, Sec. 13.3 and 22.4). `models` are names of the columns, by default their numbers: the draws of a
    column depend on its scores, its name and the base's scores, not on the other columns.
    """
    sums_CM, sizes_C = scores.clustered()
    clusters = len(sizes_C)
    own = int(rng.integers(1 << 32))  # of the pseudo-clusters, so that the resampled questions do not depend on them
    totals = _resampled_sums(np.column_stack([sums_CM, sizes_C]), draws, rng)
    names = list(map(str, range(sums_CM.shape[1]))) if models is None else models
    drawn_DM = _with_pseudo_clusters(totals[:, :-1] / totals[:, -1:], sums_CM, sizes_C, own, names)
    widening = np.sqrt(clusters / max(1, clusters - 1)) * student_factor(clusters, confidence)
    mean_M = scores.means()
    # The widening can carry a draw out of the range of a score.
    return np.clip(mean_M + (drawn_DM - mean_M) * widening, 0, 100)


def _resampled_sums(values_CK: Array, draws: int, rng: np.random.Generator) -> Array:
    """Sums of C rows drawn from the C rows with replacement, [draws, columns]."""
    clusters = len(values_CK)
    chunks = []
    for start in range(0, draws, max(1, _CHUNK // clusters)):
        count = min(max(1, _CHUNK // clusters), draws - start)
        row_DC = rng.integers(clusters, size=(count, clusters), dtype=np.int32)
        row_DC += np.arange(count, dtype=np.int32)[:, None] * clusters
        times_DC = np.bincount(row_DC.ravel(), minlength=count * clusters).reshape(count, clusters)
        chunks.append(times_DC @ values_CK)
    return np.concatenate(chunks)


def _with_pseudo_clusters(drawn_DM: Array, sums_CM: Array, sizes_C: Array, seed: int, models: Sequence[str]) -> Array:
    """Draws in which models whose scores hardly vary answer a few further clusters of average size.

    A model that scores alike on nearly all clusters answers each of them all right or all wrong, at even chances. One
    that differs from the base by the same on nearly all, but whose own scores vary, does better or worse than the base
    on each at a chance of a quarter.
    """
    draws = len(drawn_DM)
    clusters = len(sizes_C)
    score_CM = sums_CM / sizes_C[:, None]
    edge_M = _lack_of_variation(score_CM)
    alike_M = _lack_of_variation(score_CM - score_CM[:, :1]) * (1 - np.maximum(edge_M, edge_M[0]))
    alike_M[0] = 0.0  # the base itself
    shared = generator(seed)
    added_D, pairs_D = shared.poisson(PSEUDO_CLUSTERS, draws), shared.poisson(PSEUDO_PAIRS, draws)
    changed_DM = drawn_DM.copy()
    for column, name in enumerate(models):
        rng = generator(seed, name)
        right_D = rng.binomial(added_D, 0.5)
        at_edge_D = (100 * right_D - added_D * drawn_DM[:, column]) / (clusters + added_D)
        better_D, worse_D = rng.binomial(pairs_D, 0.5), rng.binomial(pairs_D, 0.5)
        apart_D = 100 * (better_D - worse_D) / (clusters + pairs_D)
        changed_DM[:, column] += edge_M[column] * at_edge_D + alike_M[column] * apart_D
    return changed_DM


def _lack_of_variation(value_CM: Array) -> Array:
    """1 where all clusters have one value, falling to 0 with the number of clusters that have another."""
    counts = [np.unique(column.round(9), return_counts=True)[1].max() for column in value_CM.T]
    departed_M = len(value_CM) - np.array(counts)
    return np.asarray(np.exp(-departed_M / FADE) * (1 - departed_M / len(value_CM)))


def student_factor(clusters: int, confidence: float) -> float:
    """How much further Student's quantile of C - 1 degrees of freedom lies than the normal one."""
    tail = (1 + confidence) / 2
    return float(stats.t.ppf(tail, clusters - 1) / stats.norm.ppf(tail)) if clusters > 1 else 1.0


def seed_deviations(benchmarks: Sequence[BenchmarkScores], columns: list[int]) -> Array:
    """How far each training seed's scores lie from their mean, without what question sampling explains.

    Returns [seeds, benchmarks] in points. The scores of seeds differ for two reasons: the training, and which
    responses were sampled to which questions. The bootstrap over questions covers the second already, so the
    deviations of each benchmark are shrunk to the variance component of the seed in a two-way analysis of variance
    without replication (Searle, Casella and McCulloch 1992, Sec. 4.3): MS_seeds = C s_seed^2 + s_residual^2,
    truncated at zero, with clusters in the place of questions. Zeros for a single seed, whose variance is unknown.
    """
    deviation_SB = np.zeros((len(columns), len(benchmarks)))
    if len(columns) == 1:
        return deviation_SB
    for index, item in enumerate(benchmarks):
        sums_CM, sizes_C = item.clustered()
        score_S = item.means()[columns]
        of_seed_S = score_S - score_S.mean()
        clusters, seeds = len(sizes_C), len(columns)
        if clusters == 1:
            deviation_SB[:, index] = of_seed_S
            continue
        # What each cluster adds beyond its size's share of the score, and of that what differs between seeds.
        residual_CS = sums_CM[:, columns] - sizes_C[:, None] * score_S
        residual_CS -= residual_CS.mean(axis=1, keepdims=True)
        total = sizes_C.sum()
        residual = clusters / (clusters - 1) * (residual_CS**2).sum() / (seeds - 1) / total**2
        observed = (of_seed_S**2).sum() / (seeds - 1)
        kept = max(0.0, 1 - residual / observed) if observed > 0 else 0.0
        deviation_SB[:, index] = np.sqrt(kept) * of_seed_S
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
    clusters_B: Array
    """Independent parts of each benchmark."""
    confidence: float = 0.95
    """Coverage the draws were widened for."""

    @property
    def student_factors(self) -> Array:
        """What the draws of each benchmark were widened by for Student's tails."""
        return np.array([student_factor(int(clusters), self.confidence) for clusters in self.clusters_B])


def draw_scores(
    benchmarks: Sequence[BenchmarkScores],
    arm_columns: dict[str, list[int]],
    draws: int,
    seed: int,
    confidence: float = 0.95,
) -> dict[str, ArmScores]:
    """Joint draws for all arms. `arm_columns`: the model columns of each arm, one per training seed; base is 0."""
    names = {column: f"{arm}/{run}" for arm, columns in arm_columns.items() for run, column in enumerate(columns)}
    names[0] = "base"
    models = [names.get(column, str(column)) for column in range(benchmarks[0].score_QM.shape[1])]
    drawn = [bootstrap_scores(item, draws, generator(seed, item.name), confidence, models) for item in benchmarks]
    point = [item.means() for item in benchmarks]
    base_B = np.array([scores[0] for scores in point])
    base_DB = np.stack([scores[:, 0] for scores in drawn], axis=1)
    clusters_B = np.array([item.clusters for item in benchmarks])
    result = {}
    for arm, columns in arm_columns.items():
        score_SB = np.array([[scores[column] for scores in point] for column in columns])
        question_DB = np.stack([scores[:, columns].mean(axis=1) for scores in drawn], axis=1)
        seeds = len(columns)
        deviation_SB = seed_deviations(benchmarks, columns)
        variance_BB = deviation_SB.T @ deviation_SB / max(1, seeds * (seeds - 1))
        result[arm] = ArmScores(
            base_B,
            score_SB.mean(axis=0),
            base_DB,
            question_DB,
            # Student's tails of few seeds reach beyond the scores that exist.
            np.clip(question_DB + seed_noise(deviation_SB, draws, generator(seed, "seeds", arm)), 0, 100),
            variance_BB,
            seeds,
            clusters_B,
            confidence,
        )
    return result
