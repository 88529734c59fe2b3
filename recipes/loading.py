"""Read recipes: YAML files and `key=value` overrides."""

import difflib
import json
import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from recipes.errors import UserError
from recipes.mistakes import quoted_override, validated
from recipes.schema import Recipe
from recipes.suggestions import holds_study, nearest, similar_file, similar_study
from recipes.yaml_files import read_yaml_text

STUDY_FILE = "study.json"
PREPARE = "prepare.py"
"""A script beside a recipe that makes its data files."""
_SHIPPED = Path(__file__).resolve().parent
_OTHER_FILES = {  # by a key that only they have
    "recipe": "the file of an ablation, not a recipe; see `transfer ablate {path} --dry-run`",
    "pairs": "an audit file, not a recipe; see `transfer audit {path} --dry-run`",
}
_INDEX = re.compile(r"""\[["']?([^\[\]"']+)["']?\]""")  # a[0] and a["b"], in a key
_STUDIES_SHOWN = 3
_LOCKED = ("sources", "benchmarks", "models")  # the parts of a lock file


def lock_path(recipe_path: Path) -> Path:
    """The lock file that `transfer fetch` writes for a recipe."""
    return recipe_path.with_suffix(".lock.json")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `key=value` overrides and validate.

    Args:
        path: a YAML file with its lock file beside it, or the folder of a study, which holds its recipe.
        overrides: settings to change. Local paths in them are relative to the working directory, or to the recipe's
            file if it is not there; those in a YAML file to the file.

    Raises:
        UserError: a file cannot be read, is not YAML, or a value is not allowed.
    """
    path = Path(path)
    values = read_study_file(path) if path.is_dir() else read_recipe_file(path)
    for key, what in _OTHER_FILES.items():
        if key in values:
            raise UserError(f"{path} is {what.format(path=path)}")
    arms_of_file = list(values.get("arms") or {}) if isinstance(values.get("arms"), dict | None) else []
    for override in overrides:
        apply_override(values, override)
    _refuse_misspelt_arms(values, arms_of_file)
    if overrides:
        values = _with_absolute_paths(values, Path.cwd(), path if path.is_dir() else path.parent)
    typed = dict(override.split("=", 1) for override in overrides)
    recipe = validated(values, Recipe, str(path), typed)
    return recipe if path.is_dir() else recipe.read_from(str(path))  # `transfer fetch` writes beside a file


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The values of a YAML recipe, with its lock file and the sections `corpus` and `suite` of the recipes it names.

    Raises:
        UserError: a file cannot be read or is not YAML.
    """
    values: dict[str, Any] = _with_absolute_paths(read_yaml(path), path.parent)
    lock = _read_lock(lock_path(path))
    for key in ("corpus", "suite"):
        if isinstance(values.get(key), str):
            values[key], theirs = _section(_named_by(path, key, values[key]), key, (path,))
            lock = _merged(lock, theirs)
    return values | {"lock": lock}


def _with_absolute_paths(value: Any, *folders: Path, key: str = "") -> Any:
    """Values of a recipe in which relative paths to what exists in one of `folders` are absolute; the first wins.

    So are those to data files that a script in the first folder is to make, or whose name is nearly that of a file.
    """
    if isinstance(value, dict):
        path = str(value.get("path") or "") if value.get("kind") == "file" else ""
        if path and not any((folder / path).exists() for folder in (Path(), *folders)):
            made_here = folders[:1] if (folders[0] / PREPARE).is_file() else ()
            similar = (folder for folder in folders if similar_file(folder / path) is not None)
            for folder in (*made_here, *similar)[:1]:
                value = value | {"path": str((folder / path).resolve())}
        return {
            name: inner if name == "lock" else _with_absolute_paths(inner, *folders, key=str(name))
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_with_absolute_paths(inner, *folders) for inner in value]
    is_path = key in ("path", "external") or (key == "tasks" and "/" in str(value)) or str(value).endswith(".jinja")
    if not is_path or not value:
        return value
    found = (folder / str(value) for folder in folders)
    return next((str(path.resolve()) for path in found if path.exists()), value)


