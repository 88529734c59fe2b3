"""Raw rows from the sources of a recipe: (problem, reference answer, level), or the reason a row has none."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.grading.grader import last_boxed
from data.hub import chosen, locate
from data.pocket_world import TASKS, Question, corpus_problems
from recipes.corpus_schema import BenchmarkTexts, DataFiles, SourceSpec
from recipes.errors import UserError
from recipes.schema import Recipe

POCKET_POOL = {"train": 4000, "heldout": 400}  # drawn from the world; the recipe's counts select from these


class RawRow(NamedTuple):
    """One row of a source after the field mapping."""

    source: str
    row_number: int
    problem: str
    reference_answer: str
    level: str | None
    reject: str | None = None
    """Why the row cannot be used; None if it can."""
    question: Question | None = None
    """The question of the synthetic world, which the scripted teacher needs."""
    heldout: bool | None = None
    """Fixed by the source (synthetic world); None if the corpus stage may choose."""


def read_source(spec: SourceSpec, seed: int, lock: dict[str, Any] | None = None) -> Iterator[RawRow]:
    """Rows of one source, checked against its lock entry.

    Raises:
        UserError: the source is missing, unreadable, empty, changed, or lacks a field of the mapping.
    """
    if spec.kind == "pocket":
        for split, pool in POCKET_POOL.items():
            for number, question in enumerate(corpus_problems(seed, split, pool)):
                yield RawRow(
                    spec.name,
                    number,
                    question.problem,
                    question.reference_answer,
                    str(question.level),
                    question=question,
                    heldout=split == "heldout",
                )
        return
    spec = chosen(spec, lock)
    level = [spec.level_field] if spec.level_field else []
    for number, row in enumerate(read_rows(spec, [spec.problem_field, spec.answer_field, *level, *spec.where], lock)):
        yield _map_row(spec, number, row)


def read_rows(
    files: DataFiles, fields: list[str], lock: dict[str, Any] | None, optional: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The rows of all files of a source with the values of `fields`, which may step into values with dots.

    A field of `optional` that a row does not have is None.

    Raises:
        UserError: a file is missing, unreadable, empty or changed, or no row has one of the fields.
    """
    rows = []
    names: set[str] = set()
    for path in locate(files, lock):
        for row in read_file(path, {field.split(".")[0] for field in [*fields, *optional]}, files.columns):
            # A CSV row with too many values keeps the rest under None.
            names.update(name for name in row if name is not None)
            rows.append({field: _value(row, field) for field in [*fields, *optional]})
    if not rows:
        raise UserError(f"source {files.name}: {files.path or files.dataset} is empty")
    for field in fields:
        if field.split(".")[0] not in names:
            raise UserError(
                f"source {files.name}: {files.path or files.dataset} has no column {field.split('.')[0]!r}; "
                f"it has {', '.join(sorted(names))}"
            )
        if "." in field and all(row[field] is None for row in rows):
            raise UserError(f"source {files.name}: no row has a value at {field!r}")
    if lock is not None and lock["rows"] is not None and lock["rows"] != len(rows):
        raise UserError(
            f"source {files.name} has {len(rows)} rows, {lock['rows']} were locked; run `transfer fetch` to accept this"
        )
    return rows


def read_benchmark(spec: BenchmarkTexts, lock: dict[str, Any] | None) -> list[str]:
    """The questions of a benchmark, as texts to compare with. Raises UserError like `read_rows`."""
    spec = chosen(spec, lock)
    rows = read_rows(spec, list(spec.text_fields), lock)
    return ["\n".join(_as_text(row[field]) for field in spec.text_fields if row[field]) for row in rows]


def not_compared(recipe: Recipe) -> list[str]:
    """Benchmarks of the suite whose questions the recipe does not compare the corpus with."""
    known = {*TASKS, "heldout", *(item.name for item in recipe.corpus.decontamination.benchmarks)}
    return sorted({item.name for item in recipe.suite.benchmarks} - known) if recipe.suite is not None else []


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(_as_text(inner) for inner in value.values())
    return " ".join(map(_as_text, value)) if isinstance(value, list) else str(value)


