"""Raw rows from the sources of a recipe: (problem, reference answer, level), or the reason a row has none."""

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from data.corpus.fields import (
    TemplateFailedError,
    columns_of,
    field_value,
    is_template,
    nearest_path,
    passed_over,
    printed_values,
    reads_whole_row,
)
from data.corpus.files import Row, read_file, separator_hint
from data.corpus.text_match import Text, words
from data.corpus.values import NoTextError, RowError, as_text, from_json_text, has_words, repaired, require_whole
from data.grading.grader import last_boxed
from data.hub import chosen, locate
from data.pocket_world import TASKS, Question, corpus_problems
from recipes.corpus_schema import BenchmarkTexts, DataFiles, SourceSpec
from recipes.errors import UserError
from recipes.schema import Recipe

POCKET_POOL = {"train": 4000, "heldout": 400}  # drawn from the world; the recipe's counts select from these
_SHOWN_COLUMNS = 20
_ROLES = {"content": "role", "value": "from"}  # key of a message's text -> of its role: messages, ShareGPT
_OTHER_ROLES = ("system", "developer", "assistant", "gpt", "tool", "function_call", "observation")


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
    detail: str | None = None
    """More about the reason."""
    file: str = ""
    line: int | None = None
    """Line of the file where the row begins, from 1; None where the format has no lines."""
    repairs: tuple[str, ...] = ()
    """Kinds of damage that were undone in problem and reference answer."""
    values: tuple[str, ...] = ()
    """What the template of the problem prints of the row, if the template has text of its own."""

    @property
    def text(self) -> Text:
        """The problem as it is compared with others."""
        return Text(self.problem, self.values)

    @property
    def at(self) -> str:
        """Where the row is, for messages."""
        where = f"{self.file} line {self.line}" if self.line is not None else f"row {self.row_number + 1}"
        return f"{self.source}, {where}"


def read_source(spec: SourceSpec, seed: int, lock: dict[str, Any] | None = None) -> list[RawRow]:
    """Rows of one source, checked against its lock entry.

    Raises:
        UserError: the source is missing, unreadable, empty, changed, lacks a field of the mapping, or has no row that
            fills its templates.
    """
    rows = list(mapped_rows(spec, seed, lock))
    if all(row.reject == "template_failed" for row in rows):
        raise UserError(f"source {spec.name}: no row fills its templates; the first, {rows[0].at}: {rows[0].detail}")
    return rows


def mapped_rows(spec: SourceSpec, seed: int, lock: dict[str, Any] | None = None) -> Iterator[RawRow]:
    """The rows of `read_source`, one after the other."""
    if spec.kind == "pocket":
        yield from _pocket_rows(spec, seed)
    else:
        spec = chosen(spec, lock)
        for index, row in enumerate(published_rows(spec, source_fields(spec), lock)):
            yield _map_row(spec, index, row)


def source_fields(spec: SourceSpec) -> list[str]:
    """The fields of a source that its rows are read by."""
    level = [spec.level_field] if spec.level_field else []
    return [spec.problem_field, spec.answer_field, *level, *spec.where]


def _pocket_rows(spec: SourceSpec, seed: int) -> Iterator[RawRow]:
    for split, pool in POCKET_POOL.items():
        for index, question in enumerate(corpus_problems(seed, split, pool)):
            row = RawRow(spec.name, index, question.problem, question.reference_answer, str(question.level))
            yield row._replace(question=question, heldout=split == "heldout")


def read_rows(
    files: DataFiles, fields: Sequence[str], lock: dict[str, Any] | None, optional: Sequence[str] = ()
) -> Iterator[Row]:
    """The rows of all files of a source with the values of `fields`; see `fields.py` for what a field can be.

    A field of `optional` that a row does not have is None.

    Raises:
        UserError: a file is missing, unreadable, empty or changed, or a template does not fit a row; after the last
            row, if none has one of the fields.
    """
    wanted = [*fields, *optional]
    for row_number, row in enumerate(published_rows(files, fields, lock, optional), start=1):
        values = Row()
        for field in wanted:
            try:
                # Texts to compare with are not shown to a model as they are.
                values[field] = field_value(row, field, blank=isinstance(files, BenchmarkTexts))
            except TemplateFailedError as error:
                at = f"{row.file} line {row.line}" if row.line is not None else f"row {row_number}"
                key = key_of(files, field)
                raise UserError(f"source {files.name}, {at}: the template of {key} cannot be filled: {error}") from None
        values.line, values.file = row.line, row.file
        yield values


