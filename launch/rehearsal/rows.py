"""The few rows that a rehearsal reads of every source and benchmark: the locked ones, or made-up ones.

Every file is written as JSONL in the columns of its publisher, so that the field mapping, the forms and the filters of
the recipe do their work on it.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.corpus.sources import read_file, read_source
from data.hub import chosen, locate
from eval.questions.build import benchmark_files, read_benchmark_rows
from eval.questions.forms import FORMS, form_columns, questions_of
from launch.rehearsal import synthetic
from launch.rehearsal.scale import HELDOUT, QUESTIONS, SOURCE_ROWS
from recipes.corpus_schema import DataFiles, SourceSpec
from recipes.errors import UserError
from recipes.manifest import write_atomic
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkData

Row = dict[str, Any]


class Rows(NamedTuple):
    """What was written."""

    files: dict[str, str]
    """Key of a section of the recipe -> its file."""
    settings: dict[str, Row]
    """Key of a section -> what the locked alternative says otherwise than the section."""
    problems: dict[str, str]
    """Problem -> reference answer, of all sources."""
    made_up: tuple[str, ...]
    """Names of what has made-up rows."""


def write_rows(recipe: Recipe, folder: Path, made_up: bool) -> Rows:
    """Write a few rows of everything a recipe reads into `folder`.

    Questions of restricted benchmarks are made up in any case: their publishers ask not to copy them.

    Raises:
        UserError: a source is not resolved, cannot be read, or has too few rows that pass its filters.
    """
    files: dict[str, str] = {}
    settings: dict[str, Row] = {}
    problems: dict[str, str] = {}
    invented: list[str] = []
    locks = recipe.lock.get("sources", {})

    def write(key: str, name: str, rows: Iterable[Row]) -> None:
        path = folder / f"{key.replace('.', '-')}-{name}.jsonl"
        write_atomic(path, "".join(json.dumps(row, default=str) + "\n" for row in rows))
        files[key] = str(path)

    each = -(-SOURCE_ROWS // max(1, len(recipe.corpus.sources)))
    for number, source in enumerate(recipe.corpus.sources):
        if source.kind == "pocket":
            continue
        key = f"corpus.sources.{number}"
        if made_up:
            rows = synthetic.source_rows(source, each, number * each)
            invented.append(source.name)
        else:
            settings[key] = _otherwise(source, locks.get(source.name))
            source = chosen(source, locks.get(source.name))
            rows = _source_slice(source, recipe.corpus.seed, locks.get(source.name), each)
        write(key, source.name, rows)
        local = source.model_copy(update={"kind": "file", "path": files[key], "columns": (), "alternatives": ()})
        problems |= {
            row.problem: row.reference_answer for row in read_source(local, recipe.corpus.seed) if not row.reject
        }
    for number, texts in enumerate(recipe.corpus.decontamination.benchmarks):
        key = f"corpus.decontamination.benchmarks.{number}"
        if made_up or texts.restricted:
            rows = synthetic.text_rows(texts, QUESTIONS)
            invented.append(texts.name)
        else:
            settings[key] = _otherwise(texts, locks.get(texts.name))
            place = chosen(texts, locks.get(texts.name))
            rows = _spread(_raw_rows(place, place.text_fields, locks.get(texts.name)), 4 * QUESTIONS)
        write(key, texts.name, rows)
    teacher = recipe.corpus.teacher
    if teacher is not None and teacher.stored is not None:
        # Published completions are found by their problem, so those of the few problems are made up.
        write(
            "corpus.teacher.stored", teacher.stored.name, synthetic.stored_rows(teacher.stored, list(problems.items()))
        )
        invented.append(teacher.stored.name)
    for number, benchmark in enumerate(recipe.suite.benchmarks if recipe.suite is not None else ()):
        if benchmark.data is None:
            continue
        key = f"suite.benchmarks.{number}.data"
        if made_up or benchmark.restricted:
            rows = synthetic.benchmark_rows(benchmark, QUESTIONS)
            invented.append(benchmark.name)
        else:
            data = benchmark_files(benchmark)
            lock = recipe.lock.get("benchmarks", {}).get(data.name)
            settings[key] = _otherwise(data, lock)
            rows = _benchmark_slice(benchmark.name, chosen(data, lock), lock)
        write(key, benchmark.name, rows)
    return Rows(files, settings, problems, tuple(dict.fromkeys(invented)))


def _otherwise(files: DataFiles, lock: Row | None) -> Row:
    """Settings of the locked alternative that differ from the section's own."""
    own, place = files.model_dump(mode="json"), chosen(files, lock).model_dump(mode="json")
    return {key: value for key, value in place.items() if value != own[key]}


def _raw_rows(files: DataFiles, fields: Sequence[str], lock: Row | None) -> list[Row]:
    """Rows as they are published, with the columns that `fields` step into."""
    columns = {field.split(".")[0] for field in fields}
    return [
        {name: value for name, value in row.items() if name in columns}
        for path in locate(files, lock)
        for row in read_file(path, columns, files.columns)
    ]


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    """`count` rows, evenly spread over all."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]


def _source_slice(source: SourceSpec, seed: int, lock: Row | None, count: int) -> list[Row]:
    fields = [source.problem_field, source.answer_field, *([source.level_field] if source.level_field else [])]
    rows = _raw_rows(source, [*fields, *source.where], lock)
    good = [row.row_number for row in read_source(source, seed, lock) if row.reject is None and len(row.problem) < 600]
    if len(good) < HELDOUT + 2:
        raise UserError(
            f"source {source.name} has {len(good)} rows that pass its mapping and are short enough for a rehearsal; "
            "check problem_field, answer_field, levels and where, or say --synthetic-data"
        )
    return [rows[number] for number in _spread(good, count)]


def _benchmark_slice(name: str, data: BenchmarkData, lock: Row | None) -> list[Row]:
    """Rows of whole units, of every stratum in turn."""
    fields = [*form_columns(data), *FORMS[data.form].optional]
    rows = _raw_rows(data, fields, lock)
    questions = questions_of(name, data.model_copy(update={"rows": None}), read_benchmark_rows(data, lock))
    units: dict[str, dict[str, list[int]]] = {}
    for number, question in enumerate(questions):
        stratum = units.setdefault(question.stratum, {})
        stratum.setdefault(question.unit or question.question_id, []).append(number)
    numbers: list[int] = []
    turns = [list(stratum.values()) for _, stratum in sorted(units.items())]
    for turn in range(max(map(len, turns))):
        for parts in turns:
            if len(numbers) < QUESTIONS and turn < len(parts):
                numbers += parts[turn]
    return [rows[number] for number in sorted(numbers)]
