"""The subcommands about evaluation: eval, gate, compare, audit, score, work, power."""

import argparse
import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands.arguments import (
    DRY_RUN,
    FIGURE,
    OUT,
    OVERRIDES,
    SHIPPED,
    STUDY,
    argument,
    command,
    input_file,
    print_result,
    read_study,
    refuse_rehearsal,
    require_max_drop,
    study_folder,
    write_figure,
)
from recipes.errors import UserError
from recipes.layout import stage_lock
from recipes.suggestions import did_you_mean

if TYPE_CHECKING:
    from eval.report.schema import Transfer
    from recipes.schema import Recipe

_BASE, _MODEL = "directory or hub id of the base", "a checkpoint to score; may be repeated"
_SUITE = (
    argument(
        "--suite",
        metavar="FILE",
        type=input_file,
        help="recipe whose suite is used (default: recipes/suites/twelve.yaml)",
    ),
    argument("--out", metavar="DIR", type=Path, help="folder of the study (default: runs/eval-<model>)"),
)


def _pair(options: argparse.Namespace, overrides: list[str]) -> "tuple[Recipe, Path]":
    """The recipe that scores --base and --model, and the folder of its study."""
    from launch.pairs import arm_names, at_revision, evaluation_recipe, refuse_other_models
    from launch.planning.preflight import model_mistake

    flags = {"--base": [options.base], "--model": options.model}
    models = [(flag, at_revision(model)[0]) for flag, given in flags.items() for model in given]
    if wrong := [f"{flag} {path} {why}" for flag, path in models if (why := model_mistake(path)) is not None]:
        raise UserError("\n".join(wrong))
    names = arm_names(options.model)
    study = "eval-" + "-".join(name.lower().replace("_", "-") for name in names)[:80].strip("-")
    suite = options.suite or SHIPPED / "recipes" / "suites" / "twelve.yaml"
    recipe = evaluation_recipe(options.base, names, suite, study, overrides)
    if options.out is None:
        refuse_other_models(recipe, Path("runs") / study)
    return recipe, options.out or Path("runs") / study


@command(
    "score any pair of models",
    argument("--base", required=True, metavar="MODEL", help=_BASE),
    argument("--model", required=True, metavar="MODEL", action="append", help=_MODEL),
    *_SUITE,
    OVERRIDES,
    DRY_RUN,
)
def eval_(options: argparse.Namespace) -> int:
    """Evaluate a base and one or more checkpoints (directories, or hub ids as owner/name@commit) on a suite and report
    gains and transfer indices with intervals. A rerun generates nothing twice.
    """
    from launch.commands.recipe import run_and_report, show_plan
    from launch.planning.preflight import check_before_running
    from launch.stages import build_stages

    recipe, study_dir = _pair(options, options.overrides)
    check_before_running(recipe)
    if options.dry_run:
        return show_plan(recipe, study_dir, build_stages(recipe), options)
    return run_and_report(recipe, study_dir, build_stages(recipe), options.json)


def _run(recipe: "Recipe", study_dir: Path) -> int:
    """Run all stages of a recipe with progress on standard error; returns the exit status."""
    from launch.planning.preflight import check_before_running
    from launch.run import run_stages
    from launch.stages import build_stages

    check_before_running(recipe)
    return run_stages(recipe, study_dir, build_stages(recipe), as_json=True)


def _transfer(study_dir: Path) -> "Transfer":
    from eval.report.schema import REHEARSAL, read_transfer
    from recipes.loading import read_study_file

    if not (study_dir / "report").is_dir():
        read_study_file(study_dir)  # says what a folder is that holds no study
    transfer = read_transfer(study_dir)
    refuse_rehearsal(transfer.status == REHEARSAL, study_dir)
    return transfer


@command(
    "has a model lost more than allowed?",
    argument(
        "words",
        metavar="RUN [ARM ...] | key=value",
        nargs="*",
        default=[],
        help="a finished study and its arms (default: all), whose stored scores are judged; with --base and --model "
        "settings of the suite to change",
    ),
    argument("--base", metavar="MODEL", help=_BASE),
    argument("--model", metavar="MODEL", action="append", default=[], help=_MODEL),
    *_SUITE,
    argument("--max-drop", required=True, type=float, metavar="POINTS", help="largest loss allowed"),
)
def gate(options: argparse.Namespace) -> int:
    """Exit with status 1 if any group of benchmarks may have lost more than --max-drop points, judged by the lower end
    of its interval. Only losses count; a model without a gain on the trained group gets a note. Judges the stored
    scores of a finished study or, with --base and --model, generates and scores new responses as `eval` does.
    """
    require_max_drop(options.max_drop)
    if options.base and options.model:
        recipe, study_dir = _pair(options, options.words)
        if status := _run(recipe, study_dir):
            return status if status > 1 else 2  # 1 is the verdict
        transfer = _transfer(study_dir)
        return _judge(options, study_dir, transfer, list(transfer.arms))
    if not options.words or options.base or options.model:
        raise UserError(
            "name a finished study, as in `transfer gate runs/pocket grpo --max-drop 5`, or both --base and --model"
        )
    if options.suite or options.out:
        raise UserError("a finished study is judged by its own scores; --suite and --out need --base and --model")
    study, *arms = options.words
    study_dir = study_folder(input_file(study))
    transfer = _transfer(study_dir)
    if unknown := [arm for arm in arms if arm not in transfer.arms]:
        raise UserError(f"{study_dir} has no arm {unknown[0]}; {did_you_mean(unknown[0], transfer.arms, 'it has')}")
    return _judge(options, study_dir, transfer, arms or list(transfer.arms))


