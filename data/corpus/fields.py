"""A field of a row in a recipe: a column, a dotted path into a column's value, or a template over columns.

A template is recognised by its braces: `{{ question }} (A) {{ options.A }}`. It is rendered in jinja's sandbox. A
column it names that a row lacks, a null, a blank text, a list or an object it would print, and a text for the filters
`int` and `float` that is no number are errors, not text.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined, meta
from jinja2.filters import do_float, do_int
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data.corpus.files import json_value
from data.corpus.printed import EmptyPrintError, not_empty, values_only
from data.corpus.values import NoTextError, RowError, as_text, from_json_text

_PRINTED = re.compile(r"""\{\{-?\s*([^{}|"'\[\]]+?)\s*(?:\|[^{}]*)?-?\}\}""")
_NO_COLUMN = re.compile(r"^'[\w.]*\bRow object' has no attribute")  # jinja's words for row["x"] without a column x
_EMPTY_KEY = re.compile(r"has no key ('\s*'|None) \(its")  # of `_Missing`
_NO_ELEMENT = re.compile(r"has no element \d+$")  # for "ABC"[3], as labels from 1 give
_SHOWN_KEYS = 8
_CUT = "\x1f"  # a blank to `strip` and filters; a problem with a control character is rejected
WHOLE_ROW = "row"  # in templates: `row["Correct Answer"]`, for columns whose names are not identifiers


class TemplateFailedError(RowError):
    """A template cannot be rendered for a row; the message says why."""

    def __init__(self, why: str) -> None:
        super().__init__("template_failed", why)


class EmptyCellError(TemplateFailedError):
    """A template prints or looks up a value that this row leaves empty; other rows may have it."""


def is_template(field: str) -> bool:
    """Whether a field is a template over columns."""
    return "{{" in field or "{%" in field


def columns_of(fields: Iterable[str]) -> set[str]:
    """Names of the columns that fields may read. A column may have a dot or braces in its name."""
    names: set[str] = set()
    for field in fields:
        names |= {field} | (_variables(field) if is_template(field) else {field.split(".")[0]})
    return names


def reads_whole_row(fields: Iterable[str]) -> bool:
    """Whether a template among them uses `row`, so that every column must be read."""
    return any(is_template(field) and WHOLE_ROW in _variables(field) for field in fields)


def field_value(row: Mapping[str, Any], field: str, blank: bool = False) -> Any:
    """The value of a field in a row; None if a step of a path is missing.

    Steps of a path are keys, or places of lists from 0; they also step into a text that is a JSON object or list.
    `blank`: a template may print what the row leaves empty.

    Raises:
        TemplateFailedError: the field is a template that this row does not fill.
    """
    if field in row:
        return row[field]
    if is_template(field):
        return _rendered(row, field, blank)
    value: Any = row
    for step in field.split("."):
        value = _parsed(value) if value is not row else value
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def printed_values(row: Mapping[str, Any], template: str) -> tuple[str, ...]:
    """What a template prints of a row without the template's own text, in order; no blank texts.

    Raises:
        TemplateFailedError: as `field_value`, but for values that the row leaves empty.
    """
    printed = _render(_values_only(template), row).split(_CUT)
    return tuple(value.strip() for value in printed if value.strip())


def nearest_path(row: Mapping[str, Any], field: str) -> str:
    """What to say about a path that steps nowhere: the keys where it ends, and the one that is nearly its own."""
    steps = field.split(".")
    for depth in range(len(steps) - 1, 0, -1):
        there, missing = ".".join(steps[:depth]), steps[depth]
        value = _parsed(field_value(row, there))
        if isinstance(value, dict):
            near = difflib.get_close_matches(missing, list(value), n=1, cutoff=0.6)
            meant = f"; did you mean {f'{there}.{near[0]}'!r}?" if near else ""
            return f"; {there} has {', '.join(map(str, value))}{meant}" if value and missing not in value else ""
    return ""


def _parsed(value: Any) -> Any:
    """A JSON text of an object or list as that; other values as they are."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def passed_over(row: Mapping[str, Any], field: str) -> list[Any]:
    """The list that a path takes one scalar from (`answers.0`); empty if the field is something else."""
    parent, _, last = field.rpartition(".")
    if not parent or not last.isdecimal() or field in row or is_template(field):
        return []
    items = _parsed(field_value(row, parent))
    scalar = isinstance(items, list) and not any(isinstance(value, dict | list) for value in items)
    return items if scalar else []


def _rendered(row: Mapping[str, Any], field: str, blank: bool) -> str:
    return _render(_template(field, blank), row)


def _render(template: Template, row: Mapping[str, Any]) -> str:
    try:
        return template.render({WHOLE_ROW: row} | dict(row))
    except EmptyPrintError as error:
        raise EmptyCellError(str(error)) from None
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        text = _NO_COLUMN.sub("the row has no column", str(error))
        text += "; places count from 0" if _NO_ELEMENT.search(text) else ""
        kind = EmptyCellError if _EMPTY_KEY.search(text) else TemplateFailedError
        raise kind(text or type(error).__name__) from None


@lru_cache(maxsize=64)
def _template(text: str, blank: bool) -> Template:
    return _ENVIRONMENT.from_string(text) if blank else not_empty(_ENVIRONMENT, text, WHOLE_ROW)


@lru_cache(maxsize=64)
def _values_only(text: str) -> Template:
    return values_only(_ENVIRONMENT, text, _CUT)


@lru_cache(maxsize=64)
def _variables(text: str) -> set[str]:
    try:
        return meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
    except TemplateSyntaxError as error:
        meant = next((name for name in printed_names(text) if not _is_expression(name)), None)
        hint = "" if meant is None else f"; if that is the column {meant!r}, write {by_name(meant)}"
        raise TemplateFailedError(f"line {error.lineno} of the template: {error.message}{hint}") from None


def printed_names(template: str) -> list[str]:
    """What stands between the braces of a template, without filters, where it may be the name of a column."""
    return _PRINTED.findall(template)


def by_name(column: str) -> str:
    """How a template reads a column whose name is not an identifier."""
    return f"{{{{ {WHOLE_ROW}[{json.dumps(column, ensure_ascii=False)}] }}}}"


def _is_expression(text: str) -> bool:
    try:
        _ENVIRONMENT.compile_expression(text)
    except TemplateSyntaxError:
        return False
    return True


def _printed(value: Any) -> Any:
    """What a template prints for a value: its text, as in a source's columns."""
    if isinstance(value, Undefined):
        return value  # printing it raises
    if value is None:
        raise TemplateFailedError("a value it prints is null; ask with {% if ... %}")
    try:
        return as_text(json_value(value))
    except NoTextError as error:
        raise TemplateFailedError(f"a value it prints is not text: {error}") from None


def _int(value: Any, default: int | None = None, base: int = 10) -> int:
    """The filter `int`, without jinja's 0 for what is none: a letter as index would silently mean the first option."""
    number = do_int(value, default, base)  # type: ignore[arg-type]  # it is given back where `value` is no number
    cut = isinstance(value, str) and base == 10 and number is not None and number != _float(value, number)
    if number is None or (cut and default is None):
        raise TemplateFailedError(f"the filter int got {value!r}, which is no integer")
    return number


def _float(value: Any, default: float | None = None) -> float:
    """The filter `float`, without jinja's 0.0 for what is none."""
    number = do_float(value, default)  # type: ignore[arg-type]
    if number is None:
        raise TemplateFailedError(f"the filter float got {value!r}, which is no number")
    return number


class _Missing(StrictUndefined):
    """What is not there; of a mapping, the message has its keys."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        if type(self._undefined_obj) is not dict or self._undefined_hint is not None:
            return super()._undefined_message
        keys = [repr(key) for key in self._undefined_obj]
        more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
        listed = ", ".join(keys[:_SHOWN_KEYS]) or "none"
        return f"a mapping has no key {self._undefined_name!r} (its keys: {listed}{more})"


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox without negative places in texts: the label -1 of a hidden row would mean the last option."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, str) and isinstance(argument, int) and argument < 0:
            raise TemplateFailedError(f"{obj!r} has no place {argument}; the last character is `| last`")
        return super().getitem(obj, argument)


_ENVIRONMENT = _Environment(undefined=_Missing, finalize=_printed, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters |= {"from_json": from_json_text, "int": _int, "float": _float}
