"""The subcommand `transfer rehearse`."""

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from launch.commands.arguments import add_cluster, add_command, add_recipe
from launch.commands.recipe import read_site
from recipes.errors import UserError


def add_rehearse(commands: Any) -> None:
    """Add `transfer rehearse`."""
    parser = add_command(
        commands,
        "rehearse",
        "run every stage at toy size before it costs anything",
        "Run the recipe's own stages, arms, engines and ranks with a small random-weight model of its architecture, a "
        "few rows of each source and two updates. Prints what was scaled, a table of the stages, what this machine "
        "could not show, and whether the recipe was rehearsed. Exit status 1 if a stage failed.",
        _rehearse,
    )
    add_recipe(parser)
    add_cluster(parser)
    parser.add_argument(
        "--ranks",
        metavar="N",
        type=int,
        help="processes that train an arm (default: the recipe's, or as many as there are GPUs, or 2 on a CPU)",
    )
    parser.add_argument(
        "--synthetic-data",
        action="store_true",
        help="generate rows in the publishers' columns, for a machine without the locked data",
    )
    parser.add_argument(
        "--faults", action="store_true", help="kill and continue every training stage once, on this machine"
    )


def _rehearse(options: argparse.Namespace) -> int:
    # A rehearsal reads local or generated files; a missing file must not become a download.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from launch.execution.worker import worker_environment

    os.environ.update(worker_environment())
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from launch.planning.preflight import check_before_running, check_resolved
    from launch.rehearsal.outcome import format_outcome
    from launch.rehearsal.run import OUTCOME, rehearse
    from launch.run import require_possible
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
    site = read_site(options)
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
