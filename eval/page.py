"""The report as one HTML file that needs no network: text and tables from `transfer.json`, figures inlined."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.figures import curves_figure, gains_figure, index_figure, label, scores_figure
from eval.table import index_cell, index_text, interval_text
from eval.transfer_index import DEFINITIONS, MATH
from recipes.schema import Recipe


def draw_figures(transfer: dict[str, Any], curves: dict[str, list[list[dict[str, Any]]]]) -> dict[str, str]:
    """The figures of a report by name, as SVG text."""
    return {
        "gains": gains_figure(transfer),
        "index": index_figure(transfer),
        "scores": scores_figure(transfer),
    } | ({"curves": curves_figure(curves)} if curves else {})


def render_page(transfer: dict[str, Any], recipe: Recipe, figures: dict[str, str]) -> str:
    """The page. Everything but the figures is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["label"] = label
    environment.filters["points"] = lambda value: interval_text(value, "+.1f")
    environment.globals["index_text"] = index_text
    environment.filters["index_cell"] = index_cell
    environment.filters["thousands"] = lambda number: f"{number:,}"
    # The SVG text comes from matplotlib, which escapes labels; those are names the schema restricts.
    safe = {name: Markup(svg) for name, svg in figures.items()}
    template = environment.get_template("report.html.j2")
    return template.render(t=transfer, recipe=recipe, figures=safe, definitions=DEFINITIONS, math=MATH)
