"""What one engine generates, and comparing the outputs of two engines."""

from pathlib import Path

import torch

from data.language_model import load_model
from data.pocket_world import benchmark_questions
from data.prompts.prompt import load_tokenizer
from eval.questions.records import Question
from eval.responses.harness import generate_chunk, render
from eval.responses.units import open_units
from eval.scorers.records import Response
from recipes.loading import load_recipe, load_study
from recipes.manifest import read_manifest
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkSpec
from tests.paths import SMOKE

# Two logits of one model in float32, computed by two libraries, may change places if they are closer than this.
TIE = 1e-3
Outputs = dict[str, list[Response]]
HF, VLLM = "suite.engine={kind: hf, batch_size: 32}", "suite.engine={kind: vllm, eager: true, memory_share: 0.5}"


def recipe_for(*settings: str) -> Recipe:
    """The smoke recipe with greedy decoding and short responses, changed by `settings`."""
    fixed = ["suite.temperature=0", "suite.max_response_tokens=24", "suite.max_prompt_tokens=104", "arms={}"]
    return load_recipe(SMOKE, [*fixed, "train=null", "model.dtype=float32", *settings])


def pocket_questions(recipe: Recipe, name: str, count: int) -> list[Question]:
    """Questions of the synthetic world."""
    drawn = benchmark_questions(recipe.suite.seed, name, "test", count)
    return [Question(f"{name}-{n}", {"problem": q.problem}, q.reference_answer) for n, q in enumerate(drawn)]


def generate(engine, recipe: Recipe, names=("sum", "sort", "copy"), count=8, seed=7) -> Outputs:
    """Responses of an engine to questions of some benchmarks."""
    found = {}
    for name in names:
        benchmark = next((item for item in recipe.suite.benchmarks if item.name == name), None)
        assert isinstance(benchmark, BenchmarkSpec)
        questions = pocket_questions(recipe, name, count)
        prompts = render(recipe, engine.tokenizer, benchmark, "native", questions)
        found[name] = generate_chunk(engine, engine.tokenizer, prompts, seed)
    return found


def stored_responses(study: Path, label: str) -> list[Response]:
    """What a study has stored of one model, whose suite is one benchmark with one prompting."""
    model_dir = read_manifest(study / "eval" / label)["facts"]["model"]
    (unit,) = open_units(load_study(study), study, study / "eval" / label, model_dir)
    return unit.rows()


def differing(first: Outputs, second: Outputs) -> list[tuple[str, str, str]]:
    """Prompt and both responses where two engines differ; the prompts must be the same."""
    found = []
    for name, rows in first.items():
        for one, other in zip(rows, second[name], strict=True):
            assert one.prompt == other.prompt
            pairs = zip(one.responses, other.responses, strict=True)
            found += [(one.prompt, a, b) for a, b in pairs if a != b]
    return found


def logit_gap(model_dir: Path, prompt: str, one: str, other: str) -> float:
    """How far the logits of the first two differing tokens are apart, in transformers in float32."""
    tokenizer, model = load_tokenizer(str(model_dir)), load_model(model_dir, "float32")

    def ids(text: str) -> list[int]:
        return [*list(tokenizer(text, add_special_tokens=False)["input_ids"]), tokenizer.eos_token_id]

    first, second = ids(one), ids(other)
    place = next(n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    context = tokenizer(prompt)["input_ids"] + first[:place]
    with torch.no_grad():
        logits = model(torch.tensor([context])).logits[0, -1]
    return float((logits[first[place]] - logits[second[place]]).abs())


def assert_equal_up_to_ties(model_dir: Path, first: Outputs, second: Outputs) -> None:
    """Equal greedy responses, except where the two tokens were a tie; at most one response in twenty is."""
    others = differing(first, second)
    total = sum(len(row.responses) for rows in first.values() for row in rows)
    assert len(others) <= total // 20, others
    for prompt, one, other in others:
        assert logit_gap(model_dir, prompt, one, other) < TIE, (prompt, one, other)
