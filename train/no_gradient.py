"""Which finished runs of a study learned nothing, because no step had a gradient from a reward."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from recipes.files import read_json_lines
from recipes.layout import run_folder
from recipes.manifest import finished_manifest
from recipes.schema import Recipe
from train.accounting.arm_facts import ArmFacts
from train.runtime.recorder import METRICS


class NoGradient(NamedTuple):
    """A run that learned nothing; its model is the one it started from."""

    arm: str
    seed: int
    reason: str
    start_from: str | None = None
    """The arm it started from; None: the base."""

    def __str__(self) -> str:
        still = f" and its model is still that of {self.start_from}" if self.start_from else ""
        why = f"{self.reason}, so it learned nothing{still}"
        return f"{self.arm}, seed {self.seed}: {why}; `transfer view` shows its responses"


def runs_without_gradient(recipe: Recipe, study_dir: Path, arms: Iterable[str] | None = None) -> list[NoGradient]:
    """The finished runs of some arms (default: all that are trained) in which no completion ever had a weight."""
    found = []
    for arm in recipe.trained if arms is None else arms:
        for seed in recipe.seeds:
            run_dir = run_folder(study_dir, arm, seed)
            manifest = finished_manifest(run_dir)
            if manifest is None or not _without_weights(facts := ArmFacts.of(manifest), run_dir):
                continue
            uniform = facts.matched_on["credit"] == "uniform"
            why = "no completion had a reward above zero" if uniform else "every group's rewards were equal"
            reason = f"none of its {facts.matched_on['steps']} steps had a gradient: {why}"
            found.append(NoGradient(arm, seed, reason, recipe.trained[arm].start_from))
    return found


def _without_weights(facts: ArmFacts, run_dir: Path) -> bool:
    """Whether no completion of a run had a weight.

    The ledger also counts the gradient of the KL term, which is zero while the model is the base. There the metrics of
    advantages tell; without advantages a completion has a weight if its reward is above zero.
    """
    if not facts.matched_on.get("beta"):
        return not facts.contributed_problems
    rows = read_json_lines(run_dir / METRICS)
    if facts.matched_on["credit"] == "uniform":
        means = [row["reward"] for row in rows if "reward" in row]
        return bool(means) and not any(means)
    shares = [row["frac_reward_zero_std"] for row in rows if "frac_reward_zero_std" in row]
    return bool(shares) and all(share == 1 for share in shares)
