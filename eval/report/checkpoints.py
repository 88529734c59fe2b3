"""Checkpoints as text: the curves of a study, and which of them to ship."""

from pathlib import Path

from eval.forgetting.schema import Candidate, Pick, Trajectory
from eval.forgetting.trajectory import HELDOUT
from eval.report.wording import axis_value, bounded_text, interval_text, not_reached_text
from eval.statistics.decisions import limit_shown
from eval.statistics.values import number_text
from recipes.layout import run_folder


def format_trajectory(trajectory: Trajectory, axis: str) -> str:
    """The curves and the comparison at equal gain as text."""
    groups = trajectory.groups
    chosen = axis if all(axis in arm.axes for arm in trajectory.arms.values()) else None
    lines = ["", "gains over the base in points, with intervals; held-out: corpus problems that no arm trains on"]
    lines += [f"{'arm, step':<28}{'held-out':>24}" + "".join(f"{group:>24}" for group in groups)]
    lines[-1] += f"{chosen:>18}" if chosen else ""
    for arm, result in trajectory.arms.items():
        for index, step in enumerate(result.steps):
            cells = [result.gains[group][index] for group in ("heldout", *groups)]
            line = f"{f'{arm}, {step}':<28}" + "".join(f"{interval_text(cell, '+.1f'):>24}" for cell in cells)
            lines.append(line + (f"{axis_value(result.axes[chosen][index], chosen):>18}" if chosen else ""))
    for target in trajectory.equal_gain:
        lines += ["", f"at an equal held-out gain of {target.heldout_gain:+.1f} points"]
        for arm, reached in target.arms.items():
            if reached.groups is None:
                lines.append(f"{arm:<28}{not_reached_text(reached)}")
                continue
            bounded = all(gain.low is not None for gain in reached.groups.values())
            drawn = "" if bounded else f"in {100 * reached.reached:.0f} % of draws"  # of which nine in ten are needed
            lines.append(f"{arm:<28}{drawn:>24}" + "".join(f"{bounded_text(reached.groups[g]):>24}" for g in groups))
        for pair in target.contrasts:
            name = f"{pair.first} - {pair.second}"
            lines.append(f"{name:<52}" + "".join(f"{bounded_text(pair.groups[g]):>24}" for g in groups))
    if not trajectory.equal_gain:
        best = ", ".join(f"{arm} {number_text(gain)}" for arm, gain in trajectory.best_heldout_gain.items())
        lines += ["", f"the arms have no held-out gain in common (at most {best}); nothing is compared at equal gain"]
    fit = trajectory.razor
    if fit is not None and fit.r2 is not None and fit.residuals is not None:
        residuals = ", ".join(f"{arm} {interval_text(value, '+.1f')}" for arm, value in fit.residuals.items())
        lines += [
            "",
            "loss in the other groups as one quadratic of KL(base || model) for all arms: it explains "
            f"{100 * fit.r2:.0f} % of the variance (R2); what an arm loses beside it, in points: {residuals}",
        ]
    return "\n".join(lines)


def format_pick(result: Pick, study_dir: Path) -> str:
    """The choice, how it does on questions it was not chosen on, and the frontier."""
    proposed = result.proposed
    frontier = sorted((row for row in result.candidates if row.on_frontier), key=lambda row: row.trained_gain.low)
    name = "frontier (half of the slice)"
    lines = [f"{'':2}{name:<34}{'gain, points':>24}{'in the worst group':>26}{'passes from':>13}  worst group"]
    for row in frontier:
        mark = "> " if row == proposed else "  "
        gain, worst = interval_text(row.trained_gain, "+.1f"), interval_text(row.worst_gain, "+.1f")
        limit = limit_shown(row.passes_from)
        lines.append(f"{mark}{model_name(row):<34}{gain:>24}{worst:>26}{limit:>13.1f}  {row.worst_group}")
    lines += [f"no candidate: {text}" for text in result.learned_nothing]
    lines += [
        "frontier:    no other checkpoint has both a higher lower end of its gain and a lower `passes from`",
        "passes from: the smallest --max-drop that it can be expected to pass on as many other questions; more than",
        "             its interval allows, because other questions give another interval",
    ]
    total = result.questions + result.checked
    scope = f"Chosen on {result.questions} of the slice's {total} questions, checked on the others."
    if proposed is None:
        scope = f"No checkpoint qualified on the {result.questions} questions that choose, so none was checked on the "
        scope += f"other {result.checked}."
    if result.choice.arm is None:
        scope += (
            f" `transfer gate {study_dir} ARM --max-drop {result.max_drop:g}` judges only the losses of an arm's final "
            "model, on the whole suite. That model was not chosen among checkpoints, so it may pass there."
        )
    if proposed is None or proposed.arm is None:
        return "\n".join([*lines, "", f"keep the base: {'; '.join(result.refused)}", scope])
    if result.tied:
        best, others = max(result.tied, key=lambda row: row.trained_gain.estimate), len(result.tied) - 1
        more = f" and {others} more" if others else ""
        lines.append(
            f"{model_name(best)}{more} gained more, but not so much that it can be told; "
            f"{model_name(proposed)} is the safer"
        )
    reported = [
        f"  {'held-out' if group == HELDOUT else group:<24}{interval_text(value, '+.1f')}"
        for group, value in result.reported.items()
    ]
    if result.refused:
        lines += ["", f"keep the base: {model_name(proposed)} was proposed, but {'; '.join(result.refused)}"]
    else:
        lines += ["", f"ship {model_name(proposed)}: {model_directory(proposed, study_dir)}"]
    return "\n".join([*lines, f"{model_name(proposed)} on the other half of the slice:", *reported, scope])


def pick_values(result: Pick, study_dir: Path) -> dict[str, object]:
    """What `transfer pick --json` prints: the result, with what to ship first, as its name and its directory."""
    named = {"ship": model_name(result.choice), "directory": str(model_directory(result.choice, study_dir))}
    return named | result.dump()


def model_directory(row: Candidate, study_dir: Path) -> Path:
    """The weights of a candidate."""
    if row.arm is None or row.seed is None:
        return study_dir / "base"
    run = run_folder(study_dir, row.arm, row.seed)
    snapshot = run / "snapshots" / f"step-{row.step}"
    return snapshot if snapshot.exists() else run / "final"


def model_name(row: Candidate) -> str:
    """A candidate in words."""
    return "base" if row.arm is None else f"{row.arm}, seed {row.seed}, step {row.step}"
