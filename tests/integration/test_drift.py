"""A checkpoint's distance from the base: by value, through the stages, and after a kill."""

import copy
import json

import pytest
import torch

from data.attention import usable_attention
from data.language_model import load_model
from data.prompts.prompt import load_tokenizer
from eval.forgetting.rounding import near_rounding
from recipes.loading import load_recipe
from recipes.manifest import read_manifest, start_stage
from recipes.schema import ModelSpec
from tests.paths import SMOKE
from train.drift import LOGITS_TOKENS, divergence, rounding_divergence, run

MEASURED = ["drift={problems: 8, batch_size: 4}", "train.snapshots=3", "train.schedule=constant"]


@pytest.fixture(scope="module")
def base(smoke_study):
    return load_tokenizer(str(smoke_study / "base")), load_model(smoke_study / "base", "float32").eval()


def moved(model):
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return other


def test_divergence_and_entropy_agree_with_torch_distributions(base):
    tokenizer, model = base
    other = moved(model)
    prompt, completion = tokenizer("what is 3+4?")["input_ids"], tokenizer("3+4=7, so 7")["input_ids"]
    with torch.no_grad():
        ids = torch.tensor([prompt + completion])
        left, right = (
            torch.distributions.Categorical(logits=m(input_ids=ids).logits[0, len(prompt) - 1 : -1])
            for m in (model, other)
        )
    kl, entropy = divergence(model, other, prompt, completion)
    assert kl == pytest.approx(float(torch.distributions.kl_divergence(left, right).sum()), rel=1e-5)
    assert entropy == pytest.approx(float(left.entropy().sum()), rel=1e-5)
    assert kl > 0.01
    assert torch.is_grad_enabled()
    assert divergence(model, model, prompt, completion)[0] == pytest.approx(0, abs=1e-6)


def test_rounding_is_the_divergence_from_a_model_with_a_few_last_bits_changed(smoke_study, base):
    """Next to nothing in float32; in bfloat16 what two models of nearly equal weights differ by."""
    tokenizer, model = base
    prompt, completion = tokenizer("what is 3+4?")["input_ids"], tokenizer("3+4=7, so 7")["input_ids"]
    kl, entropy = rounding_divergence(model, prompt, completion)
    assert abs(kl) < 1e-7 * len(completion)
    assert entropy == divergence(model, model, prompt, completion)[1]
    coarse = load_model(smoke_study / "base", "bfloat16").eval()
    before = {name: value.clone() for name, value in coarse.state_dict().items()}
    kl, _ = rounding_divergence(coarse, prompt, completion)
    assert all(torch.equal(before[name], value) for name, value in coarse.state_dict().items())
    other = copy.deepcopy(coarse)
    weight = other.model.layers[0].mlp.down_proj.weight.data
    for row in range(len(weight)):
        bits = weight[row].view(torch.int16)
        bits[row % len(bits)] ^= 1
    assert not torch.equal(weight, coarse.model.layers[0].mlp.down_proj.weight)
    assert kl == divergence(coarse, other, prompt, completion)[0]
    assert kl > 1e-5 * len(completion)


def test_drift_reads_in_the_format_it_is_told(smoke_study, tmp_path):
    """Models of bfloat16 read in float32: hardly any rounding, and attention that has that format."""
    rounding = {}
    for dtype in ("null", "float32"):
        more = ["model.dtype=bfloat16", f"drift={{problems: 4, batch_size: 4, dtype: {dtype}}}"]
        stage_dir = tmp_path / dtype / "drift" / "base"
        start_stage(stage_dir, "drift/base", {})
        run(load_recipe(SMOKE, more), smoke_study, stage_dir, False)
        (row,) = rows_of(stage_dir)
        rounding[dtype] = row["rounding_kl"]
        assert read_manifest(stage_dir)["facts"]["engine"]["dtype"] == ("bfloat16" if dtype == "null" else dtype)
    assert abs(rounding["float32"]) < 1e-7
    assert rounding["null"] > 1e-5
    flash = ModelSpec(path="x", dtype="bfloat16", attention="flash_attention_2")
    assert usable_attention(flash, "float32") == "sdpa"
    eager = ModelSpec(path="x", dtype="bfloat16", attention="eager")
    assert usable_attention(eager, "float32") == "eager"


