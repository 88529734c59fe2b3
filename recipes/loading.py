"""Recipes from files: YAML, `key=value` overrides, and validation errors as sentences a user can act on."""

import difflib
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from recipes.errors import UserError
from recipes.schema import Recipe

STUDY_FILE = "study.json"
_LOCKED = ("sources", "benchmarks", "models")  # the parts of a lock file


def lock_path(recipe_path: Path) -> Path:
    """Where `transfer fetch` keeps what it resolved for a recipe."""
    return recipe_path.with_suffix(".lock.json")


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a YAML recipe with its lock file, apply `key=value` overrides and validate.

    `corpus` and `suite` may name another recipe, relative to this one, whose corpus or suite is meant.

    Raises:
        UserError: the file cannot be read, is not YAML, or a value is not allowed.
    """
    path = Path(path)
    values = read_recipe_file(path)
    arms_of_file = list(values.get("arms") or {}) if isinstance(values.get("arms"), dict | None) else []
    for override in overrides or []:
        apply_override(values, override)
    _refuse_misspelt_arms(values, arms_of_file)
    return validate_recipe(values, str(path))


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The values of a YAML recipe as they stand, with its lock and with the sections it takes from other recipes.

    Raises:
        UserError: a file cannot be read or is not YAML.
    """
    values = read_yaml(path)
    values["lock"] = _read_lock(lock_path(path))
    if isinstance(values.get("corpus"), str):
        other = path.parent / values["corpus"]
        values["corpus"] = _section(other, "corpus")
        theirs = _read_lock(lock_path(other))  # what was resolved for the corpus holds for whoever takes it
        values["lock"] = _joined(theirs, values["lock"])
    if isinstance(values.get("suite"), str):
        other = path.parent / values["suite"]
        values["suite"] = _section(other, "suite")
        values["lock"] = _joined(_read_lock(lock_path(other)), values["lock"])
    return values


def _joined(theirs: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Two locks as one; the own entries win."""
    return {kind: theirs.get(kind, {}) | own.get(kind, {}) for kind in _LOCKED}


def read_yaml(path: Path, what: str = "recipe") -> dict[str, Any]:
    """The values of a YAML file, called `what` in messages. Raises UserError if it cannot be read or is no mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist; recipes are under recipes/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{what} {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{what} {path} holds no settings; it must be a YAML mapping")
    return values


def _section(path: Path, key: str) -> Any:
    """One section of another recipe."""
    values = read_yaml(path)
    if not isinstance(values.get(key), dict):
        raise UserError(f"recipe {path} has no section {key} to take")
    return values[key]


def _read_lock(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it and run `transfer fetch` again") from None
    if not isinstance(lock, dict) or not all(map(_is_entry, _entries(lock))):
        raise UserError(f"{path} holds no lock as `transfer fetch` writes it; delete it and run `transfer fetch` again")
    return lock


def _entries(lock: dict[str, Any]) -> list[Any]:
    parts = [lock.get(kind, {}) for kind in _LOCKED]
    return [entry for part in parts for entry in (part.values() if isinstance(part, dict) else [None])]


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and "revision" in entry and isinstance(entry.get("files"), dict)


def _refuse_misspelt_arms(values: dict[str, Any], known: list[str]) -> None:
    """An override of a misspelt arm would otherwise be read as the start of a new one."""
    arms = values.get("arms")
    for name, arm in arms.items() if isinstance(arms, dict) else ():
        unfinished = isinstance(arm, dict) and not {"sampling", "external"} & arm.keys()
        near = difflib.get_close_matches(str(name), known, n=1) if name not in known else []
        if unfinished and near:
            raise UserError(f"arms.{name} is not an arm of this recipe; did you mean arms.{near[0]}?")


def read_study_file(study_dir: Path) -> dict[str, Any]:
    """The values in `study.json` of a study directory. Raises UserError if there is none or it is damaged."""
    path = study_dir / STUDY_FILE
    if not path.is_file():
        raise UserError(f"{study_dir} is not a study directory: it has no {STUDY_FILE}; `transfer run` makes one")
    advice = "it is a copy of the recipe; restore or repair it, or choose another --out"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {advice}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings: {advice}")
    return values


def load_study(study_dir: Path) -> Recipe:
    """The resolved recipe of a study directory. Raises UserError if there is none."""
    return validate_recipe(read_study_file(study_dir), str(study_dir / STUDY_FILE))


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `a.b.0.c=value` in nested mappings and lists; the value is read as YAML. Changes `values`."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r} must have the form key=value, for instance train.steps=10")
    node: Any = values
    steps = key.split(".")
    for position, step in enumerate(steps):
        last = position == len(steps) - 1
        try:
            if isinstance(node, list):
                index = int(step)
                node[index] = yaml.safe_load(text) if last else node[index]
                node = node[index]
            elif isinstance(node, dict):
                if last:
                    node[step] = yaml.safe_load(text)
                else:
                    if node.get(step) is None:  # absent, or switched off with null
                        node[step] = {}
                    node = node[step]
            else:
                raise KeyError(step)
        except (KeyError, ValueError, IndexError):
            raise UserError(
                f"override {override!r}: {'.'.join(steps[: position + 1])} is not a key of the recipe"
            ) from None
        except yaml.YAMLError:
            raise UserError(f"override {override!r}: {text!r} is not a YAML value") from None


def validate_recipe(values: dict[str, Any], name: str) -> Recipe:
    """Validate nested values; `name` is used in messages. Raises UserError listing every mistake."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(f"{name}: {text}" for text in sentences(error, Recipe))) from None


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Every mistake that was found in values of `model`, as a sentence."""
    return [_sentence(dict(item), model) for item in error.errors()]


def _sentence(error: dict[str, Any], model: type[BaseModel]) -> str:
    """One pydantic error as a sentence with the key, the value and what is allowed."""
    key = ".".join(map(str, error["loc"])) or "recipe"
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1], model)
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"allowed are {', '.join(known)}"
        return f"`{key}` is not a setting; {hint}"
    if error["type"] == "missing":
        return f"`{key}` is missing"
    message = error["msg"].removeprefix("Value error, ").replace("valid tuple", "list in brackets")
    if error["type"] == "value_error":
        return f"{key}: {message}" if error["loc"] else message
    return f"`{key}` is {error['input']!r}, but {message[0].lower()}{message[1:]}"


def _known_keys(location: tuple[str | int, ...], top: type[BaseModel]) -> list[str]:
    """Field names of the section at `location`, found by walking the type annotations."""
    model: Any = top
    for step in location:
        if isinstance(step, int) or not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        field = model.model_fields.get(str(step))
        if field is not None:
            model = _inner_model(field.annotation) or model
    return sorted(model.model_fields)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The recipe section inside `X | None`, `tuple[X, ...]` or `dict[str, X]`; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _inner_model(inner)
        if found is not None:
            return found
    return None
