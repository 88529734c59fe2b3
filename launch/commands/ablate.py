"""`transfer ablate`: run a recipe at several points and write their page, or choose learning rates."""

import argparse
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands.arguments import CLUSTER, DRY_RUN, OVERRIDES, STUDY, UNTIL, argument, command, print_result
from launch.commands.recipe import read_site
from launch.execution.processes import read_run
from recipes.errors import UserError

if TYPE_CHECKING:
    from eval.report.ablation_verdict import Missing
    from eval.report.response_curves import PointResult
    from launch.ablation import Ablation

Frontier = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Arm -> learning rate -> `accuracy` and its standard `error`, in percent."""


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
    argument("--out", metavar="DIR", type=Path, help="folder of the ablation (default: runs/<name>)"),
    DRY_RUN,
    UNTIL,
    *CLUSTER,
)
def ablate(options: argparse.Namespace) -> int:
    """Run a recipe, or a file of recipes/ablations/, at every combination of the given values, with everything the
    points share run once, and write a page: the value to take, what it costs, how sure. With the folder of an ablation:
    write the page again from the points that are finished. Exit status 1 if one is not.
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
    if status in (STOPPED, INTERRUPTED) or (status and until not in (None, "report")):
        return status
    if status and not finished_points(ablation):
        return status
    return conclude(ablation, options) or status


def conclude(ablation: "Ablation", options: argparse.Namespace) -> int:
    """Print the result of an ablation: its conclusion, or the choice of learning rates. Exit status 1: points lack."""
    until = read_run(ablation.root).get("until")
    if until in (None, "report"):
        values, text, unfinished = report(ablation)
    elif until == "eval":
        (values, text), unfinished = show_rates(ablation), []
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
    from eval.report.build import PAGE
    from eval.report.response_curves import format_curves, response_curves
    from recipes.manifest import write_atomic, write_json

    finished = finished_points(ablation)
    unfinished = missing_points(ablation, [point.name for point in finished])
    if not finished:
        one = unfinished[0]
        raise UserError(
            f"no point has a finished report ({one.point}: {one.reason}); `transfer status {ablation.root}` shows the "
            f"state, `transfer resume {ablation.root}` continues"
        )
    curves = response_curves(finished, list(ablation.axes), ablation.paired)
    found = conclude(curves, unfinished)
    figures = draw_ablation(curves, found)
    folder = ablation.root / "report"
    values = curves.dump() | {"conclusion": found.dump(), "missing": [one.dump() for one in unfinished]}
    write_json(folder / "ablation.json", values)
    for name, drawing in figures.items():
        write_atomic(folder / f"{name}.svg", drawing.svg)
        write_atomic(folder / f"{name}.png", drawing.png)
    gpu = ablation.points[0].recipe.resources.gpu
    page = render_ablation(
        curves, found, unfinished, figures, name=ablation.name, title=ablation.title,
        clock_unit="GPU-hours" if gpu else "process-hours",
    )  # fmt: skip
    write_atomic(folder / PAGE, page)
    return values, f"{format_curves(curves)}\n\n{conclusion_text(found)}\n\nreport: {folder / PAGE}", unfinished


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


def missing_points(ablation: "Ablation", finished: Collection[str]) -> "list[Missing]":
    """The points besides the finished ones, each with the state of the first stage that explains it."""
    from eval.report.ablation_verdict import Missing
    from launch.slurm.jobs import tasks_of_study
    from launch.stages import build_stages
    from launch.status import standings

    rank = ("failed", "stopped", "running", "queued", "waiting", "open")
    missing = []
    for point in ablation.points:
        if point.name not in finished:
            folder = ablation.folder(point)
            stages = standings(ablation.root, tasks_of_study(point.recipe, folder, build_stages(point.recipe)))
            lacking = sorted((one for one in stages if one.state in rank), key=lambda one: rank.index(one.state))
            first = lacking[0]
            state = "has not started" if first.state == "open" else f"{first.state}"
            reason = f"{first.stage} {state}" + (f" ({first.reason})" if first.reason else "")
            missing.append(Missing(point=point.name, values=point.values, reason=reason))
    return missing


