"""The subcommands about evaluation: eval, gate, compare, audit, score, work, power."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands.arguments import (
    Handler,
    add_command,
    add_overrides,
    add_recipe,
    add_study_dir,
    require_max_drop,
)
from launch.commands.recipe import read_study
from recipes.errors import UserError

if TYPE_CHECKING:
    from eval.report.schema import Transfer
    from recipes.schema import Recipe


def _add_pair(commands: Any, name: str, short: str, description: str, handler: Handler) -> argparse.ArgumentParser:
    """Add a subcommand that scores a base and checkpoints."""
    parser = add_command(commands, name, short, description, handler)
    parser.add_argument("--base", required=True, metavar="MODEL", help="directory or hub id of the base")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", action="append", help="a checkpoint to compare; may be repeated"
    )
    parser.add_argument(
        "--suite", metavar="FILE", type=Path, help="recipe whose suite is used (default: recipes/suites/twelve.yaml)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="study directory (default: runs/eval-<model>)")
    add_overrides(parser)
    return parser


def _pair(options: argparse.Namespace) -> "tuple[Recipe, Path]":
    from launch.pairs import DEFAULT_SUITE, arm_names, evaluation_recipe

    names = arm_names(options.model)
    study = "eval-" + "-".join(name.lower().replace("_", "-") for name in names)[:80].strip("-")
    recipe = evaluation_recipe(options.base, names, options.suite or DEFAULT_SUITE, study, options.overrides)
    return recipe, options.out or Path("runs") / study


def add_eval(commands: Any) -> None:
    """Add `transfer eval`."""
    parser = _add_pair(
        commands,
        "eval",
        "score any pair of models",
        "Ask a base and one or more checkpoints (directories, or hub ids as owner/name@commit) the questions of a "
        "suite and report gains, indices and their intervals. A rerun generates nothing twice.",
        _eval,
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, run nothing")


def _eval(options: argparse.Namespace) -> int:
    recipe, study_dir = _pair(options)
    if options.dry_run:
        return _plan(recipe, study_dir, options.json)
    return run_study(recipe, study_dir, options.json)


def _plan(recipe: "Recipe", study_dir: Path, as_json: bool) -> int:
    from launch.planning.plan import build_plan
    from launch.planning.plan_text import format_plan
    from launch.planning.preflight import check_before_running
    from launch.stages import build_stages

    check_before_running(recipe)
    plan = build_plan(recipe, build_stages(recipe), study_dir)
    print(json.dumps(plan, indent=1) if as_json else format_plan(plan))
    return 2 if plan["obstacles"] else 0


def run_study(recipe: "Recipe", study_dir: Path, as_json: bool, show: bool = True) -> int:
    """Run all stages of a recipe and show its report; returns the exit status."""
    from launch.commands.recipe import show_report
    from launch.planning.preflight import check_before_running
    from launch.run import run_stages
    from launch.stages import build_stages

    check_before_running(recipe)
    status = run_stages(recipe, study_dir, build_stages(recipe), as_json)
    return show_report(recipe, study_dir, as_json) if status == 0 and show else status


def _transfer(study_dir: Path) -> "Transfer":
    from eval.report.schema import REHEARSAL, read_transfer

    path = study_dir / "report" / "transfer.json"
    if not path.is_file():
        raise UserError(f"{study_dir} has no finished report; `transfer run` makes it")
    transfer = read_transfer(path)
    if transfer.status == REHEARSAL:
        raise UserError(f"{study_dir} is a rehearsal: its models are tiny and random; name a study that was run")
    return transfer


def add_gate(commands: Any) -> None:
    """Add `transfer gate`."""
    parser = _add_pair(
        commands,
        "gate",
        "may this model be released?",
        "Score a base and checkpoints as `eval` does. Exit status 1 if a group of benchmarks may have lost more than "
        "--max-drop points, by the lower end of its interval.",
        _gate,
    )
    parser.add_argument("--max-drop", required=True, type=float, metavar="POINTS", help="largest loss allowed")


def _gate(options: argparse.Namespace) -> int:
    from eval.report.decisions import gate

    require_max_drop(options.max_drop)
    recipe, study_dir = _pair(options)
    status = run_study(recipe, study_dir, as_json=True, show=False)
    if status:
        return status if status > 1 else 2  # 1 is the verdict
    transfer = _transfer(study_dir)
    for found in transfer.warnings:
        print(f"transfer: warning: {found.message}", file=sys.stderr)
    verdicts = {arm: gate(transfer, arm, options.max_drop) for arm in recipe.arms}
    if options.json:
        print(json.dumps({arm: {"passed": ok, "reasons": why} for arm, (ok, why) in verdicts.items()}, indent=1))
    else:
        for ok, sentences in verdicts.values():
            for sentence in sentences:
                print(f"{'PASS' if ok else 'FAIL'}  {sentence}")
    return 0 if all(ok for ok, _ in verdicts.values()) else 1


def add_compare(commands: Any) -> None:
    """Add `transfer compare`."""
    parser = add_command(
        commands,
        "compare",
        "compare a finished study with the published scores",
        "Every score of a study, in the reading `paper`, beside Table 1 of arXiv 2507.00432: agrees, differs or too "
        "uncertain.",
        _compare,
    )
    add_study_dir(parser, "study directory with a finished report")
    parser.add_argument(
        "--as", dest="rows", metavar="ARM=MODEL", action="append", default=[], help="which published model an arm is"
    )


def _compare(options: argparse.Namespace) -> int:
    from eval.report.decisions import compare_with_published, default_rows, format_comparison

    given = dict(row.split("=", 1) for row in options.rows if "=" in row)
    if len(given) != len(options.rows):
        raise UserError(f"--as must have the form ARM=MODEL, not {', '.join(r for r in options.rows if '=' not in r)}")
    transfer = _transfer(options.study_dir)
    rows, wrong = default_rows(list(transfer.arms), given)
    if wrong:
        raise UserError("; ".join(wrong))
    cells = compare_with_published(transfer, rows)
    if not cells:
        raise UserError(f"{options.study_dir} has none of the twelve benchmarks of the published comparison")
    print(json.dumps([cell.dump() for cell in cells], indent=1) if options.json else format_comparison(cells))
    return 0


def add_audit(commands: Any) -> None:
    """Add `transfer audit`."""
    parser = add_command(
        commands,
        "audit",
        "audit many base and tuned models, or the published audit",
        "Score the pairs of an audit file, one study for each base, and list the transfer index of each. --published "
        "recomputes the indices that arXiv 2507.00432 prints from the scores it prints.",
        _audit,
    )
    parser.add_argument("recipe", metavar="FILE", nargs="?", help="audit file, for instance recipes/audit/paper.yaml")
    add_overrides(parser)
    parser.add_argument("--published", action="store_true", help="recompute the published indices; runs no model")
    parser.add_argument("--figure", metavar="FILE", type=Path, help="write the figure of both indices as SVG")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs"), help="folder of the studies")
    parser.add_argument("--dry-run", action="store_true", help="print what would be scored, run nothing")


def _audit(options: argparse.Namespace) -> int:
    if options.published:
        from eval.published.audit import format_published, recompute

        rows = recompute()
        _draw([row | {"index": row["published"]} for row in rows], options.figure)
        print(json.dumps(rows, indent=1) if options.json else format_published(rows))
        return 0
    if options.recipe is None:
        raise UserError("name an audit file, for instance recipes/audit/paper.yaml, or give --published")
    return _run_audit(options)


def _run_audit(options: argparse.Namespace) -> int:
    from contextlib import redirect_stdout

    from eval.report.wording import index_text
    from launch.pairs import audit_recipes

    studies = audit_recipes(Path(options.recipe), options.overrides)
    if options.dry_run:
        for recipe, _ in studies:
            _plan(recipe, options.out / recipe.study, options.json)
        return 0
    rows, failed = [], 0
    for recipe, pairs in studies:
        with redirect_stdout(sys.stderr if options.json else sys.stdout):
            print(f"{recipe.study}: {', '.join(recipe.arms)}")
            status = run_study(recipe, options.out / recipe.study, as_json=True, show=False)
        if status:  # the other bases are unharmed
            failed = status
            continue
        transfer = _transfer(options.out / recipe.study)
        for (arm, result), pair in zip(transfer.arms.items(), pairs, strict=True):
            definition = transfer.definition
            rows.append(
                {key: pair[key] for key in ("name", "base", "model", "method", "size")}
                | {
                    "groups": {group: gain.dump() for group, gain in result.groups.items()},
                    "definition": definition,
                    "arm": arm,
                }
                | {"index": {group: cell.estimate for group, cell in result.index[definition].items()}}
                | {
                    "text": {
                        group: index_text(result, definition, group, transfer.trained_group)
                        for group in result.index[definition]
                    }
                }
            )
    complete = [row | {"model": row["name"]} for row in rows if None not in row["index"].values()]
    _draw(complete, options.figure)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            cells = "".join(f"{group} {text:<28}" for group, text in row["text"].items())
            print(f"{row['name']:<36}{row['method']:<6}{row['size']:>6g}B  {cells}")
    return failed


def _draw(rows: list[dict[str, Any]], path: Path | None) -> None:
    if path is None:
        return
    from eval.published.figure import audit_figure
    from recipes.manifest import write_atomic

    write_atomic(path, audit_figure(rows))
    print(f"figure: {path}", file=sys.stderr)


def add_score(commands: Any) -> None:
    """Add `transfer score`."""
    parser = add_command(
        commands,
        "score",
        "score stored responses again, without a model",
        "Score the stored responses of a study by a further rule and show what changed, or, without a rule, by the "
        "rules of the study, to check that the code still gives the same scores.",
        _score,
    )
    add_study_dir(parser, "study directory")
    parser.add_argument(
        "rules", metavar="BENCHMARK.NAME=RULE", nargs="*", help="for instance math500.loose=plain; kept as scores-loose"
    )
    parser.set_defaults(rest="rules")


def _score(options: argparse.Namespace) -> int:
    from eval.responses.rescore import format_rescored, parse_rescorings, rescore
    from recipes.loading import load_study

    recipe = load_study(options.study_dir)
    recipe.require_suite()
    changes = rescore(recipe, options.study_dir, parse_rescorings(recipe, options.rules))
    print(json.dumps(changes, indent=1) if options.json else format_rescored(changes))
    return 0


def add_work(commands: Any) -> None:
    """Add `transfer work`."""
    parser = add_command(
        commands,
        "work",
        "help with an evaluation that is running",
        "Generate chunks of responses that no process has generated yet, beside a `transfer run` of the same recipe on "
        "this or another machine that shares its folder. Any number of these may run; they end when nothing is left.",
        _work,
    )
    add_recipe(parser)
    parser.add_argument("--wait", action="store_true", help="wait for evaluations that have not started yet")


def _work(options: argparse.Namespace) -> int:
    from launch.execution.replicas import work

    return work(*read_study(options), options.wait)


def add_power(commands: Any) -> None:
    """Add `transfer power`."""
    parser = add_command(
        commands,
        "power",
        "what difference a suite can detect",
        "Smallest differences of group gains that samples and seeds can detect, and what they cost, before they are "
        "spent.",
        _power,
    )
    add_recipe(parser)
    parser.add_argument("--power", type=float, default=0.8, help="wanted chance to detect it (default 0.8)")


def _power(options: argparse.Namespace) -> int:
    from eval.report.power import format_power, power_table

    if not 0.5 < options.power < 1:
        raise UserError(f"--power is {options.power:g} but must lie between 0.5 and 1")
    table = power_table(*read_study(options), options.power)
    print(json.dumps(table, indent=1) if options.json else format_power(table))
    return 0
