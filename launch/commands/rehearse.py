"""The subcommand `transfer rehearse`."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from recipes.errors import UserError

NAMES = ("rehearse",)


def add_commands(
    commands: Any, command: Callable[..., argparse.ArgumentParser], add_place: Callable[..., None]
) -> None:
    """Add the subcommand. `command` and `add_place` make the parser of a recipe and the options of a place."""
    parser = command(
        commands,
        "rehearse",
        "run every stage at toy size before it costs anything",
        "Run the recipe's own stages, arms, engines and ranks with a small random-weight model of its architecture, a "
        "few rows of each source and two updates. Prints what was scaled, a table of the stages, what this machine "
        "could not show, and whether the recipe was rehearsed. Exit status 1 if a stage failed.",
    )
    add_place(parser)
    parser.add_argument(
        "--ranks",
        metavar="N",
        type=int,
        help="processes that train an arm (default: the recipe's, or as many as there are GPUs, or 2 on a CPU)",
    )
    parser.add_argument(
        "--synthetic-data",
        action="store_true",
        help="make up rows in the publishers' columns, for a machine without the locked data",
    )
    parser.add_argument(
        "--faults", action="store_true", help="kill and continue every training stage once, on this machine"
    )


def run_command(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    # What a rehearsal reads is on this machine or made up; a missing file must not become a download.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from launch.execution.worker import worker_environment

    os.environ.update(worker_environment())
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from launch.commands.main import require_possible
    from launch.planning.preflight import check_before_running, check_resolved
    from launch.rehearsal.outcome import format_outcome
    from launch.rehearsal.run import OUTCOME, rehearse
    from launch.slurm.site_file import find_site, load_site
    from recipes.loading import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    if options.ranks is not None and options.ranks < 1:
        raise UserError(f"--ranks {options.ranks} must be 1 or more")
    if options.faults and options.on == "slurm":
        raise UserError("--faults kills stages on this machine; leave out --on slurm, or leave out --faults")
    if recipe.model is None:
        raise UserError(f"{options.recipe} has no model, so it has no stage that needs a rehearsal; `transfer run` it")
    check_before_running(recipe)
    if not options.synthetic_data:
        try:
            check_resolved(recipe)
        except UserError as error:
            raise UserError(f"{error}; or rehearse without the data: --synthetic-data") from None
    require_possible(recipe)
    site = load_site(find_site(options.site)) if options.on == "slurm" else None
    out = options.out or Path("runs") / "rehearsals" / recipe.study
    try:
        with redirect_stdout(sys.stderr if options.json else sys.stdout):
            result = rehearse(recipe, out, options.ranks, site, options.synthetic_data, options.faults)
    except KeyboardInterrupt:
        print(f"\nstopped; nothing of a rehearsal is kept for later, {out} may be deleted", file=sys.stderr)
        return 130
    print(json.dumps(result, indent=1) if options.json else f"\n{format_outcome(result)}")
    print(f"details: {out / OUTCOME}", file=sys.stderr if options.json else sys.stdout)
    return 0 if result["passed"] else 1
