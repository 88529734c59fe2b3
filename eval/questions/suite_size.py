"""How large a suite is, for plans and power: from the lock where it is resolved, else what its publisher states."""

from typing import NamedTuple

from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkSpec


class BenchmarkSize(NamedTuple):
    """Questions and responses of a benchmark."""

    questions: int | None
    """None: unknown until `transfer fetch` has counted the rows."""
    responses: int | None
    """Responses one model gives: questions x samples x promptings that generate text."""


def question_count(recipe: Recipe, benchmark: BenchmarkSpec) -> int | None:
    """Questions of a benchmark; None if they were not counted."""
    if benchmark.data is None:
        return recipe.corpus.heldout_problems if benchmark.name == "heldout" else recipe.require_suite().questions
    entry = recipe.lock.get("benchmarks", {}).get(benchmark.data.name or benchmark.name, {})
    rows: int | None = entry.get("rows") or benchmark.data.published_rows
    return rows if benchmark.data.rows is None else benchmark.data.rows


def suite_sizes(recipe: Recipe) -> dict[str, BenchmarkSize]:
    """The sizes of all benchmarks of a recipe's suite."""
    suite = recipe.require_suite()
    sizes = {}
    for benchmark in suite.benchmarks:
        questions = question_count(recipe, benchmark)
        generating = len([p for p in benchmark.promptings if p not in benchmark.likelihood])
        responses = None if questions is None else questions * suite.samples(benchmark) * generating
        sizes[benchmark.name] = BenchmarkSize(questions, responses)
    return sizes


def evaluation_responses(recipe: Recipe, models: int) -> int | None:
    """Responses that all models give together; None if a benchmark is not counted yet."""
    counts = [size.responses for size in suite_sizes(recipe).values()]
    return None if None in counts else models * sum(size for size in counts if size is not None)
