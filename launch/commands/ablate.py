"""`transfer ablate`: run a recipe at several points and write their page, or choose learning rates."""

import argparse
import json
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands.arguments import CLUSTER, DRY_RUN, OVERRIDES, STUDY, UNTIL, argument, command, print_result
from launch.commands.recipe import read_site
from launch.execution.processes import read_run
from recipes.errors import UserError

if TYPE_CHECKING:
    from eval.drawing import Drawing
    from eval.report.ablation_verdict import Missing
    from eval.report.learning_rates import Accuracy
    from eval.report.response_curves import PointResult
    from launch.ablation import Ablation


_RATES_UNTIL = "eval"  # the last kind of stage that a choice of learning rates runs


class NothingFinishedError(UserError):
    """No point of an ablation has a result; `one` is the first that lacks."""

    def __init__(self, root: Path, one: "Missing", result: str) -> None:
        super().__init__(
            f"no point has a finished {result} ({one.point}: {one.reason}); `transfer status {root}` shows the state, "
            f"`transfer resume {root}` continues"
        )


@command(
    "run a recipe at several points",
    STUDY,
    OVERRIDES,
    argument("--grid", metavar="KEY=V1,V2", action="append", default=[], help="an axis; all combinations are run"),
    argument("--paired", metavar="KEY=V1,V2", action="append", default=[], help="axes that are changed together"),
    argument(
        "--learning-rates",
        metavar="R1,R2,...",
        help="choose each arm's learning rate among these, on held-out corpus problems and on --seeds",
    ),
    argument("--seeds", metavar="S1,S2", default="100,101", help="training seeds of that choice; not the recipe's own"),
    argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder of the ablation (default: runs/ablations/<study>, of --learning-rates runs/rates/<study>)",
    ),
    DRY_RUN,
    UNTIL,
    *CLUSTER,
)
def ablate(options: argparse.Namespace) -> int:
    """Run a recipe, or a file of recipes/ablations/, at every combination of the given values, with everything the
    points share run once, and write a page: the value to take, what it costs, how sure; with --learning-rates, the rate
    of each arm. With the folder of an ablation: write the page again from the points that are finished. Exit status 1
    if one is not.
    """
    from launch.ablation import ABLATION_FILE, load_ablation, read_ablation
    from launch.planning.preflight import check_before_running

    if (options.study / ABLATION_FILE).exists():
        return conclude(load_ablation(options.study), options)
    if options.learning_rates is not None:
        return _choose_rates(options)
    ablation = read_ablation(options.study, options.overrides, options.grid, options.paired, options.out)
    for point in ablation.points:
        check_before_running(point.recipe)
    return _run(ablation, options)


def _run(ablation: "Ablation", options: argparse.Namespace) -> int:
    from launch.execution.processes import local_run, note_run
    from launch.run import check_site, refuse_if_queued, require_runnable, run_on_slurm, show_jobs
    from launch.slurm.submit import ask_queue

    site = read_site(options)
    tasks = ablation.tasks(options.until)
    if options.dry_run:
        points = [{"name": p.name, "values": p.values, "differs": list(p.differs)} for p in ablation.points]
        print_result(options, points, describe(ablation))
        return show_jobs(ablation.root, tasks, site) if site is not None else 0
    for point in ablation.points:
        require_runnable(point.recipe)
    if site is not None:
        check_site(tasks, site)
        ask_queue()  # before anything is written
    refuse_if_queued(ablation.root)
    ablation.write()
    if site is not None:
        return run_on_slurm(ablation.root, tasks, site, options.until)
    note_run(ablation.root, local_run(options.until))
    return run_and_conclude(ablation, options.until, options)


def run_and_conclude(ablation: "Ablation", until: str | None, options: argparse.Namespace) -> int:
    """Run an ablation here and print its result, also where a point failed; returns the exit status."""
    from launch.execution.failures import INTERRUPTED, STOPPED

    status = ablation.run(until)
    if status in (STOPPED, INTERRUPTED):
        return status
    with suppress(NothingFinishedError):  # the reason has been printed
        status = conclude(ablation, options) or status
    return status


