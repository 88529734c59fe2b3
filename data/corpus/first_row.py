"""Checks of the fields a recipe reads against the first row of a file, before anything is spent."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.corpus.fields import TemplateFailedError, field_value
from data.corpus.files import Row
from data.corpus.sources import listed, published_rows
from recipes.corpus_schema import DataFiles
from recipes.errors import UserError, collected

_SHOWN_CHARS = 60


def field_mistakes(
    files: DataFiles, fields: Sequence[str], lock: dict[str, Any] | None = None, optional: Sequence[str] = ()
) -> list[str]:
    """A sentence for every column that does not exist and every template that does not fit the first row.

    `optional`: fields that a row may lack.
    """
    sentences: list[str] = []
    first: Row | None = None
    with collected(sentences):
        first = next(published_rows(files, fields, lock, optional))  # raises if there is none
    for field in fields if first is not None else ():
        assert first is not None
        with collected(sentences):
            try:
                value = field_value(first, field)
            except TemplateFailedError as error:
                raise UserError(
                    f"source {files.name}: the template {_short(field)!r} does not fit the first row: {error}; the "
                    f"row has the columns {listed(first)}"
                ) from None
            if value is None:  # later rows may have it
                list(published_rows(files, [field], lock))
    return list(dict.fromkeys(sentences))


def not_there(files: DataFiles) -> str:
    """How to say that a file does not exist: where a relative path was looked for."""
    absolute = Path(str(files.path)).is_absolute()
    return "does not exist" if absolute else "is neither beside the recipe nor in the working directory"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[: _SHOWN_CHARS - 3]}..."
