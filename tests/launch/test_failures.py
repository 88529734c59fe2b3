"""What the message of a stage that ran out of memory advises: keys that recipes have, for the stage that failed."""

import ast
import re
from pathlib import Path

import pytest

import launch.execution.failures as module
from launch.execution.failures import out_of_memory
from launch.stages import build_stages
from recipes.loading import load_recipe
from recipes.reference import chosen_sections
from recipes.schema import Recipe
from tests.paths import RECIPES
from train.arms import resolve_arm

KEY = re.compile(rf"\b(?:{'|'.join(Recipe.model_fields)})(?:\.[a-z_]+)+(?![(\w])")


def advice(recipe, stage_name):
    (stage,) = [stage for stage in build_stages(recipe) if stage.name == stage_name]
    message = out_of_memory(recipe, stage)
    assert message.startswith(f"{stage_name} ran out of GPU memory; ")
    for key in KEY.findall(message):
        chosen_sections(key)  # refuses unknown ones
    return message.partition("; ")[2]


@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("base", "lower model.pocket.batch_size"),
        ("eval/base", "lower suite.engine.batch_size or suite.max_response_tokens"),
        ("trajectory/grpo/seed-0", "lower suite.engine.batch_size or suite.max_response_tokens"),
        ("drift/grpo/seed-0", "lower drift.batch_size or prompt.max_completion_tokens"),
        ("diagnostics/base", "lower diagnostics.batch_tokens or diagnostics.batch_size"),
        ("corpus", "use a GPU with more memory"),  # its teacher is scripted
    ],
)
def test_stages_with_transformers(stage, keys):
    recipe = load_recipe(RECIPES / "pocket" / "study.yaml", ["trajectory={}", "diagnostics={}", "drift={}"])
    assert advice(recipe, stage) == keys


def test_stages_with_vllm_and_a_sampler_of_the_corpus():
    recipe = load_recipe(RECIPES / "qwen3-14b" / "matched.yaml")
    for stage in ("eval/base", "trajectory/base"):
        assert advice(recipe, stage) == "lower suite.engine.memory_share, or raise suite.engine.tensor_parallel"
    assert advice(recipe, "drift/base") == "lower prompt.max_completion_tokens"
    assert advice(recipe, "base") == "use a GPU with more memory"
    wide = load_recipe(RECIPES / "qwen3-14b" / "matched.yaml", ["drift.dtype=float32", "diagnostics.dtype=float32"])
    for section, stage in (("drift", "drift/base"), ("diagnostics", "diagnostics/base")):
        assert advice(wide, stage).startswith(f"set {section}.dtype=null to load the models in bfloat16, or lower ")
    teacher = ["corpus.teacher.kind=transformers", "corpus.teacher.model=base"]
    recipe = load_recipe(RECIPES / "pocket" / "smoke.yaml", teacher)
    assert advice(recipe, "corpus") == "lower corpus.teacher.concurrency"


def test_arms():
    """Smaller micro-batches continue the arm; where a row does not fit, the message says what stands in the way."""
    matched = RECIPES / "qwen3-14b" / "matched.yaml"
    keeps = "The arm resumes from its checkpoint with another train.micro_batch_tokens, and starts over with another "
    text = advice(load_recipe(matched, ["train.micro_batch_size=4"]), "arms/grpo/seed-0")
    recipe = load_recipe(matched)
    longest = recipe.prompt.max_prompt_tokens + recipe.prompt.max_completion_tokens
    assert f". train.micro_batch_tokens={2 * longest} would need about " in text
    assert "already" not in text and keeps in text
    text = advice(recipe, "arms/grpo/seed-0")  # micro_batch_size: 1
    assert "train.micro_batch_tokens=" not in text
    assert f"A micro-batch has at most {longest} tokens already, a row at the length limits, so a lower " in text
    assert keeps in text
    own = f"arms.grpo.train={{micro_batch_tokens: {3 * longest}, steps: 64}}"
    recipe = load_recipe(matched, [own])
    (stage,) = [stage for stage in build_stages(recipe) if stage.name == "arms/grpo/seed-0"]
    override = f"arms.grpo.train.micro_batch_tokens={3 * longest // 2}"
    assert f". {override} would need about " in out_of_memory(recipe, stage)
    assert resolve_arm(load_recipe(matched, [own, override]), "grpo").micro_batch_tokens == 3 * longest // 2


def test_every_key_in_the_messages_is_a_key_of_recipes():
    """Of all texts in the source of the module, so that a new remedy is checked too."""
    texts = [
        node.value
        for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    keys = {key for text in texts for key in KEY.findall(text)}
    assert {"train.micro_batch_tokens", "suite.engine.batch_size", "drift.batch_size"} <= keys
    for key in keys:
        chosen_sections(key)
