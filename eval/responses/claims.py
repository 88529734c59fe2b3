"""Which worker answers what: one queue of a model's work, shared by all processes that see its folder.

A worker claims a few items at a time under a lock, by appending them to a file. It holds a lock of its own as long as
it lives; the kernel releases it when the process dies, and what a dead worker had claimed is free again.
"""

import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

Item = tuple[str, int]
"""A unit and a position in it."""


class Claims:
    """The claims of all workers on the items of one folder, for the length of a `with`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._folder, self._file = folder, folder / "claims.jsonl"
        self._lock, self._alive = FileLock(folder / ".lock"), FileLock(folder / f"{self.worker}.lock")
        self._owners: dict[Item, str] = {}
        self._elsewhere: list[Item] = []
        self._read_bytes = 0

    def __enter__(self) -> "Claims":
        with self._lock:
            self._alive.acquire()
            others = [path for path in self._folder.glob("*-*.lock") if path.stem != self.worker]
            if not any(self._lives(path.stem) for path in others):  # all that was claimed is free
                self._file.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._alive.release()
            (self._folder / f"{self.worker}.lock").unlink(missing_ok=True)

    def take(self, wanted: Iterator[Item], count: int) -> list[Item]:
        """Claim the first `count` items of `wanted` that nobody has claimed, fewer if there are no more."""
        with self._lock:
            self._read()
            taken: list[Item] = []
            while len(taken) < count and (item := next(wanted, None)) is not None:
                (self._elsewhere if item in self._owners else taken).append(item)
            self._write(taken)
        return taken

    def retake(self, count: int, fits: Callable[[Item], bool], done: Callable[[Item], bool]) -> list[Item]:
        """Claim up to `count` fitting items that workers which have died had claimed and not done."""
        if not any(map(fits, self._elsewhere)):
            return []
        with self._lock:
            self._read()
            dead = {worker for worker in {self._owners[item] for item in self._elsewhere} if not self._lives(worker)}
            taken: list[Item] = []
            others = []
            for item in self._elsewhere:
                if len(taken) == count or not fits(item) or self._owners[item] not in dead:
                    others.append(item)
                elif not done(item):
                    taken.append(item)
            self._elsewhere = others
            self._write(taken)
        return taken

    def _lives(self, worker: str) -> bool:
        if worker == self.worker:
            return True
        lock = FileLock(self._folder / f"{worker}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        (self._folder / f"{worker}.lock").unlink(missing_ok=True)
        return False

    def _read(self) -> None:
        """Learn what was claimed since the last time."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._read_bytes)
                content = file.read()
        except FileNotFoundError:
            return
        self._read_bytes += len(content)
        for line in content.split(b"\n"):
            try:
                worker, unit, positions = json.loads(line)
            except ValueError:  # empty, or cut off where its writer was killed: it claimed nothing
                continue
            self._owners |= dict.fromkeys(((unit, position) for position in positions), worker)

    def _write(self, taken: list[Item]) -> None:
        units: dict[str, list[int]] = {}
        for unit, position in taken:
            units.setdefault(unit, []).append(position)
        if not units:
            return
        # A line begins with a line feed: the one before it may have been cut off.
        text = "".join(f"\n{json.dumps([self.worker, unit, positions])}" for unit, positions in units.items())
        with self._file.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        self._owners |= dict.fromkeys(taken, self.worker)
