"""The transfer index: published values, hand-computed values, and intervals against independent computations."""

import numpy as np
import pytest
from scipy import stats

from eval.statistics.bootstrap import (
    BenchmarkScores,
    bootstrap_scores,
    draw_scores,
    seed_deviations,
    seed_noise,
)
from eval.statistics.transfer_index import (
    MATH,
    fieller_interval,
    group_gain,
    index_difference,
    index_with_interval,
    transfer_gain,
    transfer_index,
    without_each,
)

# arXiv 2507.00432, Table 1: math, other reasoning, non-reasoning, four benchmarks each.
BASE = [[13.0, 9.3, 60.4, 27.9], [42.6, 29.7, 10.7, 37.6], [10.0, 67.7, 69.2, 35.7]]
PUBLISHED = {
    "SFT-think": ([[52.0, 37.0, 85.0, 25.0], [55.9, 21.9, 68.6, 34.8], [1.7, 38.2, 42.3, 2.3]], (52.2, -104.1)),
    "SFT-no-think": ([[16.0, 13.0, 77.2, 22.7], [48.7, 23.5, 69.3, 35.0], [5.3, 66.1, 41.4, 3.3]], (165.4, -278.9)),
    "RL": ([[55.7, 38.0, 87.8, 33.8], [57.7, 40.6, 65.4, 40.2], [28.2, 74.0, 70.0, 40.7]], (82.3, 52.2)),
}
GROUPS = (MATH, "other_reasoning", "non_reasoning")


