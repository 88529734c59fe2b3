"""A benchmark in a prompting with what every model answered to it, and which of its questions pass the filters."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property

from eval.questions.records import Question
from eval.responses.journal import JournalIndex
from eval.scorers.records import Response, ScoreRow
from eval.viewer.stored import StoredAnswers
from recipes.errors import UserError
from recipes.suite_schema import BenchmarkSpec

NOT_SCORED = "not_scored"
OUTCOMES = (
    *("correct", "wrong", "partial", "no_answer", "truncated"),
    *("gold_unparseable", "timeout", "crash", NOT_SCORED),
)
CHANGES = ("won", "lost", "same")
BASE = "base"


class FilterError(UserError):
    """A filter has a value that does not exist."""


class NoQuestionError(UserError):
    """An address names no question."""


@dataclass(frozen=True)
class Filters:
    """What is listed. An empty text allows everything."""

    benchmark: str = ""
    prompting: str = ""
    scoring: str = ""
    """The scoring that `outcome` and `change` go by; a benchmark without it, and empty: the reading of the report."""
    model: str = ""
    """The model that `outcome`, `change` and `search` go by; empty: any."""
    outcome: str = ""
    """At least one response has it."""
    change: str = ""
    """The mean score over the responses against the base's: won, lost or same."""
    search: str = ""
    """In the id, the question, the reference or a response; upper and lower case are one."""


def filters_from(values: dict[str, str]) -> Filters:
    """Filters from texts by name; other names are ignored."""
    return Filters(**{item.name: values[item.name] for item in fields(Filters) if values.get(item.name)})


@dataclass
class Cell:
    """A benchmark in a prompting, and what every model answered to it."""

    benchmark: BenchmarkSpec
    prompting: str
    primary: str
    """The scoring of the report's reading."""
    questions: list[Question]
    models: dict[str, StoredAnswers]
    journals: dict[str, JournalIndex | None] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, list[ScoreRow]]]] = field(default_factory=dict)
    """Model -> scoring -> question -> the score of each response."""

    @cached_property
    def scorings(self) -> list[str]:
        """All scorings that have a table, in the order of the recipe."""
        return list(dict.fromkeys(name for tables in self.scores.values() for name in tables))

    @cached_property
    def positions(self) -> dict[str, int]:
        """Question -> its position."""
        return {question.question_id: position for position, question in enumerate(self.questions)}

    def identity(self, position: int) -> str:
        """What a question is called in addresses."""
        return f"{self.benchmark.name}/{self.prompting}/{self.questions[position].question_id}"

    def scores_of(self, model: str, scoring: str, question: Question) -> list[ScoreRow]:
        """The score of each response; of a question that is judged together with others, the score of all of them."""
        table = self.scores[model].get(scoring, {})
        return table.get(question.question_id) or table.get(question.unit) or []

    def mean(self, model: str, scoring: str, question: Question) -> float | None:
        """The mean score over the responses in points; None if there is none."""
        rows = self.scores_of(model, scoring, question)
        return 100 * sum(row.value for row in rows) / len(rows) if rows else None

    def change(self, model: str, scoring: str, question: Question) -> str | None:
        """Whether a model won or lost the question against the base; None for the base and where a score is missing."""
        if model == BASE or BASE not in self.models:
            return None
        before, after = self.mean(BASE, scoring, question), self.mean(model, scoring, question)
        if before is None or after is None:
            return None
        return "won" if after > before else "lost" if after < before else "same"

    def outcomes(self, model: str, scoring: str, position: int) -> list[str]:
        """The outcome of each response; [not_scored] for one that has no score yet."""
        rows = self.scores_of(model, scoring, self.questions[position])
        if rows:
            return [row.outcome for row in rows]
        return [NOT_SCORED] if self.models[model].has(position, self.journals[model]) else []

    def response(self, model: str, position: int) -> Response | None:
        """What a model answered."""
        return self.models[model].response(position, self.questions[position].question_id, self.journals[model])


def passing(cell: Cell, filters: Filters) -> Iterator[int]:
    """Positions of the questions that pass. Texts are read last, and only where the rest passes."""
    scoring = filters.scoring if filters.scoring in cell.scorings else cell.primary
    models = [label for label in cell.models if filters.model in ("", label)]
    needle = filters.search.casefold()
    for position, question in enumerate(cell.questions):
        outcomes = {label: cell.outcomes(label, scoring, position) for label in models}
        if not any(
            model_outcomes
            and (not filters.outcome or filters.outcome in model_outcomes)
            and (not filters.change or cell.change(label, scoring, question) == filters.change)
            for label, model_outcomes in outcomes.items()
        ):
            continue
        if not needle or _contains(cell, models, position, needle):
            yield position


def _contains(cell: Cell, models: list[str], position: int, needle: str) -> bool:
    question = cell.questions[position]
    texts = [question.question_id, question.name, str(question.reference or ""), *map(str, question.fields.values())]
    if any(needle in text.casefold() for text in texts):
        return True
    for label in models:
        response = cell.response(label, position)
        if response is not None and any(needle in text.casefold() for text in (*response.responses, *response.answers)):
            return True
    return False
