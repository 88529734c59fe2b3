"""The `transfer` command. Handlers import what they need when they are called, so that --help stays instant."""

import argparse
import sys

from launch.commands import ablate, evaluation, forgetting, grading, recipe, rehearse, study
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
  transfer grade --gold 7 --response out.txt --explain      is an answer correct, and by which rule?
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
    for add in (
        *(recipe.add_run, recipe.add_plan, recipe.add_check, recipe.add_report, recipe.add_fetch, recipe.add_lineage),
        *(study.add_status, study.add_logs, study.add_cancel, study.add_resume, study.add_doctor),
        *(rehearse.add_rehearse, ablate.add_ablate),
        *(evaluation.add_eval, evaluation.add_gate, evaluation.add_compare, evaluation.add_audit),
        *(evaluation.add_score, evaluation.add_work, evaluation.add_power),
        *(forgetting.add_trajectory, forgetting.add_pick, forgetting.add_sync),
        grading.add_grade,
    ):
        add(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console command; returns the exit status."""
    parser = build_parser()
    # argparse takes positionals up to the first option only; overrides and rules may also come after one.
    options, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in rest):
        parser.error(f"unknown option {next(word for word in rest if word.startswith('-'))}; see transfer --help")
    if rest and options.rest is None:
        parser.error(f"{options.command} takes one study directory, not also {rest[0]!r}")
    if rest:
        setattr(options, options.rest, [*getattr(options, options.rest), *rest])
    try:
        status: int = options.handler(options)
        return status
    except UserError as error:
        print(f"transfer: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output closed it, as `| head` does
        sys.stderr.close()
        return 0
