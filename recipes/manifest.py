"""Manifests of stages: what a stage was made of, whether it is done, and what it was made with.

A stage directory holds `manifest.json`, written with `completed: null` when the stage starts and again when it
ends. With the current input hash a stage with a complete manifest is done, and one with an incomplete manifest is
resumed. With another hash it is replaced, and the differing inputs are named. Inputs that `BOOKKEEPING` names may
differ: they are recorded and not compared.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple

from recipes.errors import UserError
from recipes.files import hash_json, write_json
from recipes.layout import flat
from recipes.processor import cpu_kernels
from recipes.progress import PROGRESS

MANIFEST = "manifest.json"
OUTPUT_OF = "output of "
"""Begins the name of an input that is the output of another stage."""
BOOKKEEPING = ("micro_batch_tokens", "micro_batch_size", "save_every_steps", "save_every_minutes")
"""Settings of an arm that decide memory, speed and what is lost by a kill. The trained weights differ by rounding at
most, so a run is continued with other values."""
_NOT_COMPARED = {f"arm.{name}" for name in BOOKKEEPING}
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "lm_eval", "math-verify", "numpy")
_REOPENED = "completed_before"

_ABSENT = object()

State = Literal["done", "resume", "changed", "new"]


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a stage directory; None if there is none or it is damaged: the stage then starts over.

    Raises:
        UserError: it exists but cannot be read.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise UserError(f"{directory / MANIFEST} cannot be read: {error.strerror}; nothing was changed") from None
    return manifest if isinstance(manifest, dict) else None


def finished_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage; None if the stage has not finished. Raises UserError like `read_manifest`."""
    manifest = read_manifest(directory)
    return manifest if manifest is not None and manifest["completed"] else None


class StageState(NamedTuple):
    """Whether a stage must run, and why."""

    state: State
    reasons: tuple[str, ...] = ()
    """For "changed": each differing setting as `key: old -> new`, and in a line each the stages that it reads."""


def stage_state(directory: Path, inputs: dict[str, Any]) -> StageState:
    """State of a stage directory for the current inputs, a flat mapping of key -> JSON value."""
    manifest = read_manifest(directory)
    if manifest is None:
        return StageState("new")
    # Compared key by key where the hashes differ, so that manifests from before `BOOKKEEPING` stay valid.
    before, after = _compared(manifest["inputs"]), _compared(inputs)
    if manifest["input_hash"] != hash_json(inputs) and hash_json(before) != hash_json(after):
        return StageState("changed", tuple(_reasons(before, after)))
    return StageState("done" if manifest["completed"] else "resume")


def _compared(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs that decide whether a stage must be made again."""
    return {key: value for key, value in inputs.items() if key not in _NOT_COMPARED}


def _reasons(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """What has changed: the settings, then the outputs of other stages by their names, because hashes tell nothing."""
    both = (before, after)
    yield from describe_changes(*({k: v for k, v in one.items() if not k.startswith(OUTPUT_OF)} for one in both))
    old, new = ({k.removeprefix(OUTPUT_OF): v for k, v in one.items() if k.startswith(OUTPUT_OF)} for one in both)
    for said, names in (
        ("also reads", new.keys() - old.keys()),
        ("no longer reads", old.keys() - new.keys()),
        ("reads another output of", {name for name in new.keys() & old.keys() if old[name] != new[name]}),
    ):
        if names:
            more = f" and {len(names) - 3} more stages" if len(names) > 3 else ""
            yield f"{said} {', '.join(sorted(names)[:3])}{more}"


def describe_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every key that differs, long ones shortened. An added or removed section is one line.

    Of values that are hashes, only that they changed.
    """
    before, after = dict(before), dict(after)
    for one, other in ((before, after), (after, before)):
        for key in [key for key, value in one.items() if value is None and key not in other]:
            if inner := [name for name in other if name.startswith(f"{key}.")]:
                other[key] = {name.removeprefix(f"{key}."): other.pop(name) for name in inner}

    def show(value: Any) -> str:
        return "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)

    return [
        f"{key} changed"
        if _is_hash(first) and _is_hash(second)
        else f"{key}: {' -> '.join(shorten(show(first), show(second)))}"
        for name in sorted(before.keys() | after.keys())
        for key, first, second in changes(before.get(name, _ABSENT), after.get(name, _ABSENT), name, _ABSENT)
    ]


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,}", value) is not None


