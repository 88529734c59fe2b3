"""Length limits that would drop every row, found before the base is made. Tokenizes without transformers."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from statistics import median

from data.corpus.filters import prompt_lengths
from data.corpus.printed import is_empty
from data.corpus.sources import mapped_rows
from data.corpus.stored import PassedOver, stored_rows
from data.hub import cached_model
from data.prompts.pocket_tokenizer import byte_tokenizer, counting_tokenizer
from data.prompts.prompt import settle
from data.prompts.thinking import strip_thinking
from data.prompts.tokenizer_files import TokenizerFiles
from eval.questions.build import read_source_questions
from eval.questions.choices import wordings
from eval.questions.suite_size import WHOLE_FILE_BYTES
from eval.questions.task_files import suite_folder, task_path
from recipes.errors import UserError, collected
from recipes.schema import Recipe

_BATCH = 200


@dataclass(frozen=True)
class Lengths:
    """Token lengths of some texts against their limit."""

    name: str
    texts: int
    median: float
    p95: int
    longest: int
    setting: str
    """The recipe's key of the limit."""
    limit: int
    over: int
    """How many of them are longer."""


def lengths_of(name: str, tokens: Sequence[int], setting: str, limit: int) -> Lengths:
    """Token lengths, of which there is at least one, against a limit."""
    ordered = sorted(tokens)
    p95 = ordered[max(0, -(-95 * len(ordered) // 100) - 1)]  # the smallest that 95 % do not exceed
    over = sum(length > limit for length in ordered)
    return Lengths(name, len(ordered), median(ordered), p95, ordered[-1], setting, limit, over)


def check_lengths(recipe: Recipe) -> None:
    """Raise UserError if a limit drops every problem or every stored demonstration of a study that trains arms.

    Looks until one fits. What is not on this machine is left to the stage that reads it.
    """
    sources = recipe.corpus.sources
    if not recipe.trained or not sources or any(source.kind == "hub" for source in sources):
        return
    if recipe.model is not None and recipe.model.pocket is not None:
        with suppress(UserError):  # what fits in bytes fits in tokens, and most limits need no tokenizer
            _check(recipe, byte_tokenizer())
            return
    tokenizer = _tokenizer(recipe)
    if tokenizer is not None:
        _check(recipe, tokenizer)


def _check(recipe: Recipe, tokenizer: TokenizerFiles) -> None:
    rows = chain.from_iterable(mapped_rows(source, recipe.corpus.seed) for source in recipe.corpus.sources)
    problems = (row.problem for row in rows if row.reject is None)
    prompts = (length for batch in _batches(problems) for length in prompt_lengths(tokenizer, batch, recipe.prompt))
    require_one("problem", prompts, "prompt.max_prompt_tokens", recipe.prompt.max_prompt_tokens)
    limit = recipe.prompt.max_completion_tokens
    require_one("demonstration", _stored(recipe, tokenizer), "prompt.max_completion_tokens", limit)


def require_one(what: str, lengths: Iterable[int], setting: str, limit: int, shown: bool = False) -> None:
    """Raise UserError if there are lengths and all of them are above the limit. `shown`: lengths are printed too."""
    shortest = None
    for length in lengths:
        if length <= limit:
            return
        shortest = length if shortest is None else min(length, shortest)
    if shortest is not None:
        raise UserError(
            f"{setting} is {limit} and drops every {what}: the shortest has {shortest} tokens; raise it"
            + ("" if shown else ", `transfer validate` shows the lengths")
        )


def check_questions(recipe: Recipe) -> None:
    """Raise UserError for each benchmark of a small local file with a question that does not fill its task file, or is
    longer than its limit.

    Tokens of the question alone are counted: a chat template adds some, and `transfer validate` counts them too.
    """
    suite, tokenizer = recipe.require_suite(), None
    limit, folder = suite.max_prompt_tokens, suite_folder(suite)
    sentences: list[str] = []
    for benchmark in suite.benchmarks:
        data = benchmark.data
        if data is None or data.kind != "file" or Path(str(data.path)).stat().st_size > WHOLE_FILE_BYTES:
            continue
        questions = read_source_questions(recipe, benchmark, Path())
        for prompting in benchmark.promptings:
            path = task_path(folder, benchmark.name, prompting)
            mistakes, texts = list[str](), list[str]()
            with collected(mistakes):
                texts = wordings(path, questions, recipe.prompt.suffix)
            sentences += [f"benchmark {benchmark.name!r}: {mistake}" for mistake in mistakes]
            texts = [text for text in texts if len(text.encode()) > limit]  # a token has at least a byte
            tokenizer = tokenizer or (_tokenizer(recipe) if texts else None)
            if tokenizer is None:
                continue
            lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
            if over := [length for length in lengths if length > limit]:
                sentences.append(
                    f"benchmark {benchmark.name!r}: {len(over):,} of {len(questions):,} questions of {path.name} are "
                    f"longer than suite.max_prompt_tokens {limit}, the longest has {max(over):,} tokens; raise it"
                )
    if sentences:
        raise UserError("\n".join(sentences))


def _tokenizer(recipe: Recipe) -> TokenizerFiles | None:
    """The tokenizer of a recipe's base; None where this machine does not have it, or its files do not tell."""
    model = recipe.model
    if model is None:
        return None
    if model.pocket is not None:
        return counting_tokenizer(model.pocket)
    folder = cached_model(str(model.path), recipe.lock_of_model(model.path, model.revision), model.revision)
    files = TokenizerFiles.read(folder) if folder is not None else None
    if folder is None or files is None:
        return None
    from tokenizers import Tokenizer

    settle(files, model)
    files.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return files


def _stored(recipe: Recipe, tokenizer: TokenizerFiles) -> Iterator[int]:
    """Tokens of the stored demonstrations, end-of-turn token included, if arms learn from a local file of them."""
    teacher = recipe.corpus.teacher
    if teacher is None or teacher.stored is None or teacher.stored.kind != "file":
        return
    if not Path(str(teacher.stored.path)).is_file():
        return
    field = teacher.stored.completion_field
    for row in stored_rows(teacher.stored, None, PassedOver()):
        for text in row[field] if isinstance(row[field], list) else [row[field]]:
            if isinstance(text, str) and not is_empty(text):
                kept = strip_thinking(text) if teacher.thinking == "stripped" else text
                yield len(tokenizer(kept, add_special_tokens=False)["input_ids"]) + 1


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
