"""What all figures share: colours, style, and a matplotlib figure as SVG and PNG."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from math import ceil
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb

# Okabe and Ito's palette without its black: distinguishable with colour-blind sight, on white and on black.
# `colour_of` takes from it.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7BD8")
INK, GRID = "#1c2230", "#e3e6ea"
BASE_COLOUR = "#8a8f98"
_LOG_FLOOR = 1e-6  # where 0 is drawn on a log axis
_STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "transfer",
}
_P = ParamSpec("_P")
_R = TypeVar("_R")
LARGE = {"font.size": 11}  # for `plt.rc_context`: figures that are shown smaller than the others


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator of a function that draws: it uses the style of the reports, and leaves matplotlib's own as it was."""

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with plt.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


_WRITTEN = {word.lower(): word for word in ("SFT", "GRPO", "DPO", "PPO", "RL", "KL", "FLOPs", "GPU", "IFEval", "GPQA")}
_HYPHENATED = re.compile(r"\b(off|on)[ _](?=policy\b)|\bnon[ _]", re.IGNORECASE)


def label(name: str) -> str:
    """A name from the recipe as words, with the field's own spelling: GRPO, off-policy SFT."""
    words = _HYPHENATED.sub(lambda match: f"{match.group()[:-1]}-", name.replace("_", " ")).split(" ")
    return " ".join(_WRITTEN.get(word, word) for word in words)


def colour_of(index: int) -> str:
    """The colour of an arm by its place among the arms: after the seven of the palette come lighter and darker ones."""
    tone, slot = divmod(index, len(PALETTE))
    share, towards = ((0.0, 0.0), (0.6, 1.0), (0.45, 0.0))[tone % 3]
    return to_hex([(1 - share) * part + share * towards for part in to_rgb(PALETTE[slot])])


def tick_text(text: str) -> str:
    """A user's text in a figure: shortened, and never read as a formula."""
    return (text if len(text) <= 24 else f"{text[:23]}…").replace("$", r"\$")


_watermarks: list[str] = []


@contextmanager
def watermark(text: str | None) -> Iterator[None]:
    """Within it every figure carries a text across it; None: nothing."""
    _watermarks.extend([text] if text else [])
    try:
        yield
    finally:
        _watermarks.clear()


def error_bars(estimates: Sequence[Any]) -> list[list[float]]:
    """Lengths of the bars below and above estimates, as matplotlib takes them."""
    below = [max(0.0, estimate.estimate - estimate.low) for estimate in estimates]
    return [below, [max(0.0, estimate.high - estimate.estimate) for estimate in estimates]]


def ringed_line(
    axis: Any,
    places: Sequence[float],
    values: Sequence[float],
    errors: Any,
    colour: str,
    name: str,
    ringed: int | None,
) -> None:
    """A line with error bars, as matplotlib takes them; the point of index `ringed` has a ring around it."""
    axis.errorbar(places, values, errors, color=colour, marker="o", ms=4, capsize=3, label=name)
    if ringed is not None:
        axis.plot(places[ringed], values[ringed], "o", ms=12, mfc="none", mec=colour, mew=1.6)


def legend(figure: Any, axis: Any, height: float = 1.06) -> None:
    """One legend above all panels, with the names of one of them, in as many rows as the figure's width needs.

    `height`: of its upper edge if it has one row, as a share of the figure's.
    """
    handles, names = axis.get_legend_handles_labels()
    if not names:
        return
    column = 0.08 * max(map(len, names)) + 0.5  # inches
    columns = max(1, min(len(names), int(figure.get_figwidth() / column)))
    height += 0.23 * (ceil(len(names) / columns) - 1) / figure.get_figheight()
    figure.legend(handles, names, loc="upper center", ncols=columns, frameon=False, bbox_to_anchor=(0.5, height))


class Drawing(NamedTuple):
    """A figure in two formats."""

    svg: str
    """With ink and grid in the colours of the page it is put into, and without a background."""
    png: bytes
    """On white, 144 dots per inch."""


def to_svg(figure: Any) -> str:
    """A figure as SVG text on white, and the figure closed."""
    figure.tight_layout()
    svg = _svg(figure, transparent=False)
    plt.close(figure)
    return svg


def to_drawing(figure: Any) -> Drawing:
    """A figure in both formats, and the figure closed."""
    figure.tight_layout()
    for text in _watermarks:
        figure.text(0.5, 0.5, text, fontsize=40, color="#D55E00", alpha=0.35, rotation=20, ha="center", va="center")
    svg = _svg(figure, transparent=True).replace(INK, "currentColor").replace(GRID, f"var(--line, {GRID})")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return Drawing(svg, buffer.getvalue())


@styled
def forest(
    cells: Mapping[str, Mapping[str, tuple[Any, str]]], groups: Sequence[str], title: str, log: bool = False
) -> Drawing:
    """Forest plot: arm -> group -> an estimate, or None and what stands in its place. `log`: on a log axis."""
    arms = list(cells)
    figure, axis = plt.subplots(figsize=(7.2, max(1.6, 0.6 + 0.34 * len(groups) * len(arms))))
    ticks, names = [], []
    row = 0.0
    for group in groups:
        for index, arm in enumerate(arms):
            value, reason = cells[arm][group]
            colour = colour_of(index)
            if value is None:
                axis.annotate(
                    reason, (0, row), (6, 0), textcoords="offset points", color=colour, va="center", fontsize=9
                )
            else:
                ends = (value.low, value.high, value.estimate)
                low, high, middle = (max(end, _LOG_FLOOR) for end in ends) if log else ends
                axis.plot([low, high], [row, row], color=colour, lw=2)
                axis.plot([middle], [row], "o", color=colour, ms=6)
            ticks.append(row)
            names.append(f"{label(group)} · {label(arm)}")
            row -= 1.0
        row -= 0.5
    if log:
        axis.set_xscale("log")
    else:
        axis.axvline(0, color=INK, lw=1)
    axis.set_ylim(row + 0.9, 0.6)  # also where rows have no mark
    if not any(value for of_groups in cells.values() for value, _ in of_groups.values()):
        axis.set_xticks([0])
    axis.set_yticks(ticks, names)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(title)
    return to_drawing(figure)


def _svg(figure: Any, transparent: bool) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        bbox_inches="tight",
        transparent=transparent,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = buffer.getvalue()
    # For style sheets: a figure scales to its place, and a narrow one must not get larger letters than a wide one.
    return re.sub(
        r'<svg (?=[^>]*width="([\d.]+)pt")', r'<svg style="--points: \1" ', text[text.index("<svg") :], count=1
    )
