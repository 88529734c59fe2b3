"""Whether the runs of a study, or the evaluations of its models, were computed on different hardware.

Kernels of another GPU or CPU round differently. That is no difference between the methods, but a part of the difference
between their models: with the same seed another CPU gives other samples, and so another model (docs/pocket.md).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes.layout import run_name
from recipes.manifest import finished_manifest
from recipes.schema import Recipe

_MIXED = {"CPU": "several kinds"}


def hardware_differences(recipe: Recipe, study_dir: Path) -> list[str]:
    """A sentence each for the training and the evaluation, if finished stages ran on different hardware."""
    runs = [run_name(arm, seed) for seed in recipe.seeds for arm in recipe.trained]
    found = [
        _difference("training", ((run, study_dir / "arms" / run) for run in runs)),
        _difference("evaluation", ((label, study_dir / "eval" / label) for label in recipe.all_labels)),
    ]
    return [text for text in found if text]


def _difference(what: str, stages: Iterable[tuple[str, Path]]) -> str | None:
    used = {name: hardware for name, folder in stages if (hardware := _hardware(folder))}
    kinds = [kind for number, kind in enumerate(used.values()) if kind not in list(used.values())[:number]]
    if len(kinds) < 2 and _MIXED not in kinds:
        return None
    told = [f"{_name(kind, kinds)}: {', '.join(name for name, own in used.items() if own == kind)}" for kind in kinds]
    return (
        f"{what} on different hardware ({'; '.join(told)}); its kernels round differently, and gains and differences "
        "include what that changes"
    )


def _hardware(stage_dir: Path) -> dict[str, str] | None:
    """What decides the kernels of a finished stage; None if that is not known (a server, an earlier version)."""
    manifest = finished_manifest(stage_dir)
    if manifest is None:
        return None
    facts: dict[str, Any] = manifest["facts"]
    device = facts.get("device") or (facts.get("engine") or {}).get("device")
    if device in (None, "cuda", "server"):
        return None
    if device != "cpu":
        return {"GPU": str(device)}
    environment = manifest["environment"]
    return (environment["cpu_kernels"] or _MIXED) if "cpu_kernels" in environment else None


def _name(kind: dict[str, str], kinds: list[dict[str, str]]) -> str:
    """A GPU by its name; a CPU by its vendor, the instructions that not all of them have, and its limits."""
    if "instructions" not in kind:
        return kind.get("GPU", "CPUs of several kinds")
    own = kind["instructions"].split()
    shared = set.intersection(*(set(other["instructions"].split()) for other in kinds if "instructions" in other))
    more = [name for name in own if name not in shared][:3]
    limits = [f"{key}={value}" for key, value in kind.items() if key not in ("vendor", "instructions")]
    return " ".join([kind["vendor"], "CPU", *([f"with {', '.join(more)}"] if more else []), *limits])
