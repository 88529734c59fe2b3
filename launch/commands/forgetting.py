"""The subcommands about checkpoints: trajectory, pick, and sync, which sends a finished study to Weights & Biases."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands.arguments import (
    FIGURE,
    OUT,
    OVERRIDES,
    STUDY,
    argument,
    command,
    print_result,
    read_study,
    refuse_rehearsal,
    require_max_drop,
    study_folder,
    write_figure,
)
from recipes.errors import UserError
from recipes.layout import run_name

if TYPE_CHECKING:
    from recipes.schema import Recipe

AXES = ("trained_gain", "kl_from_base", "kl_to_base", "generated_tokens", "trained_tokens", "flops", "gpu_hours")


@command(
    "forgetting curves: every checkpoint on a slice of the suite",
    STUDY,
    OVERRIDES,
    OUT,
    argument(
        "--axis", choices=AXES, default="trained_gain", help="horizontal axis of the curves (default trained_gain)"
    ),
    FIGURE,
    argument("--gain", type=float, metavar="POINTS", help="compare the arms at this held-out gain too"),
)
def trajectory(options: argparse.Namespace) -> int:
    """Run the missing stages up to the trajectories, then show what every checkpoint gained and lost, and the arms at
    equal held-out gain. For more checkpoints set train.snapshots=N.
    """
    from launch.planning.preflight import check_before_running
    from launch.run import run_stages
    from launch.stages import build_stages, select_until
    from recipes.loading import load_recipe

    recipe, study_dir = read_study(options)
    if added := recipe.trajectory is None:
        recipe = load_recipe(options.study, [*options.overrides, "trajectory={}"])
    if not recipe.with_trajectories:
        raise UserError(f"{options.study} trains no arms or has no suite, so it has no trajectories")
    check_before_running(recipe)
    # Without the evaluation of the whole suite and what only it needs.
    stages = build_stages(recipe)
    last = [stage.name for stage in stages if stage.kind in ("trajectory", "drift")]
    needed = {stage.name for name in last for stage in select_until(stages, name)}
    stages = [stage for stage in stages if stage.name in needed]
    status = run_stages(recipe, study_dir, stages, options.json, "trajectory")
    if not status and added:
        print(f"transfer: {_FOR_GOOD}", file=sys.stderr)
    return status or _show(recipe, study_dir, options)


_FOR_GOOD = (
    "add `trajectory: {}` to the recipe for good: without it the next `transfer run RECIPE` drops the trajectories "
    "again; after that `transfer run RECIPE` writes the report again, with the curves"
)


def _show(recipe: "Recipe", study_dir: Path, options: argparse.Namespace) -> int:
    from eval.forgetting.curves import equal_gain, gain_curves, read_slice, summarise_trajectories
    from eval.report.checkpoints import format_trajectory

    result, hours = summarise_trajectories(recipe, study_dir)
    result = result.with_hours(hours)
    if options.gain is not None:
        curves = gain_curves(read_slice(recipe, study_dir), recipe)
        extra = equal_gain(curves, recipe.statistics.confidence, options.gain)
        result = result.model_copy(update={"equal_gain": [*result.equal_gain, extra]})
    if options.figure is not None:
        from eval.forgetting.figures import axes_of, forgetting_figure

        trained = recipe.analysis.trained_group
        if options.axis not in (axes := axes_of(result, trained)):
            raise UserError(
                f"--axis {options.axis} was not measured in {study_dir}; there are {', '.join(axes)}"
                + (" (KL needs `drift`)" if options.axis.startswith("kl") else "")
            )
        write_figure(options, lambda: forgetting_figure(result, options.axis, trained).svg)
    print_result(options, result.dump(), format_trajectory(result, options.axis))
    return 0


@command(
    "the checkpoint to ship",
    STUDY,
    argument(
        "--max-drop", type=float, default=5.0, metavar="POINTS", help="largest loss allowed (default 5); 100 allows any"
    ),
)
def pick(options: argparse.Namespace) -> int:
    """Choose the checkpoint to ship: the one that gained most on the trained group among those that should lose at most
    --max-drop points in every group on new questions (column `passes from`, stricter than the interval). Among
    checkpoints that cannot be told apart, take the safest. One half of the slice chooses; if the other half contradicts
    it, or no checkpoint qualifies, the base is kept. Exit status 1 if the base is kept.
    """
    from eval.forgetting.pick import pick
    from eval.report.checkpoints import format_pick, pick_values

    require_max_drop(options.max_drop)
    study_dir = study_folder(options.study)
    result = pick(_finished_trajectories(study_dir), study_dir, options.max_drop)
    print_result(options, pick_values(result, study_dir), format_pick(result, study_dir))
    return 0 if result.choice.arm is not None else 1


def _finished_trajectories(study_dir: Path) -> "Recipe":
    """The recipe of a study. Raises UserError if one of its trajectories is not finished."""
    from recipes.loading import load_study
    from recipes.manifest import finished_manifest

    recipe = load_study(study_dir)
    refuse_rehearsal(recipe.rehearsal, study_dir)
    for there, lacking in ((recipe.trained, "trains no arms"), (recipe.suite, "has no suite")):
        if not there:
            raise UserError(f"{study_dir} {lacking}, so there is nothing to pick")
    runs = [run_name(arm, seed) for arm in recipe.trained for seed in recipe.seeds]
    if not recipe.with_trajectories:
        raise UserError(
            f"{study_dir} has no trajectory; add `trajectory: {{}}` to its recipe for good, and train.snapshots=8 for "
            "checkpoints on the way, which trains again; then run `transfer run RECIPE`"
        )
    for name in ("base", *runs):
        if finished_manifest(study_dir / "trajectory" / name) is None:
            raise UserError(
                f"{study_dir} has no finished trajectory of {name}; `transfer trajectory {study_dir}` makes it"
            )
    return recipe


@command(
    "send a study to Weights & Biases",
    STUDY,
    argument("--offline", action="store_true", help="write offline runs instead, for `wandb sync`"),
)
def sync(options: argparse.Namespace) -> int:
    """Send the runs of a study, and a run with its report, to Weights & Biases from the stored metrics.jsonl, once a
    key is set. A run that was sent before is not sent twice.
    """
    from eval.report.schema import read_transfer
    from eval.report.tracking import sync_study
    from recipes.loading import load_study

    study_dir = study_folder(options.study)
    recipe = load_study(study_dir)
    refuse_rehearsal(recipe.rehearsal, study_dir)
    path = study_dir / "report" / "transfer.json"
    transfer = read_transfer(path) if path.exists() else None
    made = sync_study(recipe, study_dir, transfer, not options.offline)
    if not made:
        raise UserError(f"{study_dir} has no metrics yet; `transfer run` trains the arms")
    print(json.dumps(made) if options.json else f"{'written' if options.offline else 'sent'}: {', '.join(made)}")
    if options.offline and not options.json:
        print(f"in the folders wandb/ of the arms and the report in {study_dir}; `wandb sync FOLDER` sends one")
    return 0