def _choose_rates(options: argparse.Namespace) -> int:
    """Run the choice of learning rates: the same rates for every arm, scored on held-out problems, on other seeds."""
    from launch.ablation import read_ablation
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
    out = options.out or Path("runs") / f"{recipe.study}-rates"
    options.until = "eval"
    return _run(read_ablation(options.study, settings, [], axes, out), options)


def _numbers(text: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{text!r} is not a list of numbers such as 1e-6,3e-6") from None


def show_rates(ablation: "Ablation") -> tuple[dict[str, Any], str]:
    """Held-out accuracy of every arm at every learning rate and the choice; their values and text."""
    from recipes.manifest import write_json

    frontier = heldout_frontier(ablation)
    chosen, common = choose(frontier), common_rate(frontier)
    overrides = [f"arms.{arm}.learning_rate={rate:g}" for arm, rate in chosen.items()]
    values = {"frontier": frontier, "chosen": chosen, "common": common, "overrides": overrides}
    write_json(ablation.root / "learning_rates.json", values)
    rates = list(next(iter(frontier.values())))
    lines = [
        "\naccuracy on held-out corpus problems, percent, with its standard error over seeds and problems",
        f"{'arm':<28}" + "".join(f"{float(rate):>16g}" for rate in rates),
    ]
    for arm, row in frontier.items():
        cells = "".join(
            f"{cell['accuracy']:>8.1f} ± {cell['error']:<4.1f}{'*' if float(rate) == chosen[arm] else ' '}"
            for rate, cell in row.items()
        )
        lines.append(f"{arm:<28}{cells}")
    lines += [
        f"\nchosen (*, the highest; of equals the lower rate):\n  {' '.join(overrides)}",
        f"for a comparison at one rate (highest mean over the arms): {common:g}",
    ]
    if edge := [arm for arm, rate in chosen.items() if rate in (float(rates[0]), float(rates[-1]))]:
        print(f"the best rate may lie outside the range tried: {', '.join(edge)}", file=sys.stderr)
    return values, "\n".join(lines)


def heldout_frontier(ablation: "Ablation") -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy and standard error in percent by arm and rate; the larger error of those over seeds and problems."""
    from recipes.manifest import read_manifest

    frontier: dict[str, dict[str, dict[str, float]]] = {}
    for point in ablation.points:
        recipe = point.recipe
        for arm in recipe.trained:
            values = []
            for label in recipe.labels(arm):
                manifest = read_manifest(ablation.folder(point) / "eval" / label)
                if manifest is None or not manifest["completed"]:
                    raise UserError(f"point {point.name} has no evaluation of {label}; `transfer resume` continues")
                values.append(100 * float(next(iter(manifest["facts"]["accuracy"].values()))))
            mean = sum(values) / len(values)
            over_seeds = (sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1) / len(values)) ** 0.5
            binomial = (mean * (100 - mean) / (recipe.corpus.heldout_problems * len(values))) ** 0.5
            rate = str(recipe.arms[arm].learning_rate)
            frontier.setdefault(arm, {})[rate] = {"accuracy": mean, "error": max(over_seeds, binomial)}
    return frontier


def common_rate(frontier: Frontier) -> float:
    """The learning rate with the highest mean accuracy over the arms; of equal ones the lowest."""
    rates = list(next(iter(frontier.values())))
    return float(max(rates, key=lambda rate: (sum(row[rate]["accuracy"] for row in frontier.values()), -float(rate))))


def choose(frontier: Frontier) -> dict[str, float]:
    """The learning rate with the highest accuracy of each arm; of equal ones the lowest."""
    return {
        arm: float(max(row, key=lambda rate: (row[rate]["accuracy"], -float(rate)))) for arm, row in frontier.items()
    }