def _judge(options: argparse.Namespace, study_dir: Path, transfer: "Transfer", arms: list[str]) -> int:
    """Print the verdict on every arm; the exit status of the gate."""
    from eval.report import gate

    verdicts = {arm: gate.judge(transfer, arm, options.max_drop) for arm in arms}
    lines = [f"{'PASS' if passed else 'FAIL'}  {text}" for passed, reasons in verdicts.values() for text in reasons]
    notes = {arm: gate.without_gain(transfer, arm) for arm in arms}
    lines += [f"note  {note}" for note in notes.values() if note]
    values = {
        arm: {
            "passed": passed,
            "groups": gate.judged_groups(transfer, arm, options.max_drop),
            "reasons": reasons,
            "note": notes[arm],
        }
        for arm, (passed, reasons) in verdicts.items()
    }
    print_result(options, values, "\n".join([*lines, f"report: {study_dir / 'report' / 'index.html'}"]))
    sys.stdout.flush()  # the verdict first
    for text in dict.fromkeys(w.message for w in transfer.warnings if w.model in (None, "base", *arms)):
        print(f"transfer: warning: {text}", file=sys.stderr)
    return 0 if all(passed for passed, _ in verdicts.values()) else 1


@command(
    "compare a finished study with the published scores",
    STUDY,
    argument(
        "--as", dest="models", metavar="ARM=MODEL", action="append", default=[], help="which published model an arm is"
    ),
)
def compare(options: argparse.Namespace) -> int:
    """Show every score of a study, in the reading `paper`, beside Table 1 of arXiv 2507.00432: agrees, differs or too
    uncertain. To compare two studies use `transfer diff A B`.
    """
    from eval.published.audit import published_benchmarks
    from eval.published.compare import compare_with_published, format_comparison, match_models

    if wrong := [pair for pair in options.models if "=" not in pair]:
        raise UserError(f"--as must have the form ARM=MODEL, not {', '.join(wrong)}")
    study_dir = study_folder(options.study)
    transfer = _transfer(study_dir)
    if published_benchmarks().isdisjoint(transfer.base.benchmarks):
        raise UserError(
            f"{study_dir} has none of the twelve benchmarks of the published comparison; to compare two studies, use "
            "`transfer diff A B`"
        )
    model_of_arm = match_models(list(transfer.arms), dict(pair.split("=", 1) for pair in options.models))
    scores = compare_with_published(transfer, model_of_arm)
    print_result(options, [score.dump() for score in scores], format_comparison(scores))
    return 0


@command(
    "audit many base and tuned models, or the published audit",
    argument(
        "recipe", metavar="FILE", nargs="?", type=input_file, help="audit file, for instance recipes/audit/paper.yaml"
    ),
    OVERRIDES,
    argument("--published", action="store_true", help="recompute the published indices; runs no model"),
    FIGURE,
    argument("--out", metavar="DIR", type=Path, default=Path("runs"), help="folder of the studies (default: runs)"),
    DRY_RUN,
)
def audit(options: argparse.Namespace) -> int:
    """Score the pairs of an audit file, one study per base, and list the transfer index of each pair. With --published,
    recompute the indices printed in arXiv 2507.00432 from the scores printed there.
    """
    if options.published:
        from eval.published.audit import format_published, recompute

        rows = recompute()
        write_figure(options, lambda: _figure([row | {"index": row["published"]} for row in rows]))
        print_result(options, rows, format_published(rows))
        return 0
    if options.recipe is None:
        raise UserError("name an audit file, for instance recipes/audit/paper.yaml, or give --published")
    from launch.commands.recipe import show_plan
    from launch.pairs import audit_recipes
    from launch.planning.preflight import check_before_running
    from launch.stages import build_stages

    studies = audit_recipes(options.recipe, options.overrides)
    if options.dry_run:
        statuses = []
        for recipe, _ in studies:
            check_before_running(recipe)
            statuses.append(show_plan(recipe, options.out / recipe.study, build_stages(recipe), options))
        return max(statuses)
    rows, failed = [], 0
    for recipe, pairs in studies:
        with redirect_stdout(sys.stderr if options.json else sys.stdout):
            print(f"{recipe.study}: {', '.join(recipe.arms)}")
            status = _run(recipe, options.out / recipe.study)
        if status:  # the studies of other bases still run
            failed = status
        else:
            rows += _audited(_transfer(options.out / recipe.study), pairs)
    complete = [row | {"model": row["name"]} for row in rows if None not in row["index"].values()]
    write_figure(options, lambda: _figure(complete))
    lines = [
        f"{row['name']:<36}{row['method']:<6}{row['size']:>6g}B  "
        + "".join(f"{group} {text:<28}" for group, text in row["text"].items())
        for row in rows
    ]
    print_result(options, rows, "\n".join(lines))
    return failed