def conclude(ablation: "Ablation", options: argparse.Namespace) -> int:
    """Print the result of an ablation: its conclusion, or the choice of learning rates. Exit status 1: points lack."""
    until = read_run(ablation.root).get("until")
    if until in (None, "report"):
        values, text, unfinished = report(ablation)
    elif until == _RATES_UNTIL and _chooses_rates(ablation):
        values, text, unfinished = report_rates(ablation)
    else:
        return 0
    print_result(options, values, text)
    for one in unfinished:
        print(f"transfer: point {one.point} is not finished: {one.reason}", file=sys.stderr)
    if unfinished:
        print(
            f"transfer: `transfer status {ablation.root}` shows the state, `transfer resume {ablation.root}` continues",
            file=sys.stderr,
        )
    return 1 if unfinished else 0


def describe(ablation: "Ablation") -> str:
    """The points with the axes on which they differ from the recipe, and the stages to run."""
    tasks = ablation.tasks()
    lines = [f"{ablation.name} -> {ablation.root}", ""]
    for point in ablation.points:
        axes = f"differs from the recipe in {', '.join(point.differs)}" if point.differs else "the recipe as written"
        lines.append(f"  {point.name}: {axes}")
    alone = sum(len(stages) for _, stages, _ in ablation.stages())
    lines += ["", f"{len(tasks)} stages to run, {alone - len(tasks)} fewer than the points would need each alone:"]
    for study_dir in dict.fromkeys(task.study_dir for task in tasks):
        names = [task.stage.name for task in tasks if task.study_dir == study_dir]
        lines.append(f"  {study_dir.relative_to(ablation.root)}: {', '.join(names)}")
    return "\n".join(lines)


def report(ablation: "Ablation") -> tuple[dict[str, Any], str, "list[Missing]"]:
    """Write the page of an ablation from its finished points; its values, its text, and the points that lack.

    Raises:
        UserError: no point is finished, or points differ in more than the axes.
    """
    from eval.report.ablation_page import draw_ablation, render_ablation
    from eval.report.ablation_verdict import conclude, conclusion_text
    from eval.report.response_curves import format_curves, response_curves
    from recipes.files import write_json

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


def _write_page(ablation: "Ablation", page: str, figures: "Mapping[str, Drawing]") -> Path:
    """Write the page of an ablation and its figures; the path of the page."""
    from eval.report.build import PAGE
    from recipes.files import write_atomic

    folder = ablation.root / "report"
    for name, drawing in figures.items():
        write_atomic(folder / f"{name}.svg", drawing.svg)
        write_atomic(folder / f"{name}.png", drawing.png)
    write_atomic(folder / PAGE, page)
    return folder / PAGE


def finished_points(ablation: "Ablation") -> "list[PointResult]":
    """The points with a finished report."""
    from eval.report.build import HOURS
    from eval.report.response_curves import PointResult
    from eval.report.schema import TRANSFER, read_transfer
    from launch.stages import build_stages, flatten
    from recipes.manifest import read_manifest

    points = []
    for point in ablation.points:
        folder = ablation.folder(point)
        manifest = read_manifest(folder / "report")
        if manifest is None or not manifest["completed"]:
            continue
        made_by = {}
        for stage in build_stages(point.recipe):
            made = read_manifest(folder / stage.name) or {}
            made_by[stage.name] = [made.get("code"), made.get("environment", {}).get("packages")]
        settings = flatten(json.loads((folder / "study.json").read_text(encoding="utf-8")))
        transfer = read_transfer(folder / "report" / TRANSFER)
        clock = json.loads((folder / "report" / HOURS).read_text(encoding="utf-8"))
        hours = {arm: spent["hours"] for arm, spent in clock.items()}
        points.append(PointResult(point.name, point.values, settings, made_by, transfer, hours))
    return points


