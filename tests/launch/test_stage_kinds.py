"""The facts of every kind of stage, and that everything computed of a kind knows all of them."""

import ast

import pytest

from launch.execution.failures import out_of_memory
from launch.hardware import gpus_wanted
from launch.planning import findings
from launch.planning.disk import disk_needed
from launch.planning.fit import stage_memory
from launch.planning.hours import plan_context, stage_hours
from launch.planning.node import needs_vllm
from launch.slurm import step
from launch.stage_kinds import KINDS, STAGE_KINDS, kind_of
from launch.stages import Stage, build_stages
from recipes.code_version import ROOT
from recipes.loading import load_recipe
from tests.paths import POCKET, RECIPES
from train.accounting.cost import model_shape
from train.accounting.memory import checkpoint_bytes

EVERYTHING = ["drift={}", "trajectory={}", "diagnostics={}", "arms.other={external: {path: org/model}}",
              "analysis.claims=[]"]  # fmt: skip


@pytest.fixture(scope="module")
def study():
    """A recipe with stages of all kinds, one stage of each, and the shape of its model."""
    recipe = load_recipe(POCKET, EVERYTHING)
    stages = {stage.kind: stage for stage in build_stages(recipe)}
    assert set(stages) == set(KINDS) == set(STAGE_KINDS)
    return recipe, stages, model_shape(recipe)


def kinds(stages, holds):
    """The kinds of which something holds, in their order."""
    return [kind for kind in KINDS if holds(stages[kind])]


def test_every_module_of_a_kind_runs_stages():
    assert tuple(STAGE_KINDS) == KINDS
    for facts in STAGE_KINDS.values():
        for module in facts.modules:
            tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
            (run,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
            assert [argument.arg for argument in run.args.args[:4]] == ["recipe", "study_dir", "stage_dir", "resume"]


def test_a_stage_has_a_module_of_its_kind():
    made = [stage for path in (POCKET, RECIPES / "qwen3-8b" / "ablation.yaml")
            for stage in build_stages(load_recipe(path))]  # fmt: skip
    assert all(stage.module in stage.facts.modules for stage in made)
    by_name = {stage.name: stage.module for stage in made}
    assert by_name["arms/off_policy_sft/seed-0"] == "train.sft"
    assert by_name["arms/grpo/seed-0"] == "train.grpo"
    assert {stage.module for stage in made if stage.name == "base"} == set(STAGE_KINDS["base"].modules)
    assert kind_of("arms/report/seed-0") == "arms"


def test_versions_of_code_are_of_all_arms_together_and_of_one_kind_of_base():
    sft, grpo = (Stage("arms/a/seed-0", {}, chosen_module=module) for module in ("train.sft", "train.grpo"))
    assert sft.code == grpo.code
    prepared, pocket = Stage("base", {}), Stage("base", {}, chosen_module="train.models.pocket_base")
    assert prepared.code != pocket.code
    assert prepared.code == Stage("external/m", {}).code


def test_weights_are_in_the_folder_of_a_model_or_below_that_of_a_run(study):
    stages = build_stages(study[0])
    read = {stage.name: stage.arguments["model_dir"] for stage in stages if stage.kind == "eval"}
    assert read == {"eval/base": "base", "eval/other": "external/other"} | {
        f"eval/{arm}-seed0-final": f"arms/{arm}/seed-0/final" for arm in ("off_policy_sft", "on_policy_sft", "grpo")
    }


def test_hours_of_every_kind(study):
    recipe, stages, shape = study
    context = plan_context(recipe, shape)
    assert kinds(stages, lambda stage: stage_hours(context, stage) is None) == []
    tables = {kind: stage_hours(context, stages[kind]).seconds["tables"] for kind in ("corpus", "questions", "report")}
    assert tables == {"corpus": 8, "questions": 0, "report": 4}


def test_memory_of_every_kind(study):
    recipe, stages, shape = study
    assert kinds(stages, lambda stage: stage_memory(recipe, stage, shape) is None) == ["corpus", "questions", "report"]
    weights = 4 * shape.parameters() + 900_000_000  # float32, and libraries
    assert {stage_memory(recipe, stages[kind], shape) for kind in ("base", "external")} == {weights}


def test_disk_of_every_kind(study):
    recipe, stages, shape = study

    def needed(kind):
        return disk_needed(recipe, shape, [stages[kind]], 0).total

    assert kinds(stages, lambda stage: not needed(stage.kind)) == ["drift", "questions", "trajectory", "report"]
    weights = 4 * shape.parameters()
    assert needed("base") == needed("external") == weights
    kept = needed("arms") - checkpoint_bytes(shape, 0, False)
    assert kept > 0 and kept % weights == 0


def test_gpus_of_every_kind(study):
    recipe, stages, _ = study
    one = dict.fromkeys(("base", "arms", "drift", "trajectory", "eval", "diagnostics"), 1)
    none = dict.fromkeys(("corpus", "external", "questions", "report"), 0)
    assert {kind: gpus_wanted(recipe, kind) for kind in KINDS} == one | none
    wide = load_recipe(POCKET, [*EVERYTHING, "suite.engine={kind: vllm, tensor_parallel: 4}", "resources.ranks=2"])
    several = {kind: gpus_wanted(wide, kind) for kind in KINDS if gpus_wanted(wide, kind) > 1}
    assert several == {"arms": 2, "trajectory": 4, "eval": 4}
    assert list(several) == kinds(stages, lambda stage: stage.facts.gpus_set_by is not None)


def test_vllm_of_every_kind():
    big = RECIPES / "qwen3-14b" / "matched.yaml"
    assert [kind for kind in KINDS if needs_vllm(load_recipe(big), kind)] == ["arms", "drift", "trajectory", "eval"]
    assert not any(needs_vllm(load_recipe(POCKET, EVERYTHING), kind) for kind in KINDS)


def test_attention_of_every_kind(study, monkeypatch, tmp_path):
    recipe, stages, _ = study
    monkeypatch.setattr(findings, "missing", lambda model, offline: "it is not installed")

    def asked(stage):
        return any("model.attention" in str(item) for item in findings.findings(recipe, [stage], tmp_path, None, []))

    assert kinds(stages, asked) == ["arms", "drift", "diagnostics"]


@pytest.mark.parametrize(("kind", "lacks"), [("arms", "checkpoint"), ("eval", "response"), ("diagnostics", None)])
def test_a_job_that_completes_nothing_is_not_started_for_ever(study, monkeypatch, tmp_path, kind, lacks):
    said = None
    for restart in ("0", "1", "2"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        assert said is None
        said = step._no_progress(tmp_path, study[1][kind])
    assert said == (lacks and f"no {lacks} was completed in the last two starts of this job, so it would never end; "
                    "set a longer time_limit in the site file, or a lower train.save_every_steps")  # fmt: skip


def test_advice_of_every_kind(study):
    recipe, stages, _ = study
    without = "use a GPU with more memory"
    assert kinds(stages, lambda stage: out_of_memory(recipe, stage).endswith(without)) == [
        "corpus", "external", "questions", "report",
    ]  # fmt: skip
