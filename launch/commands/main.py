"""The `transfer` command line: all subcommands, their parser, and the exit status."""

import argparse
import difflib
import errno
import sys
from typing import Any

from launch.commands import (
    ablate,
    completion,
    config,
    diff,
    evaluation,
    forgetting,
    grading,
    init,
    push,
    recipe,
    rehearse,
    study,
    validate,
    view,
)
from launch.commands.arguments import STUDY
from recipes.errors import UserError

COMMANDS = (
    *(init.init, validate.validate, recipe.run, recipe.plan, rehearse.rehearse),
    *(recipe.check, recipe.report, recipe.fetch, recipe.lineage),
    *(study.status, study.logs, study.cancel, study.resume, study.doctor, ablate.ablate),
    *(evaluation.eval_, evaluation.gate, evaluation.compare, evaluation.audit),
    *(evaluation.score, evaluation.work, evaluation.power, view.view),
    *(forgetting.trajectory, forgetting.pick, push.push, forgetting.sync),
    *(diff.diff, grading.grade, config.config, completion.completion),
)
_INTERRUPTED = 130  # as shells report Ctrl-C
_REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}
"""What a file system refuses to a user."""
_EPILOG = """examples:
  transfer init study own/study.yaml                        a commented recipe with example data, to change
  transfer validate own/study.yaml                          open and render everything it reads
  transfer run recipes/pocket/study.yaml                    the whole comparison on a CPU
  transfer run recipes/pocket/study.yaml 'seeds=[0,1,2]'    the same with three training seeds
  transfer plan recipes/pocket/study.yaml                   what would run, and what it would cost
  transfer rehearse recipes/pocket/study.yaml               every stage at toy size, before it costs anything
  transfer check recipes/pocket/study.yaml                  do the arms differ only in the method?
  transfer report runs/pocket                               show the transfer report of a finished study
  transfer view runs/pocket                                 read the responses of all models side by side
  transfer lineage runs/pocket                              were all arms presented the same problems?
  transfer eval --base A --model B                          score any pair of models, with intervals
  transfer gate runs/pocket grpo --max-drop 5               no loss above 5 points? exit status 0 or 1
  transfer trajectory recipes/pocket/study.yaml             what every checkpoint gained and lost
  transfer pick runs/pocket --max-drop 5                    the checkpoint to ship
  transfer push runs/pocket grpo --to ME/MODEL --dry-run    a model and its card for the hub
  transfer grade --gold 7 --response out.txt --explain      is an answer correct, and by which rule?
  transfer audit --published                                recompute the published transfer indices
  transfer fetch recipes/qwen3-14b/corpus.yaml              download and pin what a recipe names

Wherever a command takes a recipe it also takes the folder of a study, which holds its recipe, and the other way round.
A rerun skips finished stages, resumes an interrupted one, and runs again what depends on a changed input.
Exit status: 0 done, 1 a stage failed, 2 a mistake in recipe, files or command, 75 stopped by a signal after saving,
130 interrupted."""


class _Version(argparse.Action):
    """Print the version. It is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any, **settings: Any) -> None:
        from importlib import metadata

        try:
            print(f"transfer-lab {metadata.version('transfer-lab')}")
        except metadata.PackageNotFoundError:
            print("transfer-lab, not installed")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="transfer",
        description="Train one base model on one corpus by SFT, GRPO and the methods between, and measure what "
        "each does to everything the corpus was not about.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", nargs=0, action=_Version, help="print the version")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, help=command.summary, description=command.description)
        lists = [item.names[0] for item in command.arguments if item.settings.get("nargs") == "*"]
        subparser.set_defaults(run=command.run, commands=COMMANDS, rest=lists[0] if lists else None)
        for item in command.arguments:
            subparser.add_argument(*item.names, **item.settings)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console command; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = build_parser()
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    _suggest(parser, words)
    # argparse takes positionals up to the first option only; lists of them may continue after one.
    options, rest = parser.parse_known_args(words)
    if unknown := [word for word in rest if word.startswith("-")]:
        parser.error(f"unknown option {unknown[0]}; {_nearest_option(options.command, unknown[0])}")
    if rest and options.rest is None:
        parser.error(f"{options.command} takes {_taken(options.command)}, not also {rest[0]!r}")
    if rest:
        setattr(options, options.rest, [*getattr(options, options.rest), *rest])
    try:
        status: int = options.run(options)
        return status
    except UserError as error:
        print(f"transfer: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntransfer: interrupted; finished work is kept, the same command continues", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of the output closed it, as `| head` does
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in _REFUSED or error.filename is None:
            raise
        print(f"transfer: {error.filename} cannot be read or written: {error.strerror}", file=sys.stderr)
        return 2


def _taken(name: str) -> str:
    """The words, besides options, that the command `name` takes."""
    command = next(command for command in COMMANDS if command.name == name)
    words = [item.settings.get("metavar", item.names[0]) for item in command.arguments if item.names[0][0] != "-"]
    if words and set(words) == {STUDY.settings["metavar"]}:
        return "one study" if len(words) == 1 else "two studies"
    return " and ".join(words) or "only options"


def _nearest_option(name: str, word: str) -> str:
    """What to say about an option that the command `name` does not have."""
    command = next(command for command in COMMANDS if command.name == name)
    known = [option for item in command.arguments for option in item.names if option.startswith("-")]
    near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
    return f"did you mean {near[0]}?" if near else f"see transfer {name} --help"


def _suggest(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """End with the nearest command if the first word is none."""
    names = [command.name for command in COMMANDS]
    if words and not words[0].startswith("-") and words[0] not in names:
        near = difflib.get_close_matches(words[0], names, n=1)
        hint = f"did you mean `transfer {near[0]}`?" if near else f"there are {', '.join(names)}"
        parser.error(f"{words[0]!r} is not a command; {hint}")