def missing_points(ablation: "Ablation", finished: Collection[str], until: str | None) -> "list[Missing]":
    """The points besides the finished ones, each with the state of the first stage that explains it."""
    from eval.report.ablation_verdict import Missing
    from launch.slurm.jobs import tasks_of_study
    from launch.stages import build_stages, select_until
    from launch.status import standings

    rank = ("failed", "stopped", "running", "queued", "waiting", "open")
    missing = []
    for point in ablation.points:
        if point.name not in finished:
            folder = ablation.folder(point)
            tasks = tasks_of_study(point.recipe, folder, select_until(build_stages(point.recipe), until))
            stages = standings(ablation.root, tasks)
            lacking = sorted((one for one in stages if one.state in rank), key=lambda one: rank.index(one.state))
            first = lacking[0]
            state = "has not started" if first.state == "open" else f"{first.state}"
            reason = f"{first.stage} {state}" + (f" ({first.reason})" if first.reason else "")
            missing.append(Missing(point=point.name, values=point.values, reason=reason))
    return missing


def _choose_rates(options: argparse.Namespace) -> int:
    """Run the choice of learning rates: the same rates for every arm, scored on held-out problems, on other seeds."""
    from launch.ablation import default_root, read_ablation
    from recipes.loading import load_recipe

    if options.grid or options.paired:
        raise UserError("--learning-rates is an axis of its own; leave --grid and --paired out")
    recipe = load_recipe(options.study, options.overrides)
    rates, seeds = _numbers(options.learning_rates, float), _numbers(options.seeds, int)
    if len(rates) < 2:
        raise UserError(f"--learning-rates {options.learning_rates!r} leaves nothing to choose; give at least two")
    if reported := sorted(set(seeds) & set(recipe.seeds)):
        raise UserError(f"seed {reported[0]} is one that the study reports; choose rates on others, with --seeds")
    if not recipe.corpus.heldout_problems:
        raise UserError("learning rates are chosen on held-out problems; set corpus.heldout_problems")
    scorings = {"paper": "last_box_text", "robust": recipe.corpus.answer_form}
    heldout = {"name": "heldout", "group": recipe.analysis.trained_group, "scorings": scorings}
    suite = {
        "benchmarks": [heldout],
        "questions": recipe.corpus.heldout_problems,
        "max_prompt_tokens": recipe.prompt.max_prompt_tokens,
        "max_response_tokens": recipe.prompt.max_completion_tokens,
    }
    if recipe.suite is not None:
        suite["engine"] = recipe.suite.engine.model_dump(mode="json")
    settings = [
        *options.overrides,
        f"seeds={json.dumps(seeds)}",
        f"suite={json.dumps(suite)}",
        f"analysis={{trained_group: {recipe.analysis.trained_group}}}",
    ]
    settings += [f"study={recipe.study}-rates", "train.snapshots=0"]
    settings += ["probe=null", "trajectory=null", "diagnostics=null"]
    axes = [f"arms.{arm}.learning_rate={','.join(map(repr, rates))}" for arm in recipe.trained]
    out = options.out or default_root("rates", recipe.study, f"{recipe.study}-rates")
    options.until = _RATES_UNTIL
    return _run(read_ablation(options.study, settings, [], axes, out), options)


def _chooses_rates(ablation: "Ablation") -> bool:
    """Whether an ablation was made by `--learning-rates`."""
    benchmarks = [benchmark.name for benchmark in ablation.points[0].recipe.benchmarks]
    rates = all(axis.endswith(".learning_rate") for axis in ablation.axes)
    return ablation.paired and rates and benchmarks == ["heldout"]


def _numbers(text: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{text!r} is not a list of numbers such as 1e-6,3e-6") from None


def report_rates(ablation: "Ablation") -> tuple[dict[str, Any], str, "list[Missing]"]:
    """Write the page of a choice of learning rates and `learning_rates.json`; values, text, and the points that lack.

    Raises:
        UserError: no arm is evaluated at any point.
    """
    from eval.report.learning_rates import choose_rates, rates_figure, rates_text, read_accuracy, render_rates
    from recipes.files import write_json

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
    missing = missing_points(ablation, {point.name for point in points} - unfinished, _RATES_UNTIL)
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
