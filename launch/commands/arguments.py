"""How subcommands are declared, and the arguments that several of them share."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recipes.errors import UserError

if TYPE_CHECKING:
    from recipes.schema import Recipe

SHIPPED = Path(__file__).resolve().parents[2]
"""The folder above the shipped recipes/."""


class Argument(NamedTuple):
    """One call of argparse's `add_argument`."""

    names: tuple[str, ...]
    settings: dict[str, Any]


class Command(NamedTuple):
    """A subcommand."""

    name: str
    summary: str
    description: str
    arguments: tuple[Argument, ...]
    run: Callable[[argparse.Namespace], int]
    """Runs it and returns the exit status."""


def argument(*names: str, **settings: Any) -> Argument:
    """An argument of a subcommand, as argparse's `add_argument` takes it."""
    return Argument(names, settings)


def command(summary: str, *arguments: Argument) -> Callable[[Callable[[argparse.Namespace], int]], Command]:
    """Make a function the subcommand of its name. Its docstring is the description that --help prints."""

    def declare(run: Callable[[argparse.Namespace], int]) -> Command:
        description = " ".join((run.__doc__ or "").split())
        return Command(run.__name__.rstrip("_"), summary, description, (*arguments, _JSON), run)

    return declare


def input_file(text: str) -> Path:
    """A path given on the command line. A path such as recipes/pocket/study.yaml also works from other folders."""
    path = Path(text)
    shipped = SHIPPED / path
    return shipped if path.parts[:1] == ("recipes",) and not path.exists() and shipped.exists() else path


_JSON = argument("--json", action="store_true", help="print JSON instead of text")
STUDY = argument(
    "study",
    metavar="RECIPE|RUN",
    type=input_file,
    help="a recipe, for instance recipes/pocket/study.yaml, or the folder of a study, for instance runs/pocket",
)
OVERRIDES = argument(
    "overrides",
    metavar="key=value",
    nargs="*",
    default=[],  # without one argparse calls it required
    help="settings to change, for instance train.steps=10 'seeds=[0,1]' 'prompt.suffix=\" Box it.\"'",
)
OUT = argument("--out", metavar="DIR", type=Path, help="folder of the study (default: runs/<study>)")
DRY_RUN = argument("--dry-run", action="store_true", help="print what would run, run nothing")
NO_REUSE = argument(
    "--no-reuse",
    action="store_true",
    help="make everything again, also where a study beside this one has the same base, corpus, questions or scores of "
    "the base",
)
UNTIL = argument(
    "--until",
    metavar="STAGE",
    help="only a kind of stage (base, corpus, arms, ..., report), or one stage by name, and what it needs",
)
STAGE = argument("stage", metavar="STAGE", nargs="?", help="for instance arms/grpo/seed-0")
FIGURE = argument("--figure", metavar="FILE.svg", type=Path, help="draw the figure into this file")
CLUSTER = (
    argument("--on", choices=("local", "slurm"), default="local", help="this machine (default) or a Slurm cluster"),
    argument(
        "--site",
        metavar="FILE",
        type=Path,
        help="settings of the cluster (default: $TRANSFER_SITE, or ~/.config/transfer/site.yaml)",
    ),
)


def read_study(options: argparse.Namespace) -> "tuple[Recipe, Path]":
    """The recipe of RECIPE|RUN with the overrides, and the folder of the study."""
    from recipes.loading import load_recipe
    from train.arms import overruled

    recipe = load_recipe(options.study, overrides := getattr(options, "overrides", []))
    for key in (override.partition("=")[0] for override in overrides):
        if own := overruled(recipe, key):
            raise UserError(f"{key} changes nothing, because every arm has its own value; set {', '.join(own)}")
    default = options.study if options.study.is_dir() else Path("runs") / recipe.study
    return recipe, getattr(options, "out", None) or default


def study_folder(study: Path) -> Path:
    """The folder of RECIPE|RUN, which must exist: RUN itself, or the default one of a recipe or an ablation file.

    Raises:
        UserError: it does not exist.
    """
    from recipes.loading import read_yaml
    from recipes.suggestions import similar_file, similar_study

    path, made_by = study, "run"
    if path.is_file():
        values = read_yaml(path)
        if "recipe" in values:
            from launch.ablation import default_root

            name, made_by = str(values.get("name") or path.stem), "ablate"
            path = default_root("ablations", name)
        else:
            path = Path("runs") / str(values.get("study"))
    if not path.is_dir():
        if path == study and (near := similar_file(path.with_suffix(".yaml")) or similar_study(path)):
            raise UserError(f"{path} does not exist; did you mean {near}?")
        hint = f"`transfer {made_by}{'' if path == study else f' {study}'}` makes it"
        raise UserError(f"{path} does not exist; {hint}, or name the folder of another study")
    return path


def print_result(options: argparse.Namespace, values: Any, text: str) -> None:
    """Print a result: `values` with --json, else `text`."""
    print(json.dumps(values, indent=1) if options.json else text)


def write_figure(options: argparse.Namespace, draw: Callable[[], str]) -> None:
    """Write the SVG text of `draw` into the file of --figure, if there is one."""
    import sys

    from recipes.files import write_atomic

    if options.figure is not None:
        write_atomic(options.figure, draw())
        print(f"figure: {options.figure}", file=sys.stderr)


def require_max_drop(value: float) -> None:
    """Raise UserError for a negative --max-drop."""
    if not value >= 0:
        raise UserError(f"--max-drop is {value:g} but must be 0 or more points")


def refuse_rehearsal(rehearsal: bool, study_dir: Path) -> None:
    """Raise UserError for a study of toy models, whose numbers are not results."""
    if rehearsal:
        raise UserError(f"{study_dir} is a rehearsal: its models are tiny and random; name a study that was run")
