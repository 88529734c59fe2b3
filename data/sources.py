"""Raw rows from the sources of a recipe: (problem, reference answer, level), or the reason a row has none."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.grading import last_boxed
from data.pocket_world import Question, corpus_problems
from recipes.errors import UserError
from recipes.schema import SourceSpec

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


def read_source(spec: SourceSpec, seed: int) -> Iterator[RawRow]:
    """Rows of one source.

    Raises:
        UserError: the file is missing, unreadable, empty, or lacks a column of the field mapping.
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
    rows = _read_file(Path(str(spec.path)))
    # A CSV row with too many values keeps the rest under None.
    columns = {column for row in rows for column in row if column is not None}
    wanted = [spec.problem_field, spec.answer_field, *([spec.level_field] if spec.level_field else [])]
    for column in wanted:
        if column not in columns:
            raise UserError(
                f"source {spec.name}: {spec.path} has no column {column!r}; it has {', '.join(sorted(columns))}"
            )
    for number, row in enumerate(rows):
        yield _map_row(spec, number, row)


def _map_row(spec: SourceSpec, number: int, row: dict[str, Any]) -> RawRow:
    problem, answer = row.get(spec.problem_field), row.get(spec.answer_field)
    level = row.get(spec.level_field) if spec.level_field else None
    level_text = None if level is None else re.sub(r"\.0$", "", str(level))
    raw = RawRow(spec.name, number, " ".join(str(problem or "").split()), "", level_text)
    if problem is None or answer is None:
        return raw._replace(reject="missing_field")
    if not raw.problem:
        return raw._replace(reject="empty_problem")
    if spec.levels is not None and level_text not in spec.levels:
        return raw._replace(reject="level_excluded")
    # Line breaks matter in some problems (tables, code), so only the emptiness test above collapses them.
    raw = raw._replace(problem=str(problem).replace("\r\n", "\n").strip())
    text = str(answer).strip()
    if spec.answer_in == "boxed":
        found = last_boxed(text)
    elif spec.answer_in == "after_hashes":
        found = text.rpartition("####")[2] if "####" in text else None
    else:
        found = text
    if found is None or not found.strip():
        return raw._replace(reject="no_reference_answer")
    return raw._replace(reference_answer=found.strip())


def _read_file(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSON (list of objects), JSONL, CSV or Parquet file, by its extension."""
    if not path.is_file():
        raise UserError(f"source file {path} does not exist")
    kind = path.suffix.lower()
    try:
        if kind == ".jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif kind == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
        elif kind == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
        elif kind == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path).to_pylist()
        else:
            raise UserError(f"source file {path} has extension {kind!r}; allowed are .json, .jsonl, .csv and .parquet")
    except (OSError, ValueError) as error:
        raise UserError(f"source file {path} cannot be read as {kind[1:]}: {str(error).splitlines()[0]}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"source file {path} must hold a list of objects, one per problem")
    if not rows:
        raise UserError(f"source file {path} is empty")
    return rows
