"""Random draws depend on the seed and on names: what else is in a study changes no interval."""

import numpy as np
import pytest
from scipy import stats

from eval.forgetting.curves import Slice, gain_curves
from eval.forgetting.pick import choose
from eval.statistics.bootstrap import BenchmarkScores, bootstrap_scores, draw_scores, generator
from recipes.loading import load_recipe
from recipes.suite_schema import StatisticsSpec
from tests.paths import RECIPES

MATH, OTHER = "math", "other"
DRAWS = 400


def answers(*chances, questions=60, seed=5):
    """Scores of a base and further models, [questions, models]; a chance of 0 or 1 is a floor or ceiling."""
    rng = np.random.default_rng(seed)
    return np.stack([100.0 * (rng.random(questions) < chance) for chance in chances], axis=1)


@pytest.mark.parametrize("chances", [(0.5, 0.7, 0.4, 0.6), (0.0, 0.0, 0.05, 1.0)])
def test_an_arm_has_the_same_draws_whatever_is_beside_it(chances):
    """Three arms with two seeds each, away from the edges and at them."""
    scores = np.concatenate(
        [answers(chances[0]), *(answers(c, c + 0.01, seed=n) for n, c in enumerate(chances[1:]))], 1
    )
    arms = {"sft": [1, 2], "self": [3, 4], "grpo": [5, 6]}
    together = draw_scores(
        [BenchmarkScores("sums", MATH, scores), BenchmarkScores("facts", OTHER, scores[::-1])], arms, DRAWS, 0
    )
    for name, columns in arms.items():
        own = scores[:, [0, *columns]]
        (alone,) = draw_scores([BenchmarkScores("facts", OTHER, own[::-1])], {name: [1, 2]}, DRAWS, 0).values()
        np.testing.assert_allclose(alone.arm_DB[:, 0], together[name].arm_DB[:, 1], rtol=0, atol=1e-10)
        np.testing.assert_allclose(alone.base_DB[:, 0], together[name].base_DB[:, 1], rtol=0, atol=1e-10)
    again = draw_scores([BenchmarkScores("sums", MATH, scores)], arms, DRAWS, 1)
    assert not np.allclose(again["sft"].arm_DB[:, 0], together["sft"].arm_DB[:, 0])


def test_benchmarks_and_models_of_other_names_are_drawn_independently():
    """The same scores under two names: one resampling would make their mean as uncertain as each of them."""
    scores = answers(0.5, 0.5, 0.5)
    arm = draw_scores([BenchmarkScores(n, MATH, scores) for n in ("a", "b")], {"x": [1]}, 20000, 0)["x"]
    assert abs(np.corrcoef(arm.question_DB, rowvar=False)[0, 1]) < 0.03
    floor = bootstrap_scores(
        BenchmarkScores("a", MATH, answers(0, 0, 0)), 20000, generator(0), 0.95, ["base", "x", "y"]
    )
    drawn = np.corrcoef(floor, rowvar=False)[[0, 0, 1], [1, 2, 2]]
    # Each answers the same number of further questions, so the draws are alike in that, and no more.
    assert (drawn > 0.1).all() and (drawn < 0.9).all()


def test_training_seeds_of_two_arms_are_drawn_independently():
    scores = answers(0.5, 0.3, 0.7, 0.35, 0.65)
    arms = draw_scores([BenchmarkScores("a", MATH, scores)], {"x": [1, 2], "y": [3, 4]}, 20000, 0)
    noise = [item.arm_DB[:, 0] - item.question_DB[:, 0] for item in arms.values()]
    assert min(map(np.std, noise)) > 1
    assert abs(stats.spearmanr(*noise)[0]) < 0.03


def test_the_draws_are_those_of_the_names():
    assert generator(3, "a", "b").integers(1 << 30) == generator((3,), "a", "b").integers(1 << 30)
    values = [generator(seed, *names).integers(1 << 30) for seed, names in ((3, "ab"), (3, "ba"), (4, "ab"), (3, "a"))]
    assert len(set(values)) == 4


def slice_of(scores, models):
    half = np.arange(60) % 2 == 0
    benchmarks = [
        BenchmarkScores("sum", MATH, scores),
        BenchmarkScores("sort", OTHER, scores[::-1]),
        BenchmarkScores("heldout", "heldout", scores[::3].repeat(3, axis=0)),
    ]
    return Slice(benchmarks, models, [half] * 3)


def test_checkpoints_keep_their_limits_and_curves_when_an_arm_is_added():
    scores = answers(0.3, 0.5, 0.6, 0.5, 0.7)
    models = [("off_policy_sft", 0, 1), ("off_policy_sft", 0, 2), ("grpo", 0, 1), ("grpo", 0, 2)]
    both, one = slice_of(scores, models), slice_of(scores[:, [0, 3, 4]], models[2:])
    settings = StatisticsSpec(draws=DRAWS)
    found, alone = (choose(item, MATH, 5.0, settings) for item in (both, one))
    assert alone.candidates[1:] == found.candidates[3:]
    recipe = load_recipe(RECIPES / "pocket" / "study.yaml", ["arms.on_policy_sft=null"])
    curves = gain_curves(both, recipe)["grpo"]
    (same,) = gain_curves(one, load_recipe(RECIPES / "pocket" / "study.yaml", [
        "arms.on_policy_sft=null", "arms.off_policy_sft=null", "analysis.claims=[]"])).values()  # fmt: skip
    np.testing.assert_allclose(same.gain_DTG, curves.gain_DTG, rtol=0, atol=1e-10)
