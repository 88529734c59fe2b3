"""The subcommands about checkpoints: trajectory, pick, and sync, which sends a finished study to Weights & Biases."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands.arguments import add_command, add_recipe, add_study_dir, require_max_drop
from recipes.errors import UserError

if TYPE_CHECKING:
    from eval.forgetting.schema import Candidate, Pick, Trajectory
    from recipes.schema import Recipe

AXES = ("trained_gain", "kl_from_base", "kl_to_base", "generated_tokens", "trained_tokens", "flops", "gpu_hours")


def add_trajectory(commands: Any) -> None:
    """Add `transfer trajectory`."""
    parser = add_command(
        commands,
        "trajectory",
        "forgetting curves: every checkpoint on a slice of the suite",
        "Run what is missing of a study up to its trajectories and show what every checkpoint gained and lost, and the "
        "arms at equal held-out gain. More checkpoints: train.snapshots=N.",
        _trajectory,
    )
    add_recipe(parser)
    parser.add_argument("--axis", choices=AXES, default="trained_gain", help="horizontal axis of the curves (default trained_gain)")
    parser.add_argument("--figure", metavar="FILE.svg", type=Path, help="draw the curves into this file")
    parser.add_argument("--gain", type=float, metavar="POINTS", help="compare the arms at this held-out gain too")


def _trajectory(options: argparse.Namespace) -> int:
    from launch.planning.preflight import check_before_running
    from launch.run import run_stages
    from launch.stages import build_stages, select_until
    from recipes.loading import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    if recipe.trajectory is None:
        recipe = load_recipe(options.recipe, [*options.overrides, "trajectory={}"])
    if not recipe.with_trajectories:
        raise UserError(f"{options.recipe} trains no arms or has no suite, so there are no checkpoints to ask")
    study_dir = options.out or Path("runs") / recipe.study
    check_before_running(recipe)
    # Not the scores of the whole suite, nor what only they need.
    wanted = {stage.name for stage in build_stages(recipe) if stage.kind in ("trajectory", "drift")}
    stages = [stage for name in sorted(wanted) for stage in select_until(build_stages(recipe), name)]
    names = {stage.name for stage in stages}
    ordered = [stage for stage in build_stages(recipe) if stage.name in names]
    status = run_stages(recipe, study_dir, ordered, options.json, "trajectory")
    return status or _show(recipe, study_dir, options)


def _show(recipe: "Recipe", study_dir: Path, options: argparse.Namespace) -> int:
    from eval.forgetting.curves import equal_gain, gain_curves, read_slice, summarise

    found, hours = summarise(recipe, study_dir)
    found = found.with_hours(hours)
    if options.gain is not None:
        curves = gain_curves(read_slice(recipe, study_dir), recipe)
        extra = equal_gain(curves, recipe.statistics.confidence, options.gain)
        found = found.model_copy(update={"equal_gain": [*found.equal_gain, extra]})
    if options.figure is not None:
        from eval.forgetting.figures import axes_of, forgetting_figure
        from recipes.manifest import write_atomic

        if options.axis not in axes_of(found):
            raise UserError(
                f"--axis {options.axis} was not measured in {study_dir}; there are {', '.join(axes_of(found))}"
                + (" (KL needs `probe`)" if options.axis.startswith("kl") else "")
            )
        write_atomic(options.figure, forgetting_figure(found, options.axis).svg)
        print(f"figure: {options.figure}", file=sys.stderr)
    if options.json:
        print(json.dumps(found.dump(), indent=1))
    else:
        print(format_trajectory(found, options.axis))
    return 0


def format_trajectory(found: "Trajectory", axis: str) -> str:
    """The curves and the comparison at equal gain as text."""
    from eval.report.wording import bounded_text, interval_text

    groups = found.groups
    chosen = axis if all(axis in arm.axes for arm in found.arms.values()) else None
    lines = ["", f"{'arm, update':<28}{'held-out':>24}" + "".join(f"{group:>24}" for group in groups)]
    lines[-1] += f"{chosen:>18}" if chosen else ""
    for arm, values in found.arms.items():
        for index, step in enumerate(values.steps):
            cells = [values.gains[group][index] for group in ("heldout", *groups)]
            line = f"{f'{arm}, {step}':<28}" + "".join(f"{interval_text(cell, '+.1f'):>24}" for cell in cells)
            lines.append(line + (f"{values.axes[chosen][index]:>18.4g}" if chosen else ""))
    for target in found.equal_gain:
        lines += ["", f"at an equal held-out gain of {target.heldout_gain:+.1f} points"]
        for arm, reached in target.arms.items():
            if reached.groups is None:
                lines.append(f"{arm:<28}never reaches it")
                continue
            lines.append(f"{arm:<28}{'':>24}" + "".join(f"{bounded_text(reached.groups[g]):>24}" for g in groups))
        for pair in target.contrasts:
            name = f"{pair.first} - {pair.second}"
            lines.append(f"{name:<52}" + "".join(f"{bounded_text(pair.groups[g]):>24}" for g in groups))
    if not found.equal_gain:
        best = ", ".join(f"{arm} {gain:+.1f}" for arm, gain in found.best_heldout_gain.items())
        lines += ["", f"the arms have no held-out gain in common (at most {best}); nothing is compared at equal gain"]
    fit = found.razor
    if fit is not None and fit.r2 is not None and fit.residuals is not None:
        residuals = ", ".join(f"{arm} {interval_text(value, '+.1f')}" for arm, value in fit.residuals.items())
        lines += [
            "",
            f"loss in the other groups on KL(base || model), one quadratic: R2 {fit.r2:.2f}; residuals {residuals}",
        ]
    return "\n".join(lines)


def _finished_trajectories(study_dir: Path) -> "Recipe":
    from recipes.loading import load_study
    from recipes.manifest import read_manifest

    recipe = load_study(study_dir)
    refuse_rehearsal(recipe, study_dir)
    runs = [f"{arm}/seed-{seed}" for arm in recipe.trained for seed in recipe.seeds]
    for name in ("base", *runs):
        manifest = read_manifest(study_dir / "trajectory" / name)
        if not recipe.with_trajectories or manifest is None or not manifest["completed"]:
            raise UserError(f"{study_dir} has no finished trajectory of {name}; `transfer trajectory RECIPE` makes it")
    return recipe


def refuse_rehearsal(recipe: "Recipe", study_dir: Path) -> None:
    """Raise UserError for a study of toy models, from which nothing can be concluded."""
    if recipe.rehearsal:
        raise UserError(f"{study_dir} is a rehearsal: its models are tiny and random; name a study that was run")


def add_pick(commands: Any) -> None:
    """Add `transfer pick`."""
    parser = add_command(
        commands,
        "pick",
        "the checkpoint to ship",
        "The checkpoint with the largest math gain whose worst other group lost at most --max-drop points, with the "
        "frontier it was chosen from. Chosen on one half of the slice, reported on the other. Exit status 1 if it is "
        "the base.",
        _pick,
    )
    add_study_dir(parser)
    parser.add_argument(
        "--max-drop", type=float, default=5.0, metavar="POINTS", help="largest loss allowed (default 5)"
    )


def _pick(options: argparse.Namespace) -> int:
    from eval.forgetting.pick import pick

    require_max_drop(options.max_drop)
    found = pick(_finished_trajectories(options.study_dir), options.study_dir, options.max_drop)
    print(json.dumps(found.dump(), indent=1) if options.json else format_pick(found, options.study_dir))
    return 0 if found.choice.arm is not None else 1


def format_pick(found: "Pick", study_dir: Path) -> str:
    """The choice, how it does on questions it was not chosen on, and the frontier."""
    from eval.report.wording import interval_text

    choice = found.choice
    frontier = sorted((row for row in found.candidates if row.on_frontier), key=lambda row: row.math_gain)
    lines = [f"{'':2}{'frontier (half of the slice)':<44}{'math gain':>10}{'worst loss':>12}  worst group"]
    for row in frontier:
        mark = "> " if row == choice else "  "
        lines.append(f"{mark}{model_name(row):<44}{row.math_gain:>+10.1f}{row.worst_loss:>12.1f}  {row.worst_group}")
    if choice.arm is None:
        return "\n".join(
            [*lines, "", f"no checkpoint keeps every group within {found.max_drop:g} points: keep the base"]
        )
    weights = study_dir / "arms" / choice.arm / f"seed-{choice.seed}"
    final = weights / "final"
    snapshot = weights / "snapshots" / f"step-{choice.update}"
    lines += [
        "",
        f"ship {model_name(choice)}: {snapshot if snapshot.exists() else final}",
        "on the other half of the slice:",
    ]
    return "\n".join([*lines, *(f"  {group:<24}{interval_text(v, '+.1f')}" for group, v in found.reported.items())])


def model_name(row: "Candidate") -> str:
    """A candidate in words."""
    return "base" if row.arm is None else f"{row.arm}, seed {row.seed}, update {row.update}"


def add_sync(commands: Any) -> None:
    """Add `transfer sync`."""
    parser = add_command(
        commands,
        "sync",
        "send a study to Weights & Biases",
        "Send the runs of a study from metrics.jsonl, and the run of its report, once a key is there. Runs that are "
        "there already are not duplicated.",
        _sync,
    )
    add_study_dir(parser)
    parser.add_argument("--offline", action="store_true", help="write offline runs instead, for `wandb sync`")


def _sync(options: argparse.Namespace) -> int:
    from eval.report.schema import read_transfer
    from eval.report.tracking import sync_study
    from recipes.loading import load_study

    recipe = load_study(options.study_dir)
    refuse_rehearsal(recipe, options.study_dir)
    path = options.study_dir / "report" / "transfer.json"
    transfer = read_transfer(path) if path.exists() else None
    made = sync_study(recipe, options.study_dir, transfer, not options.offline)
    if not made:
        raise UserError(f"{options.study_dir} has no metrics yet; `transfer run` trains the arms")
    print(json.dumps(made) if options.json else f"{'written' if options.offline else 'sent'}: {', '.join(made)}")
    return 0
