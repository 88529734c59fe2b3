"""Answers as they come: one file for each unit and worker, one line for each response, until a chunk is complete."""

import json
import os
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from eval.questions.records import json_line
from eval.responses.units import Unit

_PATTERN = "answers-{version}-{worker}.jsonl"


@dataclass(frozen=True, slots=True)
class Answer:
    """One response to one question."""

    question: int
    """Position in the unit."""
    sample: int
    text: str
    tokens: int
    """Length of the text."""


class Journal:
    """The file of one worker and one unit. It is made by the first answer."""

    def __init__(self, unit: Unit, worker: str) -> None:
        self._path = unit.directory / _PATTERN.format(version=unit.version, worker=worker)
        self._file: int | None = None

    def add(self, answer: Answer) -> None:
        """Append a record by one write, so that a kill cuts off the last one at most."""
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        line = json_line(asdict(answer))
        while line:  # a disk that is full, or a signal, may take a part
            line = line[os.write(self._file, line) :]

    def close(self) -> None:
        """Make sure that all is on the disk."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None


class Answers:
    """Where the answers to a unit's questions are, over the journals of all workers. Texts stay in the files."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._read_bytes: dict[Path, int] = {}
        self._lines: dict[tuple[int, int], tuple[Path, int, int]] = {}

    def refresh(self) -> list[Answer]:
        """Read what was written since the last time. A line without its end is left for later, or for good."""
        new = []
        for path in self.files():
            begun = self._read_bytes.get(path, 0)
            if path.stat().st_size == begun:
                continue
            with path.open("rb") as file:
                file.seek(begun)
                content = file.read()
            for line in content.split(b"\n")[:-1]:
                answer = _load(line)
                if answer is not None and (answer.question, answer.sample) not in self._lines:
                    self._lines[answer.question, answer.sample] = path, begun, len(line)
                    new.append(answer)
                begun += len(line) + 1
            self._read_bytes[path] = begun
        return new

    def __contains__(self, key: tuple[int, int]) -> bool:
        """Whether (question, sample) is answered."""
        return key in self._lines

    def count(self, chunks: Container[int]) -> int:
        """How many responses to questions of these chunks there are."""
        return sum(self._unit.chunk_of(question) in chunks for question, _ in self._lines)

    def read(self, keys: Iterable[tuple[int, int]]) -> list[Answer]:
        """The answers with these keys."""
        found = []
        for key in keys:
            path, begun, size = self._lines[key]
            with path.open("rb") as file:
                file.seek(begun)
                answer = _load(file.read(size))
            assert answer is not None
            found.append(answer)
        return found

    def files(self) -> list[Path]:
        """The journals of the unit."""
        return sorted(self._unit.directory.glob(_PATTERN.format(version=self._unit.version, worker="*")))


def _load(line: bytes) -> Answer | None:
    try:
        return Answer(**json.loads(line))
    except (ValueError, TypeError):  # lost in a crash of the machine: its question is asked again
        return None