def _figure(rows: list[dict[str, Any]]) -> str:
    from eval.published.figure import audit_figure

    return audit_figure(rows)


def _audited(transfer: "Transfer", pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each pair of one base: its group gains and transfer indices."""
    from eval.report.wording import index_text

    definition, trained, rows = transfer.definition, transfer.trained_group, []
    for (arm, result), pair in zip(transfer.arms.items(), pairs, strict=True):
        rows.append(
            {key: pair[key] for key in ("name", "base", "model", "method", "size")}
            | {
                "groups": {group: gain.dump() for group, gain in result.groups.items()},
                "definition": definition,
                "arm": arm,
                "index": {group: cell.estimate for group, cell in result.index[definition].items()},
                "text": {group: index_text(result, definition, group, trained) for group in result.index[definition]},
            }
        )
    return rows


@command(
    "score stored responses again, without a model",
    STUDY,
    argument(
        "rules",
        metavar="BENCHMARK.NAME=RULE",
        nargs="*",
        default=[],
        help="for instance math500.loose=plain; kept as scores-loose",
    ),
    argument("--write", action="store_true", help="keep the scores by the rules of the study, as they are now"),
)
def score(options: argparse.Namespace) -> int:
    """Score the stored responses of a study by another rule and show what changed. Without a rule, score them by the
    study's own rules, to check that the current code gives the same scores. After an upgrade that changed the scoring
    rules, --write replaces the stored scores of all models.
    """
    from eval.responses.rescore import format_rescored, parse_rescorings, rescore
    from launch.stages import build_stages, stage_states
    from recipes.loading import load_study

    study_dir = study_folder(options.study)
    recipe = load_study(study_dir)
    recipe.require_suite()
    rescorings = parse_rescorings(recipe, options.rules)
    if options.write and rescorings:
        raise UserError("--write is for the rules of the study; a further rule is kept without it")
    changes = _judge_all(recipe, study_dir) if options.write else rescore(recipe, study_dir, rescorings)
    print_result(options, changes, format_rescored(changes))
    if options.write and stage_states(build_stages(recipe), study_dir)["report"].state != "done":
        sys.stdout.flush()
        print(f"transfer: `transfer run {study_dir}` makes the report of these scores", file=sys.stderr)
    return 0


def _judge_all(recipe: "Recipe", study_dir: Path) -> list[dict[str, Any]]:
    """Judge everything again with nothing else writing there."""
    from eval.responses.rescore import judge_all
    from launch.planning.node import require_sandbox_of
    from launch.run import refuse_if_queued
    from recipes.files import locked

    require_sandbox_of(recipe)
    refuse_if_queued(study_dir)
    with ExitStack() as locks:
        locks.enter_context(locked(study_dir))
        for label in recipe.all_labels:
            locks.enter_context(locked(stage_lock(study_dir, f"eval/{label}")))
        return judge_all(recipe, study_dir)


@command(
    "help with an evaluation that is running",
    STUDY,
    OVERRIDES,
    OUT,
    argument("--wait", action="store_true", help="wait for evaluations that have not started yet"),
)
def work(options: argparse.Namespace) -> int:
    """Generate responses for a `transfer run` of the same recipe that is running on this or another machine with the
    same folder. Takes only chunks that no other process is generating. Any number of workers may run; each ends when
    nothing is left.
    """
    from launch.execution.replicas import work

    return work(*read_study(options), options.wait)


@command(
    "what difference a suite can detect",
    STUDY,
    OVERRIDES,
    OUT,
    argument("--power", type=float, default=0.8, help="wanted chance to detect it (default 0.8)"),
)
def power(options: argparse.Namespace) -> int:
    """Show the smallest differences between group gains that a number of samples and training seeds can detect, and
    what they cost, before running anything.
    """
    from eval.report.power import format_power, power_table

    if not 0.5 < options.power < 1:
        raise UserError(f"--power is {options.power:g} but must lie between 0.5 and 1")
    table = power_table(*read_study(options), options.power)
    print_result(options, table, format_power(table))
    return 0
