"""The evaluation with vLLM in this process, against transformers on the same weights in float32."""

import os
from collections import Counter
from types import SimpleNamespace

import pytest

from data.prompts.prompt import load_tokenizer, render_prompt
from eval.responses.engines import EngineOnDemand, engine_facts
from eval.responses.harness import generate_chunk, render
from eval.scorers.rules import TRUNCATED, score_rows
from recipes.suite_schema import BenchmarkSpec
from recipes.training_schema import PromptSpec
from tests.engines.conftest import engine_processes
from tests.engines.outputs import HF, VLLM, assert_equal_up_to_ties, generate, pocket_questions, recipe_for

pytestmark = pytest.mark.engines

SAMPLED = ("suite.temperature=1.0", "suite.samples_per_question=4")
CHOICE = """
task: choice
doc_to_text: "{{problem}}"
output_type: multiple_choice
doc_to_choice: ["\\\\boxed{1}", "\\\\boxed{12}", "\\\\boxed{true}"]
"""


def likelihoods(engine, recipe, folder):
    benchmark = BenchmarkSpec(name="choice", group="math", likelihood=("native",), scorings={"robust": "likelihood"})
    questions = pocket_questions(recipe, "sum", 4)
    prompts = render(recipe, engine.tokenizer, benchmark, "native", questions, folder)
    return generate_chunk(engine, engine.tokenizer, prompts, 7)


