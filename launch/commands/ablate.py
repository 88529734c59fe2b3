"""`transfer ablate`: run a recipe at several points, draw the curves, or choose learning rates."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands.arguments import add_cluster, add_command, add_overrides
from launch.commands.recipe import read_site
from launch.execution.processes import read_run
from recipes.errors import UserError

if TYPE_CHECKING:
    from launch.ablation import Ablation


def add_ablate(commands: Any) -> None:
    """Add `transfer ablate`."""
    parser = add_command(
        commands,
        "ablate",
        "run a recipe at several points",
        "Run a recipe at every combination of the given values, with everything the points share run once, and draw "
        "the gains along each axis.",
        _ablate,
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a recipe, a file of recipes/ablations/, or the folder of a finished ablation"
    )
    add_overrides(parser, "settings to change at every point")
    parser.add_argument("--grid", metavar="KEY=V1,V2", action="append", default=[], help="an axis; all combinations")
    parser.add_argument("--paired", metavar="KEY=V1,V2", action="append", default=[], help="axes that move together")
    parser.add_argument(
        "--learning-rates",
        metavar="R1,R2,...",
        help="choose each arm's learning rate among these, on held-out corpus problems and on --seeds",
    )
    parser.add_argument(
        "--seeds", metavar="S1,S2", default="100,101", help="training seeds of that choice; not the recipe's own"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder (default: runs/<name>)")
    parser.add_argument("--dry-run", action="store_true", help="print points and stages, run nothing")
    parser.add_argument("--until", metavar="STAGE", help="stop after a kind of stage")
    add_cluster(parser)


def _ablate(options: argparse.Namespace) -> int:
    from launch.ablation import ABLATION_FILE, load_ablation, read_ablation
    from launch.planning.preflight import check_before_running

    if (Path(options.recipe) / ABLATION_FILE).exists():
        return conclude(load_ablation(Path(options.recipe)), options.json)
    if options.learning_rates is not None:
        return _choose_rates(options)
    ablation = read_ablation(Path(options.recipe), options.overrides, options.grid, options.paired, options.out)
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
        print(json.dumps([_row(p) for p in ablation.points], indent=1) if options.json else describe(ablation))
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
    return ablation.run(options.until) or conclude(ablation, options.json)


def conclude(ablation: "Ablation", as_json: bool) -> int:
    """What a finished ablation was for: its curves, or, for one that only evaluates, the choice of rates."""
    until = read_run(ablation.root).get("until")
    if until in (None, "report"):
        return report(ablation, as_json)
    return show_rates(ablation, as_json) if until == "eval" else 0


def _row(point: Any) -> dict[str, Any]:
    return {"name": point.name, "values": point.values, "differs": list(point.differs)}


def describe(ablation: "Ablation") -> str:
    """Points, on what each differs from the recipe, and how many stages are shared."""
    tasks = ablation.tasks()
    lines = [f"{ablation.name} -> {ablation.root}", ""]
    for point in ablation.points:
        on = f"differs from the recipe in {', '.join(point.differs)}" if point.differs else "the recipe as written"
        lines.append(f"  {point.name}: {on}")
    alone = sum(len(list(stages)) for _, stages, _ in ablation.stages())
    lines += ["", f"{len(tasks)} stages to run, {alone - len(tasks)} fewer than the points would need each alone:"]
    for study_dir in dict.fromkeys(task.study_dir for task in tasks):
        names = [task.stage.name for task in tasks if task.study_dir == study_dir]
        lines.append(f"  {study_dir.relative_to(ablation.root)}: {', '.join(names)}")
    return "\n".join(lines)


def report(ablation: "Ablation", as_json: bool) -> int:
    """Draw the curves of a finished ablation; returns the exit status.

    Raises:
        UserError: a point is not finished, or points differ in more than the axes.
    """
    from eval.report.response_curves import curves_figure, format_curves, response_curves
    from recipes.manifest import write_atomic, write_json

    curves = response_curves(results(ablation), list(ablation.axes), ablation.paired)
    folder = ablation.root / "report"
    write_json(folder / "ablation.json", curves.dump())
    for index, curve in enumerate(curves.curves):
        name = curve.axis.replace(".", "-") + (f"-{index}" if index else "")
        write_atomic(folder / f"{name}.svg", curves_figure(curves, index))
    print(json.dumps(curves.dump(), indent=1) if as_json else format_curves(curves))
    if not as_json:
        print(f"\nreport: {folder}")
    return 0


def results(ablation: "Ablation") -> list[Any]:
    """The finished points. Raises UserError if one is missing."""
    from eval.report.response_curves import PointResult
    from eval.report.schema import read_transfer
    from launch.stages import build_stages, flatten
    from recipes.manifest import read_manifest

    found = []
    for point in ablation.points:
        folder = ablation.folder(point)
        manifest = read_manifest(folder / "report")
        if manifest is None or not manifest["completed"]:
            raise UserError(
                f"point {point.name} has no finished report; `transfer status {ablation.root}` says why, "
                f"`transfer resume {ablation.root}` continues"
            )
        made_by = {}
        for stage in build_stages(point.recipe):
            made = read_manifest(folder / stage.name) or {}
            made_by[stage.name] = [made.get("code"), made.get("environment", {}).get("packages")]
        settings = flatten(json.loads((folder / "study.json").read_text(encoding="utf-8")))
        transfer = read_transfer(folder / "report" / "transfer.json")
        found.append(PointResult(point.name, point.values, settings, made_by, transfer))
    return found


def _choose_rates(options: argparse.Namespace) -> int:
    """The rule for learning rates: the same points for every arm, judged on held-out problems, on other seeds."""
    from launch.ablation import read_ablation
    from recipes.loading import load_recipe

    if options.grid or options.paired:
        raise UserError("--learning-rates is an axis of its own; leave --grid and --paired out")
    recipe = load_recipe(options.recipe, options.overrides)
    rates, seeds = _numbers(options.learning_rates, float), _numbers(options.seeds, int)
    if len(rates) < 2:
        raise UserError(f"--learning-rates {options.learning_rates!r} leaves nothing to choose; give at least two")
    if reported := sorted(set(seeds) & set(recipe.seeds)):
        raise UserError(f"seed {reported[0]} is one that the study reports; choose rates on others, with --seeds")
    if not recipe.corpus.heldout_problems:
        raise UserError("learning rates are chosen on corpus.heldout_problems, which this recipe has none of")
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
    ablation = read_ablation(
        Path(options.recipe), settings, [], axes, options.out or Path("runs") / f"{recipe.study}-rates"
    )
    options.until = "eval"
    return _run(ablation, options)


def _numbers(text: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{text!r} is not a list of numbers such as 1e-6,3e-6") from None


def show_rates(ablation: "Ablation", as_json: bool) -> int:
    """Held-out accuracy of every arm at every rate, and the choice."""
    frontier = heldout_frontier(ablation)
    chosen = choose(frontier)
    overrides = [f"arms.{arm}.learning_rate={rate:g}" for arm, rate in chosen.items()]
    common = common_rate(frontier)
    from recipes.manifest import write_json

    result = {"frontier": frontier, "chosen": chosen, "common": common, "overrides": overrides}
    write_json(ablation.root / "learning_rates.json", result)
    if as_json:
        print(json.dumps(result, indent=1))
        return 0
    rates = list(next(iter(frontier.values())))
    print("\naccuracy on held-out corpus problems, percent, with its standard error over seeds and problems")
    print(f"{'arm':<28}" + "".join(f"{float(rate):>16g}" for rate in rates))
    for arm, row in frontier.items():
        cells = "".join(
            f"{cell['accuracy']:>8.1f} ± {cell['error']:<4.1f}{'*' if float(rate) == chosen[arm] else ' '}"
            for rate, cell in row.items()
        )
        print(f"{arm:<28}{cells}")
    print(f"\nchosen (*, the highest; of equals the lower rate):\n  {' '.join(overrides)}")
    print(f"for a comparison at one rate (highest mean over the arms): {common:g}")
    edge = [arm for arm, rate in chosen.items() if rate in (float(rates[0]), float(rates[-1]))]
    if edge:
        print(f"at the edge of the points, so the best may lie beyond: {', '.join(edge)}", file=sys.stderr)
    return 0


def heldout_frontier(ablation: "Ablation") -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy and standard error by arm and rate. The error is of the mean over problems, or over seeds if larger."""
    from recipes.manifest import read_manifest

    found: dict[str, dict[str, dict[str, float]]] = {}
    for point in ablation.points:
        recipe = point.recipe
        for arm in recipe.trained:
            values = []
            for label in recipe.labels(arm):
                manifest = read_manifest(ablation.folder(point) / "eval" / label)
                if manifest is None or not manifest["completed"]:
                    raise UserError(f"point {point.name} has no evaluation of {label}; `transfer resume` continues")
                values.append(float(next(iter(manifest["facts"]["accuracy"].values()))))
            mean = sum(values) / len(values)
            spread = (sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1) / len(values)) ** 0.5
            binomial = (mean * (100 - mean) / (recipe.corpus.heldout_problems * len(values))) ** 0.5
            rate = str(recipe.arms[arm].learning_rate)
            found.setdefault(arm, {})[rate] = {"accuracy": mean, "error": max(spread, binomial)}
    return found


def common_rate(frontier: Mapping[str, Mapping[str, Mapping[str, float]]]) -> float:
    """The rate at which the arms are best on average; of equals the lowest."""
    rates = list(next(iter(frontier.values())))
    return float(max(rates, key=lambda rate: (sum(row[rate]["accuracy"] for row in frontier.values()), -float(rate))))


def choose(frontier: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """The rate with the highest accuracy of each arm; of equal ones the lowest."""
    return {
        arm: float(max(row, key=lambda rate: (row[rate]["accuracy"], -float(rate)))) for arm, row in frontier.items()
    }
