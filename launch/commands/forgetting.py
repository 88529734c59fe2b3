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
    parser.add_argument(
        "--axis", choices=AXES, default="trained_gain", help="horizontal axis of the curves (default trained_gain)"
    )
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

        if options.axis not in axes_of(found, recipe.analysis.trained_group):
            raise UserError(
                f"--axis {options.axis} was not measured in {study_dir}; there are {', '.join(axes_of(found, recipe.analysis.trained_group))}"
                + (" (KL needs `probe`)" if options.axis.startswith("kl") else "")
            )
        write_atomic(options.figure, forgetting_figure(found, options.axis, recipe.analysis.trained_group).svg)
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
        "The checkpoint that gained most in the trained group and by its bounds lost at most --max-drop points in any "
        "group; of equals the safer. Chosen on one half of the slice; the base is kept where the other half "
        "contradicts. Exit status 1 if it is the base.",
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

    proposed = found.proposed
    frontier = sorted((row for row in found.candidates if row.on_frontier), key=lambda row: row.trained_gain.low)
    lines = [f"{'':2}{'frontier (half of the slice)':<34}{'gain':>24}{'in the worst group':>26}{'passes from':>13}"]
    for row in frontier:
        mark = "> " if row == proposed else "  "
        gain, worst = interval_text(row.trained_gain, "+.1f"), interval_text(row.worst_gain, "+.1f")
        lines.append(f"{mark}{model_name(row):<34}{gain:>24}{worst:>26}{row.safe_limit:>13.1f}  {row.worst_group}")
    lines.append("passes from: the smallest --max-drop that it can be expected to pass on as many other questions")
    if proposed is None or proposed.arm is None:
        return "\n".join([*lines, "", f"keep the base: {'; '.join(found.refused)}"])
    reported = [f"  {group:<24}{interval_text(value, '+.1f')}" for group, value in found.reported.items()]
    if found.refused:
        lines += ["", f"keep the base: {model_name(proposed)} was proposed, but {'; '.join(found.refused)}"]
    else:
        weights = study_dir / "arms" / proposed.arm / f"seed-{proposed.seed}"
        snapshot = weights / "snapshots" / f"step-{proposed.update}"
        lines += ["", f"ship {model_name(proposed)}: {snapshot if snapshot.exists() else weights / 'final'}"]
    return "\n".join([*lines, f"{model_name(proposed)} on the other half of the slice:", *reported])


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
