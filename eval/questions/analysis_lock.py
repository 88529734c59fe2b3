"""`analysis.lock`: what a study's conclusions rest on, written before the first response is generated.

Primary reading, definition, claims, arms, and how every benchmark is prompted, scored and sampled. It is written once
and never changed; whatever the recipe says differently later is reported as decided after the evaluation had begun.
"""

import json
from pathlib import Path
from typing import Any

from eval.questions.task_files import task_folder, task_path
from recipes.errors import UserError
from recipes.files import hash_file, hash_json, write_json
from recipes.schema import Recipe, without_later_defaults
from recipes.spec import Spec
from recipes.suite_schema import AnalysisSpec

LOCK = "analysis.lock"
_DECODING = {"split", "questions", "top_p", "top_k", "max_response_tokens", "max_prompt_tokens", "thinking", "seed"}


def declared(recipe: Recipe) -> dict[str, Any]:
    """What the analysis rests on, flat: name -> JSON value."""
    suite = recipe.require_suite()
    values: dict[str, Any] = {
        "reading": recipe.analysis.reading,
        "definition": recipe.analysis.definition,
        "claims": [claim.model_dump(mode="json") for claim in recipe.analysis.claims],
        "arms": sorted(recipe.arms),
        **{f"arm {name}": _hash(arm) for name, arm in recipe.arms.items()},
        "seeds": list(recipe.seeds),
        "training": recipe.train and _hash(recipe.train),
        "statistics": recipe.statistics.model_dump(mode="json"),
        "prompt": recipe.prompt.model_dump(mode="json"),
        "lock of benchmarks": hash_json(recipe.lock.get("benchmarks", {})),
        **{f"suite {name}": value for name, value in suite.model_dump(mode="json", include=_DECODING).items()},
    }
    if recipe.analysis.trained_group != AnalysisSpec().trained_group:  # locks from before the setting do not have it
        values["trained group"] = recipe.analysis.trained_group
    folder = task_folder(suite)
    for benchmark in suite.benchmarks:
        prompting, scoring = benchmark.cell(recipe.analysis.reading)
        values[f"benchmark {benchmark.name}"] = {
            "group": benchmark.group,
            "prompting": prompting,
            "scoring": benchmark.scorings[scoring],
            "samples": suite.samples(benchmark),
            "temperature": suite.temperature_of(benchmark),
            "data": benchmark.data and _hash(benchmark.data),
            "task file": hash_file(task_path(folder, benchmark.name, prompting)),
        }
    return values


def _hash(spec: Spec) -> str:
    return hash_json(without_later_defaults(spec.model_dump(mode="json")))


def write_lock(recipe: Recipe, study_dir: Path) -> None:
    """Write the lock, if there is none. `before` says whether any response was stored by then."""
    path = study_dir / LOCK
    if path.exists():
        return
    stored = any(path for name in ("chunk-*", "answers-*") for path in (study_dir / "eval").glob(f"*/*/{name}"))
    values = declared(recipe)
    write_json(path, {"declared": values, "sha256": hash_json(values), "before": not stored})


def decided(recipe: Recipe, study_dir: Path) -> dict[str, Any]:
    """What was decided before the evaluation and what after, by name.

    Raises:
        UserError: the lock is damaged.
    """
    path = study_dir / LOCK
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        locked: dict[str, Any] = lock["declared"]
        if hash_json(locked) != lock["sha256"]:
            raise ValueError("its content does not match its hash")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} failed its integrity check ({error}); restore it, or use a new --out") from None
    now = declared(recipe)
    same = [name for name in now if lock["before"] and locked.get(name) == now[name]]
    return {
        "sha256": lock["sha256"],
        "before": same,
        "after": [name for name in now if name not in same]
        + [f"{name} (dropped)" for name in locked if name not in now],
    }