def indices(definition, model):
    gains = [transfer_gain(definition, np.array(b), np.array(m)) for b, m in zip(BASE, model, strict=True)]
    return [float(transfer_index(definition, g, gain, gains[0])) for g, gain in zip(GROUPS[1:], gains[1:], strict=True)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_paper_definition_gives_the_published_indices_to_the_printed_decimal(name):
    model, published = PUBLISHED[name]
    assert [round(value, 1) for value in indices("paper", model)] == list(published)


@pytest.mark.parametrize(
    ("definition", "name", "expected"),
    [
        ("relative", "SFT-think", (85.7, -41.2)),  # -41.2 is the value quoted from version 1
        ("relative", "RL", (83.9, 29.3)),
        ("literal", "SFT-think", (42.9, -148.5)),
        ("literal", "SFT-no-think", (96.7, -239.6)),
        ("literal", "RL", (71.0, 84.1)),
    ],
)
def test_other_definitions(definition, name, expected):
    assert [round(value, 1) for value in indices(definition, PUBLISHED[name][0])] == list(expected)


def test_points_by_hand():
    # RL gains: math mean (42.7+28.7+27.4+5.9)/4 = 26.175, other (15.1+10.9+54.7+2.6)/4 = 20.825
    assert indices("points", PUBLISHED["RL"][0])[0] == pytest.approx(100 * 20.825 / 26.175)


def test_undefined_is_nan_not_a_number():
    assert np.isnan(transfer_gain("relative", np.array([0.0, 10.0]), np.array([5.0, 20.0])))
    assert np.isnan(transfer_gain("literal", np.array([10.0, 20.0]), np.array([15.0, 25.0])))
    assert np.isnan(transfer_index("paper", "law", np.array(1.0), np.array(2.0)))
    assert np.isnan(transfer_index("points", "law", np.array(1.0), np.array(0.0)))


def test_fieller_against_its_quadratic_and_the_unbounded_case():
    low, high = fieller_interval(10.0, 20.0, (4.0, 1.0, 9.0), 1.96)
    for ratio in (low, high):  # the bounds solve (N - rD)^2 = q^2 (V_N - 2rC + r^2 V_D)
        assert (10 - 20 * ratio) ** 2 == pytest.approx(1.96**2 * (4 - 2 * ratio + 9 * ratio**2))
    assert low < 0.5 < high
    assert fieller_interval(10.0, 5.0, (4.0, 0.0, 9.0), 1.96) is None


def test_fieller_keeps_its_level_where_the_denominator_is_weak():
    rng = np.random.default_rng(0)
    covered = 0
    for num, den in rng.multivariate_normal([1.0, 6.0], [[1, 0], [0, 1]], 4000):
        bounds = fieller_interval(num, den, (1.0, 0.0, 1.0), 1.959964)
        covered += bounds is None or bounds[0] <= 1 / 6 <= bounds[1]
    assert covered / 4000 == pytest.approx(0.95, abs=0.012)


def test_bootstrap_standard_error_is_the_analytic_one():
    rng = np.random.default_rng(1)
    accuracy = 100 * rng.integers(0, 2, (300, 1)).astype(float)
    drawn = bootstrap_scores(BenchmarkScores("a", MATH, accuracy), 20000, rng)
    # Student's 97.5 % point with 299 degrees of freedom is 0.4 % beyond the normal one.
    expected = accuracy.std(ddof=1) / np.sqrt(300) * stats.t.ppf(0.975, 299) / stats.norm.ppf(0.975)
    assert drawn.std() == pytest.approx(expected, rel=0.02)
    assert drawn.mean() == pytest.approx(accuracy.mean(), abs=0.1)


@pytest.fixture
def plain_resampling(monkeypatch):
    """Without the pseudo-clusters of samples that hardly vary."""
    without_pseudo_clusters(monkeypatch)


def without_pseudo_clusters(patch):
    patch.setattr("eval.statistics.bootstrap.PSEUDO_CLUSTERS", 0.0)
    patch.setattr("eval.statistics.bootstrap.PSEUDO_PAIRS", 0.0)


@pytest.mark.usefixtures("plain_resampling")
def test_clusters_of_one_are_questions_and_whole_clusters_are_drawn():
    accuracy = np.array([[0.0], [100.0], [0.0], [100.0]])
    alone = bootstrap_scores(BenchmarkScores("a", MATH, accuracy, np.arange(4)), 500, np.random.default_rng(2))
    plain = bootstrap_scores(BenchmarkScores("a", MATH, accuracy), 500, np.random.default_rng(2))
    np.testing.assert_array_equal(alone, plain)
    pairs = bootstrap_scores(
        BenchmarkScores("a", MATH, accuracy, np.array([7, 7, 9, 9])), 500, np.random.default_rng(2)
    )
    np.testing.assert_array_equal(pairs, np.full((500, 1), 50.0))  # every cluster scores 50


@pytest.mark.usefixtures("plain_resampling")
def test_models_share_each_draw():
    """A model that answers like the base gains exactly nothing in every draw."""
    accuracy = np.repeat(100 * np.random.default_rng(3).integers(0, 2, (50, 1)).astype(float), 2, axis=1)
    drawn = bootstrap_scores(BenchmarkScores("a", MATH, accuracy), 200, np.random.default_rng(3))
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])
    assert drawn[:, 0].std() > 0


def interval_of(scores, column=0, base=None):
    """Percentile interval of a model's score, or of its gain over another column."""
    drawn = bootstrap_scores(BenchmarkScores("a", MATH, np.array(scores, dtype=float)), 40000, np.random.default_rng(8))
    values = drawn[:, column] - (0 if base is None else drawn[:, base])
    return np.percentile(values, [2.5, 97.5])


def test_floors_ceilings_and_equal_answers_have_a_width():
    """0 of 200: at most two pseudo-successes of two, 2 / 202; Jeffreys' interval of 0 of 200 ends at 1.24."""
    low, high = interval_of(np.zeros((200, 1)))
    assert low == 0
    assert high == pytest.approx(100 * stats.beta.ppf(0.975, 0.5, 200.5), abs=0.3)
    low, high = interval_of(np.full((200, 1), 100.0))
    assert high == 100
    assert low == pytest.approx(100 - 1.24, abs=0.3)
    both = np.zeros((200, 2))
    assert interval_of(both, 1, 0) == pytest.approx([-0.5, 0.5], abs=0.2)  # either may be the better one
    alike = np.repeat(100.0 * (np.arange(200) < 120)[:, None], 2, axis=1)
    # Agresti and Min: of two further pairs half differ, a standard error of 1 / 202.
    assert interval_of(alike, 1, 0) == pytest.approx([-0.97, 0.97], abs=0.2)
    few = interval_of(np.zeros((10, 1)))
    assert 15 < few[1] < 100 * stats.beta.ppf(0.975, 0.5, 10.5) + 5


