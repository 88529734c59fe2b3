"""Forgetting curves: crossings, comparison at equal gain, the fit and the choice, by hand on made-up scores."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from eval.drawing import colour_of
from eval.forgetting import pick as picking
from eval.forgetting.curves import (
    GainCurve,
    Slice,
    common_reach,
    crossings,
    equal_gain,
    interpolate,
    mean_loss,
    razor_fit,
)
from eval.forgetting.figures import razor_figure
from eval.forgetting.pick import pick
from eval.forgetting.schema import EqualGain, EqualGainArm, RazorFit, Trajectory, TrajectoryArm
from eval.report.checkpoints import format_pick, format_trajectory, pick_values
from eval.report.page import page_templates, render_summary
from eval.statistics.bootstrap import BenchmarkScores
from eval.statistics.values import PartialEstimate
from recipes.errors import UserError
from recipes.loading import load_recipe
from tests.paths import SMOKE
from tests.support.reports import estimate, make_transfer

GROUPS = ["heldout", "math", "other", "non"]


def curve(heldout, other, non=None, draws=100, noise=0.0, math=None):
    """A curve whose draws are the estimate plus normal noise on every gain but the start's."""
    gain = np.array([heldout, math or heldout, other, non or other], dtype=float).T
    rng = np.random.default_rng(0)
    drawn = gain + noise * rng.normal(size=(draws, *gain.shape))
    drawn[:, 0] = gain[0]
    return GainCurve(list(range(0, 10 * len(heldout), 10)), GROUPS, gain, drawn)


@pytest.mark.parametrize(
    ("gains", "target", "places"),
    [
        ([0, 10, 20], 15, [1.5]),
        ([0, 10, 20], 20, [2.0]),
        ([0, 10, 20], 10, [1.0]),
        ([0, 10, 5, 15], 8, [0.8, 1.4, 2.3]),
        ([0, 10], 11, []),
        ([0, -5, 10], 0, [0.0, 4 / 3]),
        ([3, 3, 3], 3, [0.0]),
        ([0, 0, 8], 4, [1.5]),
    ],
)
def test_crossings_by_hand(gains, target, places):
    assert crossings(np.array(gains, dtype=float), target) == pytest.approx(places)


def test_values_between_checkpoints():
    values = np.array([[0.0, 0.0], [10.0, -4.0], [20.0, -8.0]])
    assert interpolate(values, 1.5).tolist() == [15.0, -6.0]
    assert interpolate(values, 2.0).tolist() == [20.0, -8.0]


def test_arms_are_read_where_each_reaches_the_gain():
    curves = {"fast": curve([0, 40, 40], [0, -20, -30]), "slow": curve([0, 10, 20], [0, -1, -2])}
    assert common_reach(curves) == 20
    found = equal_gain(curves, 0.95, 10.0).dump()
    assert found["arms"]["fast"]["groups"]["other"] == {"estimate": -5.0, "low": -5.0, "high": -5.0}
    assert found["arms"]["fast"]["between_updates"] == [0, 10]
    assert found["arms"]["slow"]["groups"]["other"]["estimate"] == -1.0
    assert found["contrasts"][0]["groups"]["other"]["estimate"] == -4.0
    assert "heldout" not in found["arms"]["fast"]["groups"]


def test_several_crossings_are_declared_and_the_first_is_read():
    found = equal_gain({"a": curve([0, 10, 4, 12], [0, -10, -40, -90])}, 0.95, 8.0).dump()
    assert found["arms"]["a"]["crossings"] == 3
    assert found["arms"]["a"]["groups"]["other"]["estimate"] == pytest.approx(-8.0)


def test_no_comparison_where_an_arm_does_not_reach():
    found = equal_gain({"a": curve([0, 10], [0, -1]), "b": curve([0, 30], [0, -3])}, 0.95, 20.0).dump()
    assert found["arms"]["a"] == {"crossings": 0, "reached": 0.0}
    assert found["contrasts"] == []


