"""Representation and token shift through the stages: by value, resumed by set, and what cannot be compared."""

import copy
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from data.corpus.rows import read_demonstrations, read_problems
from data.language_model import load_model
from data.prompts.prompt import completion_ids, load_tokenizer, render_prompt
from eval.shifts import diagnostics
from eval.shifts.prompt_sets import prompt_sets, reference_completion
from eval.shifts.states import (
    Head,
    completion_states,
    require_context,
    require_same_shape,
    shape_of,
    write_pooled_states,
)
from eval.shifts.summary import empty_samples, summarise_shifts
from launch.execution.usage import USAGE
from recipes.errors import UserError
from recipes.files import hash_files
from recipes.loading import load_study
from recipes.manifest import MANIFEST, read_manifest
from tests.conftest import ANALYSED
from tests.paths import SMOKE
from train.drift import divergence

GRPO = "grpo-seed0-final"


@pytest.fixture(scope="module")
def sets(analysed_study):
    return {item.name: item for item in prompt_sets(load_study(analysed_study), analysed_study)}


def shift_of(study, name, label=GRPO):
    return json.loads((study / "diagnostics" / label / f"shift-{name}.json").read_text())


def test_sets_are_the_corpus_and_every_benchmark_with_the_prompts_of_the_evaluation(analysed_study, sets):
    assert list(sets) == ["training", "sum", "story", "sort", "logic", "copy", "fact"]
    from eval.responses.units import open_units

    recipe = load_study(analysed_study)
    stage = analysed_study / "eval" / "base"
    stored = {unit.benchmark.name: unit.rows() for unit in open_units(recipe, analysed_study, stage, "base")}
    for name, rows in stored.items():
        asked = {row.question_id: row.prompt for row in rows}
        assert len(sets[name].prompts) == 8
        assert [asked[identity] for identity in sets[name].question_ids] == sets[name].prompts
    tokenizer = load_tokenizer(str(analysed_study / "base"))
    problems = {p.problem_id: p for p in read_problems(analysed_study / "corpus", "train")}
    demonstrations = read_demonstrations(analysed_study / "corpus")
    for identity, prompt, reference in zip(
        sets["training"].question_ids, sets["training"].prompts, sets["training"].references, strict=True
    ):
        assert prompt == render_prompt(tokenizer, problems[identity].problem, recipe.prompt)
        texts = [row.completion for row in demonstrations[identity] if row.usable]
        assert reference == completion_ids(tokenizer, texts[:1])[0]


@pytest.mark.parametrize("name", ["training", "sort"])
def test_kl_and_entropy_of_every_response_equal_the_drift_of_training(analysed_study, sets, name):
    """`train/drift.py` reads one sequence at a time with both models in memory, and stores nothing."""
    base = load_model(analysed_study / "base", "float32")
    tuned = load_model(analysed_study / "arms" / "grpo" / "seed-0" / "final", "float32")
    table = pq.read_table(analysed_study / "diagnostics" / GRPO / f"tokens-{name}.parquet").to_pandas()
    samples = {
        kind: json.loads((analysed_study / "diagnostics" / label / f"samples-{name}.json").read_text())["own_samples"]
        for kind, label in (("own_samples", GRPO), ("base_samples", "base"))
    }
    samples["references"] = sets[name].references
    for kind, rows in samples.items():
        part = table[table["kind"] == kind]
        for number, row in enumerate(rows):
            mine = part[part["response"] == number]
            assert mine["token"].tolist() == row
            kl, entropy = divergence(tuned, base, sets[name].prompt_ids[number], row)
            assert mine["kl_to_base"].sum() == pytest.approx(kl, rel=1e-4, abs=1e-5)
            assert mine["entropy_tuned"].sum() == pytest.approx(entropy, rel=1e-4)
            back, _ = divergence(base, tuned, sets[name].prompt_ids[number], row)
            assert mine["kl_from_base"].sum() == pytest.approx(back, rel=1e-4, abs=1e-5)


