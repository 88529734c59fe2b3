"""Figures of forgetting curves. Each function takes `transfer.json`'s part `trajectory`."""

import numpy as np
from matplotlib import pyplot as plt

from eval.drawing import INK, Drawing, colour_of, error_bars, label, legend, styled, to_drawing
from eval.forgetting.curves import AXES
from eval.forgetting.schema import Trajectory

GAIN_AXIS = "trained_gain"


def axis_names(trained: str) -> dict[str, str]:
    """Axis -> its name in words."""
    return {GAIN_AXIS: f"gain on {label(trained)}, on the slice (points)"} | AXES


def axes_of(trajectory: Trajectory, trained: str) -> list[str]:
    """The axes that every arm has, the trained gain first."""
    shared = [name for name in AXES if all(name in result.axes for result in trajectory.arms.values())]
    alone = trajectory.groups == [trained]  # then there is nothing to draw against it
    return shared if alone else [GAIN_AXIS, *shared]


@styled
def forgetting_figure(trajectory: Trajectory, axis_name: str, trained: str) -> Drawing:
    """Gains of every checkpoint along an axis, one panel for each group of benchmarks, a line for each arm."""
    groups = [group for group in trajectory.groups if not (axis_name == GAIN_AXIS and group == trained)]
    figure, axes = plt.subplots(1, len(groups), figsize=(3.9 * len(groups), 3.5), sharey=True, squeeze=False)
    for axis, group in zip(axes[0], groups, strict=True):
        for index, (arm, result) in enumerate(trajectory.arms.items()):
            gains = result.gains[group]
            middle = [gain.estimate for gain in gains]
            own = [gain.estimate for gain in result.gains[trained]]
            xs = own if axis_name == GAIN_AXIS else result.axes[axis_name]
            colour, errors = colour_of(index), error_bars(gains)
            axis.errorbar(xs, middle, errors, color=colour, marker="o", ms=4, lw=1.4, elinewidth=0.7, label=label(arm))
            axis.plot(xs[-1], middle[-1], "s", color=colour, ms=7)
        if axis_name.startswith("kl"):
            axis.set_xscale("symlog", linthresh=0.01)
        axis.axhline(0, color=INK, lw=1)
        axis.set_title(label(group), loc="left", fontsize=11)
    axes[0][0].set_ylabel("gain over the base (points)")
    figure.supxlabel(axis_names(trained)[axis_name], fontsize=10)
    legend(figure, axes[0][0], 1.08)
    return to_drawing(figure)


@styled
def razor_figure(trajectory: Trajectory, trained: str) -> Drawing:
    """Forgetting of every checkpoint against KL(base || model) on the training task, with the common quadratic."""
    fit = trajectory.razor
    assert fit is not None and fit.coefficients is not None
    others = [group for group in trajectory.groups if group != trained]
    figure, axis = plt.subplots(figsize=(6.2, 3.8))
    largest = 0.0
    for index, (arm, result) in enumerate(trajectory.arms.items()):
        xs = result.axes["kl_from_base"][1:]
        loss = [-np.mean([result.gains[group][t].estimate for group in others]) for t in range(1, len(xs) + 1)]
        axis.plot(xs, loss, "o", color=colour_of(index), label=label(arm))
        largest = max(largest, *xs)
    grid = np.linspace(0, largest, 100)
    constant, linear, square = fit.coefficients
    axis.plot(grid, constant + linear * grid + square * grid**2, color=INK, lw=1, ls="--")
    axis.set_xlabel(AXES["kl_from_base"])
    axis.set_ylabel("mean loss in the other groups (points)")
    r2 = "" if fit.r2 is None else f"one quadratic for all arms, R² = {fit.r2:.2f}"
    axis.set_title(r2, loc="left", fontsize=10)
    axis.legend(frameon=False)
    return to_drawing(figure)
