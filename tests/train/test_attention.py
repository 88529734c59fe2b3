"""Which attention can be used, by what is installed; what transformers itself would take; what is recorded."""

import json
import sys
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from data import attention
from data.attention import FLASH, KERNELS_BELOW, KERNELS_FROM, fetch_kernel, missing, usable_attention
from launch.planning.plan import attention_of_runs
from launch.stages import build_stages
from recipes.errors import UserError
from recipes.files import hash_json
from recipes.loading import load_recipe
from recipes.schema import ModelSpec
from train.accounting.matching import recorded_differences
from train.models.directory import record_attention

SMOKE = "recipes/pocket/smoke.yaml"


def spec(name="flash_attention_2", **more):
    return ModelSpec(path="Qwen/Qwen3-14B-Base", **({"dtype": "bfloat16", "attention": name} | more))


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Pretends that exactly these distributions are installed; the hub is online and its cache empty."""
    versions = {}

    def version(name):
        if name not in versions:
            raise attention.metadata.PackageNotFoundError(name)
        return versions[name]

    modules = {"flash-attn": "flash_attn", "flash-attn-3": "flash_attn_interface", "kernels": "kernels"}
    monkeypatch.setattr(attention.metadata, "version", version)
    monkeypatch.setattr(attention, "find_spec", lambda name: name in [modules[found] for found in versions] or None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("LOCAL_KERNELS", raising=False)
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path))
    return versions


def test_the_table_is_what_the_installed_transformers_does():
    from transformers.integrations.hub_kernels import get_attn_kernel_version
    from transformers.modeling_flash_attention_utils import FLASH_ATTN_KERNEL_FALLBACK
    from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION

    for name, flash in FLASH.items():
        assert flash.kernel == FLASH_ATTN_KERNEL_FALLBACK[name]
        assert flash.kernel_version == get_attn_kernel_version(flash.kernel)
    assert ".".join(map(str, KERNELS_FROM)) == KERNELS_MIN_VERSION
    assert ".".join(map(str, KERNELS_BELOW)) == KERNELS_MAX_VERSION


@pytest.mark.parametrize(
    ("packages", "name", "said"),
    [
        ({}, "sdpa", None),
        ({}, "flash_attention_2", "neither flash-attn nor kernels is installed"),
        ({"flash-attn": "2.8.3.post1"}, "flash_attention_2", None),
        ({"flash-attn": "2.3.2"}, "flash_attention_2", "neither flash-attn nor kernels is installed"),
        ({"flash-attn": "2.8.3"}, "flash_attention_3", "neither flash-attn-3 nor kernels is installed"),
        ({"flash-attn-3": "3.0.0b1"}, "flash_attention_3", None),
        ({"kernels": "0.16.2"}, "flash_attention_2", None),
        ({"kernels": "0.17.0"}, "flash_attention_2", "kernels 0.17.0 is not between 0.16.0 and 0.17.0"),
        ({"kernels": "0.15.9"}, "flash_attention_3", "kernels 0.15.9 is not between 0.16.0 and 0.17.0"),
    ],
)
def test_what_is_missing(installed, packages, name, said):
    installed.update(packages)
    found = missing(spec(name))
    assert found is None if said is None else found.startswith(said), found


def test_offline_the_kernel_must_be_in_the_cache_under_its_branch(installed, monkeypatch, tmp_path):
    installed["kernels"] = "0.16.2"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = f"it runs with the hub offline and the kernel kernels-community/flash-attn2 is not in {tmp_path}"
    assert missing(spec()) == said
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert (missing(spec()), missing(spec(), offline=True)) == (None, said)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refs = tmp_path / "kernels--kernels-community--flash-attn2" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc")
    assert missing(spec()) is not None
    (refs / "v3").write_text("abc")
    assert missing(spec()) is None


def test_float32_weights_cannot_be_read_by_flash_attention(installed):
    installed["flash-attn"] = "2.8.3"
    told = missing(spec(dtype="float32", attention_fallback="sdpa"))
    assert told == "flash_attention_2 needs model.dtype bfloat16, not float32"
    with pytest.raises(ValidationError, match="which needs bfloat16, and `dtype` is float32; set"):
        spec(dtype="float32")


def test_without_a_word_in_the_recipe_nothing_else_is_used(installed, capsys):
    with pytest.raises(UserError, match=r"model.attention=flash_attention_2 cannot be used: neither .* is installed; "
                                        r"run pip install -e '.\[flash\]'"):  # fmt: skip
        usable_attention(spec())
    assert usable_attention(spec(attention_fallback="sdpa")) == "sdpa"
    assert "cannot be used (neither flash-attn nor kernels is installed): sdpa instead" in capsys.readouterr().out
    assert usable_attention(spec("eager")) == "eager"


def test_installed_is_not_enough_without_a_gpu(installed):
    installed["kernels"] = "0.16.2"
    with pytest.raises(UserError, match="no GPU is visible here"):
        usable_attention(spec())


def test_the_kernel_is_fetched_by_its_branch(installed, monkeypatch, tmp_path):
    asked = []

    def install_kernel(repository, *, revision):
        asked.append((repository, revision))
        if len(asked) > 1:
            raise FileNotFoundError("Cannot find a build variant for this system\ntorch213-cu130: rejected")
        return str(tmp_path / "snapshots" / "0123abcd" / "build" / "torch213")

    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(install_kernel=install_kernel))
    assert fetch_kernel(spec()) is None, "without kernels there is nothing to fetch it with"
    installed["kernels"] = "0.16.2"
    assert fetch_kernel(spec("sdpa")) is None
    assert fetch_kernel(spec()) == "0123abcd"
    with pytest.raises(
        UserError, match=r"cannot be fetched \(Cannot find a build variant for this system\); fetch again"
    ):
        fetch_kernel(spec())
    assert asked == [("kernels-community/flash-attn2", "v3")] * 2
    installed["flash-attn"] = "2.8.3"
    assert fetch_kernel(spec()) is None


def test_the_fallback_rebuilds_nothing():
    def inputs(*overrides):
        return {stage.name: hash_json(stage.reads) for stage in build_stages(load_recipe(SMOKE, list(overrides)))}

    assert inputs() == inputs("model.attention_fallback=eager")
    assert inputs() != inputs("model.attention=eager")
    assert not [key for stage in build_stages(load_recipe(SMOKE)) for key in stage.reads if "fallback" in key]


def test_what_ran_is_recorded_and_a_run_resumed_with_another_names_both(tmp_path, monkeypatch):
    model = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))
    assert record_attention(model, tmp_path) == "sdpa"
    assert record_attention(model, tmp_path) == "sdpa"
    model.config._attn_implementation = "kernels-community/flash-attn2"
    monkeypatch.setattr(attention, "_loaded_kernels", lambda: {"kernels-community/flash-attn2": "0123456789ab"})
    both = "sdpa then kernels-community/flash-attn2@0123456789ab"
    assert record_attention(model, tmp_path) == both
    assert json.loads((tmp_path / "attention.json").read_text()) == both.split(" then ")


def test_check_shows_what_finished_runs_used(transfer, tmp_path):
    recipe = load_recipe(SMOKE)
    folder = tmp_path / "arms" / "grpo" / "seed-0"
    folder.mkdir(parents=True)
    manifest = {"completed": None, "input_hash": "", "inputs": {}, "facts": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert attention_of_runs(recipe, "grpo", tmp_path) == []
    facts = {"matched_on": {"attention": "flash_attention_2"}, "attention": "sdpa", "presented_problems": []}
    facts |= {"contributed_problems": [], "template_hash": "", "totals": {"exposures": 0}}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"completed": "now", "facts": facts}))
    assert attention_of_runs(recipe, "grpo", tmp_path) == ["sdpa"]
    rest = {"environment": {"packages": {}}, "inputs": {"output of base": "", "output of corpus": ""}}
    (folder / "manifest.json").write_text(json.dumps(manifest | rest | {"completed": "now", "facts": facts}))
    checked = transfer("check", SMOKE, "--out", tmp_path)
    assert checked.stdout.splitlines()[-1] == "attention of finished runs: sdpa"
    assert json.loads(transfer("check", SMOKE, "--out", tmp_path, "--json").stdout)["attention"] == {"grpo": ["sdpa"]}


def test_arms_that_ran_with_another_attention_are_unmatched(tmp_path):
    recipe = load_recipe(SMOKE)
    for arm, ran in (("off_policy_sft", None), ("on_policy_sft", "sdpa"), ("grpo", "eager")):
        facts = {"presented_problems": ["a"], "contributed_problems": [], "template_hash": "t",
                 "matched_on": {"attention": "sdpa"}, "totals": {"exposures": 1}}  # fmt: skip
        facts |= {"attention": ran} if ran else {}
        folder = tmp_path / "arms" / arm / "seed-0"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({
            "completed": "now", "facts": facts, "code": "c", "environment": {"packages": {}},
            "inputs": {"output of base": "b", "output of corpus": "c"},
        }))  # fmt: skip
    assert recorded_differences(recipe, tmp_path) == [
        "seed 0, attention that ran: off_policy_sft sdpa, on_policy_sft sdpa, grpo eager"
    ]
