"""`transfer power` and `transfer plan` agree on what one response to every question costs."""

from pathlib import Path

import pytest

from eval.report.power import evaluation_cost
from launch.planning.plan import build_plan
from launch.stages import build_stages
from recipes.loading import load_recipe
from tests.paths import RECIPES

RECIPE = RECIPES / "qwen3-1.7b" / "matched.yaml"


@pytest.mark.parametrize("settings", [(), ("suite.engine.tensor_parallel=2",), ("suite.engine={kind: hf}",)])
def test_power_and_plan_give_the_same_hours(settings):
    recipe = load_recipe(RECIPE, settings)
    certainty = build_plan(recipe, build_stages(recipe), Path("runs/none")).certainty
    models = 1 + len(recipe.trained) * len(recipe.seeds)
    assert evaluation_cost(recipe)["gpu_hours"] == pytest.approx(certainty.response / models, abs=0.005)


def test_the_hours_of_a_server_of_its_own_are_not_known():
    server = "suite.engine={kind: endpoint, base_url: 'http://127.0.0.1:8000/v1/completions', model: base}"
    assert evaluation_cost(load_recipe(RECIPE, [server, "trajectory=null"]))["gpu_hours"] is None
