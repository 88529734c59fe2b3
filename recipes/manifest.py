"""Manifests of stages, atomic writes, directory locks and input hashes.

A stage directory holds `manifest.json`, written with `completed: null` when the stage starts and again when it
ends. With the current input hash a stage with a complete manifest is done, and one with an incomplete manifest is
resumed. With another hash it is replaced, and the differing inputs are named.
"""

import errno
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from recipes.errors import UserError
from recipes.processor import cpu_kernels

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
NOTES = "notes.txt"
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "lm_eval", "math-verify", "numpy")
_PROGRESS_EVERY_SECONDS = 0.5

State = Literal["done", "resume", "changed", "new"]


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file atomically: readers see the old content or the new one, also after a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; keys keep their order."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file, or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, atomically."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_parquet(path: Path, table: "pa.Table") -> None:
    """Write a table as Parquet, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomic(path, sink.getvalue().to_pybytes())


def hash_json(value: Any) -> str:
    """sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(directory: Path, names: list[str]) -> dict[str, str]:
    """sha256 of each named file of a directory."""
    return {name: hash_file(directory / name) for name in sorted(names)}


class LockedError(UserError):
    """Another process holds the lock of a directory."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; it is released by the kernel when the process dies.

    Raises:
        LockedError: another process holds it.
        UserError: the directory cannot be written, or its file system has no locks.
    """
    from filelock import FileLock, Timeout

    # Where there are no locks, filelock would use a file instead, which stays when a node is lost.
    lock = FileLock(directory / ".lock", fallback_to_soft=False)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=1)  # `transfer status` asks for it for a moment
    except OSError as error:
        if isinstance(error, Timeout):
            raise LockedError(
                f"{directory} is being written by another process; wait for it or choose another directory"
            ) from None
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"{directory} cannot be locked ({error.strerror or error}); make it writable, on a file system with locks "
            "(Lustre: -o flock), or choose another directory"
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_locked(directory: Path) -> bool:
    """Whether another process, perhaps of another user, holds the directory's lock now."""
    import fcntl

    with suppress(OSError), (directory / ".lock").open("rb") as file:  # a shared lock needs no right to write
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a stage directory; None if there is none or it is damaged: the stage then starts over.

    Raises:
        UserError: it exists but cannot be read.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
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
    """For "changed": each differing input as `key: old -> new`."""


def stage_state(directory: Path, inputs: dict[str, Any]) -> StageState:
    """State of a stage directory for the current inputs, a flat mapping of key -> JSON value."""
    manifest = read_manifest(directory)
    if manifest is None:
        return StageState("new")
    if manifest["input_hash"] != hash_json(inputs):
        return StageState("changed", tuple(describe_changes(manifest["inputs"], inputs)))
    return StageState("done" if manifest["completed"] else "resume")


def describe_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every key that differs, hashes shortened."""

    def short(value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 40 else text[:12] + "…"

    def show(values: dict[str, Any], key: str) -> str:
        return short(values[key]) if key in values else "absent"

    changed = [key for key in sorted(before.keys() | after.keys()) if show(before, key) != show(after, key)]
    # Values may differ although their shortened texts are equal.
    changed += [key for key in before.keys() & after.keys() if before[key] != after[key] and key not in changed]
    return [f"{key}: {show(before, key)} -> {show(after, key)}" for key in sorted(changed)]


def start_stage(directory: Path, name: str, inputs: dict[str, Any], code: str = "", in_place: bool = False) -> bool:
    """Prepare the directory of a stage and write its incomplete manifest.

    A directory with other inputs, or without a manifest, is moved to `<study>/replaced/`; nothing is deleted.

    If a stage is resumed by another version of the `code`, both are recorded; with other CPU kernels, none are.
    `in_place`: keep the directory when
    inputs change, because its parts have manifests of their own.

    Returns:
        Whether an interrupted run with the same inputs can be resumed.
    """
    state = stage_state(directory, inputs)
    resume = state.state == "resume"
    made_with, manifest = environment(), read_manifest(directory)
    if resume:
        before = str((manifest or {}).get("code", code))
        code = code if code == before.split("+")[-1] else f"{before}+{code}"
    continued = manifest is not None and (resume or in_place)
    if continued and (manifest or {}).get("environment", {}).get("cpu_kernels") != made_with["cpu_kernels"]:
        made_with["cpu_kernels"] = None  # of what is kept and what is added there is not one kind
    if directory.exists() and not resume and not in_place:
        kept = directory.parents[len(Path(name).parts) - 1] / "replaced"
        kept.mkdir(parents=True, exist_ok=True)
        stem = name.replace("/", "--")
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
    manifest.update(outputs=outputs, output_hash=hash_json(outputs), facts=facts or {}, completed=_now())
    write_json(directory / MANIFEST, manifest)
    (directory / PROGRESS).unlink(missing_ok=True)


def write_notes(directory: Path, lines: list[str]) -> None:
    """Write what the console shows when a stage ends, finished or not; the log gets it too."""
    write_atomic(directory / NOTES, "".join(f"{line}\n" for line in lines))
    print("\n".join(lines), flush=True)


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


def duration(seconds: float) -> str:
    """Seconds in a readable unit."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole / 60:.0f} min"
    return f"{whole / 3600:.1f} h" if whole < 48 * 3600 else f"{whole / 86400:.1f} days"


class Progress:
    """Writes `progress.json` of a stage, at most twice a second, for the command line to show."""

    def __init__(self, directory: Path, total: int, unit: str) -> None:
        self.path = directory / PROGRESS
        self.total = total
        self.unit = unit
        self._written = 0.0
        self._first: tuple[int, float] | None = None  # units done and time at the first update, for the rate

    def update(self, done: int, note: str = "") -> None:
        """Record that `done` of `total` units are finished; `note` is a short text such as a loss."""
        now = time.monotonic()
        if now - self._written < _PROGRESS_EVERY_SECONDS and done != self.total:
            return
        self._written = now
        at = time.time()
        first, first_at = self._first = self._first or (done, at)
        values = {"done": done, "total": self.total, "unit": self.unit, "note": note}
        # No fsync: the file is only for display.
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(values | {"at": at, "first": first, "first_at": first_at}))
        os.replace(temporary, self.path)