def changes(first: Any, second: Any, name: str = "", absent: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """The values that differ in two nested mappings, by dotted key; a section that one side lacks is one change.

    Items of lists are compared by their names, where they have some; what a side lacks is `absent`.
    """
    ordered = isinstance(first, list) and isinstance(second, list)
    first, second = _by_name(first), _by_name(second)
    if not isinstance(first, dict) or not isinstance(second, dict):
        if first != second:
            yield name, first, second
        return
    for key in sorted(first.keys() | second.keys()):
        yield from changes(first.get(key, absent), second.get(key, absent), f"{name}.{key}".removeprefix("."), absent)
    if ordered and first.keys() == second.keys() and list(first) != list(second):
        yield name, list(first), list(second)


def _by_name(value: Any) -> Any:
    """A list whose items have names of their own, as a mapping of them."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        items = {str(item["name"]): item for item in value}
        return items if len(items) == len(value) else value
    return value


def shorten(first: str, second: str) -> tuple[str, str]:
    """Two texts that differ, short enough for one line, from where they differ if that is not at their beginning."""
    limit, start = 60, 0
    if max(len(first), len(second)) > limit:
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
        start = same - 12 if same > limit - 12 else 0

    def cut(text: str) -> str:
        part = text[start : start + limit]
        return f"{'…' * (start > 0)}{part}{'…' * (start + limit < len(text))}"

    return cut(first), cut(second)


def start_stage(directory: Path, name: str, inputs: dict[str, Any], code: str = "", in_place: bool = False) -> bool:
    """Prepare the directory of a stage and write its incomplete manifest.

    A directory with other inputs, or without a manifest, is moved to `<study>/replaced/`; nothing is deleted.

    If a stage is resumed by another version of the `code`, both are recorded; if it is continued with other CPU
    kernels, none are. `in_place`: keep the directory when inputs change, because its parts have manifests of their own.

    Returns:
        Whether an interrupted run with the same inputs can be resumed.
    """
    resume = stage_state(directory, inputs).state == "resume"
    made_with, before = environment(), read_manifest(directory)
    if before is not None and resume:
        made_by = before.get("code", code)
        code = made_by if made_by.split("+")[-1] == code else f"{made_by}+{code}"
    if before is not None and (resume or in_place):
        # Where kept and new outputs were computed with different CPU kernels, none is recorded.
        if before.get("environment", {}).get("cpu_kernels") != made_with["cpu_kernels"]:
            made_with["cpu_kernels"] = None
    elif directory.exists() and not in_place:
        kept = directory.parents[len(Path(name).parts) - 1] / "replaced"
        kept.mkdir(parents=True, exist_ok=True)
        stem = flat(name)
        index = 1 + max((int(path.name.rpartition("-")[2]) for path in kept.glob(f"{stem}-[0-9]*")), default=0)
        directory.rename(kept / f"{stem}-{index}")
    write_json(
        directory / MANIFEST,
        {
            "stage": name,
            "inputs": inputs,
            "input_hash": hash_json(inputs),
            "code": code,
            "started": _now(),
            "completed": None,
            "resumed": resume,
            "environment": made_with,
        },
    )
    return resume


def finish_stage(directory: Path, outputs: dict[str, str], facts: dict[str, Any] | None = None) -> None:
    """Complete the manifest with the sha256 of the outputs, the hash of all, and facts for reports."""
    manifest = read_manifest(directory)
    if manifest is None:
        raise RuntimeError(f"{directory} lost its manifest while the stage was running")
    completed = manifest.pop(_REOPENED, None) or _now()
    manifest.update(outputs=outputs, output_hash=hash_json(outputs), facts=facts or {}, completed=completed)
    write_json(directory / MANIFEST, manifest)
    (directory / PROGRESS).unlink(missing_ok=True)


def reopen_stage(directory: Path, *packages: str) -> None:
    """Mark a finished stage as incomplete while its outputs are replaced: after a kill it is resumed.

    `finish_stage` gives it back the time at which it was complete, so that it seems to have taken no longer.
    `packages`: those that the new outputs depend on, whose versions are recorded anew.
    """
    manifest = read_manifest(directory)
    assert manifest is not None
    if manifest["completed"]:
        manifest |= {"completed": None, _REOPENED: manifest["completed"]}
    versions = package_versions()
    manifest["environment"]["packages"] |= {name: versions[name] for name in packages}
    write_json(directory / MANIFEST, manifest)


def seconds_taken(manifest: dict[str, Any]) -> float | None:
    """Seconds from the last start of a stage to its end, or to now while it has none; None without a start."""
    if manifest.get("started") is None:
        return None
    end = datetime.fromisoformat(manifest["completed"]) if manifest.get("completed") else datetime.now(UTC)
    return (end - datetime.fromisoformat(manifest["started"])).total_seconds()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, and the processor's architecture."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions


def environment() -> dict[str, Any]:
    """Versions, commit and hardware; no host name, no path, and no variable but those that choose CPU kernels."""
    versions = package_versions()
    python, machine = versions.pop("python"), versions.pop("machine")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": python,
        "packages": versions,
        "machine": machine,
        "cpu_count": os.cpu_count(),
        "cpu_kernels": cpu_kernels(),
    }


def _git(*arguments: str) -> str | None:
    """Output of a git command in the source tree; None outside a repository."""
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
