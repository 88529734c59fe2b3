"""What the printed plan says of units, nodes, GPUs and memory, and the costs in the headers of recipes."""

import re
from pathlib import Path

import pytest

from launch.planning import plan as module
from launch.planning.plan import build_plan
from launch.planning.plan_schema import as_json
from launch.planning.plan_text import format_plan
from launch.planning.schedule import on_one_machine
from launch.planning.units import flops_text, hours_text
from launch.site_file import SiteSpec
from launch.stages import build_stages
from recipes.loading import load_recipe
from train.accounting.memory import size_text

SMOKE, MATCHED = "recipes/pocket/smoke.yaml", "recipes/qwen3-14b/matched.yaml"


def test_every_number_of_the_table_has_a_unit(tmp_path):
    """Without a GPU durations, with one GPU-hours; memory in the unit that fits."""
    recipe = load_recipe("recipes/pocket/study.yaml")
    text = format_plan(build_plan(recipe, build_stages(recipe), tmp_path / "x")).splitlines()
    # 16,000 rows of 125 tokens on two threads: 6 x 672,832 x 2,000,000 / 1.2e11 = 67 s, 1,000 steps of 0.05 s and 2 s
    # of start.
    assert text[2].split() == ["stage", "stages", "GPUs", "each", "all", "memory", "state"]
    assert text[3].split() == ["base", "1", "-", "119", "s", "119", "s", "903", "MB", "new"]
    evaluation = next(line for line in text if line.startswith("  eval"))
    assert " ".join(evaluation.split()) == "eval 4 - 8.9 s 35 s 962 MB new"
    assert any(line.startswith("in all about 8 min of stage time") for line in text)
    first = next(index for index, line in enumerate(text) if line.startswith("memory per rank, without libraries"))
    assert text[first].split("libraries")[1].split("   ")[1:] == [
        " weights", "gradients", "optimizer", "activations", "output layer", " total",
    ]  # fmt: skip
    assert text[first + 1].split("   ")[0] == "off_policy_sft, on_policy_sft, grpo"
    assert text[first + 1].split()[3:] == ["3", "MB", "3", "MB", "5", "MB", "302", "MB", "91", "MB", "404", "MB"]
    recipe = load_recipe(MATCHED)
    text = format_plan(build_plan(recipe, build_stages(recipe), tmp_path / "x")).splitlines()
    assert text[2].split() == ["stage", "stages", "GPUs", "each", "GPU-hours", "memory", "state"]
    (sampling,) = [line for line in text if line.startswith("while sampling, ")]
    assert sampling.startswith("while sampling, on_policy_sft, grpo: vLLM with 70% of a GPU, asleep while training (")
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
        assert (plan.totals.nodes, plan.totals.node_gpus) == (nodes, 8)
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
    assert "wall clock" not in text
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
        # Weights 3.69, gradients 7.38 and optimizer 22.15, together 33.22; vLLM 0.7 of 141 GB.
        ([], "; at the peak, while sampling, 132 GB: weights, gradients and optimizer 33 GB and vLLM 99 GB"),
        # Awake, vLLM keeps 0.5 of 141 GB beside all of the training, 51.13.
        (
            ["resources.vllm.memory_share=0.5", "resources.vllm.sleep=false"],
            "; at the peak, while training, 122 GB: the total 51 GB and vLLM 70 GB",
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
    (sampling,) = [line for line in text.splitlines() if line.startswith("while sampling, on_policy_sft, grpo: ")]
    assert sampling.endswith(said)
    (memory,) = {stage.memory_bytes for stage in plan.stages if stage.group == "arms/grpo"}
    assert f", {size_text(memory)}: " in said


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
