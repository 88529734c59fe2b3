"""Figures of the report. Each function takes parts of `transfer.json`."""

from math import ceil
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from eval.drawing import (
    BASE_COLOUR,
    INK,
    LARGE,
    Drawing,
    colour_of,
    error_bars,
    forest,
    label,
    legend,
    styled,
    to_drawing,
)
from eval.report.schema import Transfer
from eval.report.wording import index_text
from eval.statistics.decisions import worst_group
from eval.statistics.values import Estimate


@styled
def scores_figure(transfer: Transfer) -> Drawing:
    """Scores of base and arms with intervals, one panel per group."""
    arms = list(transfer.arms)
    sizes = [len(names) for names in transfer.groups.values()]
    figure, axes = plt.subplots(
        1, len(sizes), figsize=(11.5, 3.6), sharey=True, gridspec_kw={"width_ratios": sizes}, squeeze=False
    )
    width = 0.8 / (len(arms) + 1)
    for axis, (group, names) in zip(axes[0], transfer.groups.items(), strict=True):
        for index, who in enumerate(["base", *arms]):
            source = transfer.base if who == "base" else transfer.arms[who]
            scores = [source.benchmarks[name].score for name in names]
            axis.bar(
                [position + (index - len(arms) / 2) * width for position in range(len(names))],
                [value.estimate for value in scores],
                width * 0.92,
                yerr=error_bars(scores),
                color=BASE_COLOUR if who == "base" else colour_of(index - 1),
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": INK},
                label=label(who),
            )
        axis.set_xticks(range(len(names)), [label(name) for name in names])
        axis.set_title(label(group), loc="left", fontsize=11)
        axis.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("score (%)")
    axes[0][0].set_ylim(0, 105)
    legend(figure, axes[0][0])
    return to_drawing(figure)


@styled
def tradeoff_figure(transfer: Transfer) -> Drawing:
    """Every arm's gain in the trained group against the other group that may have lost most, with intervals."""
    trained = transfer.trained_group
    with plt.rc_context(LARGE):
        figure, axis = plt.subplots(figsize=(6.4, 4.4))
        axis.axhline(0, color=INK, lw=1)
        axis.axvline(0, color=INK, lw=1)
        axis.plot(0, 0, "D", color=BASE_COLOUR, ms=7, label="base")
        for index, (arm, result) in enumerate(transfer.arms.items()):
            group = worst_group(result.groups, trained)
            gain = result.groups[trained]
            worst = Estimate(estimate=0, low=0, high=0) if group is None else result.groups[group]
            x_errors, y_errors = (error_bars([value]) for value in (gain, worst))
            name = label(arm) if group is None else f"{label(arm)} ({label(group)})"
            axis.errorbar(
                gain.estimate, worst.estimate, y_errors, x_errors, color=colour_of(index), marker="o", ms=8, lw=0,
                elinewidth=1.6, label=name,
            )  # fmt: skip
        axis.set_xlabel(f"gain on {label(trained)} (points)")
        several = len(transfer.groups) > 1
        axis.set_ylabel("change in the worst other group (points)" if several else "no other group was measured")
        height = 1 + 0.06 * ceil((1 + len(transfer.arms)) / 2)  # of two columns
        figure.legend(loc="upper center", ncols=2, frameon=False, bbox_to_anchor=(0.5, height), fontsize=10)
        return to_drawing(figure)


def gains_figure(transfer: Transfer) -> Drawing:
    """Forest plot of the mean gain of each group, in points."""
    cells: dict[str, dict[str, tuple[Estimate | None, str]]] = {
        arm: {g: (v, "") for g, v in result.groups.items()} for arm, result in transfer.arms.items()
    }
    return forest(cells, list(transfer.groups), "mean gain over the base (points)")


def index_figure(transfer: Transfer) -> Drawing:
    """Forest plot of the transfer index (definition points), in percent of the trained gain."""
    trained = transfer.trained_group
    cells = {
        arm: {
            # Where there is no index to draw, the words of the table are drawn instead.
            group: (cell.interval, index_text(result, "points", group, trained))
            for group, cell in result.index["points"].items()
        }
        for arm, result in transfer.arms.items()
    }
    groups = [group for group in transfer.groups if group != trained]
    return forest(cells, groups, f"transfer index (% of the gain on {label(trained)})")


@styled
def training_figure(curves: dict[str, list[list[dict[str, Any]]]]) -> Drawing:
    """Training curves: reward of the sampling arms, loss of the arms that read demonstrations."""
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 3.2))
    for index, (arm, seeds) in enumerate(curves.items()):
        colour = colour_of(index)
        for seed_index, rows in enumerate(seeds):
            name = label(arm) if seed_index == 0 else None
            sampled = any("reward" in row for row in rows)
            _line(axes[0] if sampled else axes[1], rows, "reward" if sampled else "loss", colour, name)
    axes[0].set_title("share of correct samples while training (reward)", loc="left", fontsize=11)
    axes[1].set_title("negative log-likelihood of the demonstrations", loc="left", fontsize=11)
    axes[0].set_ylim(0, 1.02)
    axes[1].set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlabel("optimizer steps")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    return to_drawing(figure)


def _line(axis: Axes, rows: list[dict[str, Any]], key: str, colour: str, name: str | None) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    axis.plot([step for step, _ in points], [value for _, value in points], color=colour, lw=1.6, label=name)