def test_summaries_are_the_means_of_the_tokens(analysed_study, analysed_transfer):
    tables = {
        name: pq.read_table(analysed_study / "diagnostics" / GRPO / f"tokens-{name}.parquet").to_pandas()
        for name in ("sum", "story")
    }
    found = analysed_transfer["diagnostics"]["arms"]["grpo"]
    for kind in ("own_samples", "base_samples", "references"):
        parts = [table[table["kind"] == kind] for table in tables.values()]
        shown = found["tokens"][kind]["math"]
        by_token = np.mean([part["kl_to_base"].mean() for part in parts])
        by_response = np.mean([part.groupby("response")["kl_to_base"].mean().mean() for part in parts])
        rank = np.mean([(part["rank_base"] - part["rank_tuned"]).mean() for part in parts])
        assert shown["kl_to_base"]["per_token"]["estimate"] == pytest.approx(by_token, abs=1e-5)
        assert shown["kl_to_base"]["per_response"]["estimate"] == pytest.approx(by_response, abs=1e-5)
        assert shown["rank_shift"]["per_token"]["estimate"] == pytest.approx(rank, abs=1e-5)
        low, high = (shown["kl_to_base"]["per_token"][end] for end in ("low", "high"))
        assert low < by_token < high
    own = [
        shift_of(analysed_study, name)["texts"]["own_samples"]["tokens"]
        for name in analysed_transfer["diagnostics"]["sets"]
    ]
    assert found["own_tokens"] == sum(own) == sum(found["histograms"]["kl"]) == sum(found["histograms"]["rank"])
    assert found["shifted"]["tokens"] == sum(found["shifted"]["by_kind"].values())
    assert set(analysed_transfer["diagnostics"]["sets"]["sum"]) == {"group", "prompts"}


def test_layers_equal_the_measures_of_states_read_one_by_one(analysed_study, sets):
    from eval.shifts.pca_shift import MEASURES, representation_shift

    models = [load_model(analysed_study / d, "float32") for d in ("base", "arms/grpo/seed-0/final")]
    found = shift_of(analysed_study, "story")["layers"]["masked_mean"]
    states = []
    for model in models:
        rows = []
        for ids in sets["story"].prompt_ids:
            with torch.no_grad():
                hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            rows.append([level[0].mean(dim=0).numpy() for level in hidden])
        states.append(np.array(rows))
    for level in range(3):
        expected, _ = representation_shift(states[0][:, level], states[1][:, level], np.ones((1, 8)), 3)
        assert [found[name][level] for name in MEASURES] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    last = shift_of(analysed_study, "story")["layers"]["last_token"]
    assert last["cka"][0] is None  # every prompt ends with the same token


def test_nothing_that_only_one_stage_needs_is_left(analysed_study):
    names = {path.name.split("-")[0] for path in (analysed_study / "diagnostics" / GRPO).iterdir()}
    assert names == {"shift", "draws", "tokens", "samples", MANIFEST, USAGE}
    listed = read_manifest(analysed_study / "diagnostics" / GRPO)["outputs"]
    assert hash_files(analysed_study / "diagnostics" / GRPO, list(listed)) == listed


@pytest.mark.parametrize(
    "stops_at",
    [
        pytest.param("states", marks=pytest.mark.slow),
        pytest.param("completions", marks=pytest.mark.slow),
        "compare",
    ],
)
@pytest.mark.faults
def test_a_stopped_analysis_resumes_by_set_with_the_same_result(analysed_study, tmp_path, monkeypatch, stops_at):
    """Stopped in the third set: while the tuned model reads prompts or completions, or while the base does."""
    study = tmp_path / "study"
    shutil.copytree(analysed_study, study, ignore=shutil.ignore_patterns("report", "trajectory", "drift"))
    stage = study / "diagnostics" / GRPO
    wanted = read_manifest(stage)["outputs"]
    shutil.rmtree(stage)
    stage.mkdir()
    before = json.loads((analysed_study / "diagnostics" / GRPO / MANIFEST).read_text())
    (stage / MANIFEST).write_text(json.dumps(before | {"completed": None}))
    recipe, model_dir = load_study(study), "arms/grpo/seed-0/final"
    calls = {"states": 0, "completions": 0, "compare": 0}

    def stopping(name, function, at):
        def call(*arguments, **keywords):
            calls[name] += 1
            if name == stops_at and calls[name] == at:
                raise KeyboardInterrupt
            return function(*arguments, **keywords)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(diagnostics, "write_pooled_states", stopping("states", write_pooled_states, 3))
        patched.setattr(diagnostics, "completion_states", stopping("completions", completion_states, 2 * 4 + 2))
        compare = diagnostics._Stage.compare
        patched.setattr(diagnostics._Stage, "compare", stopping("compare", compare, 3))
        with pytest.raises(KeyboardInterrupt):
            diagnostics.run(recipe, study, stage, False, model_dir)
    kept = {path: path.stat().st_mtime_ns for path in stage.glob("s*-*")}
    assert kept
    diagnostics.run(recipe, study, stage, True, model_dir)
    assert read_manifest(stage)["outputs"] == wanted
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items() if path.exists())


