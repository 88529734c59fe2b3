"""Arms with everything they take from the study: what is valid alone but not together."""

import pytest

from recipes.errors import UserError
from recipes.loading import load_recipe
from tests.paths import POCKET
from train.arms import resolve_arm


def test_off_policy_rl_needs_temperature_1():
    """The policy's own samples may be drawn at another one, and SFT on a teacher does not read it."""
    arms = "arms={{x: {{sampling: {}, credit: {}, negatives: {}}}}}"

    def resolved(sampling, credit, negatives, temperature):
        own = arms.format(sampling, credit, negatives)
        recipe = load_recipe(POCKET, [own, f"train.temperature={temperature}", "analysis.claims=[]"])
        return resolve_arm(recipe, "x")

    with pytest.raises(
        UserError, match=r"^arm 'x': train.temperature is 0.7 but must be 1; .* teacher's samples were "
    ):
        resolved("teacher", "advantage", "true", 0.7)
    assert resolved("teacher", "advantage", "true", 1).trainer == "grpo"
    assert resolved("current", "advantage", "true", 0.7).temperature == 0.7
    assert resolved("teacher", "uniform", "false", 0.7).trainer == "sft"