def test_an_arm_as_near_as_rounding_is_named(tmp_path):
    recipe = load_recipe(SMOKE, ["drift={problems: 4}", "model.dtype=bfloat16", "seeds=[0,1]"])
    kls = {"off_policy_sft": (0.005, 0.009), "on_policy_sft": (0.005, 0.0075), "grpo": (0.004, 0.005)}
    for folder, rows in [("base", [{"step": 0, "rounding_kl": 0.002}])] + [
        (f"{arm}/seed-{seed}", [{"step": 2, "kl_from_base": 0.0, "kl_to_base": 0.0},
                                {"step": 4, "kl_from_base": kls[arm][seed], "kl_to_base": 0.02}])
        for arm in kls for seed in (0, 1)
    ]:  # fmt: skip
        (tmp_path / "drift" / folder).mkdir(parents=True)
        (tmp_path / "drift" / folder / "drift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    warnings = near_rounding(recipe, tmp_path)
    assert list(warnings) == ["grpo"]  # 0.0045 of 3 * 0.002; the other means are not below that
    assert warnings["grpo"].startswith(
        "KL(base || grpo) is 0.0045 nats a token, and rounding to bfloat16 alone is 0.002"
    )
    (tmp_path / "drift" / "base" / "drift.jsonl").write_text('{"step": 0}\n')  # of an earlier version
    assert near_rounding(recipe, tmp_path) == {}


def test_chunks_do_not_change_it(base, monkeypatch):
    _, model = base
    other = moved(model)
    completion = [5 + n % 90 for n in range(70)]
    whole = divergence(model, other, [1, 2, 3], completion)
    assert len(completion) < LOGITS_TOKENS
    monkeypatch.setattr("train.drift.LOGITS_TOKENS", 16)
    assert divergence(model, other, [1, 2, 3], completion) == pytest.approx(whole, rel=1e-6)


@pytest.fixture(scope="module")
def measured(smoke_study, transfer, tmp_path_factory):
    from tests.integration.test_deepspeed import study_of

    study = study_of(smoke_study, tmp_path_factory.mktemp("drift") / "study")
    arms = ["arms.on_policy_sft=null"]
    result = transfer("run", SMOKE, "--out", study, *MEASURED, *arms, "--until", "drift")
    assert result.returncode == 0, result.stdout + result.stderr
    return study, result


def rows_of(directory):
    return [json.loads(line) for line in (directory / "drift.jsonl").read_text().splitlines()]


def test_every_checkpoint_of_every_arm_is_measured_alike(measured, base):
    study, _ = measured
    (start,) = rows_of(study / "drift" / "base")
    assert (start["step"], start["kl_to_base"], start["kl_from_base"]) == (0, 0.0, 0.0)
    assert start["entropy"] > 0
    for arm in ("off_policy_sft", "grpo"):
        run_dir = study / "arms" / arm / "seed-0"
        rows = rows_of(study / "drift" / arm / "seed-0")
        # Four updates and three snapshots: 4^(1/3) and 4^(2/3), rounded; the third is the end.
        assert [row["step"] for row in rows] == [2, 3, 4]
        assert sorted(p.name for p in (run_dir / "snapshots").iterdir()) == ["step-2", "step-3"]
        assert all(row["completions"] == 8 for row in rows)
        assert all(row["kl_to_base"] > 0 and row["kl_from_base"] > 0 for row in rows)
        for name in ("truncated", "no_answer", "correct"):
            assert all(row[name] * 8 == pytest.approx(round(row[name] * 8)) for row in rows)
    # SFT's snapshots after two updates and at the end are two different models, both of which load.
    snapshot = load_model(study / "arms" / "off_policy_sft" / "seed-0" / "snapshots" / "step-2", "float32")
    final = load_model(study / "arms" / "off_policy_sft" / "seed-0" / "final", "float32")
    tied = snapshot.get_output_embeddings().weight is snapshot.get_input_embeddings().weight
    assert tied == (base[1].get_output_embeddings().weight is base[1].get_input_embeddings().weight)
    assert not torch.equal(snapshot.get_input_embeddings().weight, final.get_input_embeddings().weight)


def test_interrupted_drift_reads_what_it_had(measured, transfer):
    study, _ = measured
    directory = study / "drift" / "grpo" / "seed-0"
    before = rows_of(directory)
    manifest = read_manifest(directory)
    (directory / "manifest.json").write_text(json.dumps(manifest | {"completed": None}))
    marked = [before[0] | {"entropy": 123.0}, before[1]]  # a value only the file has: it must not be measured again
    (directory / "drift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in marked))
    result = transfer("run", SMOKE, "--out", study, *MEASURED, "arms.on_policy_sft=null", "--until", "drift")
    assert result.returncode == 0, result.stdout + result.stderr
    assert rows_of(directory) == [*marked, before[2]]


def test_snapshots_need_a_schedule_without_a_shape(transfer):
    result = transfer("plan", SMOKE, "train.snapshots=3", "train.schedule=cosine")
    assert result.returncode == 2
    assert "a checkpoint in the middle of a cosine schedule is not a shorter run" in result.stderr
    result = transfer("plan", SMOKE, "drift={problems: 100000}")
    assert "`drift.problems` is 100000 but `corpus.heldout_problems` is" in result.stderr
