"""Checks of the fields a recipe reads against the first row of a file, before anything is spent."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.corpus.fields import EmptyCellError, TemplateFailedError, by_name, field_value, printed_names
from data.corpus.files import Row, separator_hint
from data.corpus.sources import key_of, listed, published_rows
from recipes.corpus_schema import BenchmarkTexts, DataFiles, SourceSpec, StoredCompletions
from recipes.errors import UserError, collected
from recipes.loading import PREPARE
from recipes.suggestions import nearest, similar_file

_SHOWN_CHARS = 60
_UNDEFINED = re.compile(r"^'(\w+)' is undefined")  # jinja's words


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
    if first is not None and not set(fields) & set(first) and (hint := separator_hint(first)):
        return [f"source {files.name}: {files.path} has one column, {listed(first)}{hint}"]
    for field in fields if first is not None else ():
        assert first is not None
        with collected(sentences):
            try:
                value = field_value(first, field, blank=isinstance(files, BenchmarkTexts))
            except TemplateFailedError as error:
                if isinstance(error, EmptyCellError) and isinstance(files, SourceSpec | StoredCompletions):
                    continue  # the row is rejected or passed over, wherever it is
                names = [name for name in printed_names(field) if name in first and not name.isidentifier()]
                hint = f"; write {by_name(names[0])} for the column {names[0]!r}" if names else ""
                undefined = _UNDEFINED.match(str(error))
                near = nearest(undefined[1], list(first)) if undefined is not None else None
                hint = hint or (f"; did you mean {near!r}?" if near is not None else "")
                raise UserError(
                    f"source {files.name}: {key_of(files, field)}: the template {_short(field)!r} does not fit the "
                    f"first row: {error}; the row has the columns {listed(first)}{hint}"
                ) from None
            if value is None:  # later rows may have it
                list(published_rows(files, [field], lock))
    return list(dict.fromkeys(sentences))


def not_there(owner: str, files: DataFiles, setting: str) -> str:
    """How to say that a file does not exist: its path, where it was looked for, and what makes it.

    `owner`: what reads the file. `setting`: what names another one. Files that a script beside the recipe makes have
    one sentence in common.
    """
    path = Path(str(files.path))
    scripts = (folder / PREPARE for folder in path.parents if any(folder.glob("*.yaml")))
    script = next((script for script in scripts if script.is_file()), None) if path.is_absolute() else None
    if script is not None:
        made = f"`python {shlex.quote(str(_from_here(script)))}` makes them"
        return f"{_from_here(path.parent)} lacks data of the recipe; {made}"
    text = f"{owner}: its file {_from_here(path)}"
    if (near := similar_file(path)) is not None:
        return f"{text} does not exist; did you mean {_from_here(near)}? If not, set {setting}"
    if not path.is_absolute():
        return f"{text} is neither beside the recipe nor in the working directory; set {setting}"
    return f"{text} does not exist; set {setting}"


def _from_here(path: Path) -> Path:
    """A path relative to the working directory, if it is in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[: _SHOWN_CHARS - 3]}..."