def test_an_arm_that_began_above_the_gain_is_not_said_to_never_reach_it():
    """b starts from the end of another one, at 30; c falls from there through 20; d stays below."""
    arms = {"a": curve([0, 40], [0, -1]), "b": curve([30, 40], [-1, -3]), "c": curve([30, 10], [-1, -3])}
    arms["d"] = curve([0, 10], [0, -1])
    shown = equal_gain(arms, 0.95, 20.0)
    assert shown.dump()["arms"]["b"] == {"crossings": 0, "reached": 0.0, "began_above": True}
    assert shown.arms["c"].between_updates == [0, 10]
    gains = {arm: {group: [estimate(1)] for group in GROUPS} for arm in arms}
    trajectory = Trajectory(
        questions={"heldout": 1, "sum": 1}, groups=["math"], best_heldout_gain={}, equal_gain=[shown], razor=None,
        arms={arm: TrajectoryArm(steps=[0], axes={}, gains=gains[arm]) for arm in arms},
    )  # fmt: skip
    template = page_templates().get_template("forgetting.html.j2")
    page = template.render(t=SimpleNamespace(trajectory=trajectory), axes=[], figures={}, axis_names={}, clock_unit="")
    words = [("b", "began above it"), ("d", "never reaches it")]
    assert re.findall(r'<td>(\w)</td>\s*<td class="minor">(\w+ [\w ]+)</td>', page) == words
    assert re.findall(r"^(\w) +(\w+ [\w ]+)$", format_trajectory(trajectory, "flops"), re.MULTILINE) == words
    summary = render_summary(make_transfer(trajectory=trajectory))
    assert "| b | +20.0, began above it | – |" in summary and "| d | +20.0, never reaches it | – |" in summary
    bounds = {
        "a": (PartialEstimate(estimate=-3.0, low=None, high=None), 0.852),
        "b": (PartialEstimate(estimate=-3, low=-4, high=-2), 0.9),
    }
    reached = {arm: EqualGainArm(crossings=1, reached=share, groups={"math": gain})
               for arm, (gain, share) in bounds.items()}  # fmt: skip
    few = trajectory.model_copy(update={"equal_gain": [EqualGain(heldout_gain=5.0, arms=reached, contrasts=[])]})
    rows = [line.split() for line in format_trajectory(few, "flops").splitlines() if re.match("[ab] ", line)]
    assert rows == [["a", "in", "85", "%", "of", "draws", "-3.0"], ["b", "-3.0", "[-4.0,", "-2.0]"]]


def test_no_interval_where_few_draws_reach():
    """Two thirds of the draws reach the largest gain: an estimate, and no bounds."""
    base = curve([0, 10, 20], [0, -1, -2])
    drawn = base.gain_DTG.copy()
    drawn[::3, 2, 0] = 15.0
    found = equal_gain({"a": GainCurve(base.steps, GROUPS, base.gain_TG, drawn)}, 0.95, 18.0).dump()
    assert found["arms"]["a"]["reached"] == pytest.approx(0.66, abs=0.01)
    assert found["arms"]["a"]["groups"]["other"] == {"estimate": -1.8, "low": None, "high": None}


def test_the_place_is_located_again_in_every_draw():
    """Noise in the held-out gain alone must widen what is read off a noiseless group."""
    base = curve([0, 10, 20, 30], [0, -10, -20, -30])
    drawn = base.gain_DTG.copy()
    drawn[:, 1:, 0] += np.random.default_rng(1).normal(0, 2, size=(len(drawn), 1))
    found = equal_gain({"a": GainCurve(base.steps, GROUPS, base.gain_TG, drawn)}, 0.95, 15.0).dump()
    read = found["arms"]["a"]["groups"]["other"]
    assert read["estimate"] == -15.0
    assert 5 < read["high"] - read["low"] < 10  # 2 x 1.96 x 2 points


def test_an_exact_quadratic_is_found_and_leaves_nothing():
    kl = {"a": [0.1, 0.2, 0.4], "b": [1.0, 2.0, 3.0]}
    curves = {arm: curve([0, 1, 2, 3], [0, *(-(1 + 2 * x + 3 * x * x) for x in values)]) for arm, values in kl.items()}
    fit = razor_fit(curves, kl, 0.95, "math").dump()
    assert fit["coefficients"] == pytest.approx([1, 2, 3], abs=1e-8)
    assert fit["r2"] == 1.0
    assert all(abs(value["estimate"]) < 1e-6 for value in fit["residuals"].values())


