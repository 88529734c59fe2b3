"""The `transfer` command. Imports what a subcommand needs when it is called, so that --help stays instant."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from launch.commands import ablate as ablation_cli
from launch.commands import evaluation as evaluation_cli
from launch.commands import forgetting as forgetting_cli
from launch.commands import rehearse as rehearsal_cli
from launch.commands import study as study_cli
from recipes.errors import UserError

_EPILOG = """examples:
  transfer run recipes/pocket/study.yaml                    the whole comparison on a CPU
  transfer run recipes/pocket/study.yaml seeds=[0,1,2]      the same with three training seeds
  transfer plan recipes/pocket/study.yaml                   what would run, and what it would cost
  transfer rehearse recipes/pocket/study.yaml               every stage at toy size, before it costs anything
  transfer check recipes/pocket/study.yaml                  do the arms differ only in the method?
  transfer report recipes/pocket/study.yaml                 show the transfer report of a finished study
  transfer lineage runs/pocket                              were all arms presented the same problems?
  transfer eval --base A --model B                          score any pair of models, with intervals
  transfer gate --base A --model B --max-drop 2             may B be released? exit status 0 or 1
  transfer trajectory recipes/pocket/study.yaml             what every checkpoint gained and lost
  transfer pick runs/pocket --max-drop 5                    the checkpoint to ship
  transfer audit --published                                recompute the published transfer indices
  transfer fetch recipes/qwen3-14b/corpus.yaml              download and pin what a recipe names

A rerun skips finished stages, resumes an interrupted one, and makes again what depends on a changed input.
Exit status: 0 done, 1 a stage failed, 2 a mistake in recipe, files or command, 75 stopped by a signal after saving."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="transfer",
        description="Train one base model on one math corpus by SFT, GRPO and the methods between, and measure what "
        "each does to everything the corpus was not about.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = _command(commands, "run", "run a study, or continue it", "Run the stages of a recipe that are not done yet.")
    run.add_argument("--dry-run", action="store_true", help="print the resolved recipe and the plan, run nothing")
    run.add_argument(
        "--until",
        metavar="STAGE",
        help="stop after a kind of stage (base, corpus, arms, ... report), or one by name",
    )
    study_cli.add_place(run)
    plan = _command(
        commands,
        "plan",
        "say what a recipe would do",
        "Stages with their state, updates, samples, tokens, FLOPs, and what stands in the way: on this machine, or "
        "with --on slurm on the cluster of the site file.",
    )
    study_cli.add_place(plan)
    _command(
        commands,
        "check",
        "check that the arms are matched",
        "Compare the arms of a recipe, and of its runs if there are any. Exit status 2 if they differ in more than "
        "the recipe declares under `varies`.",
    )
    _command(
        commands, "report", "show the transfer report", "Print the table of a finished study and where its page is."
    )
    _command(
        commands,
        "fetch",
        "download and pin what a recipe names",
        "Resolve every source, benchmark and model of a recipe: commit, sha256 and number of rows go into RECIPE's "
        ".lock.json, and every later build checks them. Run it on a machine with a network.",
        out=False,
    )
    lineage = commands.add_parser(
        "lineage",
        help="prove that the arms were presented the same problems",
        description="Compare the problem ids in the ledgers of a study: which were presented how often to each arm, "
        "and which had a gradient. Exit status 2 if the arms differ.",
    )
    lineage.add_argument("study_dir", metavar="RUN", type=Path, help="study directory, for instance runs/pocket")
    lineage.add_argument("--json", action="store_true", help="print JSON instead of text")
    lineage.set_defaults(overrides=[])
    study_cli.add_commands(commands)
    rehearsal_cli.add_commands(commands, _command, study_cli.add_place)
    ablation_cli.add_commands(commands, study_cli.add_place)
    evaluation_cli.add_commands(commands, _command)
    forgetting_cli.add_commands(commands, _command)
    return parser


