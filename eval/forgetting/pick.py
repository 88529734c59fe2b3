"""Which checkpoint to ship: chosen on one half of the trajectory's questions, reported on the other."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.forgetting.curves import Array, read_slice, shown
from eval.forgetting.schema import Candidate, Pick
from eval.forgetting.trajectory import HELDOUT
from eval.statistics.bootstrap import Answers, bootstrap_scores
from eval.statistics.transfer_index import MATH
from recipes.errors import UserError
from recipes.schema import Recipe


def pick(recipe: Recipe, study_dir: Path, max_drop: float) -> Pick:
    """The checkpoint to ship: the largest math gain whose worst other group lost at most `max_drop` points.

    Chosen, with the frontier of gain against the worst group's loss, on one half of the slice's questions; reported
    with intervals on the other half, because the best of many is flattered by the questions it was chosen on. Every
    candidate is one model; the base is one, with gain 0, and is chosen where no other qualifies.

    Raises:
        UserError: the suite has no group but math.
    """
    found = read_slice(recipe, study_dir)
    assert recipe.trajectory is not None
    chosen_on, reported_on = _model_gains(found.half(True)), found.half(False)
    others = [group for group in chosen_on if group not in (MATH, HELDOUT)]
    if not others:
        raise UserError("the suite has no group but math, so there is nothing a checkpoint could have lost")
    rows: list[Candidate] = []
    points = []
    for column in range(1 + len(found.models)):
        worst = min(others, key=lambda group: chosen_on[group][column])
        math, loss = float(chosen_on[MATH][column]), max(0.0, -float(chosen_on[worst][column]))
        points.append((round(math, 3), worst, round(loss, 3)))
    for (math, worst, loss), (arm, seed, update) in zip(points, [(None, None, 0), *found.models], strict=True):
        dominated = any(
            other >= math and other_loss <= loss and (other, other_loss) != (math, loss)
            for other, _, other_loss in points
        )
        rows.append(
            Candidate(
                arm=arm,
                seed=seed,
                update=update,
                math_gain=math,
                worst_group=worst,
                worst_loss=loss,
                on_frontier=not dominated,
            )
        )
    allowed = [row for row in rows if row.worst_loss <= max_drop]
    choice = max(allowed, key=lambda row: (row.math_gain, -row.worst_loss))
    column = rows.index(choice)
    rng = np.random.default_rng([recipe.trajectory.seed, 2])
    confidence = recipe.statistics.confidence
    drawn = [bootstrap_scores(item, recipe.trajectory.draws, rng, confidence) for item in reported_on]
    reported = {}
    for group, gain_M in _model_gains(reported_on).items():
        members = [drawn[index] for index, item in enumerate(reported_on) if item.group == group]
        draws_D = np.mean([score[:, column] - score[:, 0] for score in members], axis=0)
        reported[group] = shown(float(gain_M[column]), draws_D, confidence)
    return Pick(max_drop=max_drop, choice=choice, reported=reported, candidates=rows)


def _model_gains(answers: Sequence[Answers]) -> dict[str, Array]:
    """Gain of every model over the base in every group, in points; the base's own is zero."""
    by_group: dict[str, list[Array]] = {}
    for item in answers:
        means_M = item.means()
        by_group.setdefault(item.group, []).append(means_M - means_M[0])
    return {group: np.mean(parts, axis=0) for group, parts in by_group.items()}
