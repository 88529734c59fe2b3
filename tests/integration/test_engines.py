"""A server that generates: the bytes it is sent, one seed for each response, and what happens when it fails."""

import json
from collections import Counter

import pytest

from data.pocket_world import benchmark_questions
from data.prompts.prompt import load_tokenizer, render_prompt
from eval.questions import build as questions
from eval.questions.records import Question
from eval.responses import generate
from eval.responses.harness import render
from eval.responses.request_engine import RequestSeeds
from eval.responses.units import open_units
from recipes.loading import load_recipe
from recipes.manifest import start_stage
from recipes.training_schema import PromptSpec
from tests.paths import SMOKE
from tests.support.servers import completions

BENCHMARKS = "suite.benchmarks=[{name: sum, group: math, scorings: {robust: boxed}}]"


def evaluate(address, smoke_study, study, *overrides):
    engine = f"suite.engine={{kind: endpoint, base_url: '{address}', model: 'served-{{label}}', concurrent: 4}}"
    more = ["arms={}", "train=null", "suite.questions=5", "suite.samples_per_question=3", "suite.chunk_questions=3"]
    recipe = load_recipe(SMOKE, [engine, BENCHMARKS, *more, *overrides])
    study.mkdir(exist_ok=True)
    if not (study / "base").exists():
        (study / "base").symlink_to(smoke_study / "base")
    start_stage(study / "questions", "questions", {})
    questions.run(recipe, study, study / "questions", False)
    start_stage(study / "eval" / "base", "eval/base", {}, in_place=True)
    generate.run(recipe, study, study / "eval" / "base", False, "base")
    (unit,) = open_units(recipe, study, study / "eval" / "base", "base")
    return recipe, unit.rows()


def test_server_gets_the_training_prompt_and_a_seed_for_each_response(smoke_study, tmp_path):
    bodies = []
    with completions(bodies, lambda prompt, seed: f"\\boxed{{{seed}}}") as address:
        recipe, rows = evaluate(address, smoke_study, tmp_path / "study", "suite.temperature=0.7", "suite.top_p=0.9")
        _, again = evaluate(address, smoke_study, tmp_path / "again", "suite.temperature=0.7", "suite.top_p=0.9")
    asked = benchmark_questions(recipe.suite.seed, "sum", "test", 5)
    tokenizer = load_tokenizer(str(smoke_study / "base"))
    prompts = [render_prompt(tokenizer, q.problem, recipe.prompt) for q in asked]
    assert Counter(body["prompt"] for body in bodies) == dict.fromkeys(prompts, 6)  # 3 responses, two runs
    assert len({body["seed"] for body in bodies[:15]}) == 15  # the harness would send 1234 each time
    assert {body["model"] for body in bodies} == {"served-base"}
    assert {(body["temperature"], body["top_p"], body["max_tokens"]) for body in bodies} == {(0.7, 0.9, 32)}
    assert all(len(set(row.responses)) == 3 for row in rows)
    assert [row.responses for row in rows] == [row.responses for row in again]


def test_a_prompt_depends_on_its_question_alone(smoke_study, tmp_path):
    """Whole numbers beside decimals and texts, and objects with other keys: no value changes with its neighbours."""
    (tmp_path / "sum.yaml").write_text('doc_to_text: "{{value}} of {{extra}}"\n')
    recipe = load_recipe(
        SMOKE, [f"suite.tasks={tmp_path}", "suite.benchmarks=[{name: sum, group: math, scorings: {robust: boxed}}]"]
    )
    benchmark, tokenizer = recipe.suite.benchmarks[0], load_tokenizer(str(smoke_study / "base"))
    values = [(1, {"a": 1}), (2.5, {}), ("three", {"b": [2, "c"]}), (True, {"a": {"d": None}}), (10**30, {"a": "1"})]
    questions = [Question(f"q{n}", {"value": value, "extra": extra}, "2") for n, (value, extra) in enumerate(values)]
    together = [prompt.text for prompt in render(recipe, tokenizer, benchmark, "native", questions)]
    assert together == [render(recipe, tokenizer, benchmark, "native", [one])[0].text for one in questions]
    assert [text.split("user\n")[1].split("<|im_end|>")[0] for text in together] == [
        *("1 of {'a': 1}", "2.5 of {}", "three of {'b': [2, 'c']}", "True of {'a': {'d': None}}"),
        f"{10**30} of {{'a': '1'}}",
    ]


@pytest.mark.parametrize("thinking", [True, False, None])
def test_thinking_mode_reaches_the_prompt(smoke_study, thinking):
    tokenizer = load_tokenizer(str(smoke_study / "base"))
    recipe = load_recipe(SMOKE, [f"suite.thinking={json.dumps(thinking)}"])
    question = Question("q", {"problem": "1+1=?"}, "2")
    found = render(recipe, tokenizer, recipe.suite.benchmarks[0], "native", [question])[0].text
    assert found == render_prompt(tokenizer, "1+1=?", PromptSpec(thinking=thinking))
    assert ("<think>" in found) == (thinking is False)  # an empty block, which is Qwen3's way to switch it off


def test_seeds_depend_on_chunk_prompt_and_repeat():
    first, second = RequestSeeds(1), RequestSeeds(1)
    drawn = [first.draw("a"), first.draw("a"), first.draw("b")]
    assert len(set(drawn)) == 3
    assert [second.draw("b"), second.draw("a"), second.draw("a")] == [drawn[2], drawn[0], drawn[1]]
    assert RequestSeeds(2).draw("a") != drawn[0]
    assert all(0 <= seed < 2**31 for seed in drawn)


def test_server_that_stumbles_is_asked_again(smoke_study, tmp_path):
    with completions([], lambda prompt, seed: "\\boxed{1}", failures=2) as address:
        _, rows = evaluate(address, smoke_study, tmp_path / "study")
    assert len(rows) == 5


def test_server_that_fails_is_a_sentence_and_loses_nothing(smoke_study, tmp_path, transfer):
    """Nothing listens on port 9; then a server does, and the same command goes on."""
    base, out = smoke_study / "base", tmp_path / "study"

    def run(address):
        engine = f"suite.engine={{kind: endpoint, base_url: '{address}', model: m, concurrent: 1}}"
        more = ["suite.questions=2", "suite.samples_per_question=1"]
        return transfer(
            "eval", "--base", base, "--model", base, "--suite", SMOKE, "--out", out, engine, BENCHMARKS, *more
        )

    failed = run("http://127.0.0.1:9/v1/completions")
    assert failed.returncode == 2
    assert "the server at http://127.0.0.1:9/v1/completions failed" in failed.stdout + failed.stderr
    assert not list(out.glob("eval/*/*/chunk-*"))
    with completions([], lambda prompt, seed: "\\boxed{1}") as address:
        assert run(address).returncode == 0
