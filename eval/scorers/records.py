"""What is judged and the judgement: a model's stored answer to one question, and the score of one response."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.questions.records import Row, read_jsonl, write_jsonl
from eval.scorers.version import RULES_VERSION, rules_version
from recipes.errors import UserError
from recipes.files import write_parquet


@dataclass(frozen=True, slots=True)
class Response:
    """What a model answered to one question: texts, or log-likelihoods of given answers."""

    question_id: str
    prompt_hash: str = ""
    prompt: str | None = None
    """None: not stored, because the question must not be spread."""
    opens_thinking: bool = False
    """Whether the prompt opened the thinking, so that the responses do not."""
    responses: tuple[str, ...] = ()
    """One text for each sample."""
    tokens: tuple[int, ...] = ()
    """Length of each text."""
    answers: tuple[str, ...] = ()
    """The given answers."""
    likelihoods: tuple[float, ...] = ()
    """Log-likelihood of each given answer, in nats."""

    def dump(self) -> Row:
        """As JSON values, without what is absent."""
        row: Row = {"question_id": self.question_id}
        if self.prompt is not None:
            row["prompt"] = self.prompt
        row["prompt_hash"] = self.prompt_hash
        if self.opens_thinking:
            row["opens_thinking"] = True
        if self.likelihoods:
            return row | {"answers": list(self.answers), "likelihoods": list(self.likelihoods)}
        return row | {"responses": list(self.responses), "tokens": list(self.tokens)}

    @classmethod
    def load(cls, row: Row) -> "Response":
        """The reverse of `dump`. Raises TypeError if a field is unknown."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        return cls(**values)


def write_responses(path: Path, responses: Iterable[Response]) -> None:
    """Store responses. Raises UserError if a text cannot be stored as UTF-8."""
    write_jsonl(path, (response.dump() for response in responses))


def read_responses(path: Path) -> list[Response]:
    """Stored responses. Raises UserError if the file is damaged."""
    try:
        return [Response.load(row) for row in read_jsonl(path)]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, and the same command generates its responses again"
        ) from None


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """The score of one response."""

    question_id: str
    cluster: str
    """Identity of the context that the question shares with others; its own where it stands alone."""
    sample_index: int
    value: float
    """0 to 1; 1 is correct."""
    outcome: str
    answer: str | None = None
    """What was taken as the answer."""
    weight: float = 1.0
    """How much it counts in the benchmark's mean."""


_SCHEMA = pa.schema(
    {
        "question_id": pa.string(),
        "cluster": pa.string(),
        "sample_index": pa.int64(),
        "value": pa.float64(),
        "outcome": pa.string(),
        "answer": pa.string(),
        "weight": pa.float64(),
    }
)


def write_scores(path: Path, rows: Sequence[ScoreRow]) -> None:
    """Write scores as Parquet, atomically.

    The version of the rules is in the table, so that a report is made again where only that has changed.
    """
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in _SCHEMA.names}
    write_parquet(path, pa.table(columns, schema=_SCHEMA.with_metadata({RULES_VERSION: rules_version()})))


def read_scores(path: Path) -> list[ScoreRow]:
    """Stored scores. Raises UserError if the file is damaged or holds a response twice."""
    try:
        columns = pq.read_table(path).to_pydict()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it, and `transfer run` scores again") from None
    names = [name for name in _SCHEMA.names if name in columns]
    rows = [
        ScoreRow(**dict(zip(names, values, strict=True)))
        for values in zip(*(columns[name] for name in names), strict=True)
    ]
    counts = Counter((row.question_id, row.sample_index) for row in rows)
    if len(counts) < len(rows):
        (identity, _), _ = counts.most_common(1)[0]
        raise UserError(f"{path} has question {identity} twice; delete it, and `transfer run` scores again")
    return rows


def mean_score(rows: Sequence[ScoreRow]) -> float:
    """The benchmark's score, 0 to 1: the mean over responses, weighted."""
    return float(sum(row.value * row.weight for row in rows) / sum(row.weight for row in rows))


def count_outcomes(rows: Iterable[ScoreRow]) -> dict[str, int]:
    """How many responses had each outcome."""
    return dict(sorted(Counter(row.outcome for row in rows).items()))
