"""What a rehearsal scales and what it says it cannot show."""

import pytest

from launch.rehearsal.hardware import Hardware, find_hardware
from launch.rehearsal.scale import COMPLETION_TOKENS, Replacements, scale
from launch.site_file import SiteSpec
from launch.stages import build_stages
from recipes.errors import UserError
from recipes.loading import load_recipe
from tests.paths import RECIPES

LARGE = (
    "qwen3-14b/matched",
    "qwen3-14b/paper",
    "qwen3-8b/ablation",
    "llama-3.1-8b/matched",
    "qwen3-1.7b/matched",
    "released/qwen3-14b",
)
NODE = Hardware(8, 8, 1, "0.31.0")  # GPUs, ranks, nodes, vLLM
LAPTOP = Hardware(0, 2, 1, None, ("no GPU",))
NOWHERE = Replacements({}, {}, None, {})


def leaves(value, prefix=""):
    """Dotted key -> value of everything that holds nothing else; numbers step into lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {key: leaf for name, inner in items for key, leaf in leaves(inner, f"{prefix}{name}.").items()}
    return found or {prefix.rstrip("."): value}


def recipe(name, *overrides):
    return load_recipe(RECIPES / f"{name}.yaml", list(overrides))


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("hardware", [NODE, LAPTOP], ids=["node", "laptop"])
def test_nothing_changes_but_what_is_listed(name, hardware):
    full = recipe(name)
    places = Replacements(
        {"model.path": "m"},
        {f"suite.benchmarks.{n}.data": f"{n}.jsonl" for n in range(len(full.suite.benchmarks))},
        "http://127.0.0.1:9/v1",
        {},
    )
    scaled = scale(full, hardware, places)
    before, after = leaves(full.dump()), leaves(scaled.recipe.dump())
    differ = {key for key in before.keys() | after.keys() if before.get(key, "-") != after.get(key, "-")}
    listed = {change.key for change in scaled.changes}
    unlisted = {key for key in differ if not any(key == k or key.startswith(f"{k}.") for k in listed)}
    assert {key for key in unlisted if not key.startswith("lock")} == {"rehearsal", "title"}
    assert not [change for change in scaled.changes if change.recipe == change.rehearsal]


@pytest.mark.parametrize("name", LARGE)
def test_a_node_with_its_gpus_keeps_engines_ranks_and_kernels(name):
    full = recipe(name)
    scaled = scale(full, NODE, NOWHERE)
    assert scaled.not_rehearsed == ()
    small = scaled.recipe
    assert small.suite.engine.kind == full.suite.engine.kind == "vllm"
    assert small.model.attention == full.model.attention
    assert small.resources.vllm == full.resources.vllm
    assert small.resources.zero_stage == full.resources.zero_stage
    assert small.resources.gpu == full.resources.gpu
    stages = [stage.name for stage in build_stages(full) if stage.name.rpartition("seed-")[2][:1] not in ("1", "2")]
    first = [name for name in stages if "seed1" not in name and "seed2" not in name]
    assert [stage.name for stage in build_stages(small)] == first


def test_the_arms_and_their_updates_by_value():
    full = recipe("qwen3-14b/matched")
    small = scale(full, NODE, NOWHERE).recipe
    for name, arm in full.arms.items():
        assert small.arms[name] == arm.model_copy(update={"learning_rate": arm.learning_rate and 1e-3})
    assert small.train.learning_rate == 1e-3
    assert small.varies == full.varies
    assert small.prompt.suffix == full.prompt.suffix
    assert (small.train.steps, small.train.save_every_steps, small.train.snapshots) == (2, 1, 2)
    # 8 ranks, micro-batches of 1, two of them a rank: 16 rows, 4 a problem.
    assert (small.train.problems_per_step, small.train.completions_per_problem) == (4, 4)
    assert small.train.micro_batch_size == 1
    assert small.prompt.max_completion_tokens == COMPLETION_TOKENS
    assert small.seeds == (0,)


def test_updates_that_share_a_sampling_are_rehearsed_together():
    small = scale(recipe("qwen3-14b/paper"), NODE, NOWHERE).recipe
    assert small.arms["grpo"].updates_per_batch == 4
    assert (small.train.steps, small.train.save_every_steps) == (8, 4)  # two samplings, a checkpoint between them
    sft = small.arms["sft_think"]
    assert sft.steps == 8
    assert sft.train["completions_per_problem"] == 1
    assert sft.train["problems_per_step"] == small.train.problems_per_step * small.train.completions_per_problem
    assert sft.train["schedule"] == "cosine"


def test_an_arms_own_settings_have_the_limits_of_the_study():
    own = "{completions_per_problem: 2, warmup_steps: 3, save_every_steps: 50, overlong_tokens: 99}"
    full = recipe("qwen3-14b/matched", "train.warmup_steps=5", f"arms.grpo.train={own}", "unmatched=stamp")
    small = scale(full, NODE, NOWHERE).recipe
    assert small.train.warmup_steps == 0
    assert small.arms["grpo"].train == {
        "completions_per_problem": 2, "problems_per_step": 8, "warmup_steps": 0, "save_every_steps": 1,
        "overlong_tokens": COMPLETION_TOKENS // 4,
    }  # fmt: skip


def test_what_a_laptop_cannot_show_is_named():
    missing = scale(recipe("qwen3-14b/matched"), LAPTOP, NOWHERE).not_rehearsed
    assert missing[0] == "no GPU"
    assert any("flash_attention_2: sdpa is used" in text for text in missing)
    assert any("transformers samples during training" in text for text in missing)
    assert any("transformers generates" in text for text in missing)
    with_vllm = scale(recipe("qwen3-14b/matched"), Hardware(0, 2, 1, "0.31.0"), NOWHERE)
    assert with_vllm.recipe.suite.engine.kind == "vllm"
    assert with_vllm.recipe.resources.vllm.sleep is False
    assert any("sleep" in text for text in with_vllm.not_rehearsed)


def test_a_server_for_another_model_is_not_used():
    server = "resources.vllm={mode: server, server_url: 'http://node:8000'}"
    scaled = scale(recipe("qwen3-1.7b/matched", server), Hardware(1, 1, 1, "0.31.0"), NOWHERE)
    assert scaled.recipe.resources.vllm is None
    assert scaled.not_rehearsed == (
        "resources.vllm server: transformers samples during training, because the server has another model",
    )


def test_hardware(monkeypatch):
    full = recipe("qwen3-14b/matched")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    here = find_hardware(full, None, None)
    assert (here.gpus, here.ranks, here.nodes) == (4, 4, 1)
    assert here.missing == ("resources.ranks 8: 4 trained",)
    with pytest.raises(UserError, match=r"--ranks 8 but there are 4 GPU"):
        find_hardware(full, 8, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    here = find_hardware(full, None, None)
    assert (here.ranks, here.missing[1]) == (2, "resources.ranks 8: 2 trained")
    assert find_hardware(full, 3, None).ranks == 3
    site = SiteSpec(gpus_per_node=0)
    two = full.model_copy(update={"resources": full.resources.model_copy(update={"nodes": 2})})
    assert find_hardware(two, 2, site).nodes == 2
    with pytest.raises(UserError, match=r"--ranks 3 does not divide evenly among resources.nodes=2"):
        find_hardware(two, 3, site)
