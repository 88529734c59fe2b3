"""Hours of a plan by hand: formulas, critical path, and calibration by finished stages."""

import json
import re
from dataclasses import replace

import pytest

from launch.execution.usage import USAGE
from launch.planning.calibration import rehearsed
from launch.planning.fit import stage_memory
from launch.planning.hours import plan_context, run_parts, stage_hours
from launch.planning.plan import build_plan
from launch.planning.plan_schema import as_json
from launch.planning.plan_text import format_plan
from launch.planning.schedule import on_one_machine, with_endless_nodes
from launch.stages import Stage, build_stages, stage_inputs
from recipes.files import write_json
from recipes.loading import load_recipe
from recipes.manifest import finish_stage, start_stage
from train.accounting.cost import Gpu, ModelShape, model_shape
from train.accounting.rates import CPU_RATES, Rates, Sampling, batches_seconds, engine_seconds, forward_seconds

SMOKE, MATCHED = "recipes/pocket/smoke.yaml", "recipes/qwen3-14b/matched.yaml"
# Two layers: 2 x (8 x (2 x 8 + 2 x 4) + 3 x 8 x 16 + 2 x 8) + 8 + 10 x 8 = 1,272 parameters, tied.
TINY = ModelShape(10, 8, 16, 2, 2, 1, 4, tied_embeddings=True, head_norms=False)
GPU, RATES = Gpu(10**6, 1e6, 1e5, 1e5), Rates(train_utilisation=0.5, decode_bandwidth=0.5, layer_seconds=0.001)


def test_reading_by_hand():
    assert TINY.parameters() == 1272
    # 2 x 1,272, and scores and values of half a square: 2 x 2 layers x 2 heads x 4 x 20.
    assert TINY.forward_flops_with_attention(1, 20) == 2544 + 640
    assert forward_seconds(TINY, GPU, RATES, 100, 20) == pytest.approx(100 * 3184 / 5e5)


def test_decoding_is_bound_by_memory_by_hand():
    """Prompts of 4 and completions of 10: 9 tokens kept of 2 x 2 x 1 x 4 x 2 = 32 bytes each."""
    assert TINY.kv_cache_bytes_per_token() == 32
    asked = Sampling(sequences=6, prompt=4, mean=10, limit=30)
    slow = Gpu(10**6, 1e9, 1e5, 1e9)  # arithmetic is free
    step = (2544 + 3 * 9 * 32) / 5e4  # a cache of 864 bytes holds three
    tail, prefill = 20 * 2544 / 5e4, 24 * TINY.forward_flops_with_attention(1, 4) / 5e8
    assert engine_seconds(TINY, slow, RATES, asked, 864) == pytest.approx(20 * step + tail + prefill)
    # Two batches of three, whose longest has twice the mean length: 4 + 10 tokens are kept on average.
    batch = max((2544 + 3 * 14 * 32) / 5e4, 0.002) + 3 * TINY.forward_flops_with_attention(1, 14) / 5e8
    assert batches_seconds(TINY, slow, RATES, asked, 4) == pytest.approx(2 * 20 * batch + prefill)
    # But not more than the limit.
    batch = max((2544 + 3 * 10 * 32) / 5e4, 0.002) + 3 * TINY.forward_flops_with_attention(1, 10) / 5e8
    assert batches_seconds(TINY, slow, RATES, Sampling(6, 4, 10, 12), 4) == pytest.approx(2 * 12 * batch + prefill)
    assert engine_seconds(TINY, slow, RATES, Sampling(0, 4, 10, 30), 864) == 0


def test_a_step_takes_as_long_as_the_rank_with_the_most_rows():
    """Ranks that a step has no rows for do not make it faster."""

    def forward(*settings):
        recipe = load_recipe(MATCHED, ["corpus.demonstrations=random", "train.problems_per_step=4", *settings])
        context = plan_context(recipe, model_shape(recipe), 8)
        return run_parts(context, "sft_think")["forward and backward"]

    one = forward("resources.ranks=1")
    assert forward("resources.ranks=2") == pytest.approx(one / 2)
    assert forward("resources.ranks=4") == forward("resources.ranks=8") == pytest.approx(one / 4)