def test_the_fit_is_that_of_numpy_and_residuals_belong_to_arms():
    rng = np.random.default_rng(5)
    kl = {"a": rng.uniform(0, 1, 5).tolist(), "b": rng.uniform(0, 1, 5).tolist()}
    losses = {"a": 10 * np.array(kl["a"]) + 3, "b": 10 * np.array(kl["b"]) - 3}
    curves = {arm: curve([0, 1, 2, 3, 4, 5], [0, *(-losses[arm])], noise=1.0) for arm in kl}
    fit = razor_fit(curves, kl, 0.95, "math").dump()
    x, y = np.concatenate([kl["a"], kl["b"]]), np.concatenate([losses["a"], losses["b"]])
    assert fit["coefficients"][::-1] == pytest.approx(np.polyfit(x, y, 2), rel=1e-6)
    residual = y - np.polyval(np.polyfit(x, y, 2), x)
    assert fit["r2"] == pytest.approx(1 - (residual**2).sum() / ((y - y.mean()) ** 2).sum(), abs=1e-4)
    assert fit["residuals"]["a"]["estimate"] == pytest.approx(residual[:5].mean(), abs=1e-3)
    assert fit["residuals"]["a"]["low"] > 0 > fit["residuals"]["b"]["high"]


def test_forgetting_is_the_mean_loss_outside_math():
    loss, drawn = mean_loss(curve([0, 50], [0, -10], [0, -30]), "math")
    assert loss.tolist() == [0, 20]
    assert drawn.shape == (100, 2)


def test_three_points_are_no_fit():
    fit = razor_fit({"a": curve([0, 1, 2, 3], [0, 1, 2, 3])}, {"a": [1, 2, 3]}, 0.95, "math")
    assert (fit.r2, fit.reason) == (None, "fewer than four checkpoints")


def test_the_figure_of_the_fit_has_a_point_for_each_checkpoint_and_says_r2():
    fit = RazorFit(points=4, coefficients=[1, 2, 3], r2=0.954, residuals={})
    gains = {"math": [estimate(0)] * 3, "other": [estimate(0), estimate(-4), estimate(-9)]}
    arms = {arm: TrajectoryArm(steps=[0, 1, 2], axes={"kl_from_base": [0, 0.1, 0.2]}, gains=gains) for arm in "ab"}
    trajectory = Trajectory(
        questions={}, groups=["math", "other"], arms=arms, best_heldout_gain={}, equal_gain=[], razor=fit
    )
    drawn = razor_figure(trajectory, "math").svg
    assert "R² = 0.95" in drawn
    assert [len(re.findall(f"<use [^>]*stroke: {colour_of(arm)}", drawn)) for arm in (0, 1)] == [3, 3]  # and the legend


def test_losses_that_cannot_be_told_from_zero_are_not_fitted():
    """Four checkpoints, draws with a standard deviation of about 1: 2.50 of it are needed, and not 1.96."""
    kl = {"a": [0.1, 0.2, 0.3, 0.4]}

    def fit(loss):
        steps, gains = [0, 1, 2, 3, 4], [0, 0.5, -1, 1, -loss]
        base = curve(steps, gains, noise=1.0)
        deviation = mean_loss(base, "math")[1][:, 4].std()
        return razor_fit({"a": curve(steps, [*gains[:4], -loss * deviation], noise=1.0)}, kl, 0.95, "math")

    found = fit(2.4)
    assert (found.r2, found.coefficients) == (None, None)
    assert found.reason == "no checkpoint has a loss that can be told from zero"
    assert fit(2.6).r2 is not None


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """2000 questions a benchmark and models certain up to a tenth of a point; gains are chosen for each half."""
    recipe = load_recipe("recipes/pocket/smoke.yaml", ["trajectory={}"])
    models = [("grpo", 0, 1), ("grpo", 0, 2), ("off_policy_sft", 0, 1), ("off_policy_sft", 0, 2)]
    gains = {
        "math": [0, 20, 30, 45, 50],
        "other_reasoning": [0, -2, -9, -20, -30],
        "non_reasoning": [0, 1, -4, -10, -35],
    }
    half = np.arange(2000) < 1000

    def score(values, flattered):
        columns = np.tile(np.array(values, dtype=float) + 40, (2000, 1))
        columns[half] += flattered  # what looks better on the half it is chosen on
        return columns

    benchmarks = [BenchmarkScores(group, group, score(values, 0.0)) for group, values in gains.items()]
    benchmarks[0].score_QM[half, 2] += 8  # grpo's second checkpoint
    monkeypatch.setattr(picking, "read_slice", lambda *_: Slice(benchmarks, models, [half] * 3))
    return recipe, tmp_path


