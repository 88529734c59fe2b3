"""What one model answered to one benchmark in one prompting, as far as it is on disk: chunks, journals, score tables.

Everything follows from the unit's own manifest, so neither the model nor the task files have to be there.
"""

import json
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.questions.records import read_lines
from eval.responses.generate import scores_path
from eval.responses.journal import JournalIndex
from eval.responses.units import StoredUnit
from eval.scorers.records import Response, ScoreRow, read_scores
from recipes.errors import UserError

_CACHED_BYTES = 256 * 2**20
_SCORES = scores_path(Path(), "*").name


class ChunkCache:
    """Lines of the chunks that were read last, so that the next question of a chunk is there at once."""

    def __init__(self, limit: int = _CACHED_BYTES) -> None:
        self._limit = limit
        self._chunks: OrderedDict[Path, list[bytes]] = OrderedDict()
        self._sizes: dict[Path, int] = {}
        self._lock = threading.Lock()

    def lines(self, path: Path) -> list[bytes]:
        """The lines of a chunk. Raises FileNotFoundError, or ValueError if it is damaged."""
        with self._lock:
            if path in self._chunks:
                self._chunks.move_to_end(path)
                return self._chunks[path]
        lines = read_lines(path)
        with self._lock:
            self._chunks[path] = lines
            self._sizes[path] = sum(map(len, lines))
            while sum(self._sizes.values()) > self._limit and len(self._chunks) > 1:
                oldest, _ = self._chunks.popitem(last=False)
                del self._sizes[oldest]
        return lines


@dataclass(frozen=True)
class StoredAnswers(StoredUnit):
    """The stored responses of one model to one benchmark in one prompting."""

    finished: bool
    """Whether all responses are there and scored."""
    facts: dict[str, Any]
    """Of the manifest; empty before the responses are scored."""
    cache: ChunkCache

    @property
    def rules(self) -> dict[str, str]:
        """The rule of each scoring the recipe names; empty before the responses are scored."""
        rules: dict[str, str] = self.facts.get("rules", {})
        return rules

    def journal(self) -> JournalIndex | None:
        """The responses that are in no chunk yet; None once all are."""
        if self.finished:
            return None
        index = JournalIndex(self)
        with suppress(FileNotFoundError):  # a worker has just replaced its journal by the last chunk
            index.refresh()
        return index

    def tables(self) -> dict[str, Path]:
        """Scoring -> its table, those of the recipe first; also the ones that `transfer score` has kept."""
        if not self.finished:
            return {}
        prefix, suffix = _SCORES.split("*")
        table_by_scoring = {
            path.name.removeprefix(prefix).removesuffix(suffix): path for path in self.directory.glob(_SCORES)
        }
        names = [name for name in self.rules if name in table_by_scoring]
        return {name: table_by_scoring[name] for name in (*names, *sorted(table_by_scoring.keys() - set(names)))}

    def scores(self) -> dict[str, dict[str, list[ScoreRow]]]:
        """Scoring -> question -> the score of each response. Raises UserError if a table is damaged."""
        tables: dict[str, dict[str, list[ScoreRow]]] = {}
        for name, path in self.tables().items():
            table = tables.setdefault(name, {})
            for row in read_scores(path):
                table.setdefault(row.question_id, []).append(row)
            for rows in table.values():
                rows.sort(key=lambda row: row.sample_index)
        return tables

    def response(self, position: int, identity: str, journal: JournalIndex | None) -> Response | None:
        """What was answered to the question with this position; None if nothing is stored.

        Raises:
            UserError: the chunk is damaged or missing.
        """
        if journal is not None and not self.path(self.chunk_of(position)).exists():
            samples = range(self.inputs["samples"])
            try:
                entries = journal.read((position, sample) for sample in samples if (position, sample) in journal)
            except FileNotFoundError:  # a worker has just replaced its journal by the last chunk
                return self._from_chunk(position, identity)
            texts, tokens = tuple(entry.text for entry in entries), tuple(entry.tokens for entry in entries)
            return Response(identity, responses=texts, tokens=tokens) if entries else None
        return self._from_chunk(position, identity)

    def _from_chunk(self, position: int, identity: str) -> Response:
        path = self.path(self.chunk_of(position))
        try:
            lines = self.cache.lines(path)
            first = self.chunk_of(position) * self.chunk_questions
            response = Response.load(json.loads(lines[position - first]))
        except FileNotFoundError:
            raise UserError(f"{path} is missing; `transfer run` asks its questions again") from None
        except (IndexError, ValueError, TypeError) as error:
            raise _damaged(path, error) from None
        if response.question_id != identity:
            raise _damaged(path, f"{response.question_id} stands in the place of {identity}")
        return response

    def has(self, position: int, journal: JournalIndex | None) -> bool:
        """Whether a response to this question is stored."""
        if journal is None or self.path(self.chunk_of(position)).exists():
            return True
        return any((position, sample) in journal for sample in range(self.inputs["samples"]))


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} is damaged ({why}); delete it, and `transfer run` asks its questions again")
