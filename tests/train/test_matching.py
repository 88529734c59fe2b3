"""The matching gate: an arm that differs in anything undeclared is caught, before and after it ran."""

import json
import shutil
from pathlib import Path

import pytest

from recipes.errors import UserError
from recipes.loading import load_recipe
from recipes.manifest import read_manifest
from tests.paths import POCKET
from train.accounting.arm_facts import ArmFacts
from train.accounting.hardware import hardware_differences
from train.accounting.matching import recipe_differences, recorded_differences, require_matched


def test_shipped_study_is_matched():
    assert recipe_differences(load_recipe(POCKET)) == []


@pytest.mark.parametrize(
    ("override", "setting"),
    [
        ("arms.grpo.prompt={max_completion_tokens: 32, max_prompt_tokens: 64}", "prompt"),
        ("arms.grpo.prompt={suffix: ' step by step', max_completion_tokens: 64, max_prompt_tokens: 64}", "prompt"),
        ("arms.grpo.problem_set=all", "problem_set"),
        ("arms.grpo.steps=7", "steps"),
        ("arms.grpo.train={require_finished: true}", "require_finished"),
    ],
)
def test_one_arm_with_another_setting_is_unmatched(override, setting):
    recipe = load_recipe(POCKET, [override])
    assert [text.split(":")[0] for text in recipe_differences(recipe)] == [setting]
    with pytest.raises(UserError, match=setting):
        require_matched(recipe)
    stamped = load_recipe(POCKET, [override, "unmatched=stamp"])
    assert len(require_matched(stamped)) == 1


@pytest.mark.parametrize(
    "setting", ["save_every_steps: 10", "save_every_minutes: 5", "micro_batch_tokens: 400", "micro_batch_size: 2"]
)
def test_how_often_an_arm_saves_and_its_micro_batches_may_differ(setting):
    assert recipe_differences(load_recipe(POCKET, [f"arms.grpo.train={{{setting}}}"])) == []


def test_learning_rate_may_differ_only_if_declared():
    overrides = ["arms.grpo.learning_rate=1e-5", "varies=[sampling,credit,negatives]"]
    differences = recipe_differences(load_recipe(POCKET, overrides))
    assert [text.split(":")[0] for text in differences] == ["learning_rate"]
    assert (
        recipe_differences(load_recipe(POCKET, [*overrides, "varies=[sampling,credit,negatives,learning_rate]"])) == []
    )


def edit_manifest(study: Path, arm: str, change) -> None:
    path = study / "arms" / arm / "seed-0" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_runs_on_other_hardware_are_told_apart(smoke_study, tmp_path):
    recipe = load_recipe(POCKET.with_name("smoke.yaml"))
    assert hardware_differences(recipe, smoke_study) == []
    study = tmp_path / "study"
    shutil.copytree(smoke_study / "arms", study / "arms")
    kernels = {"vendor": "Maker", "instructions": "avx avx2"}
    for arm in recipe.arms:
        edit_manifest(study, arm, lambda m: m["environment"].update(cpu_kernels=kernels))
    assert hardware_differences(recipe, study) == []
    ending = "; its kernels round differently, and gains and differences include what that changes"

    def training(**changes):
        for arm, change in changes.items():
            edit_manifest(study, arm, change)
        (text,) = hardware_differences(recipe, study)
        return text.removeprefix("training on different hardware (").removesuffix(f"){ending}")

    wider = {"vendor": "Maker", "instructions": "avx avx2 avx512f"}
    assert training(grpo=lambda m: m["environment"].update(cpu_kernels=wider)) == (
        "Maker CPU: off_policy_sft/seed-0, on_policy_sft/seed-0; Maker CPU with avx512f: grpo/seed-0"
    )
    limited = wider | {"ATEN_CPU_CAPABILITY": "avx2"}
    assert training(on_policy_sft=lambda m: m["environment"].update(cpu_kernels=limited)).endswith(
        "; Maker CPU with avx512f ATEN_CPU_CAPABILITY=avx2: on_policy_sft/seed-0; Maker CPU with avx512f: grpo/seed-0"
    )
    assert (
        training(
            off_policy_sft=lambda m: m["facts"].update(device="H100"),
            on_policy_sft=lambda m: m["facts"].update(device="A100"),
            grpo=lambda m: m["environment"].update(cpu_kernels=None),  # resumed on another CPU
        )
        == "H100: off_policy_sft/seed-0; A100: on_policy_sft/seed-0; CPUs of several kinds: grpo/seed-0"
    )
    for arm in recipe.arms:
        edit_manifest(study, arm, lambda m: m["facts"].update(device="H100"))
    assert hardware_differences(recipe, study) == []
    edit_manifest(study, "grpo", lambda m: m["facts"].update(device="cuda"))  # earlier manifests name no GPU
    assert hardware_differences(recipe, study) == []


def test_facts_are_read_as_they_were_written_and_as_earlier_versions_wrote_them(smoke_study):
    manifest = read_manifest(smoke_study / "arms" / "grpo" / "seed-0")
    stored = manifest["facts"]
    facts = ArmFacts.of(manifest)
    assert list(facts.dump().items()) == list(stored.items())
    assert (facts.totals["exposures"], facts.matched_on["steps"], facts.attention) == (32, 4, "sdpa")
    needed = ("template_hash", "presented_problems", "contributed_problems", "matched_on", "totals")
    early = {name: stored[name] for name in needed} | {"of_a_later_version": 1}
    early["matched_on"] = stored["matched_on"] | {"attention": "eager"}
    facts = ArmFacts.of(manifest | {"facts": early})
    assert (facts.attention, facts.device, facts.engine, facts.skipped_tokens, facts.warnings) == (
        "eager", "", None, 0, [],
    )  # fmt: skip


def test_recorded_runs_are_compared(smoke_study, tmp_path):
    recipe = load_recipe(POCKET.with_name("smoke.yaml"))
    assert recorded_differences(recipe, smoke_study) == []
    study = tmp_path / "study"
    shutil.copytree(smoke_study / "arms", study / "arms")
    edit_manifest(study, "off_policy_sft", lambda m: m["facts"]["matched_on"].pop("require_finished"))  # did not exist
    edit_manifest(study, "grpo", lambda m: m["facts"]["presented_problems"].pop())
    edit_manifest(study, "on_policy_sft", lambda m: m["facts"].update(template_hash="other"))
    edit_manifest(study, "off_policy_sft", lambda m: m["inputs"].update({"output of base": "other"}))
    edit_manifest(study, "on_policy_sft", lambda m: m["environment"]["packages"].update(trl="1.15.0"))
    # Trained earlier, when the recipe said something else.
    edit_manifest(study, "grpo", lambda m: m["facts"]["matched_on"].update(weight_decay=0.1, learning_rate=9.0))
    found = recorded_differences(recipe, study)
    names = [text.split(":")[0].removeprefix("seed 0, ") for text in found]
    assert names == ["base", "learning_rate", "package trl", "template", "weight_decay", "problems"]
    assert "grpo was not presented 1 of them" in found[-1]
