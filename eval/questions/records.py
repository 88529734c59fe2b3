"""The record of a question, and JSON lines under zstandard: how questions and responses are stored.

Lines end at a line feed and nowhere else: texts contain U+2028, U+2029 and U+0085, at which `str.splitlines` cuts too.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from recipes.errors import UserError
from recipes.files import write_atomic

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a benchmark."""

    question_id: str
    fields: Row
    """What task files may use."""
    reference: Any
    """What a response is compared with, as JSON: a text, or what the scoring of this form needs."""
    cluster: str = ""
    """Identity of the context it shares with others; empty: it stands alone."""
    unit: str = ""
    """Identity of the question whose parts are judged together (MC-TACO's candidate answers); empty: itself."""
    stratum: str = ""
    """Part of the benchmark that a sample of rows takes equally from."""
    extra: Row = field(default_factory=dict)
    """What is written for the reader alone; `id` is the one that the file gives it."""
    at: str = field(default="", compare=False)
    """Its row where it was read, for messages. Not stored."""

    @property
    def name(self) -> str:
        """What a reader finds it by: the id in its file, or its identity."""
        return str(self.extra.get("id", self.question_id))

    @property
    def location(self) -> str:
        """Where its mistake is mended: the row it was read from, and the id if the file gives one."""
        if not self.at:
            return f"question {self.name}"
        return f"{self.at} (id {self.name})" if "id" in self.extra else self.at

    def dump(self) -> Row:
        """As JSON values."""
        row = asdict(self)
        del row["at"]
        return row


def write_questions(path: Path, questions: Iterable[Question], restricted: bool) -> None:
    """Store questions; of restricted ones the identities alone. Raises UserError like `write_jsonl`."""
    rows = (question.dump() for question in questions)
    write_jsonl(path, ({"question_id": row["question_id"]} for row in rows) if restricted else rows)


def read_questions(path: Path) -> list[Question]:
    """Stored questions. Raises UserError if the file is damaged."""
    try:
        return [Question(**row) for row in read_jsonl(path)]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or delete its folder and run again") from None


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as lines of JSON under zstandard, atomically.

    Raises:
        UserError: a row holds half of a surrogate pair, which no file in UTF-8 can.
    """
    write_atomic(path, zstandard.compress(b"".join(map(json_line, rows))))


def json_line(row: Row) -> bytes:
    """A row as one line of JSON. Raises UserError if it holds half of a surrogate pair."""
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError as error:
        own = row.get("extra", {}).get("id")
        where = own or next((str(row[key]) for key in ("question_id", "question") if key in row), "a row")
        raise UserError(
            f"the text of {where!r} holds {error.object[error.start]!a}, half of a surrogate pair, which is not a "
            "character; repair it where it comes from"
        ) from None


def read_jsonl(path: Path) -> list[Row]:
    """Rows that `write_jsonl` wrote. Raises ValueError if the file is damaged."""
    return [json.loads(line) for line in read_lines(path)]


def read_lines(path: Path) -> list[bytes]:
    """The lines that `write_jsonl` wrote. Raises ValueError if the file is damaged."""
    try:
        return [line for line in zstandard.decompress(path.read_bytes()).split(b"\n") if line]
    except zstandard.ZstdError as error:
        raise ValueError(error) from None
