"""Arguments that several subcommands share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes.errors import UserError

Handler = Callable[[argparse.Namespace], int]


def add_command(commands: Any, name: str, short: str, description: str, handler: Handler) -> argparse.ArgumentParser:
    """Add a subcommand with --json; `handler` runs it and returns the exit status."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=short, description=description)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(handler=handler, rest=None)
    return parser


def add_overrides(parser: argparse.ArgumentParser, text: str = "settings to change") -> None:
    """Add `key=value`, before options and after them."""
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=text)
    parser.set_defaults(rest="overrides")


def add_recipe(parser: argparse.ArgumentParser, out: bool = True) -> argparse.ArgumentParser:
    """Add RECIPE and its overrides; `out`: also the study directory."""
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, for instance recipes/pocket/study.yaml")
    add_overrides(parser, "settings to change, for instance train.steps=10 seeds=[0,1]")
    if out:
        parser.add_argument("--out", metavar="DIR", type=Path, help="study directory (default: runs/<study>)")
    return parser


def add_study_dir(
    parser: argparse.ArgumentParser, text: str = "study directory, for instance runs/pocket"
) -> argparse.ArgumentParser:
    """Add RUN, the directory of a study."""
    parser.add_argument("study_dir", metavar="RUN", type=Path, help=text)
    return parser


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide where stages run: this machine or a Slurm cluster."""
    parser.add_argument(
        "--on", choices=("local", "slurm"), default="local", help="this machine (default), or a Slurm cluster"
    )
    parser.add_argument(
        "--site",
        metavar="FILE",
        type=Path,
        help="settings of the cluster (default: $TRANSFER_SITE, or ~/.config/transfer/site.yaml)",
    )


def require_max_drop(value: float) -> None:
    """Raise UserError for a negative --max-drop."""
    if not value >= 0:
        raise UserError(f"--max-drop is {value:g} but must be 0 or more points")
