"""Studies that train nothing: a base and checkpoints are evaluated on a suite."""

import json
import re
from pathlib import Path
from typing import Any

from recipes.errors import UserError
from recipes.loading import STUDY_FILE, apply_override, read_recipe_file, read_study_file, read_yaml, validate_recipe
from recipes.schema import Recipe

_UNSPECIFIC = re.compile(r"final|snapshots|(seed|step|checkpoint)-\d+")  # folders that every run of a study has


def evaluation_recipe(
    base: str, models: dict[str, str], suite: Path, study: str, overrides: list[str], title: str = ""
) -> Recipe:
    """A recipe that scores checkpoints against a base.

    `base`: path or hub id, optionally with @revision; `models`: the same by the name of the arm. Of the recipe `suite`
    the suite, prompt, statistics, analysis, resources and lock are used.

    Raises:
        UserError: a file is missing, or a value is not allowed.
    """
    values = read_recipe_file(suite)
    kept: dict[str, Any] = {
        key: values[key] for key in ("prompt", "statistics", "analysis", "resources", "lock") if key in values
    }
    if "suite" not in values:
        raise UserError(f"{suite} has no section `suite`; name a recipe with one")
    kept["suite"] = values["suite"]
    path, revision = at_revision(base)
    kept |= {
        "study": study,
        "title": title,
        "model": {"path": path, "revision": revision, "eos_token": None, "pad_token": None, "dtype": _dtype(path)},
        "arms": {
            name: {"external": dict(zip(("path", "revision"), at_revision(model), strict=True))}
            for name, model in models.items()
        },
    }
    for override in overrides:
        apply_override(kept, override)
    return validate_recipe(kept, str(suite)).read_from(str(suite), with_models=False)


def refuse_other_models(recipe: Recipe, folder: Path) -> None:
    """Raise UserError if the folder has an evaluation of other models: checkpoints of several studies share a name."""
    if not (folder / STUDY_FILE).exists():
        return
    before, now = _models(read_study_file(folder)), _models(recipe.dump())
    if before != now:
        what = f"an evaluation of {' and '.join(before)}" if before is not None else "another study"
        raise UserError(f"{folder} has {what}; name another folder for this evaluation with --out")


def _models(values: dict[str, Any]) -> list[str] | None:
    """Base and arms that a recipe scores, as PATH@REVISION; None for a study that trains or makes any of them."""
    named = [values.get("model"), *(arm.get("external") for arm in (values.get("arms") or {}).values())]
    models = []
    for one in named:
        if not one or not one.get("path"):
            return None
        path = str(Path(one["path"]).resolve()) if Path(one["path"]).is_dir() else one["path"]
        models.append("@".join(filter(None, (path, one.get("revision")))))
    return models


def at_revision(text: str) -> tuple[str, str | None]:
    """Path or hub id of a model, and the revision after its @."""
    path, _, revision = text.partition("@")
    return path, revision or None


def _dtype(path: str) -> str:
    """The number format of a local checkpoint; bfloat16 for hub ids."""
    config = Path(path) / "config.json"
    if not config.is_file():
        return "bfloat16"
    try:
        stored = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{config} cannot be read: {error}") from None
    return "float32" if "float32" in str(stored.get("dtype", stored.get("torch_dtype"))) else "bfloat16"


def arm_names(models: list[str]) -> dict[str, str]:
    """Arm name -> checkpoint: as many last parts of the path as make it unique and say more than seed and step."""
    names: dict[str, str] = {}
    for model in models:
        parts = [part for part in re.split(r"[/\\]", at_revision(model)[0].rstrip("/")) if part not in ("", ".", "..")]
        for count in range(1, len(parts) + 1):
            name = re.sub(r"\W+", "_", "_".join(parts[-count:])).strip("_") or "model"
            if name not in names and name != "base" and not all(map(_UNSPECIFIC.fullmatch, parts[-count:])):
                break
        while name in names or name == "base":
            name += "_2"
        names[name] = model
    return names


def audit_recipes(path: Path, overrides: list[str]) -> list[tuple[Recipe, list[dict[str, Any]]]]:
    """The studies of an audit, one for each base, with their pairs.

    Raises:
        UserError: the file has no pairs, or a pair lacks a value.
    """
    values = read_yaml(path)
    pairs = values.get("pairs")
    required = {"name", "base", "model", "method", "size"}
    if not isinstance(pairs, list) or not pairs:
        raise UserError(f"{path} has no `pairs`, a list of base and model to audit")
    for index, pair in enumerate(pairs, start=1):
        if not isinstance(pair, dict) or not required <= pair.keys():
            raise UserError(f"{path}: pair {index} must have {', '.join(sorted(required))}")
        if not isinstance(pair["size"], int | float):
            raise UserError(
                f"{path}: pair {index} has size {pair['size']!r}, but must be a number, in billions of parameters"
            )
    suite = path.parent / str(values.get("suite", "../suites/twelve.yaml"))
    by_base: dict[str, list[dict[str, Any]]] = {}
    for pair in pairs:
        by_base.setdefault(pair["base"], []).append(pair)
    studies = []
    for base, members in by_base.items():
        names = {re.sub(r"\W+", "_", pair["name"]).strip("_"): pair["model"] for pair in members}
        if len(names) < len(members):
            raise UserError(f"{path}: two pairs of {base} have names that differ only in punctuation; rename one")
        study = "audit-" + re.sub(r"[^a-z0-9]+", "-", "-".join(at_revision(base)[0].split("/")[-2:]).lower()).strip("-")
        recipe = evaluation_recipe(base, names, suite, study, overrides, f"audit of {base}")
        own = read_recipe_file(path).get("lock", {})
        joined = {kind: recipe.lock.get(kind, {}) | own.get(kind, {}) for kind in ("sources", "benchmarks", "models")}
        studies.append((recipe.model_copy(update={"lock": joined}).read_from(str(path)), members))
    return studies
