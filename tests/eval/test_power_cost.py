"""`transfer power` and `transfer plan` agree on what one response to every question costs."""

import pytest

from eval.report.power import evaluation_cost
from launch.planning.hours import plan_context, stage_hours
from launch.stages import Stage
from recipes.loading import load_recipe
from tests.paths import RECIPES
from train.accounting.cost import model_shape

RECIPE = RECIPES / "qwen3-1.7b" / "matched.yaml"


@pytest.mark.parametrize("settings", [(), ("suite.engine.tensor_parallel=2",), ("suite.engine={kind: hf}",)])
def test_power_and_plan_give_the_same_hours(settings):
    recipe = load_recipe(RECIPE, settings)
    once = recipe.model_copy(update={"suite": recipe.suite.with_samples(1)})
    planned = stage_hours(plan_context(once, model_shape(once)), Stage("eval/base", {}))
    hours = planned.seconds["generation"] / 3600 * planned.gpus
    assert evaluation_cost(recipe)["gpu_hours"] == pytest.approx(hours, abs=0.005)


def test_the_hours_of_a_server_of_its_own_are_not_known():
    server = "suite.engine={kind: endpoint, base_url: 'http://127.0.0.1:8000/v1/completions', model: base}"
    assert evaluation_cost(load_recipe(RECIPE, [server, "trajectory=null"]))["gpu_hours"] is None
