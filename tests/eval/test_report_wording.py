"""Sentences and numbers of a report, by hand."""

from types import SimpleNamespace

import pytest

from eval.forgetting.schema import Trajectory
from eval.report.checkpoints import format_trajectory
from eval.report.learning_rates import Accuracy
from eval.report.page import page_templates, render_summary
from eval.report.verdict import certainty
from eval.report.wording import apart_text, points
from eval.statistics.values import Estimate, number_text
from tests.support.reports import arm_values, estimate, make_transfer


def test_one_arm_alone_is_no_comparison_at_an_equal_gain():
    """The other reaches the gain too seldom for an interval, never reaches it, or has one."""

    def reached(low, high):
        groups = {"math": {"estimate": 9, "low": 1, "high": 17}, "other": {"estimate": -45, "low": low, "high": high}}
        return {"crossings": 1, "reached": 0.88, "groups": groups}

    def said(sft):
        target = {"heldout_gain": 16.667, "arms": {"grpo": reached(-55.5, -34.3), "sft": sft}, "contrasts": []}
        curves = {"questions": {}, "groups": [], "arms": {}, "best_heldout_gain": {}, "razor": None}
        return certainty(make_transfer(seeds=[0], trajectory=curves | {"equal_gain": [target]}))[1:]

    assert said(reached(None, None)) == said({"crossings": 0, "reached": 0}) == []
    assert said(reached(-50, -40)) == [
        "At an equal held-out gain of +16.7 the worst groups are GRPO -45.0 [-55.5, -34.3] on other, SFT -45.0 "
        "[-50.0, -40.0] on other."
    ]


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [
        (-0.04, "+.1f", "-0.0"),
        (0.04, "+.1f", "+0.0"),
        (0.0, "+.1f", "0.0"),
        (-0.0, "+.1f", "0.0"),
        (-0.06, "+.1f", "-0.1"),
        (-0.4, "+.0f", "-0"),
        (0.0, "+.0f", "0"),
        (-0.04, ".1f", "-0.0"),
        (-0.0, ".3f", "0.000"),
    ],
)
def test_a_number_that_rounds_to_zero_keeps_its_sign_and_zero_has_none(value, form, shown):
    assert number_text(value, form) == shown


@pytest.mark.parametrize(("low", "shown"), [(-0.04, "-0.0"), (0.0, "0.0"), (0.04, "+0.0")])
def test_the_side_of_a_bound_is_shown_in_every_text(low, shown):
    """Only the third of them is a gain."""
    gain = estimate(11.111, low, 24.716)
    text = f"+11.1 [{shown}, +24.7]"
    assert points(Estimate(**gain)) == text
    assert page_templates().filters["points"](Estimate(**gain)) == (
        f'+11.1 <span class="interval">[{shown}, +24.7]</span>'
    )
    settings = {"grpo": {"sampling": "current", "credit": "uniform"}}
    transfer = make_transfer(arms={"grpo": arm_values({"math": gain})}, groups={"math": []}, settings=settings)
    assert f"| GRPO | {text} |" in render_summary(transfer)


def test_a_difference_without_its_sign_shows_on_which_side_its_ends_are():
    assert apart_text(Estimate(estimate=-16.0, low=-20.0, high=0.03), "above", "below") == "16.0 [-0.0, 20.0] below"
    assert Accuracy(accuracy=42, error=4).minus(Accuracy(accuracy=42, error=3)) == "0.0 ± 5.0"


def test_the_best_gains_without_a_common_one_have_their_sign():
    best = {"grpo": -0.03, "sft": 0.0}
    trajectory = Trajectory(
        questions={"heldout": 1}, groups=[], arms={}, best_heldout_gain=best, equal_gain=[], razor=None
    )
    assert "(at most grpo -0.0, sft 0.0)" in format_trajectory(trajectory, "flops")
    template = page_templates().get_template("forgetting.html.j2")
    page = template.render(t=SimpleNamespace(trajectory=trajectory), axes=[], figures={}, axis_names={}, clock_unit="")
    assert "GRPO reaches -0.0, SFT reaches 0.0 points at most" in page