def test_away_from_the_edges_the_interval_is_that_of_plain_resampling(monkeypatch):
    """With twenty and more departing questions in a hundred and eighty nothing is added."""
    rng = np.random.default_rng(9)
    for share, departing in ((0.5, 90), (0.8, 36), (0.12, 22)):
        base = rng.random(180) < share
        arm = np.where(rng.random(180) < 0.3, ~base, base)
        scores = 100.0 * np.stack([base, arm], axis=1)
        found = interval_of(scores), interval_of(scores, 1, 0)
        with monkeypatch.context() as plain:
            without_pseudo_clusters(plain)
            expected = interval_of(scores), interval_of(scores, 1, 0)
        np.testing.assert_allclose(found, expected, atol=0.15, err_msg=str(departing))


@pytest.mark.parametrize(
    ("questions", "samples", "rates"),
    [(200, 1, (0.0, 0.03)), (40, 1, (0.0, 0.1)), (40, 2, (0.02, 0.1)), (40, 1, (0.9, 0.98))],
)
def test_intervals_at_extreme_rates_keep_their_level(questions, samples, rates):
    """Studies at rates drawn from a range, as in the table of docs/statistics.md, with fewer of them."""
    rng = np.random.default_rng(10)
    studies, covered = 400, np.zeros(2)
    for number in range(studies):
        rate, gain = rng.uniform(*rates), rng.uniform(0, 0.02)
        chance = np.array([rate, rate + (1 - rate) * gain])
        scores = 100 * rng.binomial(samples, np.tile(chance, (questions, 1))) / samples
        drawn = bootstrap_scores(BenchmarkScores("a", MATH, scores), 300, np.random.default_rng(number))
        for place, (values, truth) in enumerate(
            ((drawn[:, 0], chance[0]), (drawn[:, 1] - drawn[:, 0], np.diff(chance)[0]))
        ):
            low, high = np.percentile(values, [2.5, 97.5])
            covered[place] += low <= 100 * truth <= high
    assert np.all(covered / studies > 0.92), covered / studies  # plain resampling: 0.75 to 0.9
    assert np.all(covered / studies < 0.99), covered / studies


def test_seed_noise_has_student_quantiles_of_the_seed_mean():
    deviation = np.array([[-3.0], [3.0], [0.0]])  # sample variance 9, over 3 seeds: 3
    noise = seed_noise(deviation, 200000, np.random.default_rng(4))[:, 0]
    expected = np.sqrt(3.0) * stats.t.ppf(0.975, 2)
    assert np.percentile(noise, 97.5) == pytest.approx(expected, rel=0.03)
    np.testing.assert_array_equal(seed_noise(deviation[:1], 10, np.random.default_rng(4)), np.zeros((10, 1)))


def test_seed_deviations_by_hand():
    # Columns: base, seed 0, seed 1. Seed means 50 and 75, variance 312.5; residuals +-25, mean square 2500, over
    # two questions 1250: sampling explains more than there is.
    crossed = np.array([[0.0, 75.0, 50.0], [0.0, 25.0, 100.0]])
    np.testing.assert_allclose(seed_deviations([BenchmarkScores("a", MATH, crossed)], [1, 2]), [[0.0], [0.0]])
    # The seeds differ by 25 on every question: no residual, nothing to take away.
    parallel = np.array([[0.0, 50.0, 75.0], [0.0, 25.0, 50.0]])
    np.testing.assert_allclose(seed_deviations([BenchmarkScores("a", MATH, parallel)], [1, 2]), [[-12.5], [12.5]])
    # Seed means 45 and 55, variance 50; residuals +-5 on four questions: 8 * 25 / 3 over 4 questions is 50 / 3,
    # a third of the variance.
    noisy = np.array([[0.0, 50.0, 50.0], [0.0, 40.0, 60.0]] * 2)
    kept = np.sqrt(2 / 3)
    np.testing.assert_allclose(seed_deviations([BenchmarkScores("a", MATH, noisy)], [1, 2]), [[-5 * kept], [5 * kept]])


