"""The subcommands about a recipe: run, plan, check, report, fetch, lineage."""

import argparse
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands.arguments import (
    CLUSTER,
    DRY_RUN,
    NO_REUSE,
    OUT,
    OVERRIDES,
    STUDY,
    UNTIL,
    argument,
    command,
    print_result,
    read_study,
    study_folder,
)
from recipes.errors import UserError

if TYPE_CHECKING:
    from launch.site_file import SiteSpec
    from launch.stages import Stage
    from recipes.schema import Recipe


@command(
    "run a study, or continue it",
    STUDY,
    OVERRIDES,
    OUT,
    NO_REUSE,
    DRY_RUN,
    argument("--stages", action="store_true", help="with --dry-run: every stage with its command, files and processes"),
    UNTIL,
    *CLUSTER,
)
def run(options: argparse.Namespace) -> int:
    """Run every stage of a recipe that is not finished. Base, corpus, questions and the base's evaluation are reused
    from another study in the same folder that built them from the same inputs with the same code.
    """
    from launch.planning.preflight import check_before_running
    from launch.stages import build_stages, select_until

    if options.stages and (not options.dry_run or options.on == "slurm"):
        raise UserError("--stages shows more of a --dry-run on this machine; add --dry-run, or leave --stages out")
    recipe, study_dir = read_study(options)
    check_before_running(recipe)
    stages = select_until(build_stages(recipe), options.until)
    if not stages:
        raise UserError(
            f"{recipe.study} has nothing to run, neither a model nor a corpus; benchmarks alone are asked of any model "
            "with `transfer eval --suite RECIPE`"
        )
    if options.on == "slurm":
        return _submit(recipe, study_dir, stages, options)
    if options.dry_run:
        return show_plan(recipe, study_dir, stages, options, _invocation(options), read_site(options), True)
    return run_and_report(recipe, study_dir, stages, options.json, options.until, with_reuse=not options.no_reuse)


def run_and_report(
    recipe: "Recipe",
    study_dir: Path,
    stages: "list[Stage]",
    as_json: bool,
    until: str | None = None,
    *,
    with_reuse: bool = False,
) -> int:
    """Run stages on this machine, then print the report if it is one of them; returns the exit status."""
    from data.corpus.rows import CARD
    from launch.run import run_stages
    from launch.status import wandb_text
    from train.runtime.tracking import why_offline

    status = run_stages(recipe, study_dir, stages, as_json, until, with_reuse=with_reuse)
    if status == 0 and stages[-1].kind == "report":
        status = show_report(recipe, study_dir, as_json)
    elif status == 0 and stages[-1].kind == "corpus" and not as_json:
        print(f"\ncorpus card: {study_dir / 'corpus' / CARD}")
    if text := wandb_text(study_dir, [why_offline(study_dir / stage.name) for stage in stages]):
        sys.stdout.flush()
        print(f"transfer: warning: {text}", file=sys.stderr)
    return status


def read_site(options: argparse.Namespace) -> "SiteSpec | None":
    """The cluster to run on; None: this machine."""
    from launch.site_file import find_site, load_site

    return load_site(find_site(options.site)) if options.on == "slurm" else None


def _submit(recipe: "Recipe", study_dir: Path, stages: "list[Stage]", options: argparse.Namespace) -> int:
    """`transfer run --on slurm` for one study."""
    from launch.execution.local import check_study_dir
    from launch.execution.processes import read_run
    from launch.reuse import reuse
    from launch.run import check_recipe, check_tasks, refuse_if_queued, require, run_on_slurm, show, show_jobs
    from launch.slurm.submit import ask_queue
    from launch.stages import build_stages, furthest_until
    from launch.tasks import tasks_of_study
    from recipes.files import locked, write_json
    from recipes.loading import STUDY_FILE, read_study_file

    site = read_site(options)
    assert site is not None
    tasks = tasks_of_study(recipe, study_dir, stages)
    check_study_dir(recipe, study_dir)
    found = [*check_recipe(recipe), *check_tasks(tasks, site)]
    if options.dry_run:
        refused = show(found)
        show_jobs(study_dir, tasks, site, with_reuse=not options.no_reuse)
        return 2 if refused else 0
    require(found)
    ask_queue()  # before anything is written
    with locked(study_dir):  # stages that run read the recipe in it
        if (study_dir / STUDY_FILE).exists() and read_study_file(study_dir) != recipe.dump():
            refuse_if_queued(study_dir)
        write_json(study_dir / STUDY_FILE, recipe.dump())
        if not options.no_reuse:
            reuse(recipe, study_dir, stages, on_cluster=True)
    until = furthest_until(build_stages(recipe), study_dir, read_run(study_dir).get("until"), options.until)
    return run_on_slurm(study_dir, tasks, site, until)


