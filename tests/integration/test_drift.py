"""The probe of a checkpoint's distance from the base: by value, through the stages, and after a kill."""

import copy
import json

import pytest
import torch

from data.language_model import load_model
from data.prompts.prompt import load_tokenizer
from recipes.manifest import read_manifest
from train.drift import _CHUNK, divergence

PROBED = ["probe={problems: 8, batch_size: 4}", "train.snapshots=3", "train.schedule=constant"]


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


def test_chunks_do_not_change_it(base, monkeypatch):
    _, model = base
    other = moved(model)
    completion = [5 + n % 90 for n in range(70)]
    whole = divergence(model, other, [1, 2, 3], completion)
    assert len(completion) < _CHUNK
    monkeypatch.setattr("train.drift._CHUNK", 16)
    assert divergence(model, other, [1, 2, 3], completion) == pytest.approx(whole, rel=1e-6)


@pytest.fixture(scope="module")
def probed(smoke_study, transfer, tmp_path_factory):
    from tests.integration.test_deepspeed import SMOKE, study_of

    study = study_of(smoke_study, tmp_path_factory.mktemp("drift") / "study")
    arms = ["arms.on_policy_sft=null"]
    result = transfer("run", SMOKE, "--out", study, *PROBED, *arms, "--until", "drift")
    assert result.returncode == 0, result.stdout + result.stderr
    return study, result


def rows_of(directory):
    return [json.loads(line) for line in (directory / "drift.jsonl").read_text().splitlines()]


def test_every_checkpoint_of_every_arm_is_probed_alike(probed, base):
    study, _ = probed
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


def test_interrupted_probe_reads_what_it_had(probed, transfer):
    from tests.integration.test_deepspeed import SMOKE

    study, _ = probed
    directory = study / "drift" / "grpo" / "seed-0"
    before = rows_of(directory)
    manifest = read_manifest(directory)
    (directory / "manifest.json").write_text(json.dumps(manifest | {"completed": None}))
    marked = [before[0] | {"entropy": 123.0}, before[1]]  # a value only the file has: it must not be measured again
    (directory / "drift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in marked))
    result = transfer("run", SMOKE, "--out", study, *PROBED, "arms.on_policy_sft=null", "--until", "drift")
    assert result.returncode == 0, result.stdout + result.stderr
    assert rows_of(directory) == [*marked, before[2]]


def test_snapshots_need_a_schedule_without_a_shape(transfer):
    from tests.integration.test_deepspeed import SMOKE

    result = transfer("plan", SMOKE, "train.snapshots=3", "train.schedule=cosine")
    assert result.returncode == 2
    assert "a checkpoint in the middle of a cosine schedule is not a shorter run" in result.stderr
    result = transfer("plan", SMOKE, "probe={problems: 100000}")
    assert "`probe.problems` is 100000 but `corpus.heldout_problems` is" in result.stderr
