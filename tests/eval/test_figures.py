"""Figures of reports with many arms, with one group, and with hostile names."""

import re

import pytest
from matplotlib import pyplot as plt

from eval.drawing import PALETTE, colour_of, forest, legend
from eval.report.figures import scores_figure, tradeoff_figure
from eval.statistics.values import Estimate
from tests.support.reports import arm_values, base_values, estimate, make_transfer


def study(arms, groups=("math", "other")):
    scores = {f"{group}_1": estimate(50) for group in groups}
    return make_transfer(
        groups={group: [f"{group}_1"] for group in groups},
        base=base_values(scores),
        arms={f"arm_{n}": arm_values({group: estimate(7 + n) for group in groups}, scores) for n in range(arms)},
    )


def test_arms_have_colours_of_their_own():
    colours = [colour_of(index) for index in range(21)]
    assert colours[:7] == [colour.lower() for colour in PALETTE]
    assert len(set(colours)) == 21
    drawn = set(re.findall(r"#[0-9a-f]{6}", scores_figure(study(11)).svg))
    assert set(colours[:11]) <= drawn


@pytest.mark.parametrize("count", [1, 4, 11, 20])
def test_a_legend_is_no_wider_than_its_figure_and_covers_no_panel(count):
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for index in range(count):
        axis.plot([0, 1], [0, index], label=f"on-policy SFT {index}")
    legend(figure, axis)
    box = figure.legends[0].get_window_extent().transformed(figure.transFigure.inverted())
    figure.tight_layout()
    panel = axis.get_tightbbox().transformed(figure.transFigure.inverted())
    plt.close(figure)
    assert box.width <= 1.02
    assert box.y0 > panel.y1 - 0.05


def test_without_another_group_the_trained_gain_is_not_drawn_as_its_change(monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.errorbar", lambda self, x, y, *_, **__: drawn.append((x, y)))
    figure = tradeoff_figure(study(1, groups=("math",)))
    assert drawn == [(7, 0)]
    assert "no other group was measured" in figure.svg
    assert "worst other group" not in figure.svg


def test_a_figure_tells_its_width_to_the_style_sheet():
    """The page limits by it how far a narrow figure is enlarged."""
    (width, told) = re.match(
        r'<svg style="--points: ([\d.]+)" .*?width="([\d.]+)pt"', scores_figure(study(2)).svg
    ).groups()
    assert width == told
    assert float(width) > 100


def test_names_are_text_and_nothing_else():
    name = '--><script>alert(1)</script> & "x"'
    svg = forest({name: {"g": (Estimate(estimate=1, low=0, high=2), "")}}, ["g"], name).svg
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg


def test_a_figure_has_the_style_of_the_reports_and_leaves_that_of_matplotlib():
    with plt.rc_context():
        plt.rcdefaults()
        before = dict(plt.rcParams)
        drawing = forest({"grpo": {"math": (Estimate(estimate=1.0, low=0.0, high=2.0), "")}}, ["math"], "gain")
        assert dict(plt.rcParams) == before
    assert "<text" in drawing.svg  # svg.fonttype none: matplotlib's own style draws letters as paths
