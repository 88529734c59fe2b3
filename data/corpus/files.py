"""Reads the files of a source: bytes to mappings, with the line each row is on.

Lines of JSONL and TSV end at a newline and nowhere else: texts may contain U+2028, U+0085 and other line separators.
"""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from recipes.errors import UserError

FORMATS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_COMPRESSED = (".gz", ".zst")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class Row(dict[str, Any]):
    """One row: column -> value.

    Attributes:
        line: of the file, from 1, where the row begins; None where the format has no lines.
        file: name of the file.
    """

    line: int | None = None
    file: str = ""


class Repeated(NamedTuple):
    """The values of a key that a JSON object has more than once, where they differ."""

    values: tuple[Any, ...]


def read_file(path: Path, columns: Collection[str], names: Sequence[str] = ()) -> Iterator[Row]:
    """Rows of a JSON, JSONL, CSV, TSV or Parquet file, by its extension; text files may be compressed (.gz, .zst).

    Args:
        path: the file.
        columns: what is read of a Parquet file; other formats give all columns.
        names: of the columns of a TSV file without a header.

    Raises:
        UserError: the file cannot be read; the message has the line, where there is one.
    """
    suffix = path.suffix.lower()
    kind = Path(path.stem).suffix.lower() if suffix in _COMPRESSED else suffix
    if kind not in FORMATS or (kind == ".parquet" and suffix != kind):
        raise UserError(
            f"source file {path} has extension {suffix!r}; allowed are {', '.join(FORMATS[:-1])}, also with "
            f"{' or '.join(_COMPRESSED)} behind it, and {FORMATS[-1]}"
        )
    try:
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ValueError("it is a pointer of Git LFS, not the data; run `git lfs pull` in its repository")
        text = _text(path.read_bytes(), suffix) if kind != ".parquet" else ""
        if kind == ".parquet":
            rows = _parquet_rows(path, columns)
        elif kind == ".csv":
            rows = _table_rows(_csv_lines(text), (), columns, "quote values that contain commas")
        elif kind == ".tsv":
            lines = ((number, line.split("\t")) for number, line in _lines(text, " "))
            rows = _table_rows(lines, names, columns, "a value cannot contain a tab or a newline")
        else:
            rows = _json_rows(text) if kind == ".json" else _jsonl_rows(text)
        for row in rows:
            row.file = path.name
            yield row
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise UserError(
            f"source file {path} cannot be read as {kind[1:]}: {str(error).splitlines()[0] or type(error).__name__}"
        ) from None


def _text(content: bytes, suffix: str) -> str:
    if suffix == ".gz":
        content = gzip.decompress(content)
    elif suffix == ".zst":
        import zstandard

        try:
            with zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True) as stream:
                content = stream.read()
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from None
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("its encoding is UTF-16, not UTF-8; convert it with `iconv -f UTF-16 -t UTF-8`")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The position counts from behind a byte order mark; the line does not.
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file to UTF-8"
        ) from None