def test_parts_of_a_run_by_hand():
    recipe = load_recipe(MATCHED)
    shape = model_shape(recipe)
    parts = run_parts(plan_context(recipe, shape, 8), "grpo")
    # 140 updates of 256 x 8 sequences of 512 + 5,000 tokens on eight GPUs at 40 % of 989e12, padded by 15 %.
    forward = shape.forward_flops_with_attention(1, 5512) * 140 * 2048 * 5512 * 1.15 / 8 / (0.4 * 989e12)
    assert parts["forward and backward"] == pytest.approx(3 * forward)
    assert parts["recomputation"] == parts["old log-probabilities"] == pytest.approx(forward)
    assert parts["reference model"] == 0
    assert parts["weight synchronisation"] == pytest.approx(140 * 2 * shape.parameters() / 5e9)
    # A checkpoint every four updates of 14 bytes a parameter; eight snapshots, `final` among them, of 2.
    assert parts["checkpoints"] == pytest.approx((35 * 14 + 8 * 2) * shape.parameters() / 1e9)
    sft = run_parts(plan_context(recipe, shape, 8), "sft_think")  # padding-free, four demonstrations a problem
    assert sft["forward and backward"] == pytest.approx(3 * forward / 1.15 / 2)
    assert (sft["generation"], sft["old log-probabilities"], sft["weight synchronisation"]) == (0, 0, 0)


def test_texts_are_expected_to_be_shorter_than_their_limits_by_hand(tmp_path):
    """Half of the limit in training, a quarter in the evaluation; memory, disk and tokens stay upper bounds."""
    recipe = load_recipe("recipes/pocket/study.yaml")
    shape, by_name = model_shape(recipe), {stage.name: stage for stage in build_stages(recipe)}
    context = plan_context(recipe, shape)
    # Prompts of 64 / 4 and completions of 64 / 2 tokens, at 40 % of 150 GFLOPs a second.
    parts = run_parts(context, "grpo")
    assert parts["forward and backward"] == pytest.approx(
        3 * shape.forward_flops_with_attention(1, 48) * 9600 * 48 * 1.3 / 6e10
    )
    # 150 times 64 completions; the longest of a batch has twice 32 tokens, so the limit. A step is four launches, or
    # reads weights and cache, then computes.
    read = (shape.parameters() * 4 + 64 * 48 * shape.kv_cache_bytes_per_token(4)) / 6e9
    step = max(read, shape.num_layers * 0.0007) + 64 * shape.forward_flops_with_attention(1, 48) / 6e10
    prefill = shape.forward_flops_with_attention(1, 16) * 64 * 16 / 6e10
    assert parts["generation"] == pytest.approx(150 * (64 * step + prefill))
    # 4,800 responses of 16 tokens to questions of 128 / 8, in 24 batches of 200 with a longest of 32.
    read = (shape.parameters() * 4 + 200 * 32 * shape.kv_cache_bytes_per_token(4)) / 6e9
    step = max(read, shape.num_layers * 0.0007) + 200 * shape.forward_flops_with_attention(1, 32) / 6e10
    prefill = shape.forward_flops_with_attention(1, 16) * 4800 * 16 / 6e10
    seconds = stage_hours(context, by_name["eval/base"]).seconds
    assert seconds["generation"] == pytest.approx(24 * 32 * step + prefill)
    # A length that the recipe states holds for both.
    stated = plan_context(load_recipe("recipes/pocket/study.yaml", ["resources.expected_completion_tokens=64"]), shape)
    longer = run_parts(stated, "grpo")["forward and backward"]
    assert longer == pytest.approx(3 * shape.forward_flops_with_attention(1, 80) * 9600 * 80 * 1.3 / 6e10)
    plan = build_plan(recipe, list(by_name.values()), tmp_path / "x")
    assert plan.arms["grpo"].generated_tokens_at_most == 9600 * 64
    assert plan.disk.responses == 4 * 4800 * 64 * 5
    evaluated = next(stage for stage in plan.stages if stage.name == "eval/base")
    # What torch and transformers take of the host comes on top.
    model = 4 * shape.parameters() + 200 * (128 + 64) * shape.kv_cache_bytes_per_token(4)
    assert evaluated.memory_bytes == model + 900_000_000
    assert stage_memory(recipe, by_name["questions"], shape) is None
    on_gpu = load_recipe("recipes/pocket/study.yaml", ["resources.gpu=H100-80GB"])
    assert stage_memory(on_gpu, by_name["eval/base"], shape) == model


