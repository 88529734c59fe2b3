"""Journals: responses are appended as they finish, one line each, until the chunk they belong to is complete.

Every worker appends to a file of its own in the unit's folder. The chunk files replace them.
"""

import json
import os
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from eval.questions.records import json_line
from eval.responses.units import StoredUnit

_PATTERN = "answers-{version}-{worker_id}.jsonl"


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One finished response."""

    question: int
    """Index of the question in the unit."""
    sample: int
    """Index of the response among those to its question."""
    text: str
    tokens: int
    """Length of the text."""


class Journal:
    """The journal of one worker for one unit. The first response creates the file."""

    def __init__(self, unit: StoredUnit, worker_id: str) -> None:
        self._path = unit.directory / _PATTERN.format(version=unit.version, worker_id=worker_id)
        self._file: int | None = None

    def append(self, entry: JournalEntry) -> None:
        """Append a response in one write, so that a kill cuts off the last line at most.

        Raises:
            OSError: the disk is full, or the folder is gone.
            UserError: the text holds half of a surrogate pair.
        """
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        line = json_line(asdict(entry))
        while line:  # a write may be partial when the disk is nearly full or a signal arrives
            line = line[os.write(self._file, line) :]

    def close(self) -> None:
        """Flush to disk and close."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None


class JournalIndex:
    """Where each response to a unit is in the journals of all workers. Texts stay on disk."""

    def __init__(self, unit: StoredUnit) -> None:
        self._unit = unit
        self._bytes_read: dict[Path, int] = {}
        self._lines: dict[tuple[int, int], tuple[Path, int, int]] = {}
        """(question, sample) -> file, offset and length of its line in bytes."""

    def refresh(self) -> list[JournalEntry]:
        """Index what was appended since the last call, and return it. A line without a line feed is not read yet."""
        new = []
        for path in self.files():
            offset = self._bytes_read.get(path, 0)
            if path.stat().st_size == offset:
                continue
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read()
            for line in content.split(b"\n")[:-1]:
                entry = _parse(line)
                if entry is not None and (entry.question, entry.sample) not in self._lines:
                    self._lines[entry.question, entry.sample] = path, offset, len(line)
                    new.append(entry)
                offset += len(line) + 1
            self._bytes_read[path] = offset
        return new

    def __contains__(self, key: tuple[int, int]) -> bool:
        """Whether the response with this (question, sample) is stored."""
        return key in self._lines

    def count(self, chunks: Container[int]) -> int:
        """Number of stored responses to the questions of these chunks."""
        return sum(self._unit.chunk_of(question) in chunks for question, _ in self._lines)

    def read(self, keys: Iterable[tuple[int, int]]) -> list[JournalEntry]:
        """The responses with these (question, sample). Raises KeyError if one is not stored."""
        entries = []
        for key in keys:
            path, offset, length = self._lines[key]
            with path.open("rb") as file:
                file.seek(offset)
                entry = _parse(file.read(length))
            assert entry is not None
            entries.append(entry)
        return entries

    def files(self) -> list[Path]:
        """The journals of all workers."""
        return sorted(self._unit.directory.glob(_PATTERN.format(version=self._unit.version, worker_id="*")))


def _parse(line: bytes) -> JournalEntry | None:
    try:
        return JournalEntry(**json.loads(line))
    except (ValueError, TypeError):  # damaged when the machine crashed; the response is generated again
        return None