@command(
    "show what a recipe would do",
    STUDY,
    OVERRIDES,
    OUT,
    NO_REUSE,
    argument("--stages", action="store_true", help="a line for every stage instead of one for each kind"),
    argument("--details", action="store_true", help="also assumptions, measured stages and the critical path"),
    *CLUSTER,
)
def plan(options: argparse.Namespace) -> int:
    """Show the stages with their state, hours, memory, disk, steps, samples, tokens and FLOPs, and what is missing, on
    this machine or, with --on slurm, on the cluster of the site file. Finished stages correct the estimates of similar
    ones. A stage that another study in the same folder has already built is `reused`. Exit status 2 if the plan cannot
    work, or if the arms are unmatched and the recipe does not say `unmatched: stamp`. Data that `transfer fetch` has
    still to download is reported but is no error.
    """
    from launch.planning.preflight import check_before_running
    from launch.stages import build_stages

    recipe, study_dir = read_study(options)
    check_before_running(recipe)
    return show_plan(recipe, study_dir, build_stages(recipe), options, _invocation(options), read_site(options))


def _invocation(options: argparse.Namespace) -> str:
    """The command that runs the study of `options`."""
    out = ["--out", str(options.out)] if options.out else []
    out += ["--no-reuse"] if options.no_reuse else []
    return shlex.join(["transfer", "run", str(options.study), *options.overrides, *out])


def show_plan(
    recipe: "Recipe",
    study_dir: Path,
    stages: "list[Stage]",
    options: argparse.Namespace,
    invocation: str = "transfer run RECIPE",
    site: "SiteSpec | None" = None,
    dry_run: bool = False,
) -> int:
    """Print the plan; `dry_run`: with commands and, as JSON, the resolved recipe. Returns the exit status."""
    from launch.planning.plan import build_plan
    from launch.planning.plan_schema import as_json
    from launch.planning.plan_text import format_plan

    with_reuse = not getattr(options, "no_reuse", True)
    plan = build_plan(recipe, stages, study_dir, invocation, site, with_reuse=with_reuse)
    values = {"recipe": recipe.dump()} if dry_run else {}
    shown = {name: getattr(options, name, False) for name in ("stages", "details")}
    text = format_plan(plan, commands=dry_run, **shown)
    print_result(options, values | as_json(plan), text)
    return 2 if plan.errors or (plan.differences and recipe.unmatched == "refuse") else 0


@command("check that the arms are matched", STUDY, OVERRIDES, OUT)
def check(options: argparse.Namespace) -> int:
    """Check that the arms of a recipe differ only in what it declares under `varies`, and that their runs, if there are
    any, did too. Exit status 2 if they differ in more.
    """
    from launch.planning.plan import attention_of_runs
    from train.accounting.hardware import hardware_differences
    from train.accounting.matching import REMEDY, recipe_differences, recorded_differences

    recipe, study_dir = read_study(options)
    attention = {name: used for name in recipe.trained if (used := attention_of_runs(recipe, name, study_dir))}
    by_source = {"recipe": recipe_differences(recipe), "runs": recorded_differences(recipe, study_dir)}
    differences = [*by_source["recipe"], *by_source["runs"]]
    if differences:
        # What a run recorded as the recipe has it is the recipe's difference, seen again.
        told = [text for text in by_source["runs"] if text.split(", ", 1)[-1] not in by_source["recipe"]]
        listed = [f"  {text}" for text in (*by_source["recipe"], *told)]
        lines = [f"{recipe.study} is UNMATCHED:", *listed, REMEDY]
    elif not recipe.arms:
        lines = [f"{recipe.study} has no arms to compare"]
    elif len(recipe.trained) == 1:
        lines = [f"{recipe.study} trains one arm, {next(iter(recipe.trained))}, so there is nothing to match"]
    elif recipe.trained:
        lines = [f"{recipe.study} is matched: {', '.join(recipe.trained)} {_declared(recipe)}"]
    else:
        lines = [f"{recipe.study} trains nothing, so there is nothing to match"]
    if recipe.external:
        lines.append(f"trained elsewhere, lineage unknown: {', '.join(recipe.external)}")
    if attention:
        kinds = sorted({kind for used in attention.values() for kind in used})
        lines.append(f"attention of finished runs: {', '.join(kinds)}")
    hardware = hardware_differences(recipe, study_dir)
    lines += [f"warning: {text}" for text in hardware]
    values = {
        "study": recipe.study,
        "matched": not differences if recipe.trained else None,
        "differences": by_source,
        "unknown_lineage": list(recipe.external),
        "attention": attention,
        "hardware": hardware,
    }
    print_result(options, values, "\n".join(lines))
    return 2 if differences else 0


