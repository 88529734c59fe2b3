"""Mistakes in the values of recipes and site files, as sentences: all of them at once."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from recipes.errors import UserError
from recipes.schema import STUDY_NAME
from recipes.spec import Spec, misfits
from recipes.suggestions import did_you_mean, nearest
from recipes.suite_schema import NAME

SpecOfFile = TypeVar("SpecOfFile", bound=Spec)
_WANTED = {  # pydantic's kinds of errors
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "model": "a section with keys",
    "dict": "a section with keys",
}
_NAMES = {  # by their patterns
    STUDY_NAME: "it may have the letters a to z, digits, and . _ - behind a first letter or digit, such as my-study",
    NAME: "it may have letters from A to Z and a to z, digits, and . _ - behind a first letter or digit",
}
_KEYS_SHOWN = 3
_QUOTED = re.compile(r"'([^']+)'")


def validated(
    values: Any, model: type[SpecOfFile], name: str, typed: Mapping[str, str] = MappingProxyType({})
) -> SpecOfFile:
    """Nested values as read from YAML, as a `model`.

    Args:
        values: of a recipe or a site file, with overrides applied.
        model: what they are.
        name: of the file, in messages.
        typed: the text of each override, by its key.

    Raises:
        UserError: with a line for every mistake. A check of values that must fit together is left out where it would
            read one that is itself wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        failed = [f"{key}: {sentence}" if key else sentence for key, sentence in misfits(values, model)]
        found = dict.fromkeys([*_sentences(error, model, typed), *failed])
        raise UserError("\n".join(f"{name}: {sentence}" for sentence in found)) from None


def _sentences(error: ValidationError, model: type[BaseModel], typed: Mapping[str, str]) -> list[str]:
    errors = [dict(item) for item in error.errors()]
    return [
        sentence
        for item in errors
        if not _follows(item, errors)
        for sentence in (_of_checks(item) if item["type"] == "value_error" else [_sentence(item, model, typed)])
    ]


def _of_checks(error: dict[str, Any]) -> list[str]:
    """The sentences of the checks of one section, each with its key."""
    key = ".".join(map(str, error["loc"]))
    return [f"{key}: {text}" if key else text for text in error["msg"].removeprefix("Value error, ").split("\n")]


def _follows(error: dict[str, Any], errors: Sequence[dict[str, Any]]) -> bool:
    """Whether a container is called too short only because pydantic counts no item that has an error of its own."""
    if error["type"] != "too_short" or len(error["input"]) < error["ctx"]["min_length"]:
        return False
    depth = len(error["loc"])
    return any(len(other["loc"]) > depth and other["loc"][:depth] == error["loc"] for other in errors)


def _sentence(error: dict[str, Any], model: type[BaseModel], typed: Mapping[str, str]) -> str:
    """One pydantic error as a sentence with the key, the value and what is allowed."""
    key = ".".join(map(str, error["loc"])) or "recipe"
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1], model)
        name = str(error["loc"][-1])
        near = nearest(name, known)
        elsewhere = sorted(_keys_called(name, model), key=lambda other: other.count("."))
        if near and elsewhere and not near.startswith(name):  # the same name elsewhere is nearer
            near = None
        meant = [".".join(map(str, [*error["loc"][:-1], near]))] if near else []
        meant += elsewhere[: _KEYS_SHOWN - len(meant)]
        hint = f"did you mean {_either(meant)}?" if meant else f"allowed are {', '.join(known)}"
        return f"`{key}` is not a setting; {hint}"
    value, of_mapping = error["input"], error["loc"][-1:] == ("[key]",)
    key = ".".join(map(str, error["loc"][:-2])) if of_mapping else key
    if error["type"] == "literal_error" and isinstance(value, str):
        allowed = _QUOTED.findall(error["ctx"]["expected"]) or [error["ctx"]["expected"]]  # of numbers
        hint = did_you_mean(value, allowed, "allowed are")
        return f"`{key}` {'has the key' if of_mapping else 'is'} {value!r}; {hint}"
    if error["type"] == "missing":
        return f"`{key}` is missing"
    message = error["msg"].replace("valid tuple", "list in brackets").replace("Input should be ", "must be ")
    if error["type"] == "string_pattern_mismatch":
        message = _NAMES.get(error["ctx"]["pattern"], message)
    kind = error["type"].partition("_")[0]
    if kind in _WANTED and error["type"] in (f"{kind}_type", f"{kind}_parsing", "int_from_float"):
        message = f"must be {_WANTED[kind]}"
    hint = ""
    of_text = error["type"] == "string_type" or typed.get(key) in _QUOTED.findall(message)
    if key in typed and of_text and not _is_json_without_text(typed[key]):
        hint = f"; write {quoted_override(key, typed[key])}, which YAML reads as text"
    elif error["type"] == "string_type" or (error["type"] == "literal_error" and isinstance(value, bool)):
        hint = _read_by_yaml(value, _QUOTED.findall(message))
    shown = str(value) if isinstance(value, date) else repr(value)
    return f"`{key}` {'has the key' if of_mapping else 'is'} {shown}, but {message[0].lower()}{message[1:]}{hint}"


def _read_by_yaml(value: Any, allowed: Sequence[str]) -> str:
    """Why a value that looks like a text in YAML is none, and how to write the text; nothing where it is no such value.

    `allowed`: the texts that may stand there; empty: any.
    """
    if isinstance(value, bool):
        words = ("yes", "on", "true") if value else ("no", "off", "false")
        meant = next((word for word in words if word in allowed), words[0])
        return f'; YAML reads yes, no, on and off as true and false, and in quotes as text, as in "{meant}"'
    return f'; in quotes it is text: "{value}"' if isinstance(value, int | float | date) else ""


def _is_json_without_text(text: str) -> bool:
    """Whether a text is JSON of a list, mapping or null, as `transfer ablate` writes them; it is not meant as text."""
    with suppress(ValueError):
        return json.loads(text) is None or isinstance(json.loads(text), dict | list)
    return False


def quoted_override(key: str, text: str) -> str:
    """The override that sets a key to a text which YAML reads as something else, as it is typed in a shell."""
    return shlex.quote(f"{key}={json.dumps(text, ensure_ascii=False)}")


def _either(keys: Sequence[str]) -> str:
    """`a`, `b` or `c`."""
    *first, last = [f"`{key}`" for key in keys]
    return f"{', '.join(first)} or {last}" if first else last


def _keys_called(name: str, section: type[BaseModel], path: str = "") -> Iterator[str]:
    """The keys of this name in a section and in those inside it, with dots."""
    for key, field in section.model_fields.items():
        if key == name:
            yield f"{path}{key}"
        for inner, step in inner_sections(field.annotation):
            yield from _keys_called(name, inner, f"{path}{key}{step}.")


def _known_keys(location: tuple[str | int, ...], top: type[BaseModel]) -> list[str]:
    """Field names of the section at `location`, from the type annotations."""
    model = top
    for part in location:
        field = model.model_fields.get(str(part))
        if field is not None:
            model, _ = next(inner_sections(field.annotation), (model, ""))
    return sorted(model.model_fields)


def inner_sections(annotation: Any, step: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """The sections that values of a type hold, each with the path to it from the key."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, step
        return
    steps = {tuple: ".0", list: ".0", dict: ".<name>"}
    for inner in get_args(annotation):
        yield from inner_sections(inner, step + steps.get(get_origin(annotation), ""))