def config(**changes):
    values = {
        "vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
    }  # fmt: skip
    return Qwen3Config(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"hidden_size": 32}, "its hidden size is 32 and the base's 16"),
        ({"num_hidden_layers": 3}, "its number of layers is 3 and the base's 2"),
        ({"vocab_size": 61}, "its number of logits is 61 and the base's 60"),
    ],
)
def test_models_of_other_shapes_are_refused(analysed_study, changes, what):
    tokenizer = load_tokenizer(str(analysed_study / "base"))
    base, other = (shape_of(Qwen3ForCausalLM(config(**c)), tokenizer) for c in ({}, changes))
    require_same_shape(base, copy.copy(base), "theirs")
    with pytest.raises(UserError, match=what):
        require_same_shape(base, other, "theirs")
    with pytest.raises(UserError, match="its vocabulary is other and the base's"):
        require_same_shape(base, base | {"vocabulary": "other"}, "theirs")


def test_prompts_beyond_the_context_are_refused():
    model = Qwen3ForCausalLM(config())
    require_context(model, [10, 40], 24, "math500")
    with pytest.raises(UserError, match=r"a prompt of math500 has 41 tokens, and with .*=24 .*context of 64; lower it"):
        require_context(model, [10, 41], 24, "math500")


def test_states_that_are_no_numbers_are_refused(tmp_path):
    model = Qwen3ForCausalLM(config())
    model.model.layers[1].mlp.down_proj.weight.data[:] = float("nan")
    with pytest.raises(UserError, match="hidden states of theirs are not finite at level 2"):
        write_pooled_states(model, [[1, 2, 3]], tmp_path / "states.npy", 100, "theirs")
    assert not (tmp_path / "states.npy").exists()
    with pytest.raises(UserError, match="the last hidden states of theirs are not finite"):
        list(completion_states(model, [([1, 2], [3])], 100, "theirs"))


def test_a_model_that_changes_its_logits_afterwards_is_refused():
    model = Qwen3ForCausalLM(config())
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(
        UserError, match=r"theirs changes its logits after the output layer \(final_logit_softcapping\)"
    ):
        Head(model, "theirs")


def test_a_head_without_its_model_gives_the_same_logits(tmp_path):
    model = Qwen3ForCausalLM(config()).to(torch.bfloat16)
    Head(model, "theirs").write(tmp_path / "head.safetensors")
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        states = model.model(input_ids=ids).last_hidden_state[0]
        assert torch.equal(
            Head.read(tmp_path / "head.safetensors", "cpu").logits(states), model(input_ids=ids).logits[0].float()
        )
    stored = diagnostics._as_torch(diagnostics._as_numpy(states), torch.bfloat16)
    assert torch.equal(stored, states)


def test_empty_samples_are_counted_and_said(analysed_study, monkeypatch):
    """A model whose every sample is the end of the turn."""
    recipe = load_study(analysed_study)
    stage = diagnostics._Stage(recipe, analysed_study, analysed_study / "diagnostics" / GRPO, "base")
    stop = stage.tokenizer.eos_token_id
    found = stage.summarise(np.ones((3, 8)), np.arange(3), np.ones((2, 3)), [[stop], [stop], [5]], {}, "greedy")
    assert found["empty"] == 2
    assert found["paper_kl"] is None  # no response has a second token
    shifts = summarise_shifts(recipe, analysed_study)
    shifts.arms["grpo"].empty["sum"] = 3
    assert empty_samples(shifts)[-1] == (
        "token shift: 3 of 8 samples of grpo on sum are empty: the model stopped at once"
    )


def test_mistakes_end_a_stage_with_one_sentence(analysed_study, smoke_study, transfer, tmp_path):
    wide = tmp_path / "wide"
    shutil.copytree(smoke_study / "base", wide)
    values = json.loads((wide / "config.json").read_text())
    other = Qwen3Config(**(values | {"hidden_size": 32}))
    Qwen3ForCausalLM(other).save_pretrained(wide)
    study = tmp_path / "study"
    shutil.copytree(
        analysed_study, study, ignore=shutil.ignore_patterns("report", "trajectory", "drift", "arms", "eval")
    )
    arms = [
        "arms.off_policy_sft=null",
        "arms.on_policy_sft=null",
        "arms.grpo=null",
        f"arms.theirs={{external: {wide}}}",
    ]
    result = transfer("run", SMOKE, "--out", study, *arms, ANALYSED[2], "--until", "diagnostics/theirs")
    assert result.returncode == 2
    assert "its hidden size is 32 and the base's 64; leave it out of the study" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert not list((study / "diagnostics" / "theirs").glob("shift-*"))


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("B", "B"),
        (["white", "a white one"], "white"),
        ({"answer": "7", "unit": ""}, "7"),
        ({"question": "What colour?", "annotators": ["white", "White"]}, "white"),
        ({"key": 3}, None),
        ([], None),
    ],
)
def test_references_that_are_texts(reference, text):
    from eval.questions.records import Question

    assert reference_completion(Question("q", {}, reference)) == text
