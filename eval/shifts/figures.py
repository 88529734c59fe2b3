"""Figures of representation and token shift. Each function takes `transfer.json`'s part `diagnostics`."""

from typing import Any

from matplotlib import pyplot as plt

from eval.drawing import INK, Drawing, colour_of, forest, label, legend, styled, to_drawing
from eval.shifts.schema import Shifts
from eval.statistics.values import Estimate

_KIND_FILLS: dict[str, dict[str, Any]] = {
    "connective": {"fill": False, "hatch": "////"},
    "content": {},
    "format": {"alpha": 0.4},
}
"""Kinds of tokens by their filling, because colours are the arms'."""
_LAYERS = (("pca_shift", "PCA shift (base's spread)"), ("cka", "linear CKA"))
_WORDS = 12


@styled
def layers_figure(shifts: Shifts) -> Drawing:
    """Representation shift by level: a row for each of two measures, a column for each group of prompts."""
    groups = list(next(iter(shifts.arms.values())).layers)
    figure, axes = plt.subplots(
        len(_LAYERS), len(groups), figsize=(2.9 * len(groups), 5.2), sharex=True, sharey="row", squeeze=False
    )
    for row, (measure, title) in zip(axes, _LAYERS, strict=True):
        row[0].set_ylabel(title)
        for axis, group in zip(row, groups, strict=True):
            for index, (arm, shift) in enumerate(shifts.arms.items()):
                pooled = shift.layers[group]["masked_mean"]
                points = [(level, value) for level, value in enumerate(pooled[measure]) if isinstance(value, Estimate)]
                xs = [level for level, _ in points]
                colour = colour_of(index)
                axis.plot(xs, [v.estimate for _, v in points], color=colour, marker="o", ms=3, label=label(arm))
                low, high = ([getattr(value, end) for _, value in points] for end in ("low", "high"))
                axis.fill_between(xs, low, high, color=colour, alpha=0.15, lw=0)
    for axis, group in zip(axes[0], groups, strict=True):
        axis.set_title(label(group), loc="left", fontsize=11)
    axes[0][0].set_ylim(bottom=0)
    axes[1][0].set_ylim(top=1.02)
    for axis in axes[-1]:
        axis.set_xlabel("level (0: embeddings)")
        axis.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, axes[0][0])
    return to_drawing(figure)


def kl_figure(shifts: Shifts) -> Drawing:
    """KL(model || base) on the model's own samples by group of prompts, in nats a token, on a log axis."""
    cells: dict[str, dict[str, tuple[Estimate | None, str]]] = {
        arm: {group: (measures["kl_to_base"].per_token, "") for group, measures in shift.tokens["own_samples"].items()}
        for arm, shift in shifts.arms.items()
    }
    groups = list(next(iter(cells.values())))
    return forest(cells, groups, "KL(model || base) on its own samples (nats a token)", log=True)


@styled
def histograms_figure(shifts: Shifts) -> Drawing:
    """How the KL and the base's rank are distributed over the tokens that each arm samples itself."""
    arms = shifts.arms
    panels = (
        ("kl", _bins(shifts.kl_edges, "{:g}"), "KL(model || base) of a token (nats)"),
        ("rank", _bins(shifts.rank_edges, "{:.0f}", whole=True), "rank in the base of the token that was sampled"),
    )
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 3.6))
    width = 0.8 / len(arms)
    for axis, (kind, names, title) in zip(axes, panels, strict=True):
        for index, (arm, shift) in enumerate(arms.items()):
            counts = shift.histograms[kind]
            xs = [position + (index - (len(arms) - 1) / 2) * width for position in range(len(counts))]
            shares = [100 * count / max(1, sum(counts)) for count in counts]
            axis.bar(xs, shares, width * 0.94, color=colour_of(index), label=label(arm))
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.grid(axis="x", visible=False)
        axis.set_xlabel(title)
    axes[0].set_ylabel("share of its tokens (%)")
    legend(figure, axes[0])
    return to_drawing(figure)


def _bins(edges: list[float], form: str, whole: bool = False) -> list[str]:
    """Names of the bins that begin at the edges; the last is open."""
    names = []
    for first, after in zip(edges, [*edges[1:], None], strict=True):
        if after is None:
            names.append(f"{form.format(first)}+")
        elif whole and after - first == 1:
            names.append(form.format(first))
        else:
            names.append(f"{form.format(first)}–{form.format(after - 1 if whole else after)}")
    return names


@styled
def words_figure(shifts: Shifts) -> Drawing:
    """The tokens that each arm shifts most often, by kind, on one axis."""
    arms = shifts.arms
    figure, axes = plt.subplots(
        1, len(arms), figsize=(3.8 * len(arms), 0.8 + 0.28 * _WORDS), sharex=True, squeeze=False
    )
    for index, (axis, (arm, shift)) in enumerate(zip(axes[0], arms.items(), strict=True)):
        colour = colour_of(index)
        words = shift.shifted.words[:_WORDS]
        per = 1000 / max(1, shift.own_tokens)
        for position, word in enumerate(words):
            axis.barh(-position, word.shifted * per, color=colour, height=0.75, **_KIND_FILLS[word.kind])
        # A dollar sign would begin mathematics.
        names = [visible_token(word.text).replace("$", r"\$") for word in words]
        axis.set_yticks([-position for position in range(len(words))], names, family="monospace", fontsize=9)
        axis.grid(axis="y", visible=False)
        axis.set_title(label(arm), loc="left", fontsize=11)
        axis.set_xlabel("shifted, of 1000 tokens")
        if not words:
            axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center", color=INK)
    handles = [plt.Rectangle((0, 0), 1, 1, color=INK, **fill) for fill in _KIND_FILLS.values()]
    figure.legend(handles, list(_KIND_FILLS), loc="upper center", ncols=3, frameon=False, bbox_to_anchor=(0.5, 1.06))
    return to_drawing(figure)


def visible_token(text: str) -> str:
    """A token's text with blanks and line ends made visible, at most 16 characters, and nothing unprintable."""
    shown = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    shown = "".join(character if character.isprintable() else "�" for character in shown)
    return shown if len(shown) <= 16 else shown[:15] + "…"