def _lines(text: str, blank: str = " \t\r") -> Iterator[tuple[int, str]]:
    """The lines that do not consist of characters of `blank`, without their ends, and their numbers from 1."""
    for number, line in enumerate(text.split("\n"), start=1):
        if (line := line.removesuffix("\r")).strip(blank):
            yield number, line


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that comes again with another value keeps all of them, marked."""
    made = dict(pairs)
    if len(made) < len(pairs):
        for key in made:
            values = [value for name, value in pairs if name == key]
            if any(value != values[0] for value in values):
                made[key] = Repeated(tuple(values))
    return made


def _row(value: Any, at: str, line: int | None = None) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{at} is not an object; it must hold a list of objects, one per problem")
    row = Row(value)
    row.line = line
    return row


def _jsonl_rows(text: str) -> Iterator[Row]:
    for number, line in _lines(text):
        try:
            value = json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error.msg.removesuffix(' at')} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from None
        yield _row(value, f"line {number}", number)


def _json_rows(text: str) -> Iterator[Row]:
    """A list of objects, or one object of columns; some files called .json hold one object a line."""
    if not text.strip():
        return
    try:
        rows = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError:
        lines = [line for _, line in _lines(text)]
        if len(lines) < 2 or not lines[0].lstrip().startswith("{"):
            raise
        yield from _jsonl_rows(text)
        return
    if isinstance(rows, dict) and rows and all(isinstance(values, list) for values in rows.values()):
        if len({len(values) for values in rows.values()}) > 1:
            lengths = ", ".join(f"{name} has {len(values)}" for name, values in rows.items())
            raise ValueError(f"its columns differ in length: {lengths} values")
        rows = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    if not isinstance(rows, list):
        raise ValueError("it must hold a list of objects, one per problem")
    for number, value in enumerate(rows, start=1):
        yield _row(value, f"row {number}")


def _csv_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for values in reader:
            if values:  # not a blank line
                yield line, values
            line = reader.line_num + 1
    except csv.Error as error:
        ended = "unexpected end" in str(error)
        reason = "a quote that is opened there is never closed" if ended else str(error)
        raise ValueError(f"line {line}: {reason}; a quote inside a quoted value is written twice") from None


def _table_rows(
    lines: Iterable[tuple[int, list[str]]], names: Sequence[str], columns: Collection[str], advice: str
) -> Iterator[Row]:
    """Rows of a table whose first line has the names of the columns, if `names` has none."""
    for line, values in lines:
        if not names:
            if twice := [name for name in values if values.count(name) > 1 and name in columns]:
                raise ValueError(f"line 1 has the column {twice[0]!r} twice; rename one")
            # Without blanks around them unless a recipe or another column has the name as it is.
            names = [name if name in columns or name.strip() in values else name.strip() for name in values]
            continue
        if len(values) != len(names):
            raise ValueError(
                f"line {line} has {len(values)} value{'s' * (len(values) != 1)} for {len(names)} columns "
                f"({', '.join(names[:8])}){separator_hint(names) or f'; {advice}'}"
            )
        yield _row(dict(zip(names, values, strict=True)), "", line)


def separator_hint(names: Collection[str]) -> str:
    """What to say of a table whose only column looks like several; nothing otherwise."""
    name = next(iter(names)) if len(names) == 1 else ""
    for separator, parts in ((mark, name.split(mark)) for mark in (";", "\t", "|", ",")):
        if len(parts) > 1 and all(part.strip() for part in parts):
            advice = {
                "\t": "name the file .tsv",
                ",": "name the file .csv",
            }.get(separator, "write it with commas, or with tabs as .tsv, for instance by a spreadsheet's export")
            return f"; is its separator {separator!r}? Then {advice}"
    return ""


def _parquet_rows(path: Path, columns: Collection[str]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path)
    there = table.schema_arrow.names
    if twice := [name for name in there if there.count(name) > 1 and name in columns]:
        raise ValueError(f"it has the column {twice[0]!r} twice")
    # If no wanted column is there, all are read, so that the caller can name those that are.
    wanted = [name for name in there if name in columns] or None
    for batch in table.iter_batches(columns=wanted):
        kinds = {field.name: field.type for field in batch.schema if "float" in str(field.type)}
        for row in batch.to_pylist():
            yield Row({name: json_value(_short_floats(row[name], kinds.get(name))) for name in row})


def _short_floats(value: Any, kind: Any) -> Any:
    """Floats of 16 and 32 bits, also in lists and structures, with the digits they were written with: 0.1."""
    import numpy as np
    from pyarrow import types

    if value is None or kind is None:
        return value
    if types.is_float16(kind) or types.is_float32(kind):
        return float(str((np.float16 if types.is_float16(kind) else np.float32)(value)))
    if isinstance(value, dict) and types.is_struct(kind):
        return {name: _short_floats(inner, kind.field(name).type) for name, inner in value.items()}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_short_floats(inner, kind.value_type) for inner in value]
    return value


def json_value(value: Any) -> Any:
    """A value of a table as JSON has it: decimals, dates and UTF-8 bytes become the text a person would write."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else str(value)
    if isinstance(value, datetime):  # tables often hold a date as its midnight
        return value.date().isoformat() if value.time() == time() and value.tzinfo is None else value.isoformat(" ")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, dict):
        return {name: json_value(inner) for name, inner in value.items()}
    return [json_value(inner) for inner in value] if isinstance(value, list) else value
