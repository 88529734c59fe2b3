"""What a plan says of trajectories and diagnostics, by hand."""

import pytest

from launch.planning.analysis_plan import (
    AnalysisPlan,
    analysis_lines,
    diagnostics_plan,
    drift_plan,
    trajectory_plan,
)
from launch.planning.fit import analysis_mistakes
from recipes.loading import load_recipe
from train import drift
from train.accounting.cost import model_shape

BIG = "recipes/qwen3-14b/matched.yaml"


def test_nothing_is_planned_that_is_not_asked_for():
    recipe = load_recipe("recipes/pocket/smoke.yaml")
    assert trajectory_plan(recipe) is None
    assert diagnostics_plan(recipe, None) is None
    assert analysis_lines(AnalysisPlan(None, None, None)) == []


def test_responses_of_the_pocket_trajectories():
    found = trajectory_plan(load_recipe("recipes/pocket/study.yaml"))
    # The base and eight checkpoints of three runs; 100 held-out problems and 8 x 40 questions, two responses each.
    assert (found.checkpoints, found.responses_at_most) == (25, 25 * 840)
    more = trajectory_plan(load_recipe("recipes/pocket/study.yaml", ["seeds=[0,1]", "trajectory.samples=1"]))
    assert more.responses_at_most == 49 * 420


def test_greedy_benchmarks_of_the_twelve_are_asked_once():
    recipe = load_recipe(BIG, ["trajectory.samples=3"])
    found = trajectory_plan(recipe)
    # Twelve runs with eight checkpoints, and the base; five of the twelve benchmarks are sampled, seven are greedy.
    greedy = sum(recipe.suite.temperature_of(item) == 0 for item in recipe.suite.benchmarks)
    sampled = len(recipe.suite.benchmarks) - greedy
    assert (sampled, greedy) == (5, 7)
    assert found.checkpoints == 97
    assert found.responses_at_most == 97 * (3 * 100 + 40 * (3 * sampled + greedy))


def test_memory_and_disk_of_a_14b_model_by_hand():
    recipe = load_recipe(BIG)
    found = diagnostics_plan(recipe, model_shape(recipe))
    weights = 2 * model_shape(recipe).parameters()
    assert weights == pytest.approx(2 * 14.768e9, rel=1e-3)
    assert found.memory == weights + 16 * 9216 * 2 * 40 * 8 * 128 * 2  # the cache is larger than the others
    one = diagnostics_plan(load_recipe(BIG, ["diagnostics.batch_size=1"]), model_shape(recipe))
    # 8,192 prompt tokens and 1,024 more are longer than batch_tokens, so such a sequence is read alone: 42 levels.
    assert one.memory == weights + 42 * 9216 * 5120 * 2
    short = ["diagnostics.batch_tokens=1024", "suite.max_prompt_tokens=512", "diagnostics.max_completion_tokens=64"]
    short = diagnostics_plan(load_recipe(BIG, ["diagnostics.batch_size=1", *short]), model_shape(recipe))
    assert short.memory == weights + 2 * 151_936 * 5120 + 6 * 512 * 151_936 * 4  # the other output layer and logits
    prompts, length = 13 * 100, 1024
    states = 2 * 41 * 2 * prompts * 5120 * 4
    hidden = 4 * prompts * length * 5120 * 2
    assert found.disk_bytes == states + hidden + 2 * 151_936 * 5120
    assert found.fits is True
    (line,) = analysis_lines(AnalysisPlan(None, None, found))
    assert "12 models, 1,300 prompts each" in line
    assert f"one model at a time, {found.memory / 1e9:.0f} GB of memory" in line


def test_what_does_not_fit_is_an_error_with_a_way_out(transfer):
    result = transfer("plan", BIG, "resources.gpu=A100-40GB")
    assert result.returncode == 2
    need = "diagnostics need 54 GB on one GPU, an A100-40GB has 43, of which about 40 without the margin; the nearest "
    assert f"cannot work: {need}setting that works: diagnostics.batch_size=4\n" in result.stdout + "\n"
    recipe = load_recipe(BIG, ["resources.gpu=A100-40GB"])
    of_drift, of_diagnostics = analysis_mistakes(recipe, model_shape(recipe))
    assert of_drift.endswith("drift=null")  # the base and a checkpoint alone are too large
    ways = [text.rpartition(": ")[2] for text in (of_drift, of_diagnostics)]
    assert analysis_mistakes(load_recipe(BIG, ["resources.gpu=A100-40GB", *ways]), model_shape(recipe)) == []
    assert analysis_mistakes(load_recipe(BIG, ["resources.gpu=null"]), model_shape(recipe)) == []


def test_drift_of_14b_by_hand():
    """97 checkpoints of 128 completions; two models and the logits of 512 positions."""
    recipe = load_recipe(BIG)
    shape = model_shape(recipe)
    found = drift_plan(recipe, shape)
    assert (found.checkpoints, found.completions, found.engine) == (97, 97 * 128, "vllm")
    models = 2 * 2 * shape.parameters()
    logits = 6 * drift.LOGITS_TOKENS * 151_936 * 4
    assert found.memory == models + logits
    assert found.fits is True
    assert analysis_lines(AnalysisPlan(found, None, None)) == [
        "drift: 97 checkpoints, 12,416 completions by vllm, 61 GB of memory"
    ]


def test_drift_in_float32_needs_twice_the_memory():
    recipe = load_recipe(BIG, ["drift.dtype=float32"])
    plan = drift_plan(recipe, model_shape(recipe))
    assert plan.memory == 2 * 4 * model_shape(recipe).parameters() + 6 * drift.LOGITS_TOKENS * 151_936 * 4
    assert plan.fits is True  # 121 GB on an H200; vLLM samples in bfloat16 before
    diagnostics = [
        diagnostics_plan(load_recipe(BIG, [f"diagnostics.dtype={dtype}"]), model_shape(recipe)).memory
        for dtype in ("null", "float32")
    ]
    assert diagnostics[1] == 2 * diagnostics[0]  # weights and the cache of sampling


def test_drift_without_an_engine_keeps_the_cache_of_a_batch_and_does_not_fit():
    """32 sequences of 16,384 tokens of 163,840 bytes are 85.9 GB beside 59 GB of models."""
    recipe = load_recipe(BIG, ["resources.vllm=null"])
    found = drift_plan(recipe, model_shape(recipe))
    assert found.engine == "transformers"
    assert found.memory == 4 * model_shape(recipe).parameters() + 32 * 16_384 * 163_840
    assert found.fits is False
    # 59 GB of models and sixteen sequences are 102 GB.
    (text,) = [text for text in analysis_mistakes(recipe, model_shape(recipe)) if text.startswith("drift")]
    assert text == (
        "drift needs 145 GB on one GPU, an H200-141GB has 141, of which about 133 without the margin; the nearest "
        "setting that works: drift.batch_size=16"
    )
    assert drift_plan(load_recipe("recipes/pocket/smoke.yaml"), None) is None
