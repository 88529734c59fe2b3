"""Claims: which worker generates which response, for all processes that share a stage's folder.

A worker claims items by appending them to one file under a lock. For as long as it lives it also holds a lock of its
own. The kernel releases that lock when the process dies, so its unfinished items can be claimed again.
"""

import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

WorkItem = tuple[str, int]
"""The key of a unit, and the index of a chunk or of a request in it."""


class Claims:
    """One worker's view of the claims in `folder`. A context manager: the worker counts as alive inside it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._folder, self._file = folder, folder / "claims.jsonl"
        self._lock, self._worker_lock = FileLock(folder / ".lock"), FileLock(folder / f"{self.worker_id}.lock")
        self._owners: dict[WorkItem, str] = {}
        self._claimed_by_others: list[WorkItem] = []
        self._bytes_read = 0

    def __enter__(self) -> "Claims":
        with self._lock:
            self._worker_lock.acquire()
            others = [path for path in self._folder.glob("*-*.lock") if path.stem != self.worker_id]
            if not any(self._is_alive(path.stem) for path in others):
                self._file.unlink(missing_ok=True)  # claims of dead workers alone
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._worker_lock.release()
            (self._folder / f"{self.worker_id}.lock").unlink(missing_ok=True)

    def claim(self, candidates: Iterator[WorkItem], limit: int) -> list[WorkItem]:
        """Claim the first `limit` unclaimed items of `candidates`, or fewer. Takes no more of them than needed."""
        with self._lock:
            self._read()
            claimed: list[WorkItem] = []
            while len(claimed) < limit and (item := next(candidates, None)) is not None:
                (self._claimed_by_others if item in self._owners else claimed).append(item)
            self._append(claimed)
        return claimed

    def reclaim(
        self, limit: int, matches: Callable[[WorkItem], bool], is_done: Callable[[WorkItem], bool]
    ) -> list[WorkItem]:
        """Claim up to `limit` matching items that dead workers claimed and did not finish."""
        if not any(map(matches, self._claimed_by_others)):
            return []
        with self._lock:
            self._read()
            owners = {self._owners[item] for item in self._claimed_by_others}
            dead = {worker_id for worker_id in owners if not self._is_alive(worker_id)}
            claimed: list[WorkItem] = []
            kept: list[WorkItem] = []
            for item in self._claimed_by_others:
                if len(claimed) == limit or not matches(item) or self._owners[item] not in dead:
                    kept.append(item)
                elif not is_done(item):
                    claimed.append(item)
            self._claimed_by_others = kept
            self._append(claimed)
        return claimed

    def _is_alive(self, worker_id: str) -> bool:
        if worker_id == self.worker_id:
            return True
        lock = FileLock(self._folder / f"{worker_id}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        (self._folder / f"{worker_id}.lock").unlink(missing_ok=True)
        return False

    def _read(self) -> None:
        """Read the claims that were appended since the last call."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._bytes_read)
                content = file.read()
        except FileNotFoundError:
            return
        self._bytes_read += len(content)
        for line in content.split(b"\n"):
            try:
                worker_id, unit_key, indices = json.loads(line)
            except ValueError:  # empty, or cut off because its writer was killed before it had the items
                continue
            self._owners |= dict.fromkeys(((unit_key, index) for index in indices), worker_id)

    def _append(self, claimed: list[WorkItem]) -> None:
        by_unit: dict[str, list[int]] = {}
        for unit_key, index in claimed:
            by_unit.setdefault(unit_key, []).append(index)
        if not by_unit:
            return
        # Every line begins with a line feed, because the line before it may have been cut off.
        text = "".join(f"\n{json.dumps([self.worker_id, unit_key, indices])}" for unit_key, indices in by_unit.items())
        with self._file.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        self._owners |= dict.fromkeys(claimed, self.worker_id)