def _declared(recipe: "Recipe") -> str:
    """In which of the settings of `varies` the arms differ, and in which they might."""
    from train.arms import resolve_arm

    settings = [resolve_arm(recipe, name).matched_on() for name in recipe.trained]
    differing = [key for key in recipe.varies if any(arm[key] != settings[0][key] for arm in settings)]
    equal = [key for key in recipe.varies if key not in differing]
    text = f"differ only in {', '.join(differing)}" if differing else "do not differ"
    return f"{text}; `varies` also allows {', '.join(equal)}" if equal else text


@command("show the transfer report", STUDY, OVERRIDES, OUT)
def report(options: argparse.Namespace) -> int:
    """Print the table of a finished study and the path of its page."""
    return show_report(*read_study(options), options.json)


def show_report(recipe: "Recipe", study_dir: Path, as_json: bool) -> int:
    """Print the report of a finished study; returns the exit status."""
    from launch.stages import build_stages, stage_states
    from recipes.loading import read_study_file
    from recipes.manifest import finished_manifest

    if study_dir.exists():
        study = read_study_file(study_dir).get("study")
        if study != recipe.study:
            raise UserError(f"{study_dir} holds the study {study!r}, not {recipe.study!r}; choose another --out")
    path = study_dir / "report" / "transfer.json"
    if finished_manifest(study_dir / "report") is None:
        made = f"transfer run {study_dir}" if study_dir.exists() else "transfer run RECIPE"
        raise UserError(f"{study_dir} has no finished report; `{made}` makes it")
    state = stage_states(build_stages(recipe), study_dir).get("report")
    if as_json:
        print(path.read_text(encoding="utf-8"), end="")
    else:
        from eval.report.schema import read_transfer
        from eval.report.table import format_report

        print(f"\n{format_report(read_transfer(path))}\n\nreport: {path.with_name('index.html')}")
    if state is None or state.state != "done":
        sys.stdout.flush()
        reasons = "; ".join(state.reasons) if state is not None else "the recipe has no report"
        print(f"transfer: the recipe has changed since this report was made ({reasons})", file=sys.stderr)
    return 0


@command("download and pin what a recipe names", STUDY, OVERRIDES)
def fetch(options: argparse.Namespace) -> int:
    """Resolve every source, benchmark and model of a recipe, and write commit, sha256 and number of rows to RECIPE's
    .lock.json, which every later build checks. Needs a network.
    """
    from launch.fetch import Fetched, fetch, format_lock, messages, write_lock
    from launch.pairs import audit_recipes
    from recipes.loading import load_recipe, lock_path, read_yaml

    if options.study.is_dir():
        raise UserError(f"{options.study} is a folder, and the lock is written beside a recipe; name the recipe's file")
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        if options.study.is_file() and "pairs" in read_yaml(options.study):  # an audit
            fetched = Fetched()
            for recipe, _ in audit_recipes(options.study, options.overrides):
                fetched.add(fetch(recipe, None))
            write_lock(fetched, options.study)
        else:
            fetched = fetch(load_recipe(options.study, options.overrides), options.study)
    path = lock_path(options.study)
    print_result(options, fetched.lock, format_lock(fetched, path))
    sys.stdout.flush()
    for text in messages(fetched, path):
        print(f"transfer: {text}", file=sys.stderr)
    return 2 if fetched.failed else 0


@command("prove that the arms were presented the same problems", STUDY)
def lineage(options: argparse.Namespace) -> int:
    """Compare the problem ids in the arms' ledgers: how often each problem was presented to each arm, and which had a
    gradient. Exit status 2 if the arms differ, or fewer than two of them have run.
    """
    from recipes.loading import load_study
    from train.accounting.lineage import format_lineage, study_lineage

    study_dir = study_folder(options.study)
    lineage = study_lineage(load_study(study_dir), study_dir)
    print_result(options, lineage, format_lineage(lineage))
    return 0 if lineage["equal"] else 2