def _command(commands: Any, name: str, short: str, description: str, out: bool = True) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=short, description=description)
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, for instance recipes/pocket/study.yaml")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="settings to change, for instance train.steps=10 seeds=[0,1]"
    )
    if out:
        parser.add_argument("--out", metavar="DIR", type=Path, help="study directory (default: runs/<study>)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console command; returns the exit status."""
    parser = build_parser()
    # argparse takes positionals up to the first option only; overrides may also come after one.
    options, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in rest):
        parser.error(f"unknown option {next(word for word in rest if word.startswith('-'))}; see transfer --help")
    if rest and options.command in ("lineage", "compare", "pick", "sync", *study_cli.NAMES):
        parser.error(f"{options.command} takes one study directory, not also {rest[0]!r}")
    if options.command == "score":
        options.rules = [*options.rules, *rest]
    options.overrides = [*getattr(options, "overrides", []), *rest]
    try:
        return _run_command(options)
    except UserError as error:
        print(f"transfer: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        return 0


def _run_command(options: argparse.Namespace) -> int:
    from launch.stages import build_stages, select_until
    from recipes.loading import load_recipe

    if options.command in evaluation_cli.NAMES:
        return evaluation_cli.run_command(options)
    if options.command in rehearsal_cli.NAMES:
        return rehearsal_cli.run_command(options)
    if options.command in forgetting_cli.NAMES:
        return forgetting_cli.run_command(options)
    if options.command in study_cli.NAMES:
        return study_cli.run_command(options)
    if options.command in ablation_cli.NAMES:
        return ablation_cli.run_command(options)
    if options.command == "lineage":
        return _lineage(options.study_dir, options.json)
    if options.command == "fetch" and is_audit(Path(options.recipe)):
        return _fetch_audit(Path(options.recipe), options.overrides, options.json)
    recipe = load_recipe(options.recipe, options.overrides)
    if options.command == "fetch":
        return _fetch(recipe, Path(options.recipe), options.json)
    study_dir = options.out or Path("runs") / recipe.study
    if options.command == "check":
        return _check(recipe, study_dir, options.json)
    if options.command == "report":
        return report(recipe, study_dir, options.json)

    from launch.planning.plan import build_plan
    from launch.planning.plan_text import format_plan
    from launch.planning.preflight import check_before_running
    from launch.slurm.site_file import find_site, load_site

    until = getattr(options, "until", None)
    stages = select_until(build_stages(recipe), until)
    check_before_running(recipe)
    if options.command == "run" and options.on == "slurm":
        if not options.dry_run:
            require_runnable(recipe)
        return study_cli.submit_study(recipe, study_dir, until, options.site, options.dry_run)
    if options.command == "plan" or options.dry_run:
        out = ["--out", str(options.out)] if options.out else []
        invocation = shlex.join(["transfer", "run", options.recipe, *options.overrides, *out])
        site = load_site(find_site(options.site)) if options.on == "slurm" else None
        plan = build_plan(recipe, stages, study_dir, invocation, site)
        if options.command == "run":
            plan = {"recipe": recipe.dump()} | plan
        if options.json:
            print(json.dumps(plan, indent=1))
        else:
            if options.command == "run":
                print(json.dumps(recipe.dump(), indent=1))
            print(format_plan(plan, commands=options.command == "run"))
        return 2 if plan["obstacles"] else 0
    status = run_stages(recipe, study_dir, stages, options.json, until)
    if status == 0 and stages[-1].kind == "report":
        return report(recipe, study_dir, options.json)
    return status


def require_runnable(recipe: Any) -> None:
    """Warn of what is probably not meant. Raises UserError for a recipe that must not or cannot run."""
    from launch.planning.preflight import check_resolved

    check_resolved(recipe)
    require_possible(recipe)


def require_possible(recipe: Any) -> None:
    """The same, but for data and models that are not on this machine yet."""
    from launch.planning.fit import model_shape, obstacles
    from launch.planning.preflight import warnings
    from train.accounting.matching import require_matched

    require_matched(recipe)
    for text in obstacles(recipe, model_shape(recipe)):
        raise UserError(f"cannot work: {text}")
    for text in warnings(recipe):
        print(f"transfer: warning: {text}", file=sys.stderr)


def require_ready(recipe: Any, stages: list[Any], study_dir: Path, site: Any = None) -> None:
    """Say what the stages that are to run will lack where they run. Raises UserError for what cannot work."""
    from launch.planning.findings import findings, refuse

    found = findings(recipe, stages, study_dir, site)
    refuse(found)
    for finding in found:
        print(f"transfer: {finding.severity}: {finding}", file=sys.stderr)


def run_stages(recipe: Any, study_dir: Path, stages: list[Any], as_json: bool, until: str | None = None) -> int:
    """Check a recipe, then run what is not done of its stages on this machine; returns the exit status."""
    from contextlib import redirect_stdout

    from launch.execution.local import run_local

    require_runnable(recipe)
    require_ready(recipe, stages, study_dir)
    if recipe.resources.nodes > 1:
        raise UserError(
            f"resources.nodes is {recipe.resources.nodes}; several machines need --on slurm, or set resources.nodes=1"
        )
    study_cli.refuse_if_queued(study_dir)
    # With --json standard output carries the report alone; progress goes to standard error.
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        return run_local(recipe, study_dir, stages, until)


def report(recipe: Any, study_dir: Path, as_json: bool) -> int:
    """Show the report of a finished study; returns the exit status."""
    from launch.stages import build_stages, stage_states
    from recipes.loading import read_study_file
    from recipes.manifest import read_manifest

    if study_dir.exists():
        study = read_study_file(study_dir).get("study")
        if study != recipe.study:
            raise UserError(f"{study_dir} holds the study {study!r}, not {recipe.study!r}; choose another --out")
    path = study_dir / "report" / "transfer.json"
    manifest = read_manifest(study_dir / "report")
    if manifest is None or not manifest["completed"]:
        raise UserError(f"{study_dir} has no finished report; `transfer run` makes it")
    state = stage_states(build_stages(recipe), study_dir).get("report")
    if state is None or state.state != "done":
        reasons = "; ".join(state.reasons) if state is not None else "the recipe has no report"
        print(f"transfer: this report is not of the recipe as it is now ({reasons})", file=sys.stderr)
    if as_json:
        print(path.read_text(encoding="utf-8"), end="")
        return 0
    from eval.report.schema import read_transfer
    from eval.report.table import format_report

    print()
    print(format_report(read_transfer(path)))
    print(f"\nreport: {path.with_name('index.html')}")
    return 0


def _lineage(study_dir: Path, as_json: bool) -> int:
    from recipes.loading import load_study
    from train.accounting.lineage import format_lineage, study_lineage

    lineage = study_lineage(load_study(study_dir), study_dir)
    print(json.dumps(lineage, indent=1) if as_json else format_lineage(lineage))
    return 0 if lineage["equal"] else 2


def _fetch(recipe: Any, recipe_path: Path, as_json: bool) -> int:
    from contextlib import redirect_stdout

    from launch.fetch import fetch

    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        found = fetch(recipe, recipe_path)
    return _tell_fetched(found, recipe_path, as_json)


def _tell_fetched(found: Any, recipe_path: Path, as_json: bool) -> int:
    """Print what was resolved and what was not; returns the exit status."""
    from launch.fetch import format_lock, remarks
    from recipes.loading import lock_path

    path = lock_path(recipe_path)
    print(json.dumps(found.lock, indent=1) if as_json else format_lock(found.lock, path), flush=True)
    for text in remarks(found, path):
        print(f"transfer: {text}", file=sys.stderr)
    return 2 if found.problems else 0


def is_audit(path: Path) -> bool:
    """Whether a file lists pairs to audit instead of one study."""
    from recipes.loading import read_yaml

    return path.is_file() and "pairs" in read_yaml(path)


def _fetch_audit(path: Path, overrides: list[str], as_json: bool) -> int:
    from contextlib import redirect_stdout

    from launch.fetch import Fetched, fetch, write_lock
    from launch.pairs import audit_recipes

    found = Fetched()
    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        for recipe, _ in audit_recipes(path, overrides):
            found.add(fetch(recipe, None))
    write_lock(found, path)
    return _tell_fetched(found, path, as_json)


def _check(recipe: Any, study_dir: Path, as_json: bool) -> int:
    from launch.planning.needs import attention_of_runs
    from train.accounting.matching import recipe_differences, recorded_differences

    attention = {name: used for name in recipe.trained if (used := attention_of_runs(recipe, name, study_dir))}
    found = {"recipe": recipe_differences(recipe), "runs": recorded_differences(recipe, study_dir)}
    differences = [*found["recipe"], *found["runs"]]
    if as_json:
        print(json.dumps({"study": recipe.study, "matched": not differences, "differences": found,
                          "attention": attention}, indent=1))  # fmt: skip
    elif differences:
        print(f"{recipe.study} is UNMATCHED:")
        for text in differences:
            print(f"  {text}")
    elif not recipe.arms:
        print(f"{recipe.study} has no arms to compare")
    else:
        print(f"{recipe.study} is matched: {', '.join(recipe.arms)} differ only in {', '.join(recipe.varies)}")
    if attention and not as_json:
        print(
            f"attention of finished runs: {', '.join(sorted({kind for used in attention.values() for kind in used}))}"
        )
    return 2 if differences else 0