def read_yaml(path: Path, what: str = "recipe") -> dict[str, Any]:
    """The values of a YAML file, called `what` in messages. Raises UserError if it is not a readable YAML mapping."""
    try:
        values = read_yaml_text(path.read_text(encoding="utf-8"), what, path)
    except FileNotFoundError:
        if what != "recipe":
            raise UserError(f"{what} {path} does not exist") from None
        # A path without an extension may have been meant as the folder of a study.
        named = f"recipe {path}" if path.suffix in (".yaml", ".yml", ".json") else str(path)
        raise UserError(f"{named} does not exist{_nearest(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{what} {path} holds no settings; it must be a YAML mapping")
    return values


def _nearest(path: Path) -> str:
    """What to say about a recipe that does not exist: the nearest one beside it or shipped, or the nearest study."""
    near = similar_file(path.with_suffix(".yaml")) or similar_study(path)
    if near is None:
        shipped = [str(other.relative_to(_SHIPPED.parent)) for other in sorted(_SHIPPED.rglob("*.yaml"))]
        near = next(map(Path, difflib.get_close_matches(str(path), shipped, n=1, cutoff=0.8)), None)
    if near is not None:
        return f"; did you mean {near}?"
    if path.suffix:
        return "; recipes are under recipes/"
    studies = sorted(other.name for other in path.parent.glob("*") if holds_study(other))
    beside = f"studies in {path.parent} are {', '.join(studies)}" if studies else f"there is no study in {path.parent}"
    return f"; {beside}, and recipes are under recipes/"


def recipe_of_study(study: str) -> str | None:
    """The recipe of a study of this name, of the working directory or shipped; None if there is none."""
    for path in [*sorted(Path().glob("*.yaml")), *sorted(_SHIPPED.rglob("*.yaml"))]:
        with suppress(OSError, UnicodeDecodeError):
            if re.search(rf"^study: *['\"]?{re.escape(study)}['\"]? *(#.*)?$", path.read_text("utf-8"), re.MULTILINE):
                return str(path.relative_to(_SHIPPED.parent) if path.is_absolute() else path)
    return None


def _named_by(recipe: Path, key: str, name: str) -> Path:
    """The recipe that another one names, relative to itself, to take a section from it."""
    path = recipe.parent / name
    if path.exists():
        return path
    near = similar_file(path) or next(iter(sorted(_SHIPPED.rglob(Path(name).name))), None)  # of a copied recipe
    hint = f"did you mean {os.path.relpath(near, recipe.parent)}?" if near else "name one, relative to this recipe"
    raise UserError(f"{recipe}: `{key}` is {name}, and there is no such recipe; {hint}")


def _section(path: Path, key: str, readers: tuple[Path, ...]) -> tuple[Any, dict[str, Any]]:
    """One section of another recipe, which may take it from a third, with their lock. `readers`: who led here."""
    section, lock = read_yaml(path).get(key), _read_lock(lock_path(path))
    if isinstance(section, str) and any(path.samefile(reader) for reader in readers):
        raise UserError(f"recipe {path} takes its section {key} from itself: {key} is {section}")
    if isinstance(section, str):
        section, theirs = _section(_named_by(path, key, section), key, (*readers, path))
        return section, _merged(lock, theirs)
    if not isinstance(section, dict):
        raise UserError(f"recipe {path} has no section {key} to take")
    return _with_absolute_paths(section, path.parent), lock