def test_the_plan_says_what_lengths_it_assumes(tmp_path):
    recipe = load_recipe("recipes/pocket/study.yaml")
    plan = build_plan(recipe, build_stages(recipe), tmp_path / "x")
    limits = replace(CPU_RATES, completion_share=1.0, response_share=1.0)
    context = plan_context(recipe, model_shape(recipe))
    longest = sum(stage_hours(replace(context, rates=limits), stage).hours for stage in build_stages(recipe))
    assert (plan.lengths.completion_share, plan.lengths.response_share) == (0.5, 0.25)
    assert plan.lengths.hours_at_limits == pytest.approx(longest)
    assert plan.totals.hours < 0.8 * longest
    assert (
        "\nassumed: completions of 50% of their limit and responses of 25% "
        "(`resources.expected_completion_tokens` sets another length)\n"
    ) in format_plan(plan)
    at_limits = f"if all completions and responses reached their limits: {longest * 60:.0f} min of stage time in all"
    assert at_limits in format_plan(plan, details=True) and at_limits not in format_plan(plan)
    stated = load_recipe("recipes/pocket/study.yaml", ["resources.expected_completion_tokens=20"])
    plan = build_plan(stated, build_stages(stated), tmp_path / "x")
    assert plan.lengths is None
    assert "their limits" not in format_plan(plan, details=True)


def test_reading_in_float32_is_as_slow_as_the_gpu_is_in_it():
    recipe = load_recipe("recipes/qwen3-1.7b/matched.yaml")
    context = plan_context(recipe, model_shape(recipe))
    assert context.forward(1000, 500, "float32") == pytest.approx(context.forward(1000, 500) * 989 / 67)
    assert context.forward(1000, 500, "bfloat16") == context.forward(1000, 500)


def stages(**needs):
    return [Stage(name.replace("_", "/"), {}, tuple(need.replace("_", "/") for need in before))
            for name, before in needs.items()]  # fmt: skip


def test_critical_path_by_hand():
    """Two on a CPU at a time. a 1, b 3, c 2 after a, d 1 after a, report after all."""
    graph = stages(base=(), questions=(), eval_c=("base",), eval_d=("base",), report=("questions", "eval_c", "eval_d"))
    hours = {"base": 1.0, "questions": 3.0, "eval/c": 2.0, "eval/d": 1.0, "report": 0.5}
    here = on_one_machine(load_recipe(SMOKE), graph, hours, 0)
    # base 0-1, questions 0-3, c 1-3, d 3-4, report 4-4.5
    assert here.hours == 4.5
    assert here.path[-2:] == ("eval/d", "report")
    endless = with_endless_nodes(graph, hours)
    assert endless.hours == 3.5
    assert set(endless.path[-1:]) == {"report"}
    one = on_one_machine(load_recipe(SMOKE, ["resources.workers=1"]), graph, hours | {"eval/c": None}, 0)
    assert one.hours == 5.5


def done(recipe, folder, names, seconds, peak=0):
    for stage in build_stages(recipe):
        if stage.name in names:
            start_stage(folder / stage.name, stage.name, stage_inputs(stage, folder), stage.code)
            finish_stage(folder / stage.name, {})
            write_json(folder / stage.name / USAGE, {"seconds": seconds, "host_bytes": peak, "gpu_bytes": 0})