def test_seed_deviations_with_unequal_clusters():
    """Seeds at -10, 0 and +10 everywhere, and no noise: nothing is sampling, however the questions are clustered."""
    accuracy = np.repeat([[50.0, 40.0, 50.0, 60.0]], 100, axis=0)
    clusters = np.repeat([0, 1, 2], [90, 5, 5])
    for given in (None, clusters):
        found = seed_deviations([BenchmarkScores("a", MATH, accuracy, given)], [1, 2, 3])
        np.testing.assert_allclose(found, [[-10.0], [0.0], [10.0]], atol=1e-9)


@pytest.mark.parametrize(("seed_spread", "widest"), [(0.0, 1.6), (4.0, 9.0)])
def test_intervals_over_seeds_keep_their_level(seed_spread, widest):
    """Simulated studies of 3 seeds, 150 questions, 4 responses; the truth is a mean score of 50."""
    rng = np.random.default_rng(7)
    covered, widths, alone, studies = 0, [], [], 300
    for _ in range(studies):
        of_seed = rng.normal(0, seed_spread, 3)
        chance = np.clip(0.5 + rng.uniform(-0.4, 0.4, (150, 1)) + of_seed / 100, 0, 1)
        accuracy = 100 * rng.binomial(4, np.hstack([np.full((150, 1), 0.5), chance])) / 4
        arm = draw_scores([BenchmarkScores("a", MATH, accuracy)], {"arm": [1, 2, 3]}, 400, int(rng.integers(1 << 30)))[
            "arm"
        ]
        low, high = np.percentile(arm.arm_DB[:, 0], [2.5, 97.5])
        covered += low <= 50 <= high
        widths.append(high - low)
        alone.append(np.subtract(*np.percentile(arm.question_DB[:, 0], [97.5, 2.5])))
    assert covered / studies >= 0.93
    assert np.mean(widths) / np.mean(alone) < widest


def build(*math_gains, questions=200):
    """Two benchmarks and tuned models, one per seed, that repair a share of the wrong answers, half on the second."""
    rng = np.random.default_rng(5)
    benchmarks = []
    for name, group, share in (("m", MATH, 2), ("o", "other_reasoning", 1)):
        base = (rng.random(questions) < 0.5).astype(float)
        luck = rng.random(questions)
        arms = [np.where((base == 0) & (luck < share * gain), 1.0, base) for gain in math_gains]
        benchmarks.append(BenchmarkScores(name, group, 100 * np.stack([base, *arms], axis=1)))
    return draw_scores(benchmarks, {"arm": list(range(1, 1 + len(math_gains)))}, 4000, 0)["arm"]


def test_index_of_a_math_loss_by_hand():
    """A gain elsewhere at the price of math has a negative index, a loss of both a positive one."""
    found = transfer_index("points", "other_reasoning", np.array([1.0, -1.0, 1.0]), np.array([-2.0, -2.0, 0.0]))
    assert found[:2].tolist() == [-50, 50]
    assert np.isnan(found[2])


def test_index_is_identified_only_with_a_math_gain():
    groups = {MATH: [0], "other_reasoning": [1]}
    strong = index_with_interval("points", build(0.3), groups, "other_reasoning")
    assert strong.method == "Fieller"
    assert strong.interval.low < strong.estimate < strong.interval.high
    for definition in ("points", "relative", "literal", "paper"):
        weak = index_with_interval(definition, build(0.0), groups, "other_reasoning")
        assert weak.interval is None
        assert (weak.status, weak.method) == ("not identified", None)


