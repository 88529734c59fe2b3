"""How large a suite is, for plans and power: from its local files, the lock, or else what its publisher states."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from eval.questions.build import benchmark_files, read_benchmark_rows
from eval.questions.forms import questions_of
from recipes.errors import UserError
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkData, BenchmarkSpec
from train.accounting.cost import Gpu, ModelShape, bytes_per_weight, expected_tokens
from train.accounting.rates import Rates, Sampling, batches_seconds, engine_seconds

WHOLE_FILE_BYTES = 4_000_000
"""Files up to this size are read whole in a plan; of larger ones the first row, and the lines are counted."""


class BenchmarkSize(NamedTuple):
    """Questions and responses of a benchmark."""

    questions: int | None
    """None: unknown until `transfer fetch` has counted the rows."""
    responses: int | None
    """Responses one model gives: questions x samples x promptings that generate text."""


def question_count(recipe: Recipe, benchmark: BenchmarkSpec) -> int | None:
    """Questions of a benchmark; None if they were not counted. Of a large local file its lines, which may be more."""
    if benchmark.data is None:
        return recipe.corpus.heldout_problems if benchmark.name == "heldout" else recipe.require_suite().questions
    entry = recipe.lock.get("benchmarks", {}).get(benchmark.data.name or benchmark.name, {})
    rows: int | None = entry.get("rows") or benchmark.data.published_rows
    if benchmark.data.kind == "file":
        rows = _count_of_file(benchmark) or rows
    return rows if benchmark.data.rows is None else benchmark.data.rows


def _count_of_file(benchmark: BenchmarkSpec) -> int | None:
    """Questions of a local file; None if it cannot be counted in a moment."""
    data = benchmark_files(benchmark)
    try:
        found = Path(str(data.path)).stat()
    except OSError:
        return None
    return _count(benchmark.name, data.model_dump_json(), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _count(name: str, data_json: str, size: int, changed_ns: int) -> int | None:
    """The count of a file of this size and time; a plan asks for it once for every stage."""
    data = BenchmarkData.model_validate_json(data_json)
    path = Path(str(data.path))
    if size <= WHOLE_FILE_BYTES:
        try:
            return len(questions_of(name, data, read_benchmark_rows(data, None)))
        except UserError:  # told by the checks of the recipe
            return None
    if path.suffix == ".parquet":
        from pyarrow import ArrowException, parquet

        try:
            return int(parquet.read_metadata(path).num_rows)
        except (OSError, ArrowException):
            return None
    if path.suffix not in (".jsonl", ".csv", ".tsv"):
        return None
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


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


def answering_seconds(recipe: Recipe, shape: ModelShape, gpu: Gpu, rates: Rates, responses: float) -> float | None:
    """Seconds in which one copy of the suite's engine gives so many responses; None: a server of its own gives them."""
    suite, size = recipe.require_suite(), bytes_per_weight(recipe)
    engine, gpus = suite.engine, suite.engine.tensor_parallel
    mean = expected_tokens(recipe, suite.max_response_tokens, rates.response_share)
    prompt = round(suite.max_prompt_tokens * rates.question_share)  # the limit is rarely reached
    load = Sampling(responses, prompt, mean, suite.max_response_tokens)
    if engine.kind == "endpoint":
        return None
    if engine.kind == "hf" or recipe.resources.gpu is None:
        return batches_seconds(shape, gpu, rates, load, engine.batch_size, size)
    cache = max(1.0, gpus * engine.memory_share * gpu.memory_bytes - size * shape.parameters())
    return engine_seconds(shape, gpu, rates, load, cache, gpus, size)