def _merged(lock: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """A lock with the entries of that of a recipe it takes a section from; its own win."""
    return {kind: theirs.get(kind, {}) | lock.get(kind, {}) for kind in _LOCKED}


def _read_lock(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it and run `transfer fetch` again") from None
    parts = [lock.get(kind, {}) for kind in _LOCKED] if isinstance(lock, dict) else [None]
    entries = [entry for part in parts for entry in (part.values() if isinstance(part, dict) else [None])]
    if not all(isinstance(e, dict) and "revision" in e and isinstance(e.get("files"), dict) for e in entries):
        raise UserError(f"{path} holds no lock as `transfer fetch` writes it; delete it and run `transfer fetch` again")
    return dict(lock)


def _refuse_misspelt_arms(values: dict[str, Any], known: list[str]) -> None:
    """Refuse an override of a misspelt arm, which would otherwise add an arm."""
    arms = values.get("arms")
    for name, arm in arms.items() if isinstance(arms, dict) else ():
        unfinished = isinstance(arm, dict) and not {"sampling", "external"} & arm.keys()
        near = nearest(str(name), known) if name not in known else None
        if unfinished and near:
            raise UserError(f"arms.{name} is not an arm of this recipe; did you mean arms.{near}?")


def read_study_file(study_dir: Path) -> dict[str, Any]:
    """The values in `study.json` of a study directory. Raises UserError if there is none or it is damaged."""
    path = study_dir / STUDY_FILE
    if not path.is_file():
        raise UserError(f"{study_dir} is not a study directory: it has no {STUDY_FILE}; {_what_holds(study_dir)}")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        advice = "it is a copy of the recipe; restore or repair it, or choose another --out"
        raise UserError(f"{path} cannot be read ({error}): {advice}") from None


def _what_holds(folder: Path) -> str:
    """What to do with a folder that is no study."""
    if (folder / "ablation.json").is_file():
        points = sorted(path for path in (folder / "points").glob("*") if holds_study(path))
        return f"it is an ablation: see `transfer ablate {folder}`, or name a point, {_some(points)}"
    if recipes := sorted(folder.glob("*.yaml")):
        return f"did you mean the recipe {' or '.join(map(str, recipes))}?"
    within = [path for path in sorted(folder.iterdir()) if holds_study(path)] if folder.is_dir() else []
    if within:
        return f"did you mean {_some(within)}?"
    above = next((path for path in folder.parents if holds_study(path)), None)
    return f"did you mean {above}?" if above is not None else "`transfer run` makes one"


def _some(studies: Sequence[Path]) -> str:
    left = len(studies) - _STUDIES_SHOWN
    more = f" or one of {left} others" if left > 1 else " or another one" if left == 1 else ""
    return f"{' or '.join(map(str, studies[:_STUDIES_SHOWN]))}{more}"


def load_study(study_dir: Path) -> Recipe:
    """The resolved recipe of a study directory. Raises UserError if there is none."""
    return validate_recipe(read_study_file(study_dir), str(study_dir / STUDY_FILE))


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `a.b.0.c=value` in nested mappings and lists, in place; the value is parsed as YAML."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r} must have the form key=value, for instance train.steps=10")
    if (dotted := _INDEX.sub(r".\1", key)) != key:
        raise UserError(f"override {override!r}: the steps of a key are joined by dots; did you mean `{dotted}`?")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: an impossible date
        raise UserError(
            f"override {override!r}: {text!r} is not a YAML value; if it is a text, write {quoted_override(key, text)}"
        ) from None
    if isinstance(value, str) and text != text.strip() and value == text.strip():
        raise UserError(
            f"override {override!r}: YAML drops blanks around a text; write {shlex.quote(f'{key}={json.dumps(text)}')} "
            f"to keep them, or {shlex.quote(f'{key}={value}')}"
        )
    node: Any = values
    parts = key.split(".")
    for depth, part in enumerate(parts, start=1):
        try:
            index: Any = int(part) if isinstance(node, list) else part
            if depth == len(parts):
                node[index] = value
            elif isinstance(node, dict) and node.get(part) is None:  # absent, or switched off with null
                node[part] = {}
            node = node[index]
        except (TypeError, ValueError, IndexError):
            raise UserError(f"override {override!r}: {'.'.join(parts[:depth])} is not a key of the recipe") from None


def validate_recipe(values: dict[str, Any], name: str) -> Recipe:
    """Validate nested values; `name` is used in messages. Raises UserError listing every mistake."""
    return validated(values, Recipe, name)
