"""`transfer ablate`: run a recipe at several points and write their page, or choose learning rates."""

import argparse
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands.arguments import CLUSTER, DRY_RUN, OVERRIDES, STUDY, UNTIL, argument, command, print_result
from launch.commands.recipe import read_site
from launch.execution.processes import read_run
from recipes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from launch.ablation import Ablation
    from launch.site_file import SiteSpec
    from launch.tasks import Task


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
    """Run a recipe, or a file of recipes/ablations/, at every combination of the given values. Stages that the points
    share run once. Writes a page that says which value to take, what it costs and how certain that is. --learning-rates
    chooses a rate for each arm instead. Given the folder of an ablation, write its page again from the finished points.
    Exit status 1 if a point is not finished.
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
    from launch.ablation import check_points
    from launch.execution.processes import local_run, note_run
    from launch.run import check_tasks, refuse_if_queued, require, run_on_slurm, show, show_jobs
    from launch.slurm.submit import ask_queue

    site = read_site(options)
    tasks = ablation.tasks(options.until)
    found = [*check_points(ablation), *check_tasks(tasks, site, planned=options.dry_run)]
    if options.dry_run:
        refused = show(found)
        points = [{"name": p.name, "values": p.values, "differs": list(p.differs)} for p in ablation.points]
        print_result(options, points, f"{describe(ablation, options.until)}\n\n{hours_line(tasks, site)}")
        if site is not None:
            show_jobs(ablation.root, tasks, site)
            if not options.json:
                _tell_of_result(ablation, options.until)
        return 2 if refused else 0
    require(found)
    if site is not None:
        ask_queue()  # before anything is written
    refuse_if_queued(ablation.root)
    ablation.write()
    if site is not None:
        status = run_on_slurm(ablation.root, tasks, site, options.until)
        _tell_of_result(ablation, options.until)
        return status
    note_run(ablation.root, local_run(options.until))
    return run_and_conclude(ablation, options.until, options)


def _tell_of_result(ablation: "Ablation", until: str | None) -> None:
    """Say which command concludes an ablation on a cluster: no job does."""
    from launch.ablation import RATES_UNTIL, chooses_rates

    if until in (None, "report") or (until == RATES_UNTIL and chooses_rates(ablation)):
        print(f"when all jobs have ended, `transfer ablate {ablation.root}` writes the result of all points")


def run_and_conclude(ablation: "Ablation", until: str | None, options: argparse.Namespace) -> int:
    """Run an ablation here and print its result, also where a point failed; returns the exit status."""
    from launch.execution.failures import INTERRUPTED, STOPPED

    status = ablation.run(until)
    if status in (STOPPED, INTERRUPTED):
        return status
    from launch.ablation_report import NothingFinishedError  # after the run, whose processes need no figures

    with suppress(NothingFinishedError):  # the reason has been printed
        status = conclude(ablation, options) or status
    return status


def conclude(ablation: "Ablation", options: argparse.Namespace) -> int:
    """Print the result of an ablation: its conclusion, or the choice of learning rates. Exit status 1: points lack."""
    from launch.ablation import RATES_UNTIL, chooses_rates
    from launch.ablation_report import report, report_rates

    until = read_run(ablation.root).get("until")
    if until in (None, "report"):
        values, text, unfinished = report(ablation)
    elif until == RATES_UNTIL and chooses_rates(ablation):
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


def describe(ablation: "Ablation", until: str | None = None) -> str:
    """The points with the axes on which they differ from the recipe, and how many stages of each kind will run."""
    from launch.stages import select_until

    tasks = ablation.tasks(until)
    lines = [f"{ablation.name} -> {ablation.root}", ""]
    for point in ablation.points:
        same = "the recipe as written" if ablation.base == "the recipe" else ablation.base
        axes = f"differs from {ablation.base} in {', '.join(point.differs)}" if point.differs else same
        lines.append(f"  {point.name}: {axes}")
    seeds = dict.fromkeys(", ".join(map(str, point.recipe.seeds)) for point in ablation.points)
    lines += ["", f"training seeds: {' or '.join(seeds)}"]
    alone = sum(len(select_until(stages, until)) for _, stages, _ in ablation.stages())
    lines += [f"{len(tasks)} stages to run, {alone - len(tasks)} fewer than the points would need each alone:"]
    for study_dir in dict.fromkeys(task.study_dir for task in tasks):
        counts = Counter(task.stage.kind for task in tasks if task.study_dir == study_dir)
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        lines.append(f"  {study_dir.relative_to(ablation.root)}: {kinds}")
    return "\n".join(lines)


def hours_line(tasks: "Sequence[Task]", site: "SiteSpec | None" = None) -> str:
    """The hours of all tasks together, by the assumptions of `transfer plan`."""
    from launch.hardware import visible_gpus
    from launch.planning.disk import gpus_of_node
    from launch.planning.hours import plan_context, stage_hours
    from launch.planning.units import amount_text
    from train.accounting.cost import model_shape

    total, unknown, on_gpu = 0.0, set(), tasks[0].recipe.resources.gpu is not None
    for study_dir in dict.fromkeys(task.study_dir for task in tasks):
        members = [task for task in tasks if task.study_dir == study_dir]
        recipe = members[0].recipe
        context = plan_context(recipe, model_shape(recipe), gpus_of_node(recipe, site, visible_gpus()))
        for task in members:
            hours = stage_hours(context, task.stage)
            if hours is None:
                unknown.add(task.stage.kind)
            else:
                total += hours.gpu_hours if on_gpu else hours.hours
    line = f"in all about {amount_text(total, 'GPU-hours' if on_gpu else 'stage-hours')}"
    return f"{line}, without {', '.join(sorted(unknown))}, which is not known yet" if unknown else line


def _choose_rates(options: argparse.Namespace) -> int:
    """Run the choice of learning rates."""
    from launch.ablation import RATES_UNTIL, read_rate_choice

    if options.grid or options.paired:
        raise UserError("--learning-rates is an axis of its own; leave --grid and --paired out")
    rates, seeds = _numbers(options.learning_rates, float), _numbers(options.seeds, int)
    if len(rates) < 2:
        raise UserError(f"--learning-rates {options.learning_rates!r} leaves nothing to choose; give at least two")
    options.until = RATES_UNTIL
    return _run(read_rate_choice(options.study, options.overrides, rates, seeds, options.out), options)


def _numbers(text: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{text!r} is not a list of numbers such as 1e-6,3e-6") from None
