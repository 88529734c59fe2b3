"""The page of an ablation: its conclusion, one picture, every point in a table. One HTML file without a network."""

from collections.abc import Sequence
from math import ceil
from typing import Any

from markupsafe import Markup
from matplotlib import pyplot as plt

from eval.drawing import GRID, INK, LARGE, Drawing, colour_of, error_bars, label, styled, tick_text, to_drawing
from eval.report.ablation_verdict import Conclusion, Missing, setting_text, value_text
from eval.report.page import page_templates
from eval.report.response_curves import CurvePoint, ResponseCurves, curve_figure, is_number
from eval.report.schema import REHEARSAL
from eval.statistics.decisions import worst_group

_ABREAST = 3
"""Methods up to this number are drawn one below the other, more of them in two columns."""


@styled
def conclusion_figure(curves: ResponseCurves, conclusion: Conclusion) -> Drawing:
    """A panel for each arm: gain in the trained group and worst other group at every point, the chosen one shaded."""
    rows = _in_order(curves)
    names = [_tick(row, curves.axes) for row in rows]
    slant = {"rotation": 30, "ha": "right"} if max(map(len, names)) * len(names) > 50 else {}
    columns = 1 if len(curves.arms) <= _ABREAST else 2
    height = ceil(len(curves.arms) / columns)
    with plt.rc_context(LARGE):
        size = 6.4 * columns, (1.7 if slant else 0.9) + 2.0 * height
        figure, panels = plt.subplots(height, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
        for index, panel in enumerate(panels.flat):
            if index >= len(curves.arms):
                panel.set_visible(False)
                continue
            arm, colour = curves.arms[index], colour_of(index)
            _panel(panel, curves, rows, arm, colour)
            choice = conclusion.choices.get(arm)
            if choice is not None and choice.point is not None and not choice.untouched:
                at = [row.point for row in rows].index(choice.point)
                panel.axvspan(at - 0.35, at + 0.35, color=GRID, lw=0, zorder=0)
            panel.set_title(label(arm), loc="left", fontsize=11)
            panel.tick_params(labelbottom=index + columns >= len(curves.arms))
            panel.set_xticks(range(len(rows)), names, **slant)
            panel.set_xlim(-0.6, len(rows) - 0.4)
        figure.supylabel("change against the base (points)", fontsize=11)
        if len(curves.axes) == 1:
            figure.supxlabel(curves.axes[0], fontsize=11)
        handles = [
            plt.Line2D([], [], color=INK, marker="o", label=f"gain on {label(curves.trained_group)}"),
            plt.Line2D([], [], color=INK, marker="s", mfc="none", ls="--", label="worst other group"),
        ]
        figure.legend(handles=handles, loc="upper center", ncols=2, frameon=False, bbox_to_anchor=(0.5, 1.05))
        return to_drawing(figure)


def _panel(panel: Any, curves: ResponseCurves, rows: Sequence[CurvePoint], arm: str, colour: str) -> None:
    panel.axhline(0, color=INK, lw=1)
    trained, lines = curves.trained_group, ({"marker": "o", "ls": "-"}, {"marker": "s", "ls": "--", "mfc": "none"})
    for worst, style in enumerate(lines):
        gains = [row.arms[arm] for row in rows]
        groups = [worst_group(of_groups, trained) if worst else trained for of_groups in gains]
        drawn = {index: gains[index][group] for index, group in enumerate(groups) if group is not None}
        if drawn:
            places = [index + (0.06 if worst else -0.06) for index in drawn]
            panel.errorbar(places, [gain.estimate for gain in drawn.values()], error_bars([*drawn.values()]),
                           color=colour, ms=6, lw=1.4, elinewidth=1.4, capsize=3, **style)  # fmt: skip


def _in_order(curves: ResponseCurves) -> list[CurvePoint]:
    """The points in the order of their value on a single axis of numbers, else as declared."""
    if len(curves.axes) > 1 or not all(is_number(row.values[curves.axes[0]]) for row in curves.points):
        return list(curves.points)
    return sorted(curves.points, key=lambda row: row.values[curves.axes[0]])


def _tick(row: CurvePoint, axes: Sequence[str]) -> str:
    """A point under the picture: its value on a single axis, else the values with their names."""
    return tick_text(setting_text(row.values[axes[0]]) if len(axes) == 1 else value_text(row.values, axes))


def draw_ablation(curves: ResponseCurves, conclusion: Conclusion) -> dict[str, Drawing]:
    """The figures by name: `conclusion`, and one for every curve."""
    figures = {"conclusion": conclusion_figure(curves, conclusion)}
    for index, curve in enumerate(curves.curves):
        figures[curve.axis.replace(".", "-") + (f"-{index}" if index else "")] = curve_figure(curves, index)
    return figures


def render_ablation(
    curves: ResponseCurves,
    conclusion: Conclusion,
    missing: Sequence[Missing],
    figures: dict[str, Drawing],
    *,
    name: str,
    title: str,
    clock_unit: str,
) -> str:
    """The page. Everything but the figures is escaped, and its policy forbids scripts and requests."""
    rows = [(row, value_text(row.values, curves.axes)) for row in _in_order(curves)]
    valued: list[CurvePoint | Missing] = [*curves.points, *missing]
    return (
        page_templates()
        .get_template("ablation.html.j2")
        .render(
            curves=curves,
            conclusion=conclusion,
            missing=[(one, value_text(one.values, curves.axes)) for one in missing],
            rows=rows,
            rehearsal=any(row.status == REHEARSAL for row in curves.points),
            texts={row.point: text for row, text in rows},
            axes={axis: dict.fromkeys(setting_text(one.values[axis]) for one in valued) for axis in curves.axes},
            figures={key: Markup(drawing.svg) for key, drawing in figures.items()},
            trained=curves.trained_group,
            worst_group=worst_group,
            name=name,
            title=title or name,
            clock_unit=clock_unit,
        )
    )
