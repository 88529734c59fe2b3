"""What all figures share: colours, style, and a matplotlib figure as SVG and PNG."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

# Okabe and Ito's palette without its black: distinguishable with colour-blind sight, on white and on black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7BD8")
INK, GRID = "#1c2230", "#e3e6ea"
BASE_COLOUR = "#8a8f98"
STYLE = {
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


_WRITTEN = {word.lower(): word for word in ("SFT", "GRPO", "DPO", "PPO", "RL", "KL", "FLOPs", "GPU", "IFEval", "GPQA")}
_HYPHENATED = re.compile(r"\b(off|on)[ _](?=policy\b)|\bnon[ _]", re.IGNORECASE)


def label(name: str) -> str:
    """A name from the recipe as words, with the field's own spelling: GRPO, off-policy SFT."""
    words = _HYPHENATED.sub(lambda match: f"{match.group()[:-1]}-", name.replace("_", " ")).split(" ")
    return " ".join(_WRITTEN.get(word, word) for word in words)


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


class Drawing(NamedTuple):
    """A figure in two formats."""

    svg: str
    """With ink and grid in the colours of the page it is put into, and without a background."""
    png: bytes
    """On white, 144 dots per inch."""


def to_svg(figure: Any) -> str:
    """A figure as SVG text on white, and the figure closed."""
    svg = _svg(figure, transparent=False)
    plt.close(figure)
    return svg


def draw(figure: Any) -> Drawing:
    """A figure in both formats, and the figure closed."""
    for text in _watermarks:
        figure.text(0.5, 0.5, text, fontsize=40, color="#D55E00", alpha=0.35, rotation=20, ha="center", va="center")
    svg = _svg(figure, transparent=True).replace(INK, "currentColor").replace(GRID, f"var(--line, {GRID})")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return Drawing(svg, buffer.getvalue())


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
    return text[text.index("<svg") :]
