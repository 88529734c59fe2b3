"""Figure of the audited models: transfer of each to the other two groups, by method and size."""

from typing import Any

from matplotlib import pyplot as plt

from eval.drawing import PALETTE, styled, to_svg

_MARKS = {"SFT": "o", "RL": "^"}


@styled
def audit_figure(rows: list[dict[str, Any]]) -> str:
    """TI of other reasoning against TI of non-reasoning as SVG text.

    `rows`: `model`, `method`, `size` (billions of parameters) and `index`, group -> percent.
    """
    figure, axis = plt.subplots(figsize=(8.2, 5.6))
    for row in rows:
        x, y = row["index"]["other_reasoning"], row["index"]["non_reasoning"]
        colour = PALETTE[0] if row["method"] == "RL" else PALETTE[1]
        marker = _MARKS.get(row["method"], "s")
        area = 18 + 7 * row["size"]
        axis.scatter([x], [y], s=area, marker=marker, color=colour, alpha=0.75, linewidths=0)
        axis.annotate(row["model"], (x, y), xytext=(6, 3), textcoords="offset points", fontsize=7, color="#333")
    for name, marker in _MARKS.items():
        axis.scatter([], [], marker=marker, color=PALETTE[0] if name == "RL" else PALETTE[1], label=name)
    axis.axhline(0, color="#444", lw=1)
    axis.axvline(0, color="#444", lw=1)
    axis.set_xlabel("transfer to other reasoning (% of the math gain)")
    axis.set_ylabel("transfer to non-reasoning (% of the math gain)")
    axis.legend(frameon=False, title="marks grow with model size")
    return to_svg(figure)
