"""Ablations: one recipe run at several points that differ on declared axes. Stages that points share run once.

    runs/ablations/<name>/
      ablation.json      axes and points
      shared/            a study folder with the stages that all points have in common (corpus, base, its evaluation)
      points/<point>/    a study folder each; a stage that runs in another folder is a link to it
      report/            curves over all points (`eval/report/response_curves.py`), or the choice of learning rates

Two stages are the same if they read the same recipe values and need the same stages.
"""

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from eval.questions.analysis_lock import write_lock
from launch.execution.local import run_tasks
from launch.planning.findings import Finding
from launch.run import check_recipe
from launch.stages import Stage, build_stages, select_until
from launch.tasks import Task, TaskKey
from recipes.errors import UserError
from recipes.files import hash_json, is_locked, write_json
from recipes.loading import STUDY_FILE, load_recipe, read_yaml, validate_recipe
from recipes.schema import Recipe
from train.arms import overruled

ABLATION_FILE = "ablation.json"
SHARED = "shared"
RATES_UNTIL = "eval"  # the last kind of stage that a choice of learning rates runs
_KEYS = {"recipe", "name", "title", "grid", "paired", "set"}


@dataclass(frozen=True)
class Point:
    """One combination of the values on the axes."""

    name: str
    values: dict[str, Any]
    """Value of every axis."""
    differs: tuple[str, ...]
    """Axes on which it differs from `Ablation.base`."""
    recipe: Recipe


@dataclass
class Ablation:
    """All points of an ablation and their folder."""

    root: Path
    name: str
    title: str
    axes: dict[str, list[Any]]
    paired: bool
    points: list[Point]
    base: str = "the recipe"
    """What points are compared with in a dry run: the recipe, with settings that were changed for all of them."""

    def folder(self, point: Point) -> Path:
        """Study folder of a point."""
        return self.root / "points" / point.name

    def write(self) -> None:
        """Write `ablation.json`, the recipe of every point, and the links between their folders.

        Raises:
            UserError: the folder holds something else, or a point runs: its ranks read the recipe when they start.
        """
        for folder in (self.root / SHARED, *map(self.folder, self.points)):
            if is_locked(folder):
                raise UserError(f"{folder} is being written by another process; wait for it or choose another --out")
        path = self.root / ABLATION_FILE
        content = self.dump()
        if path.exists():
            before = _read(path)
            if before.get("axes") != content["axes"] or before["paired"] != content["paired"]:
                raise UserError(f"{self.root} holds an ablation over other points; choose another --out")
        elif self.root.exists() and any(self.root.iterdir()):
            raise UserError(f"{self.root} is not empty and is not an ablation; choose another --out")
        write_json(path, content)
        write_json(self.root / SHARED / STUDY_FILE, self.points[0].recipe.dump())
        for point in self.points:
            write_json(self.folder(point) / STUDY_FILE, point.recipe.dump())
            if point.recipe.suite is not None:  # before any point is evaluated
                write_lock(point.recipe, self.folder(point))
        owners = self._owners()
        for point, stages, identities in self.stages():
            for stage in stages:
                study, name = owners[identities[stage.name]]
                if Path(study) != self.folder(point):
                    _link(self.folder(point) / stage.name, Path(study) / name)

    def dump(self) -> dict[str, Any]:
        """The ablation as JSON values."""
        points = [
            {"name": p.name, "values": p.values, "differs": list(p.differs), "recipe": p.recipe.dump()}
            for p in self.points
        ]
        values = {"name": self.name, "title": self.title, "axes": self.axes, "paired": self.paired}
        return values | {"points": points}

    def tasks(self, until: str | None = None) -> list[Task]:
        """Every stage of the points, once, with the tasks it waits for; shared ones first."""
        owners = self._owners()
        tasks: dict[TaskKey, Task] = {}
        for point, stages, identities in self.stages():
            for stage in select_until(stages, until):
                key = owners[identities[stage.name]]
                needs = tuple(owners[identities[name]] for name in stage.needs)
                tasks.setdefault(key, Task(Path(key[0]), point.recipe, stage, needs))
        order = {"base": 0, "corpus": 1, "questions": 2}
        return sorted(
            tasks.values(), key=lambda task: order.get(task.stage.kind, 3) if task.study_dir.name == SHARED else 4
        )

    def run(self, until: str | None) -> int:
        """Run everything on this machine; returns the exit status.

        Points run side by side: a core or GPU that one leaves idle works for the next. A failed stage stops those that
        need it; a signal ends the ablation.
        """
        return run_tasks(self.tasks(until), self.root, until)

    def stages(self) -> list[tuple[Point, list[Stage], dict[str, str]]]:
        """Every point with its stages and their identities: equal ones are the same stage."""
        rows = []
        for point in self.points:
            stages = build_stages(point.recipe)
            identities: dict[str, str] = {}
            for stage in stages:
                needs = [identities[name] for name in stage.needs]
                identities[stage.name] = hash_json([stage.name, stage.reads, needs])
            rows.append((point, stages, identities))
        return rows

    def _owners(self) -> dict[str, TaskKey]:
        """Where each stage runs, by identity: in `shared/` if all points have it, else in the first that has it."""
        counts: Counter[str] = Counter()
        owners: dict[str, TaskKey] = {}
        for point, stages, identities in self.stages():
            for stage in stages:
                identity = identities[stage.name]
                counts[identity] += 1
                owners.setdefault(identity, (str(self.folder(point)), stage.name))
        for identity, (_, name) in owners.items():
            if counts[identity] == len(self.points) > 1:
                owners[identity] = (str(self.root / SHARED), name)
        return owners


