"""Hours of a plan by hand: formulas, critical path, calibration by finished stages, and the costs in recipe headers."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from launch.execution.usage import USAGE
from launch.planning import plan as module
from launch.planning.calibration import rehearsed
from launch.planning.fit import stage_memory
from launch.planning.hours import plan_context, run_parts, stage_hours
from launch.planning.plan import build_plan
from launch.planning.plan_schema import as_json
from launch.planning.plan_text import flops_text, format_plan, hours_text
from launch.planning.schedule import on_one_machine, with_endless_nodes
from launch.site_file import SiteSpec
from launch.stages import Stage, build_stages, stage_inputs
from recipes.files import write_json
from recipes.loading import load_recipe
from recipes.manifest import finish_stage, start_stage
from train.accounting.cost import Gpu, ModelShape, model_shape
from train.accounting.memory import size_text
from train.accounting.rates import CPU_RATES, Rates, Sampling, batches_seconds, engine_seconds, forward_seconds

SMOKE, MATCHED = "recipes/pocket/smoke.yaml", "recipes/qwen3-14b/matched.yaml"
# Two layers: 2 x (8 x (2 x 8 + 2 x 4) + 3 x 8 x 16 + 2 x 8) + 8 + 10 x 8 = 1,272 parameters, tied.
TINY = ModelShape(10, 8, 16, 2, 2, 1, 4, tied_embeddings=True, head_norms=False)
GPU, RATES = Gpu(10**6, 1e6, 1e5, 1e5), Rates(train_utilisation=0.5, decode_bandwidth=0.5, layer_seconds=0.001)


def test_reading_by_hand():
    assert TINY.parameters() == 1272
    # 2 x 1,272, and scores and values of half a square: 2 x 2 layers x 2 heads x 4 x 20.
    assert TINY.forward_flops(1, 20) == 2544 + 640
    assert forward_seconds(TINY, GPU, RATES, 100, 20) == pytest.approx(100 * 3184 / 5e5)


def test_decoding_is_bound_by_memory_by_hand():
    """Prompts of 4 and completions of 10: 9 tokens kept of 2 x 2 x 1 x 4 x 2 = 32 bytes each."""
    assert TINY.kv_cache_bytes_per_token() == 32
    asked = Sampling(sequences=6, prompt=4, mean=10, limit=30)
    slow = Gpu(10**6, 1e9, 1e5, 1e9)  # arithmetic is free
    step = (2544 + 3 * 9 * 32) / 5e4  # a cache of 864 bytes holds three
    tail, prefill = 20 * 2544 / 5e4, 24 * TINY.forward_flops(1, 4) / 5e8
    assert engine_seconds(TINY, slow, RATES, asked, 864) == pytest.approx(20 * step + tail + prefill)
    # Two batches of three, whose longest has twice the mean length: 4 + 10 tokens are kept on average.
    batch = max((2544 + 3 * 14 * 32) / 5e4, 0.002) + 3 * TINY.forward_flops(1, 14) / 5e8
    assert batches_seconds(TINY, slow, RATES, asked, 4) == pytest.approx(2 * 20 * batch + prefill)
    # But not more than the limit.
    batch = max((2544 + 3 * 10 * 32) / 5e4, 0.002) + 3 * TINY.forward_flops(1, 10) / 5e8
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
    forward = shape.forward_flops(1, 5512) * 140 * 2048 * 5512 * 1.15 / 8 / (0.4 * 989e12)
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
    assert parts["forward and backward"] == pytest.approx(3 * shape.forward_flops(1, 48) * 9600 * 48 * 1.3 / 6e10)
    # 150 times 64 completions; the longest of a batch has twice 32 tokens, so the limit. A step is four launches, or
    # reads weights and cache, then computes.
    read = (shape.parameters() * 4 + 64 * 48 * shape.kv_cache_bytes_per_token(4)) / 6e9
    step = max(read, shape.num_layers * 0.0007) + 64 * shape.forward_flops(1, 48) / 6e10
    prefill = shape.forward_flops(1, 16) * 64 * 16 / 6e10
    assert parts["generation"] == pytest.approx(150 * (64 * step + prefill))
    # 4,800 responses of 16 tokens to questions of 128 / 8, in 24 batches of 200 with a longest of 32.
    read = (shape.parameters() * 4 + 200 * 32 * shape.kv_cache_bytes_per_token(4)) / 6e9
    step = max(read, shape.num_layers * 0.0007) + 200 * shape.forward_flops(1, 32) / 6e10
    prefill = shape.forward_flops(1, 16) * 4800 * 16 / 6e10
    seconds = stage_hours(context, by_name["eval/base"]).seconds
    assert seconds["generation"] == pytest.approx(24 * 32 * step + prefill)
    # A length that the recipe states holds for both.
    stated = plan_context(load_recipe("recipes/pocket/study.yaml", ["resources.expected_completion_tokens=64"]), shape)
    longer = run_parts(stated, "grpo")["forward and backward"]
    assert longer == pytest.approx(3 * shape.forward_flops(1, 80) * 9600 * 80 * 1.3 / 6e10)
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
        "assumed: completions of 50% of their limit and responses of 25%, as in the measured studies; if all "
        f"reached it, {longest * 60:.0f} min of stage time in all"
    ) in format_plan(plan)
    stated = load_recipe("recipes/pocket/study.yaml", ["resources.expected_completion_tokens=20"])
    plan = build_plan(stated, build_stages(stated), tmp_path / "x")
    assert plan.lengths is None
    assert "of their limit" not in format_plan(plan)


def test_reading_in_float32_is_as_slow_as_the_gpu_is_in_it():
    recipe = load_recipe("recipes/qwen3-1.7b/matched.yaml")
    context = plan_context(recipe, model_shape(recipe))
    assert context.forward(1000, 500, "float32") == pytest.approx(context.forward(1000, 500) * 989 / 67)
    assert context.forward(1000, 500, "bfloat16") == context.forward(1000, 500)


def stages(**needs):
    return [Stage(name.replace("_", "/"), "m", {}, tuple(need.replace("_", "/") for need in before))
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
    assert (one.hours, one.unknown) == (5.5, ("eval/c",))


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
        "probe.problems=4", "diagnostics={}",
    ])  # fmt: skip

    def measured():
        plan = build_plan(recipe, build_stages(recipe), tmp_path)
        lines = [line for line in format_plan(plan).splitlines() if line.startswith("measured: ")]
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
    # Passes of the probe are corrected by those of both arms, by what was planned for each.
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


def test_every_number_of_the_table_has_a_unit(tmp_path):
    """Without a GPU durations, with one GPU-hours; memory in the unit that fits."""
    recipe = load_recipe("recipes/pocket/study.yaml")
    text = format_plan(build_plan(recipe, build_stages(recipe), tmp_path / "x")).splitlines()
    # 16,000 rows of 125 tokens on two threads: 6 x 672,832 x 2,000,000 / 1.2e11 = 67 s, and 2 s of start.
    assert text[2].split() == ["stage", "stages", "GPUs", "each", "all", "memory", "state"]
    assert text[3].split() == ["base", "1", "-", "69", "s", "69", "s", "903", "MB", "new"]
    evaluation = next(line for line in text if line.startswith("  eval"))
    assert " ".join(evaluation.split()) == "eval 4 - 8.9 s 35 s 962 MB new"
    assert any(line.startswith("in all about 7 min of stage time") for line in text)
    assert any(line.startswith("memory per rank, without libraries: weights 3 MB, gradients 3 MB, ") for line in text)
    recipe = load_recipe(MATCHED)
    text = format_plan(build_plan(recipe, build_stages(recipe), tmp_path / "x")).splitlines()
    assert text[2].split() == ["stage", "stages", "GPUs", "each", "GPU-hours", "memory", "state"]
    sizes = [size_text(value) for value in (0, 9_400, 3_000_000, 1_234_000_000, 12_345_000_000)]
    assert sizes == ["0 kB", "9 kB", "3 MB", "1.2 GB", "12 GB"]


def test_durations_and_flops_are_readable():
    assert [hours_text(hours) for hours in (0.001, 0.01, 0.5, 3.25, 60)] == [
        "3.6 s",
        "36 s",
        "30 min",
        "3.2 h",
        "2.5 days",
    ]
    assert [flops_text(flops) for flops in (5.5e20, 2e15, 6.6e12)] == ["550.0 EFLOPs", "2.0 PFLOPs", "6.6 TFLOPs"]


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*/*.yaml")), ids=str)
def test_headers_of_recipes_carry_what_the_plan_says(path, tmp_path, monkeypatch):
    stated = re.search(
        r"# Cost: about ([\d,]+) H\d+-hours in all by `transfer plan`, (.+) on one node, ([\d.]+) TB", path.read_text()
    )
    if stated is None:
        assert "# Cost" not in path.read_text()
        return
    monkeypatch.setattr(module, "visible_gpus", list)
    recipe = load_recipe(path)
    plan = build_plan(recipe, build_stages(recipe), tmp_path / "x")
    totals = plan.totals
    assert f"{totals.hours:,.0f}" == stated[1]
    assert hours_text(totals.on_one_machine.hours) == stated[2]
    assert f"{plan.disk.total / 1e12:.1f}" == stated[3]


def test_wall_clock_of_runs_on_several_nodes_by_hand(monkeypatch):
    """Twelve runs of 10 hours each, one after another; then 13 evaluations of 10 hours, each on one GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for settings, hours, nodes in (([], 140, 1), (["resources.ranks=16", "resources.nodes=2"], 130, 2)):
        recipe = load_recipe(MATCHED, settings)
        stages = build_stages(recipe)
        spent = {stage.name: 10.0 if stage.kind in ("arms", "eval") else 0.0 for stage in stages}
        assert on_one_machine(recipe, stages, spent, 8).hours == hours
        plan = build_plan(recipe, stages, Path("runs/none"))
        assert (plan.totals.nodes, plan.totals.node_gpus, plan.gpus.nodes) == (nodes, 8, nodes)
    assert "\nwall clock on 2 nodes with 8 GPU(s) each: " in format_plan(plan)
    served = load_recipe(MATCHED, ["resources.vllm={mode: server, server_nodes: 1}"])
    stages = build_stages(served)
    spent = {stage.name: 10.0 * (stage.kind == "arms") for stage in stages}
    # Three pairs of SFT runs, then six runs on both nodes.
    assert on_one_machine(served, stages, spent, 8).hours == 90