def _value(row: dict[str, Any], field: str) -> Any:
    """The value at a dotted path; None if a step is missing. Numbers step into lists, also into JSON texts' values."""
    value: Any = row
    for step in field.split("."):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _map_row(spec: SourceSpec, number: int, row: dict[str, Any]) -> RawRow:
    problem, answer = row[spec.problem_field], row[spec.answer_field]
    level = row[spec.level_field] if spec.level_field else None
    level_text = None if level is None else re.sub(r"\.0$", "", str(level))
    raw = RawRow(spec.name, number, " ".join(str(problem or "").split()), "", level_text)
    if problem is None or answer is None:
        return raw._replace(reject="missing_field")
    if not raw.problem:
        return raw._replace(reject="empty_problem")
    if spec.levels is not None and level_text not in spec.levels:
        return raw._replace(reject="level_excluded")
    if any(str(row[field]) not in allowed for field, allowed in spec.where.items()):
        return raw._replace(reject="excluded_by_where")
    # Line breaks matter in some problems (tables, code), so only the emptiness test above collapses them.
    text = str(problem).replace("\r\n", "\n").strip()
    text = bare_problem(text, spec.problem_prefix, spec.problem_suffix)
    raw = raw._replace(problem=text)
    if not text:
        return raw._replace(reject="empty_problem")
    if not isinstance(answer, str | int | float) or isinstance(answer, bool) or answer != answer:
        return raw._replace(reject="reference_is_no_text")
    try:
        (text + str(answer)).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return raw._replace(problem=ascii(text), reject="invalid_text")
    found = _reference(spec, str(answer).strip())
    if found is None or not found.strip():
        return raw._replace(reject="no_reference_answer")
    return raw._replace(reference_answer=found.strip())


def bare_problem(text: str, prefix: str, suffix: str) -> str:
    """A problem without the text its publisher put around every one."""
    return text.removeprefix(prefix.strip()).removesuffix(suffix.strip()).strip()


def _reference(spec: SourceSpec, text: str) -> str | None:
    if spec.answer_in == "boxed":
        return last_boxed(text)
    if spec.answer_in == "after_hashes":
        return text.rpartition("####")[2] if "####" in text else None
    return text


def read_file(path: Path, columns: set[str], names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Rows of a JSON (list of objects), JSONL, CSV, TSV or Parquet file, by its extension.

    `names`: of the columns of a TSV file without a header.
    """
    kind = path.suffix.lower()
    try:
        if kind == ".jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        elif kind == ".json":
            rows = _json_rows(path.read_text(encoding="utf-8-sig"))
        elif kind == ".csv":
            csv.field_size_limit(10_000_000)
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        elif kind == ".tsv":
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            header = names or lines.pop(0).split("\t")
            rows = [dict(zip(header, line.split("\t"), strict=False)) for line in lines if line.strip()]
        elif kind == ".parquet":
            import pyarrow.parquet as pq

            table = pq.ParquetFile(path)
            wanted = [name for name in table.schema_arrow.names if name in columns]
            # Without a wanted column the caller must still learn which there are.
            rows = table.read(columns=wanted or None).to_pylist()
        else:
            raise UserError(
                f"source file {path} has extension {kind!r}; allowed are .json, .jsonl, .csv, .tsv and .parquet"
            )
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"source file {path} cannot be read as {kind[1:]}: {str(error).splitlines()[0]}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"source file {path} must hold a list of objects, one per problem")
    yield from rows


def _json_rows(text: str) -> Any:
    """A list of objects; some files called .json hold one object a line."""
    try:
        rows = json.loads(text)
    except json.JSONDecodeError:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) < 2 or not lines[0].lstrip().startswith("{"):
            raise
        return [json.loads(line) for line in lines]
    return rows
