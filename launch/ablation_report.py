"""What the finished points of an ablation say: its values, its text and its page, also while points are missing."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from eval.drawing import Drawing
from eval.report.ablation_page import draw_ablation, render_ablation
from eval.report.ablation_verdict import Missing, conclude, conclusion_text
from eval.report.build import HOURS, PAGE
from eval.report.learning_rates import Accuracy, choose_rates, rates_figure, rates_text, read_accuracy, render_rates
from eval.report.response_curves import PointResult, format_curves, response_curves
from eval.report.schema import TRANSFER, read_transfer
from eval.scorers.version import unit_versions
from launch.ablation import RATES_UNTIL, Ablation
from launch.stages import build_stages, flatten, select_until
from launch.status import stage_statuses
from launch.tasks import tasks_of_study
from recipes.errors import UserError
from recipes.files import write_atomic, write_json
from recipes.manifest import read_manifest


class NothingFinishedError(UserError):
    """No point of an ablation has a result; `one` is the first that lacks."""

    def __init__(self, root: Path, one: Missing, result: str) -> None:
        super().__init__(
            f"no point has a finished {result} ({one.point}: {one.reason}); `transfer status {root}` shows the state, "
            f"`transfer resume {root}` continues"
        )


def report(ablation: Ablation) -> tuple[dict[str, Any], str, list[Missing]]:
    """Write the page of an ablation from its finished points; its values, its text, and the points that lack.

    Raises:
        UserError: no point is finished, or points differ in more than the axes.
    """
    finished = finished_points(ablation)
    unfinished = missing_points(ablation, [point.name for point in finished], None)
    if not finished:
        raise NothingFinishedError(ablation.root, unfinished[0], "report")
    curves = response_curves(finished, list(ablation.axes), ablation.paired)
    conclusion = conclude(curves, unfinished)
    figures = draw_ablation(curves, conclusion)
    values = curves.dump() | {"conclusion": conclusion.dump(), "missing": [one.dump() for one in unfinished]}
    write_json(ablation.root / "report" / "ablation.json", values)
    gpu = ablation.points[0].recipe.resources.gpu
    page = render_ablation(
        curves, conclusion, unfinished, figures, name=ablation.name, title=ablation.title,
        clock_unit="GPU-hours" if gpu else "process-hours",
    )  # fmt: skip
    path = _write_page(ablation, page, figures)
    return values, f"{format_curves(curves)}\n\n{conclusion_text(conclusion)}\n\nreport: {path}", unfinished


def _write_page(ablation: Ablation, page: str, figures: Mapping[str, Drawing]) -> Path:
    """Write the page of an ablation and its figures; the path of the page."""
    folder = ablation.root / "report"
    for name, drawing in figures.items():
        write_atomic(folder / f"{name}.svg", drawing.svg)
        write_atomic(folder / f"{name}.png", drawing.png)
    write_atomic(folder / PAGE, page)
    return folder / PAGE


def finished_points(ablation: Ablation) -> list[PointResult]:
    """The points with a finished report."""
    points = []
    for point in ablation.points:
        folder = ablation.folder(point)
        manifest = read_manifest(folder / "report")
        if manifest is None or not manifest["completed"]:
            continue
        made_by = {}
        for stage in build_stages(point.recipe):
            made = read_manifest(folder / stage.name) or {}
            packages = made.get("environment", {}).get("packages")
            rules = sorted({version for version in unit_versions(made).values() if version})
            made_by[stage.name] = [made.get("code"), packages, rules]
        settings = flatten(json.loads((folder / "study.json").read_text(encoding="utf-8")))
        transfer = read_transfer(folder / "report" / TRANSFER)
        clock = json.loads((folder / "report" / HOURS).read_text(encoding="utf-8"))
        hours = {arm: spent["hours"] for arm, spent in clock.items()}
        points.append(PointResult(point.name, point.values, settings, made_by, transfer, hours))
    return points


def missing_points(ablation: Ablation, finished: Collection[str], until: str | None) -> list[Missing]:
    """The points besides the finished ones, each with the state of the first stage that explains it."""
    rank = ("failed", "stopped", "running", "queued", "waiting", "open", "changed")
    missing = []
    for point in ablation.points:
        if point.name not in finished:
            folder = ablation.folder(point)
            tasks = tasks_of_study(point.recipe, folder, select_until(build_stages(point.recipe), until))
            stages = stage_statuses(ablation.root, tasks)
            lacking = sorted((one for one in stages if one.state in rank), key=lambda one: rank.index(one.state))
            first = lacking[0]
            state = "has not started" if first.state == "open" else f"{first.state}"
            reason = f"{first.stage} {state}" + (f" ({first.reason})" if first.reason else "")
            missing.append(Missing(point=point.name, values=point.values, reason=reason))
    return missing


def report_rates(ablation: Ablation) -> tuple[dict[str, Any], str, list[Missing]]:
    """Write the page of a choice of learning rates and `learning_rates.json`; values, text, and the points that lack.

    Raises:
        UserError: no arm is evaluated at any point.
    """
    recipe = ablation.points[0].recipe
    frontier: dict[str, dict[str, Accuracy]] = {arm: {} for arm in recipe.trained}
    unfinished: set[str] = set()
    points = sorted(ablation.points, key=lambda point: min(point.values.values()))
    for point in points:
        for arm, row in frontier.items():
            accuracy = read_accuracy(point.recipe, ablation.folder(point), arm)
            if accuracy is None:
                unfinished.add(point.name)
            else:
                row[str(point.recipe.arms[arm].learning_rate)] = accuracy
    missing = missing_points(ablation, {point.name for point in points} - unfinished, RATES_UNTIL)
    if not any(frontier.values()):
        raise NothingFinishedError(ablation.root, missing[0], "evaluation")
    rates = [float(next(iter(point.values.values()))) for point in points]
    base = read_accuracy(recipe, ablation.folder(points[0]), "base")
    choice = choose_rates(frontier, rates, base, missing, len(recipe.seeds))
    write_json(ablation.root / "learning_rates.json", choice.dump())
    figure = rates_figure(choice)
    page = render_rates(choice, figure, recipe=recipe, name=ablation.name, title=ablation.title)
    path = _write_page(ablation, page, {"learning_rates": figure})
    return choice.dump(), f"{rates_text(choice)}\n\nreport: {path}", missing
