"""Files and folders: atomic writes, JSON and JSON lines, Parquet, hashes, and the lock of a folder."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


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


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line cut off by a kill is ignored. Empty if the file does not exist.

    Raises:
        UserError: a complete line is not JSON.
    """
    if not path.exists():
        return []
    *lines, _cut_off = path.read_bytes().split(b"\n")
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or delete its folder and run again") from None


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


def folder_state(folder: Path) -> str:
    """sha256 of names, sizes and times of a checkpoint's files; hashing gigabytes of weights would be too slow."""
    return hash_json(sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()))


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
