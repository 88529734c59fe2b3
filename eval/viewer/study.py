"""All models of a study side by side, question by question: what the browser lists, filters and shows."""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from data.prompts.thinking import split_thinking
from eval.questions.build import FOLDER
from eval.questions.records import Question, read_jsonl, read_questions
from eval.responses.journal import JournalIndex
from eval.responses.readings import unit_dir
from eval.scorers.records import Response, ScoreRow
from eval.viewer.explain import explain, rule_text
from eval.viewer.stored import ChunkCache, StoredAnswers
from recipes.errors import UserError
from recipes.loading import load_study
from recipes.manifest import read_manifest
from recipes.suite_schema import BenchmarkSpec

NOT_SCORED = "not_scored"
OUTCOMES = (
    *("correct", "wrong", "partial", "no_answer", "truncated"),
    *("gold_unparseable", "timeout", "crash", NOT_SCORED),
)
CHANGES = ("won", "lost", "same")
BASE = "base"
_SNIPPET = 160  # characters of a question in the list
_QUESTION_FIELDS = ("problem", "question", "prompt", "instruction")


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


class StudyView:
    """A study as the browser shows it. Tables are read when a benchmark is first asked for, and once.

    Raises:
        UserError: nothing has been answered yet, or a file is damaged.
    """

    def __init__(self, study_dir: Path) -> None:
        self.recipe = load_study(study_dir)
        self.study_dir = study_dir
        self.notes: list[str] = []
        self._cache = ChunkCache()
        self._lock = threading.RLock()
        self._read: dict[tuple[str, str], Cell] = {}
        arms = {BASE: BASE} | {label: arm for arm in self.recipe.arms for label in self.recipe.labels(arm)}
        self._arms = arms
        fixed = read_manifest(study_dir / FOLDER)
        if self.recipe.suite is None or fixed is None or not fixed["completed"]:
            raise self._nothing()
        self._facts = fixed["facts"]["benchmarks"]
        self._stored: dict[tuple[str, str], dict[str, StoredAnswers]] = {}
        for benchmark in self.recipe.suite.benchmarks:
            for prompting in benchmark.promptings:
                if found := {label: unit for label in arms if (unit := self._find(label, benchmark.name, prompting))}:
                    self._stored[benchmark.name, prompting] = found
        if not self._stored:
            raise self._nothing()
        self._specs = {benchmark.name: benchmark for benchmark in self.recipe.suite.benchmarks}
        answered = {label for units in self._stored.values() for label in units}
        self.labels = [label for label in arms if label in answered]

    def _nothing(self) -> UserError:
        return UserError(f"{self.study_dir} has no responses yet; `transfer run {self.study_dir}` asks for them")

    def _find(self, label: str, benchmark: str, prompting: str) -> StoredAnswers | None:
        directory = unit_dir(self.study_dir, label, benchmark, prompting)
        manifest = read_manifest(directory)
        if manifest is None or benchmark not in self._facts:
            return None
        unit = StoredAnswers(directory, manifest, self._cache)
        if manifest["inputs"].get("questions") != self._facts[benchmark]["content"]:
            self.notes.append(f"{label} was asked other questions of {benchmark} than this study has now")
            return None
        if not unit.finished:
            if next(directory.glob(f"*-{unit.version}*.jsonl*"), None) is None:
                return None
            self.notes.append(f"{label} has not answered all of {benchmark}-{prompting}")
        return unit

    def index(self) -> dict[str, Any]:
        """Models, benchmarks, and what can be filtered by, with counts of questions and responses."""
        outcomes: Counter[str] = Counter()
        benchmarks = []
        for (name, prompting), units in self._stored.items():
            spec = self._specs[name]
            scorings: dict[str, str] = {}
            for unit in units.values():
                scorings |= {scoring: unit.rules.get(scoring, "") for scoring in unit.tables()}
                facts = unit.manifest.get("facts") or {}
                outcomes.update(facts.get("outcomes", {}).get(self._primary(spec, prompting), {}))
                outcomes[NOT_SCORED] += not unit.finished  # how many there are is known when their files are read
            benchmarks.append(
                {
                    "benchmark": name,
                    "prompting": prompting,
                    "group": spec.group,
                    "restricted": spec.restricted,
                    "questions": self._facts[name]["questions"],
                    "scorings": scorings,
                    "primary": self._primary(spec, prompting),
                    "models": list(units),
                }
            )
        return {
            "study": self.recipe.study,
            "title": self.recipe.title,
            "rehearsal": self.recipe.rehearsal,
            "models": [{"label": label, "arm": self._arms[label]} for label in self.labels],
            "benchmarks": benchmarks,
            "outcomes": {name: outcomes[name] for name in OUTCOMES if outcomes[name]},
            "changes": list(CHANGES),
            "notes": self.notes,
        }

    def _primary(self, spec: BenchmarkSpec, prompting: str) -> str:
        wanted = spec.cell(self.recipe.analysis.reading)[1]
        fitting = [scoring for other, scoring in spec.cells() if other == prompting]
        return wanted if wanted in fitting or not fitting else fitting[-1]

    def cell(self, name: str, prompting: str) -> Cell:
        """A benchmark in a prompting. Raises KeyError if there are no responses to it."""
        with self._lock:
            if (name, prompting) not in self._read:
                units, spec = self._stored[name, prompting], self._specs[name]
                path = self.study_dir / FOLDER / f"{name}.jsonl.zst"
                # Of a restricted benchmark the ids alone are there.
                questions = (
                    [Question(row["question_id"], {}, None) for row in read_jsonl(path)]
                    if spec.restricted
                    else read_questions(path)
                )
                self._read[name, prompting] = Cell(
                    spec,
                    prompting,
                    self._primary(spec, prompting),
                    questions,
                    units,
                    {label: unit.journal() for label, unit in units.items()},
                    {label: unit.scores() for label, unit in units.items()},
                )
            return self._read[name, prompting]

    def find(self, filters: Filters) -> list[tuple[Cell, int]]:
        """The questions that pass the filters, in the order of the recipe's benchmarks and of their questions.

        Raises:
            UserError: a filter names what the study does not have.
        """
        self.require_known(filters)
        return [(cell, position) for cell in self._cells(filters) for position in _passing(cell, filters)]

    def _cells(self, filters: Filters) -> Iterator[Cell]:
        for name, prompting in self._stored:
            if filters.benchmark in ("", name) and filters.prompting in ("", prompting):
                yield self.cell(name, prompting)

    def require_known(self, filters: Filters) -> None:
        """Raise UserError for a filter that names what the study does not have."""
        known = {
            "benchmark": [name for name, _ in self._stored],
            "prompting": [prompting for _, prompting in self._stored],
            "model": self.labels,
            "scoring": [name for units in self._stored.values() for unit in units.values() for name in unit.tables()],
            "outcome": list(OUTCOMES),
            "change": list(CHANGES),
        }
        for key, values in known.items():
            if (value := getattr(filters, key)) and value not in values:
                there = ", ".join(dict.fromkeys(values))
                raise UserError(f"{key} {value!r} has no responses in {self.study_dir}; there are {there}")

    def summary(self, cell: Cell, position: int) -> dict[str, Any]:
        """A question as the list shows it: its beginning, and the scores of all models by every scoring."""
        question = cell.questions[position]
        models = {}
        for label in cell.models:
            scorings = {}
            for scoring in cell.scorings or [cell.primary]:
                scorings[scoring] = {
                    "score": _rounded(cell.mean(label, scoring, question)),
                    "outcomes": cell.outcomes(label, scoring, position),
                    "change": cell.change(label, scoring, question),
                }
            models[label] = scorings
        return {
            "id": cell.identity(position),
            "benchmark": cell.benchmark.name,
            "prompting": cell.prompting,
            "question": question.question_id,
            "primary": cell.primary,
            "text": _snippet(question),
            "models": models,
        }

    def details(self, identity: str) -> dict[str, Any]:
        """A question with its prompt, its reference and all responses, judged and explained.

        Raises:
            KeyError: there is no such question.
            UserError: a file is damaged.
        """
        name, prompting, question_id = identity.split("/", 2) if identity.count("/") >= 2 else ("", "", "")
        cell = self.cell(name, prompting)
        position = cell.positions[question_id]
        question = cell.questions[position]
        stored = {label: cell.response(label, position) for label in cell.models}
        rules = {name: rule for unit in cell.models.values() for name, rule in unit.rules.items()}
        prompts = [response.prompt for response in stored.values() if response is not None and response.prompt]
        return {
            **self.summary(cell, position),
            "group": cell.benchmark.group,
            "restricted": cell.benchmark.restricted,
            "unit": question.unit,
            "rules": {name: {"rule": rule, "text": rule_text(rule)} for name, rule in rules.items()},
            "prompt": prompts[0] if prompts else None,
            "fields": question.fields,
            "reference": question.reference,
            "responses": {
                label: _responses(cell, label, question, response, rules)
                for label, response in stored.items()
                if response is not None
            },
        }


