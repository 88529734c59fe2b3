"""Mistakes in a suite that its files show before anything runs: a sentence each. Needs no lm-evaluation-harness."""

from itertools import islice
from pathlib import Path
from typing import Any

from data.corpus.first_row import field_mistakes, not_there
from data.corpus.sources import read_rows
from data.pocket_world import benchmark_questions
from eval.questions.build import benchmark_files, read_source_questions, require_world_task
from eval.questions.choices import choice_reader, require_no_fields, require_output_type
from eval.questions.forms import FORMS, form_columns, questions_of
from eval.questions.records import Question
from eval.questions.suite_size import WHOLE_FILE_BYTES
from eval.questions.task_files import missing_task_files, suite_folder, task_path
from eval.questions.wording import (
    filled,
    key_mistakes,
    task_values,
    unknown_names,
    uses_suffix,
    wording_mistakes,
)
from recipes.errors import UserError, collected
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkSpec


def suite_mistakes(recipe: Recipe) -> list[str]:
    """Mistakes of all benchmarks: files, columns, rows, task files and the names in them."""
    suite = recipe.require_suite()
    mistakes: list[str] = []
    folder = None
    with collected(mistakes):
        folder = suite_folder(suite)
    absent = {} if folder is None else missing_task_files(folder, suite)
    mistakes += absent.values()
    for benchmark in suite.benchmarks:
        question = None
        with collected(mistakes):
            question = _first_question(recipe, benchmark)
        for prompting in benchmark.promptings if folder is not None else ():
            assert folder is not None
            path = task_path(folder, benchmark.name, prompting)
            if path in absent:
                continue
            with collected([]):  # a file that cannot be read is said below
                mistakes += key_mistakes(path)
            sentences: list[str] = []
            with collected(sentences):
                sentences += choice_mistakes(path, benchmark, prompting, question)
                if question is not None:
                    sentences += wording_mistakes(path, question.fields, question.location)
                elif benchmark.data is not None and benchmark.data.form == "fields" and benchmark.data.fields:
                    sentences += unknown_names(path, benchmark.data.fields)
            mistakes += [f"benchmark {benchmark.name!r}: {sentence}" for sentence in dict.fromkeys(sentences)]
    return mistakes


def choice_mistakes(path: Path, benchmark: BenchmarkSpec, prompting: str, question: Question | None) -> list[str]:
    """What is wrong with what a task file stores and with its given answers; `question`: one that fills them."""
    sentences: list[str] = []
    with collected(sentences):
        require_output_type(path, task_values(path).get("output_type") or "generate_until", benchmark, prompting)
    with collected(sentences):
        read = choice_reader(path)
        if read is not None and question is not None:
            read(question)
        elif question is None and benchmark.data is not None and benchmark.data.form == "fields":
            require_no_fields(path, benchmark.data.fields)
    return sentences


def suffix_warnings(recipe: Recipe) -> list[str]:
    """A sentence about the task files of benchmarks scored `boxed` or `plain` that ask without `prompt.suffix`.

    Not of those that ask for a box in words of their own.
    """
    suffix = recipe.prompt.suffix
    without: list[str] = []
    if not suffix.strip() or recipe.suite is None:
        return without
    readings = dict.fromkeys(("paper", "robust", recipe.analysis.reading))
    with collected([]):  # mistakes are `suite_mistakes`'
        folder = suite_folder(recipe.suite)
        for benchmark in recipe.suite.benchmarks:
            cells = dict.fromkeys(benchmark.cell(reading) for reading in readings)
            for prompting in dict.fromkeys(p for p, s in cells if benchmark.scorings[s] in ("boxed", "plain")):
                path = task_path(folder, benchmark.name, prompting)
                if path.is_file() and not _asks_with_suffix(recipe, benchmark, path):
                    without.append(str(path))
    if not without:
        return []
    return [
        f"prompt.suffix is {suffix!r}, but the task file{'s' * (len(without) > 1)} {', '.join(without)} of benchmarks "
        f"scored `boxed` or `plain` ask{'s' * (len(without) == 1)} without it; write {{{{suffix}}}} at the end of "
        "doc_to_text"
    ]


def _asks_with_suffix(recipe: Recipe, benchmark: BenchmarkSpec, path: Path) -> bool:
    """Whether the suffix is in the task file, or in the text of the question. True where a mistake is reported."""
    suffix = recipe.prompt.suffix
    if uses_suffix(path, suffix):
        return True
    with collected([]):
        question = _first_question(recipe, benchmark)
        return question is not None and suffix.strip() in filled(path, question, suffix)
    return True


def _first_question(recipe: Recipe, benchmark: BenchmarkSpec) -> Question | None:
    """The first question of a benchmark whose rows are on this machine and need no lock; None for others.

    Raises:
        UserError: the benchmark has no questions, or they cannot be read.
    """
    if benchmark.data is None:
        return _world_question(recipe, benchmark)
    data = benchmark_files(benchmark)
    lock = recipe.lock.get("benchmarks", {}).get(data.name)
    if sentences := benchmark_mistakes(benchmark, lock):
        raise UserError("\n".join(sentences))
    if data.kind != "file":
        return None
    if Path(str(data.path)).stat().st_size <= WHOLE_FILE_BYTES:
        return read_source_questions(recipe, benchmark, Path())[0]
    first = islice(read_rows(data, form_columns(data), lock, FORMS[data.form].optional), 1)
    return questions_of(benchmark.name, data.model_copy(update={"rows": None}), first)[0]


def benchmark_mistakes(benchmark: BenchmarkSpec, lock: dict[str, Any] | None) -> list[str]:
    """What is wrong with the file and columns of a benchmark that has `data`. Of a file of the hub nothing is read."""
    data = benchmark_files(benchmark)
    if data.form == "fields" and not data.fields:
        return [
            f"benchmark {benchmark.name!r} has no `data.fields`, so its task file could not use any column; name them, "
            "for instance data.fields={problem: question}"
        ]
    if data.kind == "file" and not Path(str(data.path)).is_file():
        return [not_there(f"benchmark {benchmark.name!r}", data, "its data.path")]
    sentences: list[str] = []
    if data.kind == "file":
        sentences = field_mistakes(data, form_columns(data), lock, FORMS[data.form].optional)
    return [f"benchmark {benchmark.name!r}: {sentence}" for sentence in sentences]


def _world_question(recipe: Recipe, benchmark: BenchmarkSpec) -> Question:
    suite = recipe.require_suite()
    if benchmark.name == "heldout":
        return Question("0", {"problem": "a problem of the corpus"}, "")
    require_world_task(benchmark)
    (drawn,) = benchmark_questions(suite.seed, benchmark.name, suite.split, 1)
    return Question("0", {"problem": drawn.problem}, drawn.reference_answer)
