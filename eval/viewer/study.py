"""A study as the page shows it: the index, the list of questions, and one question in full."""

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.prompts.thinking import split_thinking, strip_thinking
from eval.questions.build import FOLDER
from eval.questions.records import Question, read_jsonl, read_questions
from eval.responses.readings import unit_dir
from eval.scorers.records import Response
from eval.viewer.cell import BASE, CHANGES, NOT_SCORED, OUTCOMES, Cell, FilterError, Filters, NoQuestionError, passing
from eval.viewer.explain import answer_name, explain, reference_text, rule_text
from eval.viewer.stored import ChunkCache, StoredAnswers
from recipes.errors import UserError
from recipes.loading import load_study
from recipes.manifest import read_manifest
from recipes.suggestions import did_you_mean
from recipes.suite_schema import BenchmarkSpec

_SNIPPET = 160  # characters of a question in the list
_QUESTION_FIELDS = ("problem", "question", "prompt", "instruction")


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
                if units := {label: unit for label in arms if (unit := self._find(label, benchmark.name, prompting))}:
                    self._stored[benchmark.name, prompting] = units
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
        inputs, facts = manifest["inputs"], manifest.get("facts") or {}
        unit = StoredAnswers(directory, inputs, bool(manifest["completed"]), facts, self._cache)
        if inputs.get("questions") != self._facts[benchmark]["content"]:
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
                outcomes.update(unit.facts.get("outcomes", {}).get(self._primary(spec, prompting), {}))
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
        """A benchmark in a prompting to which there are responses. Raises UserError if a file is damaged."""
        with self._lock:
            if (name, prompting) not in self._read:
                units, spec = self._stored[name, prompting], self._specs[name]
                self._read[name, prompting] = Cell(
                    spec,
                    prompting,
                    self._primary(spec, prompting),
                    self._questions(spec),
                    units,
                    {label: unit.journal() for label, unit in units.items()},
                    {label: unit.scores() for label, unit in units.items()},
                )
            return self._read[name, prompting]

    def _questions(self, spec: BenchmarkSpec) -> list[Question]:
        path = self.study_dir / FOLDER / f"{spec.name}.jsonl.zst"
        if not spec.restricted:
            return read_questions(path)
        try:
            return [Question(row["question_id"], {}, None) for row in read_jsonl(path)]  # no more is there
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}); restore it, or delete its folder and run again") from None

    def find(self, filters: Filters) -> list[tuple[Cell, int]]:
        """The questions that pass the filters, in the order of the recipe's benchmarks and of their questions.

        Raises:
            FilterError: a filter names what the study does not have.
            UserError: a file is damaged.
        """
        self.require_known(filters)
        return [(cell, position) for cell in self._cells(filters) for position in passing(cell, filters)]

    def _cells(self, filters: Filters) -> Iterator[Cell]:
        for name, prompting in self._stored:
            if filters.benchmark in ("", name) and filters.prompting in ("", prompting):
                yield self.cell(name, prompting)

    def require_known(self, filters: Filters) -> None:
        """Raise FilterError for a filter that names what the study does not have."""
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
                raise FilterError(
                    f"{key} {value!r} has no responses in {self.study_dir}; {did_you_mean(value, values)}"
                )

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
            "name": question.name,
            "primary": cell.primary,
            "text": _snippet(question),
            "models": models,
        }

    def details(self, identity: str) -> dict[str, Any]:
        """A question with its prompt, its reference and all responses, judged and explained.

        Raises:
            NoQuestionError: there is no such question.
            UserError: a file is damaged.
        """
        name, prompting, question_id = (*identity.split("/", 2), "", "")[:3]
        if (name, prompting) not in self._stored or question_id not in self.cell(name, prompting).positions:
            raise NoQuestionError(f"there is no question {identity!r}")
        cell = self.cell(name, prompting)
        position = cell.positions[question_id]
        question = cell.questions[position]
        stored = {label: cell.response(label, position) for label in cell.models}
        rules = {name: rule for unit in cell.models.values() for name, rule in unit.rules.items()}
        # A rule explains equal answers alike, and comparisons by algebra take seconds. The outcome tells a response
        # without an answer from one with nothing to say of it (IFEval: all instructions followed).
        reasons: dict[tuple[str, str, str | None], list[str]] = {}
        prompts = [response.prompt for response in stored.values() if response is not None and response.prompt]
        return {
            **self.summary(cell, position),
            "group": cell.benchmark.group,
            "restricted": cell.benchmark.restricted,
            "unit": question.unit,
            "other_parts": sum(other.unit == question.unit for other in cell.questions) - 1 if question.unit else 0,
            "rules": {
                name: {"rule": rule, "text": rule_text(rule), "answer": answer_name(rule)}
                for name, rule in rules.items()
            },
            "prompt": prompts[0] if prompts else None,
            "fields": question.fields,
            "reference": question.reference,
            "reference_text": reference_text(question.reference),
            "responses": {
                label: _responses(cell, label, question, response, rules, reasons)
                for label, response in stored.items()
                if response is not None
            },
        }


def _responses(
    cell: Cell,
    label: str,
    question: Question,
    response: Response,
    rules: dict[str, str],
    reasons: dict[tuple[str, str, str | None], list[str]],
) -> list[dict[str, Any]]:
    """Every response of a model to a question with its scores."""
    judged = {scoring: cell.scores_of(label, scoring, question) for scoring in cell.scorings}

    def scores(sample: int) -> dict[str, Any]:
        judgements = {}
        for scoring, rows in judged.items():
            if sample < len(rows):
                row, rule = rows[sample], rules.get(scoring, "")
                # The parts of a question have one score, and an answer each.
                key = (rule, row.outcome, f"{label} {sample}" if question.unit else row.answer)
                if key not in reasons:
                    reasons[key] = explain(rule, response, sample, question.reference, row.answer)
                judgements[scoring] = {
                    "score": _rounded(100 * row.value),
                    "outcome": row.outcome,
                    "answer": row.answer,
                    "why": reasons[key],
                }
        return judgements

    if response.likelihoods:
        given = [list(pair) for pair in zip(response.answers, response.likelihoods, strict=True)]
        return [{"likelihoods": given, "scores": scores(0)}]
    shown = []
    for sample, (text, tokens) in enumerate(zip(response.responses, response.tokens, strict=True)):
        thinking, _ = split_thinking(text, response.opens_thinking)
        rest = strip_thinking(text, response.opens_thinking)
        shown.append({"thinking": thinking, "text": rest, "tokens": tokens, "scores": scores(sample)})
    return shown


def _rounded(points: float | None) -> float | None:
    return None if points is None else round(points, 1)


def _snippet(question: Question) -> str:
    """The beginning of a question; of all its fields where none is called the question, since each may be a word."""
    named = [question.fields[key] for key in _QUESTION_FIELDS if isinstance(question.fields.get(key), str)]
    texts = named[:1] or [str(value) for value in question.fields.values() if isinstance(value, str | int | float)]
    text = " · ".join(" ".join(text.split()) for text in texts)
    text = text if len(text) <= _SNIPPET else text[: _SNIPPET - 1] + "…"
    candidate = question.fields.get("answer") if question.unit else None  # what tells the parts of a question apart
    return f"{candidate} · {text}" if candidate else text
