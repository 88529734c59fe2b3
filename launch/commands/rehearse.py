"""`transfer rehearse`: a recipe's own stages at toy size."""

import argparse
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from launch.commands.arguments import CLUSTER, OVERRIDES, STUDY, argument, command, print_result
from launch.commands.recipe import read_site
from recipes.errors import UserError


@command(
    "run every stage at toy size before it costs anything",
    STUDY,
    OVERRIDES,
    argument("--out", metavar="DIR", type=Path, help="folder of the rehearsal (default: runs/rehearsals/<study>)"),
    *CLUSTER,
    argument(
        "--ranks",
        metavar="N",
        type=int,
        help="processes that train an arm (default: the recipe's, or as many as there are GPUs, or 2 on a CPU)",
    ),
    argument(
        "--synthetic-data",
        action="store_true",
        help="generate rows in the columns that the recipe reads, for a machine without the locked data",
    ),
    argument("--faults", action="store_true", help="kill every training stage once and resume it, on this machine"),
)
def rehearse(options: argparse.Namespace) -> int:
    """Run the recipe's own stages, arms, engines and ranks with a small random-weight model of the same architecture, a
    few rows of each source and two steps. Prints what was scaled down, a table of the stages, what could not be
    rehearsed on this machine, and the verdict. Exit status 1 if a stage failed.
    """
    # Rows and models are local or generated; a missing file must not become a download.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from launch.execution.worker import worker_environment

    os.environ.update(worker_environment())
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from launch.planning.node import require_sandbox_of
    from launch.planning.preflight import check_before_running, check_resolved
    from launch.rehearsal.outcome import format_outcome
    from launch.rehearsal.run import OUTCOME, rehearse
    from launch.run import check_recipe, require
    from recipes.loading import load_recipe

    recipe = load_recipe(options.study, options.overrides)
    if options.ranks is not None and options.ranks < 1:
        raise UserError(f"--ranks {options.ranks} must be 1 or more")
    if options.faults and options.on == "slurm":
        raise UserError("--faults kills stages on this machine; leave out --on slurm or --faults")
    if recipe.model is None:
        raise UserError(f"{options.study} has no model, so no stage needs a rehearsal; `transfer run` it")
    check_before_running(recipe)
    if not options.synthetic_data:
        try:
            check_resolved(recipe)
        except UserError as error:
            raise UserError(f"{error}; or rehearse without the data: --synthetic-data") from None
    require(check_recipe(recipe))
    site = read_site(options)
    if not options.synthetic_data and (site is None or site.container is None):
        require_sandbox_of(recipe)
    out = options.out or Path("runs") / "rehearsals" / recipe.study
    try:
        with redirect_stdout(sys.stderr if options.json else sys.stdout):
            outcome = rehearse(recipe, out, options.ranks, site, options.synthetic_data, options.faults)
    except KeyboardInterrupt:
        print(f"\nstopped; a rehearsal starts over, {out} may be deleted", file=sys.stderr)
        return 130
    print_result(options, outcome, f"\n{format_outcome(outcome)}")
    print(f"details: {out / OUTCOME}", file=sys.stderr if options.json else sys.stdout)
    return 0 if outcome["passed"] else 1
