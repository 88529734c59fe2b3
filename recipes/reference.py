"""The reference of all keys of a kind of file, read off its schema.

`transfer config` prints that of recipes, and docs/recipe-keys.md holds it.
"""

import difflib
import json
from dataclasses import astuple, dataclass, replace
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recipes.errors import UserError
from recipes.mistakes import inner_sections
from recipes.schema import Recipe

_WRITTEN_BY_COMMANDS = {"lock", "rehearsal"}
_KINDS: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Any: "any value",
    type(None): "null",
}
_BOUNDS = {Ge: "at least {}", Gt: "above {}", Le: "at most {}", Lt: "below {}", MinLen: "not empty"}
_RECIPE_PAGE = """# Recipe keys

Every key of a recipe, by section. `transfer config` prints this page, `transfer config train` one section and
`transfer config train.steps` or `transfer config arms.grpo.beta` one key. On the command line a key is written with
dots, and lists count from 0: `transfer run RECIPE train.steps=300 'corpus.sources.0.path=my.jsonl'`. `<name>` is a name
of your choice.

"""


@dataclass(frozen=True)
class KindOfFile:
    """A kind of YAML file: its schema, its name in messages, and what stands above the reference of all its keys."""

    schema: type[BaseModel]
    plural: str
    head_of_page: str


RECIPES = KindOfFile(Recipe, "recipes", _RECIPE_PAGE)


@dataclass(frozen=True)
class Key:
    """A key of a section: its name, the values it takes, its default as JSON (None: required) and its docstring."""

    name: str
    values: str
    default: str | None
    meaning: str


@dataclass(frozen=True)
class Section:
    """A section of a file.

    `paths` are the keys that hold it, with dots as on the command line: `<name>` is a name of the user's choice, `0`
    any position of a list. The file itself has the path "".
    """

    paths: tuple[str, ...]
    meaning: str
    keys: tuple[Key, ...]


def all_sections(kind: KindOfFile = RECIPES) -> list[Section]:
    """All sections of a kind of file, outer ones before inner ones."""
    paths: dict[type[BaseModel], list[str]] = {}

    def visit(section: type[BaseModel], path: str) -> None:
        paths.setdefault(section, []).append(path)
        for name, field in _fields(section):
            for inner, step in inner_sections(field.annotation):
                visit(inner, f"{path}.{name}{step}" if path else f"{name}{step}")

    visit(kind.schema, "")
    return [
        Section(tuple(keys_of_section), _one_line(section.__doc__), tuple(_key(*item) for item in _fields(section)))
        for section, keys_of_section in paths.items()
    ]


def reference_text(prefix: str = "", kind: KindOfFile = RECIPES) -> str:
    """Sections and keys at and below the key `prefix`, as Markdown; for "" the page in docs/, which has all.

    Raises:
        UserError: there is no such key.
    """
    return ("" if prefix else kind.head_of_page) + "\n".join(map(_section_text, chosen_sections(prefix, kind)))


def chosen_sections(prefix: str, kind: KindOfFile = RECIPES) -> list[Section]:
    """Sections at and below the key `prefix`, or one section with that key alone.

    Raises:
        UserError: there is no such key.
    """
    sections = all_sections(kind)
    chosen = [section for section in sections if any(_is_at(path, prefix, below=True) for path in section.paths)]
    if not chosen:
        outer, _, name = prefix.rpartition(".")
        holders = [section for section in sections if any(_is_at(path, outer) for path in section.paths)]
        chosen = [replace(holder, keys=(key,)) for holder in holders for key in holder.keys if key.name == name]
    if not chosen:
        raise UserError(f"{kind.plural} have no key {prefix!r}; {_nearest_keys(prefix, sections)}")
    return chosen


def _is_at(path: str, key: str, below: bool = False) -> bool:
    """Whether the section at `path` is at a key, or below it, which has the user's names and positions."""
    steps, given = (text.split(".") if text else [] for text in (path, key))
    if len(steps) != len(given) and not (below and len(steps) > len(given)):
        return False
    pairs = zip(steps, given, strict=False)
    return all(step in (own, "<name>") or (step == "0" and own.isdigit()) for step, own in pairs)


def _nearest_keys(key: str, sections: list[Section]) -> str:
    """What to say about a key that does not exist: keys of the same or nearly the same name, or the outermost ones."""
    pairs = [(path, item.name) for section in sections for path in section.paths for item in section.keys]
    known = [f"{path}.{name}".lstrip(".") for path, name in pairs]
    last = key.rpartition(".")[2]
    near = [path for path in known if path.rpartition(".")[2] == last] or difflib.get_close_matches(key, known, n=1)
    if near:
        return f"did you mean {' or '.join(near[:3])}?"
    return f"the outermost are {', '.join(key.name for key in sections[0].keys)}"


def _section_text(section: Section) -> str:
    title = ", ".join(f"`{path}`" for path in section.paths if path) or "Top level"
    lines = [f"## {title}", "", section.meaning, "", "| Key | Values | Default | Meaning |", "|---|---|---|---|"]
    for key in section.keys:
        default = "required" if key.default is None else f"`{_cell(key.default)}`"
        lines.append(f"| `{key.name}` | {_cell(key.values)} | {default} | {_cell(key.meaning)} |")
    return "\n".join([*lines, ""])


def _fields(section: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    return [item for item in section.model_fields.items() if item[0] not in _WRITTEN_BY_COMMANDS]


def _key(name: str, field: FieldInfo) -> Key:
    values = ", ".join([_values(field.annotation), *_bounds(field.metadata)])
    default = None
    if not field.is_required():
        default = json.dumps(_plain(field.get_default(call_default_factory=True)), ensure_ascii=False)
    return Key(name, values, default, _one_line(field.description))


def _values(annotation: Any) -> str:
    if annotation in _KINDS:
        return _KINDS[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_values(item) for item in inner))
    if origin is Annotated:
        metadata = [part for item in inner[1:] for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return ", ".join([_values(inner[0]), *_bounds(metadata)])
    if origin in (tuple, list):
        return f"list of {_values(inner[0])}"
    if origin is dict:
        return f"{_values(inner[0])} → {_values(inner[1])}"
    raise TypeError(f"recipe keys of the type {annotation} cannot be described yet")


def _bounds(metadata: list[Any]) -> list[str]:
    limits = [(_BOUNDS[type(item)], *astuple(item)) for item in metadata if type(item) in _BOUNDS]
    return [words.format("2**32" if limit == 2**32 else limit) for words, limit in limits]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        # A section whose default differs from that of its class shows how.
        return value.model_dump(mode="json", exclude_defaults=True)
    return list(value) if isinstance(value, tuple) else value


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