def _passing(cell: Cell, filters: Filters) -> Iterator[int]:
    """Positions of the questions that pass. Texts are read last, and only where the rest passes."""
    scoring = filters.scoring if filters.scoring in cell.scorings else cell.primary
    models = [label for label in cell.models if filters.model in ("", label)]
    needle = filters.search.casefold()
    for position, question in enumerate(cell.questions):
        outcomes = {label: cell.outcomes(label, scoring, position) for label in models}
        if not any(
            found
            and (not filters.outcome or filters.outcome in found)
            and (not filters.change or cell.change(label, scoring, question) == filters.change)
            for label, found in outcomes.items()
        ):
            continue
        if not needle or _contains(cell, models, position, needle):
            yield position


def _contains(cell: Cell, models: list[str], position: int, needle: str) -> bool:
    question = cell.questions[position]
    texts = [question.question_id, str(question.reference or ""), *map(str, question.fields.values())]
    if any(needle in text.casefold() for text in texts):
        return True
    for label in models:
        response = cell.response(label, position)
        if response is not None and any(needle in text.casefold() for text in (*response.responses, *response.answers)):
            return True
    return False


def _responses(
    cell: Cell, label: str, question: Question, response: Response, rules: dict[str, str]
) -> list[dict[str, Any]]:
    """Every response of a model to a question with its scores."""
    judged = {scoring: cell.scores_of(label, scoring, question) for scoring in cell.scorings}

    def scores(sample: int) -> dict[str, Any]:
        found = {}
        for scoring, rows in judged.items():
            if sample < len(rows):
                row, rule = rows[sample], rules.get(scoring, "")
                reasons = explain(rule, response, sample, question.reference)
                found[scoring] = {
                    "score": _rounded(100 * row.value),
                    "outcome": row.outcome,
                    "answer": row.answer,
                    "why": reasons,
                }
        return found

    if response.likelihoods:
        given = [list(pair) for pair in zip(response.answers, response.likelihoods, strict=True)]
        return [{"likelihoods": given, "scores": scores(0)}]
    shown = []
    for sample, (text, tokens) in enumerate(zip(response.responses, response.tokens, strict=True)):
        thinking, rest = split_thinking(text, response.opens_thinking)
        shown.append({"thinking": thinking, "text": rest, "tokens": tokens, "scores": scores(sample)})
    return shown


def _rounded(points: float | None) -> float | None:
    return None if points is None else round(points, 1)


def _snippet(question: Question) -> str:
    named = [question.fields[key] for key in _QUESTION_FIELDS if isinstance(question.fields.get(key), str)]
    texts = named or [value for value in question.fields.values() if isinstance(value, str)]
    text = " ".join(texts[0].split()) if texts else ""
    return text if len(text) <= _SNIPPET else text[: _SNIPPET - 1] + "…"


def filters_from(values: dict[str, str]) -> Filters:
    """Filters from texts by name; other names are ignored."""
    return Filters(**{item.name: values[item.name] for item in fields(Filters) if values.get(item.name)})