def test_finished_stages_calibrate_the_rest_by_hand(tmp_path):
    """Seed 0 of SFT took twice what was planned, so seed 1 is expected to; of GRPO only the passes it shares."""
    recipe = load_recipe(SMOKE, ["seeds=[0,1]"])
    shape, folder = model_shape(recipe), tmp_path / "study"
    context = plan_context(recipe, shape)
    by_name = {stage.name: stage for stage in build_stages(recipe)}
    sft = stage_hours(context, by_name["arms/off_policy_sft/seed-0"]).hours
    done(recipe, folder, ("base", "corpus", "arms/off_policy_sft/seed-0"), round(2 * sft * 3600, 3), 1_500_000_000)
    plan = build_plan(recipe, list(by_name.values()), folder)
    rows = {stage.name: stage for stage in plan.stages}
    first, second = rows["arms/off_policy_sft/seed-0"], rows["arms/off_policy_sft/seed-1"]
    assert (first.state, first.left_hours) == ("done", 0.0)
    assert second.planned_hours == pytest.approx(sft)
    assert second.expected_hours == second.left_hours == pytest.approx(2 * sft, rel=1e-3)
    assert second.memory_bytes == 1_500_000_000  # what the libraries took beside the planned memory is added again
    factor = next(item for item in plan.calibration if item.group == "arms/off_policy_sft")
    assert factor.ratio == pytest.approx(2, rel=1e-3)
    # Its passes through the model count double; sampling and the start stay as planned.
    parts, grpo = stage_hours(context, by_name["arms/grpo/seed-1"]).seconds, rows["arms/grpo/seed-1"]
    assert grpo.expected_hours * 3600 == pytest.approx(sum(parts.values()) + parts["forward and backward"], rel=1e-3)
    assert grpo.seconds["generation"] == pytest.approx(parts["generation"])
    # A stage with a model takes as much beside what is planned for it as the one that took most.
    extra = 1_500_000_000 - stage_memory(recipe, by_name["base"], shape)
    assert grpo.memory_bytes == stage_memory(recipe, by_name["arms/grpo/seed-1"], shape) + extra
    assert rows["report"].memory_bytes is None
    left = sum(stage.left_hours for stage in plan.stages)
    assert plan.totals.left_hours == pytest.approx(left)
    assert json.loads(json.dumps(as_json(plan)))["calibration"][0]["ratio"] == pytest.approx(plan.calibration[0].ratio)


