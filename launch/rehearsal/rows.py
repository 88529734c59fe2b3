"""The few rows of every source and benchmark that a rehearsal reads: locked ones, or generated ones.

Files are JSONL in the columns that the recipe reads, so that its field mappings, forms and filters are rehearsed too.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from data.corpus.sources import raw_rows, read_source, source_fields
from data.hub import chosen
from eval.questions.build import benchmark_files, read_benchmark_rows
from eval.questions.forms import FORMS, form_columns, questions_of
from launch.rehearsal import synthetic
from launch.rehearsal.scale import HELDOUT, QUESTIONS, SOURCE_ROWS
from recipes.corpus_schema import SourceSpec
from recipes.errors import UserError
from recipes.files import write_atomic
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkData

Row = dict[str, Any]


class Rows(NamedTuple):
    """The files that were written."""

    files: dict[str, str]
    """Key of a section of the recipe, such as `corpus.sources.0` -> its file."""
    settings: dict[str, Row]
    """Key of a section -> settings of the locked alternative that differ from the section's."""
    problems: dict[str, str]
    """Problem -> reference answer, of all sources."""
    generated: tuple[str, ...]
    """Names of the sources and benchmarks with generated rows."""


def write_rows(recipe: Recipe, folder: Path, generate: bool) -> Rows:
    """Write a few rows of everything that a recipe reads into `folder`.

    `generate`: generate all rows. Otherwise they are read, except questions that their publisher asks not to copy.

    Raises:
        UserError: a source is not resolved, cannot be read, or has too few rows that pass its filters.
    """
    files: dict[str, str] = {}
    settings: dict[str, Row] = {}
    problems: dict[str, str] = {}
    generated: list[str] = []
    locks, lock_of_suite = recipe.lock.get("sources", {}), recipe.lock.get("benchmarks", {})

    def write(key: str, name: str, rows: Iterable[Row]) -> None:
        path = folder / f"{key.replace('.', '-')}-{name}.jsonl"
        write_atomic(path, "".join(json.dumps(row, default=str) + "\n" for row in rows))
        files[key] = str(path)

    def locked(key: str, spec: Any, lock: Row | None) -> Any:
        """The alternative of a section that the lock pins; its settings that differ go into `settings`."""
        location, own = chosen(spec, lock), spec.model_dump(mode="json")
        settings[key] = {name: value for name, value in location.model_dump(mode="json").items() if value != own[name]}
        return location

    count = -(-SOURCE_ROWS // max(1, len(recipe.corpus.sources)))
    for index, source in enumerate(recipe.corpus.sources):
        if source.kind == "pocket":
            continue
        key, lock = f"corpus.sources.{index}", locks.get(source.name)
        if generate:
            rows = synthetic.source_rows(source, count, index * count)
            generated.append(source.name)
        else:
            source = locked(key, source, lock)
            rows = _source_slice(source, recipe.corpus.seed, lock, count)
        write(key, source.name, rows)
        local = source.model_copy(update={"kind": "file", "path": files[key], "columns": (), "alternatives": ()})
        problems |= {
            row.problem: row.reference_answer for row in read_source(local, recipe.corpus.seed) if not row.reject
        }
    for index, texts in enumerate(recipe.corpus.decontamination.benchmarks):
        key, lock = f"corpus.decontamination.benchmarks.{index}", locks.get(texts.name)
        if generate or texts.restricted:
            rows = synthetic.text_rows(texts, QUESTIONS)
            generated.append(texts.name)
        else:
            location = locked(key, texts, lock)
            rows = _spread(raw_rows(location, location.text_fields, lock), 4 * QUESTIONS)
        write(key, texts.name, rows)
    teacher = recipe.corpus.teacher
    if teacher is not None and teacher.stored is not None:
        # Stored completions are matched to problems by text, so those of these few problems must be generated.
        rows = synthetic.stored_rows(teacher.stored, list(problems.items()))
        write("corpus.teacher.stored", teacher.stored.name, rows)
        generated.append(f"{teacher.stored.name} (matched to the few problems of a rehearsal)")
    for index, benchmark in enumerate(recipe.benchmarks):
        if benchmark.data is None:
            continue
        key = f"suite.benchmarks.{index}.data"
        if generate or benchmark.data.restricted:
            rows = synthetic.benchmark_rows(benchmark, QUESTIONS)
            generated.append(benchmark.name)
        else:
            data = benchmark_files(benchmark)
            lock = lock_of_suite.get(data.name)
            rows = _benchmark_slice(benchmark.name, locked(key, data, lock), lock)
        write(key, benchmark.name, rows)
    return Rows(files, settings, problems, tuple(dict.fromkeys(generated)))


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    """At most `count` rows, evenly spaced."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]


def _source_slice(source: SourceSpec, seed: int, lock: Row | None, count: int) -> list[Row]:
    rows = raw_rows(source, source_fields(source), lock)
    usable = [row.row_number for row in read_source(source, seed, lock) if not row.reject and len(row.problem) < 600]
    if len(usable) < HELDOUT + 2:
        raise UserError(
            f"source {source.name} has {len(usable)} rows that pass its mapping and are short enough for a rehearsal; "
            "check problem_field, answer_field, levels and where, or use --synthetic-data"
        )
    return [rows[index] for index in _spread(usable, count)]


def _benchmark_slice(name: str, data: BenchmarkData, lock: Row | None) -> list[Row]:
    """Rows of whole units, taken from the strata in turn."""
    fields = [*form_columns(data), *FORMS[data.form].optional]
    rows = raw_rows(data, fields, lock)
    questions = questions_of(name, data.model_copy(update={"rows": None}), read_benchmark_rows(data, lock))
    strata: dict[str, dict[str, list[int]]] = {}
    for index, question in enumerate(questions):
        units = strata.setdefault(question.stratum, {})
        units.setdefault(question.unit or question.question_id, []).append(index)
    taken: list[int] = []
    for units_of_turn in zip_longest(*(strata[name].values() for name in sorted(strata)), fillvalue=[]):
        for unit in units_of_turn:
            if len(taken) < QUESTIONS:
                taken += unit
    return [rows[index] for index in sorted(taken)]
