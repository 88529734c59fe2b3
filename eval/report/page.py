"""The report as one HTML file that needs no network: text and tables from `transfer.json`, figures inlined."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from eval.drawing import Drawing, label
from eval.forgetting.figures import axes_of, axis_names, forgetting_figure, razor_figure
from eval.forgetting.schema import Trajectory
from eval.report.figures import gains_figure, index_figure, scores_figure, tradeoff_figure, training_figure
from eval.report.schema import Transfer
from eval.report.verdict import (
    cards,
    certainty,
    exposures_from_base,
    flops_from_base,
    hours_text,
    method_of,
    teraflops,
    verdict,
)
from eval.report.wording import (
    axis_value,
    bounded_text,
    index_cell,
    index_text,
    interval_text,
    loss_text,
    not_reached_text,
    p_text,
    points,
)
from eval.shifts.figures import histograms_figure, kl_figure, layers_figure, visible_token, words_figure
from eval.statistics.decisions import gained
from eval.statistics.transfer_index import DEFINITIONS
from eval.statistics.values import Estimate, number_text
from recipes.schema import Recipe


def draw_figures(
    transfer: Transfer, curves: dict[str, list[list[dict[str, Any]]]], clock: dict[str, Any]
) -> dict[str, Drawing]:
    """The figures of a report by name."""
    trained = transfer.trained_group
    figures = {
        "tradeoff": tradeoff_figure(transfer),
        "gains": gains_figure(transfer),
        "index": index_figure(transfer),
        "scores": scores_figure(transfer),
    }
    if curves:
        figures["curves"] = training_figure(curves)
    if (trajectory := with_clock(transfer.trajectory, clock)) is not None:
        for axis in axes_of(trajectory, trained):
            figures[f"forgetting-{axis}"] = forgetting_figure(trajectory, axis, trained)
        if trajectory.razor is not None and trajectory.razor.r2 is not None:
            figures["razor"] = razor_figure(trajectory, trained)
    if (shifts := transfer.diagnostics) is not None:
        figures |= {
            "layers": layers_figure(shifts),
            "kl": kl_figure(shifts),
            "histograms": histograms_figure(shifts),
            "words": words_figure(shifts),
        }
    return figures


def with_clock(trajectory: Trajectory | None, clock: dict[str, Any]) -> Trajectory | None:
    """The trajectory with hours as a further axis, which `transfer.json` does not have."""
    hours = {arm: spent["at_checkpoints"] for arm, spent in clock.items()}
    return None if trajectory is None else trajectory.with_hours(hours)


def page_templates() -> Environment:
    """The templates of pages, which escape everything that is not marked as safe, and of Markdown."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is None or not name.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "label": label,
        "whole_intervals": _whole_intervals,
        "method": method_of,
        "points_text": points,
        "interval_text": interval_text,
        "number": number_text,
        "bounded_text": bounded_text,
        "points": lambda value: _breakable(points(value)),
        "p_value": p_text,
        "nats": lambda value: _breakable(interval_text(value, ".3f")),
        "reached": lambda value: _breakable(bounded_text(value)),
        "not_reached": not_reached_text,
        "level": _level,
        "may_have_lost": loss_text,
        "token": visible_token,
        "teraflops": teraflops,
        "hours": hours_text,
        "axis_value": axis_value,
        "index_cell": index_cell,
        "setting": _setting,
        "thousands": lambda number: f"{number:,}",
    }
    environment.globals |= {
        "index_text": index_text,
        "flops_from_base": flops_from_base,
        "exposures_from_base": exposures_from_base,
    }
    return environment


def render_page(transfer: Transfer, recipe: Recipe, figures: dict[str, Drawing], clock: dict[str, Any]) -> str:
    """The page. Everything but the figures is escaped, and its policy forbids scripts and requests."""
    trajectory = with_clock(transfer.trajectory, clock)
    # The SVG text comes from matplotlib, which escapes labels, also those with tokens of models in them.
    safe = {name: Markup(drawing.svg) for name, drawing in figures.items()}
    return (
        page_templates()
        .get_template("report.html.j2")
        .render(
            t=transfer,
            recipe=recipe,
            figures=safe,
            definitions=DEFINITIONS,
            any_gain=any(gained(result.groups[transfer.trained_group]) for result in transfer.arms.values()),
            trained=transfer.trained_group,
            clock=clock,
            hours=_hours_from_base(transfer, clock),
            clock_unit="GPU-hours" if recipe.resources.gpu else "process-hours",
            axes=[] if trajectory is None else axes_of(trajectory, transfer.trained_group),
            axis_names=axis_names(transfer.trained_group),
            verdict=verdict(transfer),
            certainty=certainty(transfer),
            cards=cards(transfer),
        )
    )


def _hours_from_base(transfer: Transfer, clock: dict[str, Any]) -> dict[str, float]:
    """Hours of a run of each arm with those of the arms that it started from, where all of them are known."""
    runs = {arm: [*transfer.starts(arm), arm] for arm in transfer.arms}
    return {
        arm: sum(clock[name]["hours"] for name in names)
        for arm, names in runs.items()
        if all(name in clock for name in names)
    }


def render_summary(transfer: Transfer) -> str:
    """The report as Markdown for an appendix, from `transfer.json` alone."""
    template = page_templates().get_template("summary.md.j2")
    trained, found = transfer.trained_group, verdict(transfer)
    return template.render(t=transfer, trained=trained, verdict=found, certainty=certainty(transfer))


def _breakable(text: str) -> Markup:
    """An estimate with its interval that wraps between the two; inside of the interval only on a phone."""
    estimate, _, interval = text.partition(" ")
    return Markup('{} <span class="interval">{}</span>').format(estimate, interval) if interval else Markup(estimate)


def _whole_intervals(sentence: str) -> Markup:
    """A sentence whose lines do not end inside of an interval."""
    return Markup(re.sub(r"(\[[^]\[]*\])", r'<span class="interval">\1</span>', str(escape(sentence))))


def _setting(value: Any) -> Any:
    """A value of a recipe as people write it."""
    return "none" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _level(value: Estimate | float | None) -> str:
    """A layer measure: with its interval, a number, or a dash where it is not defined."""
    if value is None:
        return "–"
    return interval_text(value, ".3f") if isinstance(value, Estimate) else f"{value:.3f}"