@pytest.mark.parametrize(
    ("max_drop", "chosen", "worst"),
    [
        (5, ("grpo", 0, 1), "other_reasoning"),
        (9, ("grpo", 0, 1), "other_reasoning"),  # a loss of nine is not certain to stay within nine
        (10, ("grpo", 0, 2), "other_reasoning"),
        (25, ("off_policy_sft", 0, 1), "other_reasoning"),
        (36, ("off_policy_sft", 0, 2), "non_reasoning"),
        (1, (None, None, 0), None),
    ],
)
def test_the_choice_by_hand(made_up, max_drop, chosen, worst):
    found = pick(*made_up, max_drop).dump()
    choice = found["choice"]
    assert (choice["arm"], choice["seed"], choice["step"]) == chosen
    if worst:
        assert choice["worst_group"] == worst


def test_held_out_problems_are_not_counted_in_the_slice(made_up, monkeypatch):
    scores = picking.read_slice()
    before = pick(*made_up, 10)
    name = picking.HELDOUT
    scores.benchmarks.append(replace(scores.benchmarks[0], name=name, group=name))
    scores.halves.append(scores.halves[0])
    monkeypatch.setattr(picking, "read_slice", lambda *_: scores)
    found = pick(*made_up, 10)
    assert (found.questions, found.checked) == (before.questions, before.checked) == (3000, 3000)
    assert name in found.reported  # shown all the same


def test_what_gained_more_but_cannot_be_told_is_named(made_up):
    """The second arm's first checkpoint gains half a point more, on questions that differ by thirty."""
    scores = picking.read_slice()
    differences = np.random.default_rng(0).normal(0, 30, 1000)
    both_halves = np.tile(differences - differences.mean() + 0.5, 2)
    scores.benchmarks[0].score_QM[:, 3] = scores.benchmarks[0].score_QM[:, 2] + both_halves
    choice = pick(*made_up, 25)
    assert (choice.proposed.arm, choice.proposed.step) == ("grpo", 2)
    assert [(row.arm, row.step) for row in choice.tied] == [("off_policy_sft", 1)]
    assert choice.questions == 3000
    text = format_pick(choice, Path("runs/x"))
    assert "off_policy_sft, seed 0, step 1 gained more, but not so much that it can be told; grpo, seed 0" in text
    assert choice.checked == 3000
    row = choice.proposed.model_copy(update={"passes_from": 14.31, "on_frontier": True})  # 14.3 would not let it pass
    shown = format_pick(choice.model_copy(update={"proposed": row, "candidates": [row]}), Path("runs/x"))
    assert [line.split()[-2] for line in shown.splitlines() if line.startswith("> ")] == ["14.4"]
    assert text.splitlines()[-1] == "Chosen on 3000 of the slice's 6000 questions, checked on the others."
    kept = pick(*made_up, 1)
    assert kept.proposed is None
    said = format_pick(kept, Path("runs/x"))
    assert "`transfer gate runs/x ARM --max-drop 1` judges only the losses of an arm's final model" in said
    assert said.endswith("That model was not chosen among checkpoints, so it may pass there.")
    nothing = "No checkpoint qualified on the 3000 questions that choose, so none was checked on the other 3000."
    assert nothing in said
    assert pick(*made_up, 10).tied == []


def test_pick_as_json_says_what_to_ship(made_up, tmp_path):
    snapshot = tmp_path / "arms/off_policy_sft/seed-0/snapshots/step-1"
    snapshot.mkdir(parents=True)
    shipped = pick_values(pick(*made_up, 25), tmp_path)
    assert list(shipped)[:2] == ["ship", "directory"]
    assert (shipped["ship"], shipped["directory"]) == ("off_policy_sft, seed 0, step 1", str(snapshot))
    assert shipped["choice"] == shipped["proposed"]
    assert shipped["choice"]["passes_from"] <= 25
    snapshot.rmdir()  # of the last step there is no snapshot
    final = tmp_path / "arms/off_policy_sft/seed-0/final"
    assert pick_values(pick(*made_up, 25), tmp_path)["directory"] == str(final)
    kept = pick_values(pick(*made_up, 1), tmp_path)
    assert (kept["ship"], kept["directory"], kept["proposed"]) == ("base", str(tmp_path / "base"), None)
    assert kept["refused"]