def lossy(math, other, questions=400):
    """Scores of an arm that changed math and another benchmark by so many points, from a base at 50."""
    benchmarks = []
    for name, group, points in (("m", MATH, math), ("o", "other_reasoning", other)):
        base, arm = (np.arange(questions) < share * questions // 100 for share in (50, 50 + points))
        benchmarks.append(BenchmarkScores(name, group, 100.0 * np.stack([base, arm], axis=1)))
    return draw_scores(benchmarks, {"arm": [1]}, 2000, 0)["arm"]


def test_a_common_loss_is_no_transfer():
    """Math -20 and other reasoning -12.5 have a ratio of +62.5, which would read as transfer."""
    groups = {MATH: [0], "other_reasoning": [1]}
    fallen, risen = lossy(-20, -12.5), lossy(20, -12.5)
    assert group_gain(fallen, [0]).high < 0
    assert 100 * (fallen.arm_B - fallen.base_B)[1] / (fallen.arm_B - fallen.base_B)[0] == 62.5
    for definition in ("points", "relative", "paper"):
        found = index_with_interval(definition, fallen, groups, "other_reasoning")
        assert found == (None, None, None, "not identified", "math fell")
        for pair in ((fallen, risen), (risen, fallen)):
            found = index_difference(definition, *pair, groups, "other_reasoning")
            assert found == (None, None, None, "not identified", "math fell")
    kept = index_with_interval("points", risen, groups, "other_reasoning")
    assert (kept.estimate, kept.status, kept.reason) == (-62.5, "identified", None)
    flat = index_with_interval("points", lossy(0, -12.5), groups, "other_reasoning")
    assert flat.reason == "the interval of the gain on math contains zero"


def test_an_index_needs_a_gain_by_its_own_definition():
    """Math +16 from 80 and -8 from 20 is +4 in points, but -0.1 in relative gains, and the weights of `paper` and
    `literal` count the loss four times. Divided by it, a loss elsewhere would be transfer."""
    benchmarks = []
    for name, group, questions, before, after in (("easy", MATH, 400, 80, 96), ("hard", MATH, 200, 20, 12),
                                                  ("a", "other_reasoning", 400, 50, 40),
                                                  ("b", "other_reasoning", 400, 50, 46)):  # fmt: skip
        base, arm = (np.arange(questions) < share * questions // 100 for share in (before, after))
        benchmarks.append(BenchmarkScores(name, group, 100.0 * np.stack([base, arm], axis=1)))
    scores, groups = draw_scores(benchmarks, {"arm": [1]}, 2000, 0)["arm"], {MATH: [0, 1], "other_reasoning": [2, 3]}
    found = index_with_interval("points", scores, groups, "other_reasoning")
    assert (found.status, round(found.estimate)) == ("identified", -175)
    for definition in ("relative", "literal", "paper"):
        assert transfer_gain(definition, scores.base_B[:2], scores.arm_B[:2]) < 0
        reason = f"the gain on math as `{definition}` counts it is not above zero"
        expected = (None, None, None, "not identified", reason)
        assert index_with_interval(definition, scores, groups, "other_reasoning") == expected
        assert index_difference(definition, scores, scores, groups, "other_reasoning") == expected


def test_fieller_and_percentile_agree_for_a_strong_math_gain():
    groups = {MATH: [0], "other_reasoning": [1]}
    scores = build(0.4, questions=2000)
    fieller = index_with_interval("points", scores, groups, "other_reasoning").interval
    ratio = 100 * (scores.arm_DB - scores.base_DB)[:, 1] / (scores.arm_DB - scores.base_DB)[:, 0]
    np.testing.assert_allclose([fieller.low, fieller.high], np.percentile(ratio, [2.5, 97.5]), rtol=0.03)


def test_seeds_that_disagree_widen_the_interval():
    agreeing = group_gain(build(0.2, 0.2, 0.2), [0])
    single = group_gain(build(0.2), [0])
    disagreeing = group_gain(build(0.1, 0.2, 0.3), [0])
    assert agreeing == pytest.approx(single, abs=0.6)  # other random numbers, the same distribution
    assert disagreeing.high - disagreeing.low > 2 * (single.high - single.low)


def test_question_order_does_not_matter_to_the_estimate():
    scores = build(0.3)
    assert transfer_gain("points", scores.base_B, scores.arm_B) == pytest.approx(
        transfer_gain("points", scores.base_B[::-1], scores.arm_B[::-1])
    )


def test_no_arm_loses_more_than_the_base_has():
    """Scores of 90 for the base and 0, 0, 12 for the seeds: the t interval alone would reach below zero."""
    column = lambda share: np.repeat([100.0, 0.0], [share, 100 - share])  # noqa: E731
    accuracy = np.stack([column(90), column(0), column(0), column(12)], axis=1)
    scores = draw_scores([BenchmarkScores("a", MATH, accuracy)], {"arm": [1, 2, 3]}, 4000, 0)["arm"]
    assert scores.arm_DB.min() == 0.0
    assert group_gain(scores, [0]).low >= -scores.base_DB.max()


def test_resampled_means_have_the_covariance_of_the_questions_over_their_number():
    """With Student's widening. Drawn in several chunks: 20,000 draws of 400 questions."""
    rng = np.random.default_rng(9)
    accuracy = 100 * rng.integers(0, 3, (400, 2)) / 2
    drawn = bootstrap_scores(BenchmarkScores("a", MATH, accuracy), 20000, rng)
    widening = np.sqrt(400 / 399) * stats.t.ppf(0.975, 399) / stats.norm.ppf(0.975)
    expected = np.cov(accuracy, rowvar=False, bias=True) / 400 * widening**2
    np.testing.assert_allclose(np.cov(drawn, rowvar=False), expected, rtol=0, atol=0.04 * expected[0, 0])


def test_difference_of_indices_is_taken_inside_each_draw():
    """Two copies of one arm differ by exactly nothing, however uncertain their index is."""
    groups = {MATH: [0], "other_reasoning": [1]}
    scores = build(0.3)
    for definition in ("points", "relative", "literal", "paper"):
        found = index_difference(definition, scores, scores, groups, "other_reasoning")
        if definition != "literal":  # of one benchmark the spread is zero
            assert found.estimate == 0
            assert (found.interval.low, found.interval.high) == (0, 0)
    weak = index_difference("points", scores, build(0.0), groups, "other_reasoning")
    assert weak.interval is None
    assert (weak.status, weak.method) == ("not identified", None)


def test_index_without_a_benchmark_is_the_index_of_the_rest():
    rng = np.random.default_rng(10)
    benchmarks = []
    for name, group, gain in (("m1", MATH, 0.4), ("m2", MATH, 0.2), ("o1", "other", 0.3), ("o2", "other", -0.1)):
        base = (rng.random(300) < 0.5).astype(float)
        luck = rng.random(300)
        arm = np.where(luck < abs(gain), 1.0 if gain > 0 else 0.0, base)
        benchmarks.append(BenchmarkScores(name, group, 100 * np.stack([base, arm], axis=1)))
    scores = draw_scores(benchmarks, {"arm": [1]}, 2000, 0)["arm"]
    groups = {MATH: [0, 1], "other": [2, 3]}
    rows = without_each("points", scores, groups, "other")
    assert list(rows) == [0, 1, 2, 3]
    gain = scores.arm_B - scores.base_B
    assert rows[3].estimate == pytest.approx(100 * gain[2] / gain[:2].mean())
    assert rows[0].estimate == pytest.approx(100 * gain[2:].mean() / gain[1])
    only = without_each("points", scores, {MATH: [0], "other": [2, 3]}, "other")
    assert list(only) == [2, 3]  # the only math benchmark stays


def test_undefined_index_says_why():
    """A base that scores zero on a benchmark has no relative gain there."""
    rng = np.random.default_rng(11)
    math = 100 * np.stack([rng.random(200) < 0.3, rng.random(200) < 0.8], axis=1).astype(float)
    zero = 100 * np.stack([np.zeros(200), rng.random(200) < 0.3], axis=1).astype(float)
    benchmarks = [BenchmarkScores("m", MATH, math), BenchmarkScores("z", "other_reasoning", zero)]
    scores = draw_scores(benchmarks, {"arm": [1]}, 500, 0)["arm"]
    groups = {MATH: [0], "other_reasoning": [1]}
    found = index_with_interval("relative", scores, groups, "other_reasoning")
    assert found.estimate is None
    assert "the base scores zero on a benchmark" in found.reason
    assert index_with_interval("points", scores, groups, "other_reasoning").interval is not None
    law = index_with_interval("paper", scores, {MATH: [0], "law": [1]}, "law")
    assert "no constant for the group law" in law.reason
