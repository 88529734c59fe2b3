"""Rows of published completions: those that have a problem and a completion, and a count of the others."""

from collections.abc import Iterator
from typing import Any

from data.corpus.fields import TemplateFailedError, field_value, is_template
from data.corpus.files import Row
from data.corpus.printed import is_empty
from data.corpus.sources import RawRow, key_of, published_rows
from recipes.corpus_schema import StoredCompletions
from recipes.errors import UserError


class PassedOver:
    """Rows without a demonstration.

    Attributes:
        rows: how many.
        first: where the first of them is, and why it has none.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.first = ""

    def __str__(self) -> str:
        """How many, for a sentence."""
        return f"{self.rows:,} row{'s' * (self.rows != 1)} of the stored completions passed over"

    def add(self, row: str) -> None:
        """Count a row."""
        self.rows += 1
        self.first = self.first or row


def stored_rows(files: StoredCompletions, lock: dict[str, Any] | None, passed_over: PassedOver) -> Iterator[Row]:
    """The rows with the values of problem and completion field; one that lacks a value is counted in `passed_over`.

    Raises:
        UserError: a file is missing, unreadable, empty or changed, or no row has both values.
    """
    fields, found = (files.problem_field, files.completion_field), False
    for index, row in enumerate(published_rows(files, fields, lock)):
        values = Row()
        try:
            for field in fields:
                values[field] = _value(row, field)
        except TemplateFailedError as error:
            at = RawRow(files.name, index, "", "", None, file=row.file, line=row.line).at
            passed_over.add(f"{at}: {key_of(files, field)}: {error}")
            continue
        found = True
        yield values
    if not found:
        raise UserError(f"no row of corpus.teacher.stored can be read; the first, {passed_over.first}")


def _value(row: Row, field: str) -> Any:
    """The value of a field. Raises TemplateFailedError if it is empty: without a text, or a list without one."""
    value = field_value(row, field)
    if all(map(is_empty, value if isinstance(value, list) else [value])):
        raise TemplateFailedError("its text is empty" if is_template(field) else f"{field!r} is empty")
    return value