def test_the_plan_says_which_rows_a_measured_stage_corrects(tmp_path):
    """A base tells about nothing else, an arm about passes, an evaluation about sampling by its engine."""
    recipe = load_recipe(SMOKE, [
        "arms.once={sampling: base_once, credit: uniform}",
        "arms.rounds={sampling: round, round_steps: 2, credit: uniform}", "varies=[sampling, credit, negatives, beta]",
        "drift.problems=4", "diagnostics={}",
    ])  # fmt: skip

    def measured():
        plan = build_plan(recipe, build_stages(recipe), tmp_path)
        lines = [line for line in format_plan(plan, details=True).splitlines() if line.startswith("measured: ")]
        found = (re.search(r"measured: (\S+) took .*?\)(?:; corrects (.*))?$", line) for line in lines)
        return {match[1]: match[2] for match in found}, {stage.name: stage for stage in plan.stages}

    done(recipe, tmp_path, ("base", "corpus"), 1.0)
    assert measured()[0] == {"base": None, "corpus": None}
    done(recipe, tmp_path, ("arms/off_policy_sft/seed-0",), 1.0)
    sampled = "arms/on_policy_sft, arms/grpo, arms/once, arms/rounds, drift"
    assert measured()[0]["arms/off_policy_sft"] == f"{sampled}, diagnostics"
    done(recipe, tmp_path, ("questions", "eval/base"), 1.0)
    found, rows = measured()
    assert found["eval"] == f"{sampled}, eval, diagnostics"
    # The evaluation took a second, so sampling took so much of what was planned for it, and passes of SFT likewise.
    context = plan_context(recipe, model_shape(recipe))
    planned = {stage.name: stage_hours(context, stage) for stage in build_stages(recipe)}
    ratio = {name: 1 / 3600 / planned[name].hours for name in ("eval/base", "arms/off_policy_sft/seed-0")}
    once = planned["arms/once/seed-0"].seconds
    assert rows["arms/once/seed-0"].seconds["generation"] == pytest.approx(once["generation"] * ratio["eval/base"])
    passes = once["forward and backward"] * ratio["arms/off_policy_sft/seed-0"]
    assert rows["arms/once/seed-0"].seconds["forward and backward"] == pytest.approx(passes)
    # An arm that samples says more about the others that do.
    done(recipe, tmp_path, ("arms/grpo/seed-0",), 3.0)
    found, rows = measured()
    assert found["arms/grpo"] == f"{sampled}, diagnostics".replace("arms/grpo, ", "")
    assert rows["arms/rounds/seed-0"].corrected_by == ("arms/grpo",)
    factor = 3 / 3600 / planned["arms/grpo/seed-0"].hours
    rounds = planned["arms/rounds/seed-0"].hours
    assert rows["arms/rounds/seed-0"].expected_hours == pytest.approx(rounds * factor)
    # Passes of drift are corrected by those of both arms, by what was planned for each.
    ratio["arms/grpo/seed-0"] = factor
    passes = {name: planned[name].seconds["forward and backward"] for name in ratio if name.startswith("arms")}
    mean = sum(seconds * ratio[name] for name, seconds in passes.items()) / sum(passes.values())
    reading = planned["drift/base"].seconds["reading"]
    assert rows["drift/base"].seconds["reading"] == pytest.approx(reading * mean)


def test_a_run_in_progress_calibrates_by_its_clock(tmp_path):
    recipe = load_recipe(SMOKE, ["train.steps=10"])
    done(recipe, tmp_path, ("base", "corpus"), 1.0)
    stage = next(stage for stage in build_stages(recipe) if stage.name == "arms/grpo/seed-0")
    start_stage(tmp_path / stage.name, stage.name, stage_inputs(stage, tmp_path), stage.code)
    (tmp_path / stage.name / "clock.jsonl").write_text('{"step": 4, "process_seconds": 72.0}\n')
    row = next(row for row in build_plan(recipe, build_stages(recipe), tmp_path).stages if row.name == stage.name)
    assert (row.state, row.taken_hours) == ("resume", 0.02)
    assert row.expected_hours == pytest.approx(0.05)
    assert row.left_hours == pytest.approx(0.03)


def test_a_rehearsal_tells_the_start_of_stages_on_the_same_sort_of_machine(tmp_path):
    rows = [{"stage": f"eval/{name}", "seconds": seconds, "verdict": "passed", "gpu_bytes": 5}
            for name, seconds in (("base", 90.0), ("a", 70.0), ("b", 80.0))]  # fmt: skip
    folder = tmp_path / "rehearsals" / "s"
    write_json(folder / "rehearsal.json", {"rehearsal": True, "stages": rows})
    (found,), why = rehearsed(tmp_path / "s", "s", True)
    assert (found.kind, found.stages, found.seconds, why) == ("eval", 3, 80.0, None)
    refused = f"{folder} ran on a GPU, which says nothing about the hours of this study"
    assert rehearsed(tmp_path / "s", "s", False) == ((), refused)
    assert rehearsed(tmp_path / "other", "other", True) == ((), None)


def test_the_plan_names_what_dominates(tmp_path):
    recipe = load_recipe(MATCHED)
    plan = build_plan(recipe, build_stages(recipe), tmp_path / "x")
    assert plan.assumptions[0].name == "resources.expected_completion_tokens"
    assert 0.2 < plan.assumptions[0].change < 0.25
    changes = [abs(item.change) for item in plan.assumptions]
    assert changes == sorted(changes, reverse=True)