def test_the_limit_that_is_named_is_enough(made_up):
    least = min(row.passes_from for row in pick(*made_up, 1).candidates if row.arm is not None)
    scores = picking.read_slice()
    for item in scores.benchmarks[1:]:  # so that the limit ends in 4 hundredths
        item.score_QM[:, 1:] -= 0.04 - (least - np.floor(10 * least) / 10)
    (refusal,) = pick(*made_up, 1).refused
    needed = float(re.search(r"at --max-drop ([\d.]+)", refusal)[1])
    assert pick(*made_up, needed).choice.arm is not None
    assert pick(*made_up, needed - 0.1).choice.arm is None


@pytest.mark.parametrize("number", range(6))
def test_the_limit_that_is_named_is_the_first_that_ships(number):
    """On random slices; in many of them the two halves want different limits."""
    rng = np.random.default_rng(number)
    half = np.arange(80) % 2 == 0
    models = [("grpo", 0, step) for step in range(1, 5)]
    chance = {"math": 0.3 + 0.12 * np.arange(5), "facts": 0.7 - 0.05 * np.arange(5)}
    benchmarks = [BenchmarkScores(name, name, 100.0 * (rng.random((80, 5)) < of)) for name, of in chance.items()]
    settings = load_recipe(SMOKE).statistics.model_copy(update={"draws": 200, "seed": 0})

    def found(limit):
        return picking.choose(Slice(benchmarks, models, [half, half]), "math", limit, settings)

    for given in (0.0, 12.3):
        first = found(given)
        assert bool(first.refused) == (first.choice.arm is None)
        if not first.refused:
            continue
        named = re.search(r"at --max-drop ([\d.]+)", first.refused[-1])
        assert named or first.refused[-1].endswith("none ships at a larger --max-drop either")
        end = 100.1 if named is None else float(named[1])
        below = np.unique(np.round(np.linspace(given, end - 0.1, 12), 1))
        assert not [limit for limit in below if found(limit).choice.arm is not None]
        assert named is None or found(end).choice.arm is not None


def test_a_checkpoint_at_the_level_of_guessing_is_not_proposed(made_up):
    """Grpo's first checkpoint scores 60 on math, which is what guessing gets here; the base scores 40."""
    scores = picking.read_slice()
    settings = made_up[0].statistics
    found = picking.choose(scores, "math", 5, settings, (), {"math": 60.0})
    assert found.refused[0].startswith("none of the 3 checkpoints that gained on math")
    assert found.choice.arm is None
    assert picking.choose(scores, "math", 5, settings, (), {"math": 59.0}).choice.arm == "grpo"
    (none,) = picking.choose(scores, "math", 100, settings, (), {"math": 99.0}).refused
    assert none == "no checkpoint scores above guessing on math"


def test_a_benchmark_in_one_half_of_the_slice_is_a_mistake(made_up, monkeypatch):
    whole = picking.read_slice()
    uneven = replace(whole, halves=[*whole.halves[:2], np.ones(2000, dtype=bool)])
    monkeypatch.setattr(picking, "read_slice", lambda *_: uneven)
    with pytest.raises(UserError, match=r"all 2000 questions of non_reasoning are in one half .*trajectory.questions"):
        pick(*made_up, 10)


def test_the_choice_is_reported_on_questions_it_was_not_chosen_on(made_up):
    found = pick(*made_up, 10).dump()
    assert found["choice"]["trained_gain"]["estimate"] == 38.0
    assert found["reported"]["math"]["estimate"] == 30.0


def test_the_frontier_by_hand(made_up):
    found = pick(*made_up, 5).dump()
    on = {(row["arm"], row["step"]) for row in found["candidates"] if row["on_frontier"]}
    assert on == {(None, 0), ("grpo", 1), ("grpo", 2), ("off_policy_sft", 1), ("off_policy_sft", 2)}