class _Everything(frozenset[str]):
    """Contains every name."""

    def __contains__(self, name: object) -> bool:
        return True


def raw_rows(files: DataFiles, fields: Sequence[str], lock: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of all files of a source as they are published, with the columns that `fields` read."""
    columns = _columns(files, fields)
    rows = (row for path in locate(files, lock) for row in read_file(path, columns, files.columns))
    return [{name: value for name, value in row.items() if name in columns} for row in rows]


def _columns(files: DataFiles, fields: Sequence[str]) -> Collection[str]:
    for field in fields:
        try:
            columns_of([field])
        except TemplateFailedError as error:
            raise UserError(f"source {files.name}: {key_of(files, field)}: {error}") from None
    return _Everything() if reads_whole_row(fields) else columns_of(fields)


def key_of(files: DataFiles, field: str) -> str:
    """The key of a recipe's section with this field, such as `problem_field`, `text_fields.0` or `fields.question`."""
    for key in type(files).model_fields:
        value = getattr(files, key)
        if key == "where":
            fields = dict.fromkeys(value, key)
        elif key.endswith("fields"):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            fields = {inner: f"{key}.{step}" for step, inner in pairs}
        else:
            fields = {value: key} if key.endswith("_field") else {}
        if field in fields:
            return fields[field]
    return "a field"  # of another location of the source


def published_rows(
    files: DataFiles, fields: Sequence[str], lock: dict[str, Any] | None, optional: Sequence[str] = ()
) -> Iterator[Row]:
    """The rows of all files as they are published. The checks of all rows together are made after the last one."""
    columns = _columns(files, [*fields, *optional])
    names: set[str] = set()
    paths = [field for field in fields if "." in field and not is_template(field)]
    count, last = 0, Row()
    for path in locate(files, lock):
        for row in read_file(path, columns, files.columns):
            names.update(row)
            count, last = count + 1, row
            paths = [field for field in paths if field_value(row, field) is None]
            yield row
    if not count:
        raise UserError(f"source {files.name}: {files.path or files.dataset} is empty")
    _require_columns(files, fields, names)
    if paths:
        raise UserError(f"source {files.name}: no row has a value at {paths[0]!r}{nearest_path(last, paths[0])}")
    if lock is not None and lock["rows"] is not None and lock["rows"] != count:
        raise UserError(
            f"source {files.name} has {count} rows, {lock['rows']} were locked; run `transfer fetch` to accept this"
        )


def _require_columns(files: DataFiles, fields: Sequence[str], names: set[str]) -> None:
    for field in fields:
        column = field.split(".")[0]
        if not is_template(field) and field not in names and column not in names:
            known = {name.casefold().strip(): name for name in sorted(names, reverse=True)}
            near = difflib.get_close_matches(column.casefold(), known, 1, 0.75)
            meant = f"; did you mean {known[near[0]]!r}?" if near else ""
            raise UserError(
                f"source {files.name}: {files.path or files.dataset} has no column {column!r}; it has "
                f"{listed(names)}{separator_hint(names) or meant}"
            )


def listed(names: Collection[str]) -> str:
    """Names of columns, with quotes where blanks at an edge or tabs would not be seen."""
    shown = [name if name and name == name.strip() and name.isprintable() else repr(name) for name in sorted(names)]
    more = len(shown) - _SHOWN_COLUMNS
    return ", ".join(shown[:_SHOWN_COLUMNS]) + (f" and {more} more" if more > 0 else "")


def read_benchmark(spec: BenchmarkTexts, lock: dict[str, Any] | None) -> list[Text]:
    """The questions of a benchmark, as texts to compare with. Raises UserError like `read_rows`."""
    spec = chosen(spec, lock)
    fields = spec.text_fields
    rows = read_rows(spec, fields, lock)
    questions = [Text("\n".join(_joined(row[field]) for field in fields if row[field])) for row in rows]
    if not any(map(is_template, fields)):
        return questions
    again = published_rows(spec, fields, lock)
    return [text._replace(values=_values(row, fields, text.whole)) for text, row in zip(questions, again, strict=True)]


def _values(row: Row, fields: Sequence[str], whole: str) -> tuple[str, ...]:
    """What fields print of a row without their templates' own text; nothing if that is the whole text, or no word."""
    values: list[str] = []
    for field in fields:
        if is_template(field) and field not in row:
            values += printed_values(row, field)
        elif value := field_value(row, field):
            values.append(_joined(value))
    return tuple(values) if "\n".join(values) != whole.strip() and words(" ".join(values)) else ()


def not_compared(recipe: Recipe) -> list[str]:
    """Benchmarks of the suite whose questions the recipe does not compare the corpus with, one for each file.

    A benchmark counts as compared if its name is listed, or its file under another name.
    """
    listed = recipe.corpus.decontamination.benchmarks
    known: set[Any] = {*TASKS, "heldout", *(item.name for item in listed), *map(_place, listed)}
    missing: dict[Any, str] = {}
    for item in recipe.suite.benchmarks if recipe.suite is not None else ():
        place = item.name if item.data is None else _place(item.data)
        if item.name not in known and place not in known:
            missing.setdefault(place, item.name)
    return sorted(missing.values())


def _place(files: DataFiles) -> tuple[str, ...]:
    """Where rows come from, equal for two names of the same files."""
    if files.kind == "file":
        return (str(Path(str(files.path)).resolve()),)
    return (files.kind, str(files.dataset), *files.files)


def _joined(value: Any) -> str:
    """All texts in a value, for comparison."""
    if isinstance(value, dict):
        return " ".join(_joined(inner) for inner in value.values())
    return " ".join(map(_joined, value)) if isinstance(value, list) else str(value)


def _map_row(spec: SourceSpec, index: int, row: Row) -> RawRow:
    raw = RawRow(spec.name, index, "", "", None, file=row.file, line=row.line)
    try:
        raw = raw._replace(problem=str(field_value(row, spec.problem_field) or ""))
        if is_template(spec.problem_field):
            raw = raw._replace(values=_values(row, [spec.problem_field], raw.problem))
        level = field_value(row, spec.level_field) if spec.level_field else None
        raw = raw._replace(level=None if level is None else _writable(re.sub(r"\.0$", "", str(level))))
        raw = raw._replace(problem=_problem(spec, row))
        if spec.levels is not None and raw.level not in spec.levels:
            raise RowError("level_excluded")
        for field, allowed in spec.where.items():
            if not _is_one_of(field_value(row, field), allowed):
                raise RowError("excluded_by_where")
        return _checked(spec, raw, row)
    except RowError as error:
        detail = None if error.detail is None else _writable(error.detail)
        return raw._replace(problem=_writable(" ".join(raw.problem.split())), reject=error.reason, detail=detail)


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _problem(spec: SourceSpec, row: Row) -> str:
    """The text of the problem field, as published.

    Raises:
        RowError: problem or answer are missing, or the problem is empty or no text.
    """
    value, answer = field_value(row, spec.problem_field), field_value(row, spec.answer_field)
    for field, given in ((spec.problem_field, value), (spec.answer_field, answer)):
        if given is None:
            column = field.split(".")[0]
            if field in row or column in row:
                raise RowError("missing_field", f"{field} is null")
            raise RowError("missing_column", f"no column {column!r}; the row has {listed(row)}")
    try:
        text = as_text(value)
    except NoTextError as error:
        key = next(key for key in _ROLES if key in value[0]) if _is_chat(value) else None
        hint = f"; name one message, as in `problem_field: {spec.problem_field}.0.{key}`" if key else ""
        raise RowError("problem_is_no_text", f"{error}{hint}") from None
    if not text.strip():
        raise RowError("empty_problem")
    message, _, last = spec.problem_field.rpartition(".")
    if message and last in _ROLES:
        role = field_value(row, f"{message}.{_ROLES[last]}")
        if role in _OTHER_ROLES:
            raise RowError("not_the_user", _which_is_the_user(message, last, str(role), row))
    return text


def _which_is_the_user(message: str, text: str, role: str, row: Row) -> str:
    chat, _, _ = message.rpartition(".")
    messages = field_value(row, chat) if chat else None
    turns = messages if _is_chat(messages) else []
    users = [n for n, turn in enumerate(turns) if turn.get(_ROLES[text]) in ("user", "human")]
    hint = f"; {chat}.{users[0]}.{text} is the user's" if users else ""
    return f"{message}.{text} is the message of the {role}{hint}"


def _is_chat(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    messages = value if isinstance(value, list) else []
    return bool(messages) and all(isinstance(item, dict) and not _ROLES.keys().isdisjoint(item) for item in messages)


def _is_one_of(value: Any, allowed: Sequence[str]) -> bool:
    texts = {str(value), str(value).lower() if isinstance(value, bool) else str(value)}
    if isinstance(value, float) and value.is_integer():
        texts.add(str(int(value)))
    return not texts.isdisjoint(allowed)


def _checked(spec: SourceSpec, raw: RawRow, row: Row) -> RawRow:
    """The row with its problem and reference answer repaired and checked. Raises RowError."""
    # Line breaks matter in some problems (tables, code), so blanks within a text stay.
    problem, repairs = repaired(raw.problem.replace("\r\n", "\n"))
    problem = bare_problem(problem.strip(), spec.problem_prefix, spec.problem_suffix)
    values = [repaired(value.replace("\r\n", "\n"))[0] for value in raw.values]
    values = [bare_problem(value, spec.problem_prefix, spec.problem_suffix) for value in values]
    raw = raw._replace(values=tuple(filter(None, values)))
    if not problem:
        raise RowError("empty_problem")
    if not has_words(problem):
        raise RowError("empty_problem", "it has no words besides images, drawing code or punctuation")
    answer, more = _reference(spec, row)
    require_whole(problem)
    require_whole(answer)
    return raw._replace(problem=problem, reference_answer=answer, repairs=tuple(dict.fromkeys([*repairs, *more])))


def bare_problem(text: str, prefix: str, suffix: str) -> str:
    """A problem without the text its publisher put around every one."""
    return text.removeprefix(prefix.strip()).removesuffix(suffix.strip()).strip()


def _reference(spec: SourceSpec, row: Row) -> tuple[str, tuple[str, ...]]:
    """The reference answer and the kinds of damage that were undone in it. Raises RowError."""
    value = field_value(row, spec.answer_field)
    try:
        as_text(passed_over(row, spec.answer_field) or "")  # one element of several would cut the answer
        if spec.answer_in == "value":
            value = from_json_text(value)
        text, repairs = repaired(as_text(value))
    except NoTextError as error:
        if error.reason == "several_values":
            raise RowError("several_references", f"{error}{_how_to_join(spec.answer_field, row)}") from None
        raise RowError("reference_is_no_text", str(error)) from None
    if spec.answer_in == "boxed":
        answer = last_boxed(text)
    elif spec.answer_in == "after_hashes":
        answer = text.rpartition("####")[2] if "####" in text else None
    else:
        answer = text
    if answer is None:
        place = "box" if spec.answer_in == "boxed" else "####"
        raise RowError("no_reference_answer", f"{spec.answer_field} has no {place}")
    answer, more = repaired(answer, answer=True)
    if not answer.strip():
        raise RowError("no_reference_answer")
    return answer.strip(), (*repairs, *more)


def _how_to_join(field: str, row: Row) -> str:
    """How a recipe can ask for all of several answers; empty where they are not in one list."""
    column = field.split(".")[0]
    if not column.isidentifier() or not isinstance(from_json_text(row.get(column)), list):
        return ""
    read = " | from_json" if isinstance(row.get(column), str) else ""
    return f"; a template can join them: {{{{ {column}{read} | join(', ') }}}}"