def _link(path: Path, target: Path) -> None:
    """Make `path` a relative link to `target`, unless something else is there."""
    text = os.path.relpath(target, path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() and os.readlink(path) != text:
        path.unlink()
    if not path.exists() and not path.is_symlink():
        path.symlink_to(text)


def default_root(kind: str, name: str) -> Path:
    """The folder of an ablation or of a choice of rates (`kind`: ablations or rates).

    It is apart from the studies in `runs/`, whose names could be the same. `name`: of the recipe's study, or of the
    file of the ablation.
    """
    return Path("runs") / kind / name


def read_ablation(
    path: Path, overrides: Sequence[str], grid: Sequence[str], paired: Sequence[str], root: Path | None
) -> Ablation:
    """An ablation from a recipe (or the folder of a study) and axes, or from a file of `recipes/ablations/`.

    Raises:
        UserError: there is no axis, an axis has no values or is not a setting, or paired axes differ in length.
    """
    values = {} if path.is_dir() else read_yaml(path)
    axes_of = {"grid": _axes(grid), "paired": _axes(paired)}
    recipe_path, settings, name, title = path, list(overrides), "", ""
    if "recipe" in values:
        unknown = values.keys() - _KEYS
        if unknown:
            raise UserError(f"{path}: `{sorted(unknown)[0]}` is not a setting; allowed are {', '.join(sorted(_KEYS))}")
        recipe_path = path.parent / str(values["recipe"])
        settings = [f"{key}={json.dumps(value)}" for key, value in (values.get("set") or {}).items()] + settings
        name, title = str(values.get("name") or path.stem), str(values.get("title") or "")
        for kind, given in axes_of.items():
            for key, points in (values.get(kind) or {}).items():
                if not isinstance(points, list) or not points:
                    raise UserError(f"{path}: {kind}.{key} must be a list of values")
                given.setdefault(str(key), points)
    if bool(axes_of["grid"]) == bool(axes_of["paired"]):
        raise UserError(
            "an ablation needs axes: either --grid KEY=V1,V2 (all combinations) or --paired KEY=V1,V2 (value by value)"
        )
    axes = axes_of["grid"] or axes_of["paired"]
    is_paired = bool(axes_of["paired"])
    if is_paired and len({len(points) for points in axes.values()}) > 1:
        sizes = ", ".join(f"{key} has {len(points)}" for key, points in axes.items())
        raise UserError(f"paired axes need equally many values: {sizes}")
    combinations = zip(*axes.values(), strict=True) if is_paired else itertools.product(*axes.values())
    base = load_recipe(recipe_path, settings)
    for axis in axes:
        if own := overruled(base, axis):
            raise UserError(
                f"axis {axis} changes nothing, because every arm has its own value; vary {', '.join(own)}, together "
                "with --paired"
            )
    points = [
        _point(recipe_path, settings, dict(zip(axes, combination, strict=True)), base) for combination in combinations
    ]
    repeated = {point.name for point in points if sum(other.name == point.name for other in points) > 1}
    if repeated:
        raise UserError(f"two points are called {sorted(repeated)[0]}; list every value once")
    root = root or default_root("ablations", name or base.study)
    changed = [*(["`set`"] if values.get("set") else []), *(["the overrides"] if overrides else [])]
    compared = f"the recipe with {' and '.join(changed)}" if changed else "the recipe"
    name = name or f"{base.study}-ablation"
    return Ablation(root, name, title or base.title, axes, is_paired, points, compared)


def read_rate_choice(
    path: Path, overrides: Sequence[str], rates: Sequence[float], seeds: Sequence[int], root: Path | None
) -> Ablation:
    """The choice of learning rates: the same rates for every arm, scored on held-out problems, on other seeds.

    Raises:
        UserError: the study reports one of the seeds, or its corpus holds no problems out.
    """
    recipe = load_recipe(path, overrides)
    if reported := sorted(set(seeds) & set(recipe.seeds)):
        raise UserError(f"seed {reported[0]} is one that the study reports; choose rates on others, with --seeds")
    if not recipe.corpus.heldout_problems:
        raise UserError("learning rates are chosen on held-out problems; set corpus.heldout_problems")
    scorings = {"paper": "last_box_text", "robust": recipe.corpus.answer_form}
    heldout = {"name": "heldout", "group": recipe.analysis.trained_group, "scorings": scorings}
    suite = {
        "benchmarks": [heldout],
        "questions": recipe.corpus.heldout_problems,
        "max_prompt_tokens": recipe.prompt.max_prompt_tokens,
        "max_response_tokens": recipe.prompt.max_completion_tokens,
    }
    if recipe.suite is not None:
        suite["engine"] = recipe.suite.engine.model_dump(mode="json")
    settings = [
        *overrides,
        f"seeds={json.dumps(seeds)}",
        f"suite={json.dumps(suite)}",
        f"analysis={{trained_group: {recipe.analysis.trained_group}}}",
        f"study={recipe.study}-rates",
        *("train.snapshots=0", "drift=null", "trajectory=null", "diagnostics=null"),
    ]
    axes = [f"arms.{arm}.learning_rate={','.join(map(repr, rates))}" for arm in recipe.trained]
    root = root or default_root("rates", recipe.study)
    return replace(read_ablation(path, settings, [], axes, root), base="the recipe")  # the settings are not the user's


def check_points(ablation: Ablation) -> list[Finding]:
    """What keeps points from running; an error says of which point it is. Without a suite, no warnings about one."""
    found: list[Finding] = []
    for point in ablation.points:
        for finding in check_recipe(point.recipe):
            if finding.severity == "error":
                found.append(replace(finding, sentence=f"point {point.name}: {finding.sentence}"))
        own = point.recipe
        if chooses_rates(ablation):  # its suite is made for it, so the recipe cannot mend it
            own = own.model_copy(update={"suite": None})
        found += [finding for finding in check_recipe(own) if finding.severity != "error"]
    return found


def chooses_rates(ablation: Ablation) -> bool:
    """Whether an ablation is a choice of learning rates."""
    benchmarks = [benchmark.name for benchmark in ablation.points[0].recipe.benchmarks]
    rates = all(axis.endswith(".learning_rate") for axis in ablation.axes)
    return ablation.paired and rates and benchmarks == ["heldout"]


def _axes(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Axes from `key=v1,v2`; a value may be a YAML list or mapping in brackets."""
    axes: dict[str, list[Any]] = {}
    for text in texts:
        key, sign, values = text.partition("=")
        if not sign or not key or not values:
            raise UserError(
                f"axis {text!r} is not of the form key=value,value, for instance train.learning_rate=1e-6,3e-6"
            )
        try:
            parsed = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            raise UserError(f"axis {text!r}: {values!r} is not a list of YAML values") from None
        axes[key] = [_as_number(value) for value in parsed]
    return axes


def _as_number(value: Any) -> Any:
    """Text that is a number as one: YAML 1.1 reads 1e-6 as text."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def _point(path: Path, settings: Sequence[str], values: dict[str, Any], base: Recipe) -> Point:
    recipe = load_recipe(path, [*settings, *(f"{key}={json.dumps(value)}" for key, value in values.items())])
    dumped, reference = recipe.dump(), base.dump()
    differs = tuple(key for key in values if _in_effect(dumped, key) != _in_effect(reference, key))
    labels = [f"{key.split('.')[-1]}-{_label(value)}" for key, value in values.items()]
    name = "-".join(dict.fromkeys(labels))  # equal learning rates of several arms are one label
    return Point(name, {key: look_up(dumped, key) for key in values}, differs, recipe)


def _in_effect(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; that of the study where an arm has no learning rate or number of steps of its own."""
    value, (*before, setting) = look_up(values, key), key.split(".")
    if value is None and before[:1] == ["arms"] and setting in ("learning_rate", "steps"):
        return look_up(values, f"train.{setting}")
    return value


def look_up(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    value: Any = values
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value.get(part) if isinstance(value, dict) else None
    return value


def _label(value: Any) -> str:
    text = (
        json.dumps(value)
        if isinstance(value, dict | list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_") or "none"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); restore it, or run `transfer ablate` with another --out"
        ) from None
    if not isinstance(values, dict) or not {"axes", "points", "paired"} <= values.keys():
        raise UserError(
            f"{path} is not an ablation file of `transfer ablate`; restore it, or run that with another --out"
        )
    return values


def load_ablation(root: Path) -> Ablation:
    """The ablation in a folder. Raises UserError if there is none."""
    values = _read(root / ABLATION_FILE)
    try:
        points = [
            Point(p["name"], p["values"], tuple(p["differs"]), validate_recipe(p["recipe"], f"point {p['name']}"))
            for p in values["points"]
        ]
    except (TypeError, KeyError):
        raise UserError(f"{root / ABLATION_FILE} is damaged; run `transfer ablate` with the same axes again") from None
    return Ablation(root, values["name"], values["title"], values["axes"], values["paired"], points)