def test_more_ranks_on_a_node_than_usual_ask_for_nodes(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def told(*settings):
        recipe = load_recipe(MATCHED, list(settings))
        return [
            text for text in build_plan(recipe, build_stages(recipe), Path("runs/none")).warnings if "usual" in text
        ]

    assert told() == told("resources.ranks=16", "resources.nodes=2") == []
    assert told("resources.ranks=32") == [
        "32 ranks on 1 node(s) are 32 GPUs a node, and a node usually has 8; set resources.nodes=4, or leave it if "
        "your nodes have more"
    ]


def test_what_cannot_work_has_no_hours_and_the_best_share_is_proposed(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def planned(*settings):
        recipe = load_recipe(MATCHED, ["resources.gpu=H100-80GB", *settings])
        return build_plan(recipe, build_stages(recipe), Path("runs/none"))

    impossible = planned("resources.vllm.memory_share=0.3")
    assert impossible.errors[0].endswith("the nearest setting that works: resources.vllm.memory_share=null")
    assert impossible.totals.hours == 0
    assert {arm.gpu_hours for arm in impossible.arms.values()} == {None}
    assert impossible.arms["grpo"].memory_per_rank == planned().arms["grpo"].memory_per_rank
    text = format_plan(impossible)
    assert "wall clock" not in text and "certainty" not in text
    proposed = planned("resources.vllm.memory_share=null").totals.hours
    assert proposed == planned().totals.hours
    assert all(
        proposed <= plan.totals.hours
        for share in (0.4, 0.5, 0.6, 0.7, 0.8)
        if not (plan := planned(f"resources.vllm.memory_share={share}")).errors
    )


def test_parts_of_an_arm_that_the_faq_names(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    recipe = load_recipe(MATCHED)
    plan = as_json(build_plan(recipe, build_stages(recipe), Path("runs/none")))
    parts = {stage["name"]: set(stage["seconds"]) for stage in plan["stages"]}
    named = {"generation", "old log-probabilities"}
    assert parts["arms/grpo/seed-0"] - parts["arms/sft_think/seed-0"] == {*named, "weight synchronisation"}
    answer = Path("docs/faq.md").read_text().partition("Why does GRPO cost more")[2].partition("\n\n")[0]
    assert "transfer plan --json" in answer and all(f"`{name}`" in answer for name in named)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        # Weights 3.69, gradients 7.38 and optimizer 22.15; vLLM 0.7 of 141 GB.
        ([], "; at the peak, while sampling, 131.93: weights, gradients and optimizer 33.23 and vLLM 98.70"),
        # Awake, vLLM keeps 0.5 of 141 GB beside all of the training, 51.13.
        (
            ["resources.vllm.memory_share=0.5", "resources.vllm.sleep=false"],
            "; at the peak, while training, 121.63: the total 51.13 and vLLM 70.50",
        ),
        (["resources.vllm={mode: server, server_nodes: 1}"], None),
    ],
)
def test_sum_of_the_column_of_memory_is_explained(settings, said, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    recipe = load_recipe(MATCHED, settings)
    plan = build_plan(recipe, build_stages(recipe), Path("runs/none"))
    text = format_plan(plan)
    if said is None:
        assert "at the peak" not in text
        return
    assert f"{said}  (on_policy_sft, grpo)" in text
    (memory,) = {stage.memory_bytes for stage in plan.stages if stage.group == "arms/grpo"}
    assert f"{memory / 1e9:.2f}:" in said


def test_a_plan_for_a_cluster_shows_the_gpus_that_its_jobs_request():
    def rows(recipe, site):
        text = format_plan(build_plan(recipe, build_stages(recipe), Path("runs/none"), site=site))
        table = [line.split() for line in text.split("\n\n")[1].splitlines()[1:]]
        return {row[0]: row[2] for row in table}, text

    gpus, text = rows(load_recipe(SMOKE), SiteSpec(gpus_per_node=8))
    assert {gpus[name] for name in ("base", "arms/grpo", "eval")} == {"1"}
    assert {gpus[name] for name in ("corpus", "questions", "report")} == {"-"}
    assert "\nwall clock on one node of the cluster at the speed of a CPU (resources.gpu names a GPU): " in text
    assert set(rows(load_recipe(SMOKE), SiteSpec(gpus_per_node=0))[0].values()) == {"-"}
    two = load_recipe(MATCHED, ["resources.ranks=16", "resources.nodes=2"])
    assert rows(two, SiteSpec(gpus_per_node=8))[0]["arms/grpo"] == "16"