@pytest.fixture(scope="module")
def base_outputs(pocket_study, tmp_path_factory):
    """The outputs of the base in both engines; each is loaded once."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "choice.yaml").write_text(CHOICE)
    outputs = SimpleNamespace(before=engine_processes(), study=pocket_study)
    for name, kind in (("hf", HF), ("vllm", VLLM)):
        recipe, sampled = recipe_for(kind), recipe_for(kind, *SAMPLED)
        stage = tmp_path_factory.mktemp(name)
        with EngineOnDemand(recipe, pocket_study / "base", "base", stage) as engine:
            found = SimpleNamespace(
                greedy=generate(engine(), recipe),
                short=generate(engine(), recipe_for(kind, "suite.max_response_tokens=3"), ("sort",)),
                likelihoods=likelihoods(engine(), recipe, folder),
            )
            if name == "vllm":
                found.sampled = generate(engine(), sampled)
                found.again = generate(engine(), sampled)
                found.other_seed = generate(engine(), sampled, seed=8)
                found.many = generate(engine(), sampled, ("story",), count=128)["story"]
                config = engine().model.llm_engine.vllm_config
                found.batched_tokens = config.scheduler_config.max_num_batched_tokens
                found.cache_bytes = config.cache_config.kv_cache_memory_bytes
                found.running = engine_processes()
                found.max_length = engine().max_length
                found.eager = engine().model.llm_engine.model_config.enforce_eager
        found.facts = engine_facts(stage)
        setattr(outputs, name, found)
    outputs.after = engine_processes()
    return outputs


def test_greedy_answers_equal_those_of_transformers(base_outputs):
    assert_equal_up_to_ties(base_outputs.study / "base", base_outputs.hf.greedy, base_outputs.vllm.greedy)
    texts = [text for rows in base_outputs.hf.greedy.values() for row in rows for text in row.responses]
    assert len(texts) == 24
    assert sum("\\boxed{" in text for text in texts) > 12  # it answers, so that equality says something
    assert len(set(texts)) > 5


def test_likelihoods_equal_those_of_transformers(base_outputs):
    for one, other in zip(base_outputs.hf.likelihoods, base_outputs.vllm.likelihoods, strict=True):
        assert one.answers == other.answers == ("\\boxed{1}", "\\boxed{12}", "\\boxed{true}")
        assert one.likelihoods == pytest.approx(other.likelihoods, abs=2e-3)
        assert len(set(one.likelihoods)) == 3


def test_each_response_is_sampled_by_a_seed_of_its_own_and_again_the_same(base_outputs):
    sampled = [tuple(row.responses) for rows in base_outputs.vllm.sampled.values() for row in rows]
    assert [tuple(row.responses) for rows in base_outputs.vllm.again.values() for row in rows] == sampled
    assert [tuple(row.responses) for rows in base_outputs.vllm.other_seed.values() for row in rows] != sampled
    assert {len(texts) for texts in sampled} == {4}
    # One seed for all would make the four of a question copies; a few questions have one likely answer.
    assert Counter(len(set(texts)) > 1 for texts in sampled)[True] >= 18


def test_prompts_with_seeds_may_be_more_than_one_step_takes(base_outputs):
    """The CPU build fails on a prompt with a seed that it computes in parts."""
    many = base_outputs.vllm.many
    assert sum(len(row.responses) for row in many) == 512
    tokenizer = load_tokenizer(str(base_outputs.study / "base"))
    tokens = [len(tokenizer(row.prompt)["input_ids"]) for row in many]
    assert 4 * sum(tokens) > base_outputs.vllm.batched_tokens


def test_the_cache_is_of_the_size_it_needs_and_not_a_share_of_the_machine(base_outputs):
    """With a share of all memory no engine starts beside another or a training."""
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ
    assert base_outputs.vllm.cache_bytes == 1 << 30


def test_a_response_ends_at_the_limit_and_counts_as_truncated(base_outputs):
    assert base_outputs.vllm.max_length == 104 + 24
    assert base_outputs.vllm.short == base_outputs.hf.short
    assert [row.tokens[0] for row in base_outputs.vllm.short["sort"]] == [3] * 8
    scores = score_rows(base_outputs.vllm.short["sort"], pocket_questions(recipe_for(), "sort", 8), "boxed", 3)
    assert {row.outcome for row in scores} == {TRUNCATED}
    longest = [row.tokens[0] for rows in base_outputs.vllm.greedy.values() for row in rows]
    assert max(longest) <= 24


def test_nothing_is_left_running_and_the_record_names_the_engine(base_outputs):
    assert len(base_outputs.vllm.running) > len(base_outputs.before)
    assert base_outputs.after == base_outputs.before
    assert base_outputs.vllm.eager is True
    facts = base_outputs.vllm.facts
    assert {key: facts[key] for key in ("name", "version", "device", "dtype", "tensor_parallel", "eager")} == {
        "name": "vllm", "version": "0.31.0+cpu", "device": "cpu", "dtype": "float32",
        "tensor_parallel": 1, "eager": True,
    }  # fmt: skip
    assert base_outputs.hf.facts == {
        "name": "transformers", "version": "5.17.0", "device": "cpu", "dtype": "float32", "batch_size": 32,
    }  # fmt: skip


def test_another_model_in_the_same_process_without_thinking_stops_at_the_pad_token(base_outputs, other_model, tmp_path):
    """A second engine after the first; its model ends a turn with the other stop id, and is asked without thinking."""
    found = {}
    for name, kind in (("hf", HF), ("vllm", VLLM)):
        recipe = recipe_for(kind, "suite.thinking=false")
        with EngineOnDemand(recipe, other_model, "other", tmp_path / name) as engine:
            found[name] = generate(engine(), recipe)
    assert engine_processes() == base_outputs.before
    assert_equal_up_to_ties(other_model, found["hf"], found["vllm"])
    assert found["vllm"]["sum"] != base_outputs.vllm.greedy["sum"]
    asked = pocket_questions(recipe_for(), "sum", 8)
    tokenizer = load_tokenizer(str(other_model))
    plain = PromptSpec(thinking=False)
    assert [row.prompt for row in found["vllm"]["sum"]] == [
        render_prompt(tokenizer, question.fields["problem"], plain) for question in asked
    ]
    ended = [row for rows in found["vllm"].values() for row in rows if row.tokens[0] < 24]
    assert len(ended) > 8  # by the pad token, as the end of the turn is never likely here
    assert not any("<|" in text for rows in found["vllm"].values() for row in rows for text in row.responses)


def test_an_engine_is_released_when_asking_fails(base_outputs, pocket_study, tmp_path):
    recipe = recipe_for(VLLM)

    def fail():
        with EngineOnDemand(recipe, pocket_study / "base", "base", tmp_path) as engine:
            engine()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert engine_processes() == base_outputs.before


def test_an_engine_that_was_never_asked_for_is_not_loaded(tmp_path):
    with EngineOnDemand(recipe_for(VLLM), tmp_path / "no model", "base", tmp_path):
        pass
    assert engine_facts(tmp_path) is None
