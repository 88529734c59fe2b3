"""A unit is one benchmark in one prompting, for one model: its folder, what its responses depend on, its chunks.

A chunk is `chunk_questions` questions of a unit in one file, `chunk-<n>-<inputs>.jsonl.zst`, written once. It is also
what random numbers are seeded by: per model, benchmark, prompting and chunk.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.questions.build import FOLDER
from eval.questions.records import Question
from eval.questions.task_files import task_folder, task_path
from eval.responses.engines import thinking_mode
from eval.scorers.records import Response, read_responses
from recipes.errors import UserError
from recipes.files import hash_file, hash_json
from recipes.manifest import read_manifest
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkSpec, Scoring, SuiteSpec

_GENERATION = ("temperature", "top_p", "top_k", "max_response_tokens", "max_prompt_tokens", "seed", "chunk_questions")


@dataclass(frozen=True)
class StoredUnit:
    """Where the responses of one model to one benchmark in one prompting are, and what they depend on."""

    directory: Path
    inputs: dict[str, Any]

    @property
    def version(self) -> str:
        """In the name of every file of responses, so that a late writer cannot mix two versions."""
        return hash_json(self.inputs)[:8]

    @property
    def chunk_questions(self) -> int:
        """Questions in a chunk."""
        return int(self.inputs["chunk_questions"])

    def chunk_of(self, question: int) -> int:
        """The chunk a question is in."""
        return question // self.chunk_questions

    def path(self, chunk: int) -> Path:
        """File of a chunk."""
        return self.directory / f"chunk-{chunk:04}-{self.version}.jsonl.zst"


@dataclass(frozen=True)
class Unit(StoredUnit):
    """One benchmark in one prompting, for one model."""

    benchmark: BenchmarkSpec
    prompting: str
    suite: SuiteSpec
    questions: int
    """How many questions it has."""

    @property
    def name(self) -> str:
        """Benchmark and prompting."""
        return f"{self.benchmark.name}-{self.prompting}"

    @property
    def label(self) -> str:
        """The model's."""
        return self.directory.parent.name

    def of_model(self, directory: Path, inputs: dict[str, Any]) -> "Unit":
        """The unit of another model, whose responses are in `directory`."""
        return replace(self, directory=directory, inputs=inputs)

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.questions // self.chunk_questions)

    def positions(self, chunk: int) -> range:
        """Positions of the questions of a chunk."""
        size = self.chunk_questions
        return range(chunk * size, min((chunk + 1) * size, self.questions))

    def missing(self) -> list[int]:
        """Chunks that are not written."""
        return [chunk for chunk in range(self.chunks) if not self.path(chunk).exists()]

    def rows(self) -> list[Response]:
        """All stored responses in the order of the questions."""
        return [row for chunk in range(self.chunks) for row in read_responses(self.path(chunk))]

    @property
    def likelihoods(self) -> bool:
        """Whether it stores likelihoods of given answers instead of texts."""
        return self.prompting in self.benchmark.likelihood

    @property
    def samples(self) -> int:
        """Texts to each question; 1 where likelihoods are stored."""
        return 1 if self.likelihoods else self.suite.samples(self.benchmark)

    @property
    def rules(self) -> dict[str, Scoring]:
        """Scoring -> rule, of the scorings that can judge the responses in this prompting."""
        scorings = self.benchmark.scorings.items()
        return {name: rule for name, rule in scorings if self.benchmark.fits(self.prompting, name)}


def chunk_seed(suite: SuiteSpec, label: str, unit: str, chunk: int) -> int:
    """Seed of the random numbers of one chunk."""
    digest = hashlib.sha256(f"{suite.seed} {label} {unit} {chunk}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def open_units(recipe: Recipe, study_dir: Path, stage_dir: Path, model_dir: str) -> list[Unit]:
    """The units of a model's stage. Raises UserError if the stage that wrote its weights is not complete."""
    weights = weights_hash(study_dir / model_dir)
    return [
        _open_unit(recipe, stage_dir, weights, benchmark, prompting)
        for benchmark in recipe.require_suite().benchmarks
        for prompting in benchmark.promptings
    ]


def _open_unit(recipe: Recipe, stage_dir: Path, weights: str, benchmark: BenchmarkSpec, prompting: str) -> Unit:
    suite = recipe.require_suite()
    fixed = read_manifest(stage_dir.parent.parent / FOLDER)
    assert fixed is not None
    facts = fixed["facts"]["benchmarks"][benchmark.name]
    folder, settings = task_folder(suite), suite.model_dump(mode="json")
    inputs = {
        "model": weights,
        "questions": facts["content"],
        "task file": _task_hash(folder, task_path(folder, benchmark.name, prompting)),
        "dtype": recipe.model.dtype if recipe.model is not None else None,
        "samples": suite.samples(benchmark),
        **{key: settings[key] for key in _GENERATION},
        "temperature of the benchmark": suite.temperature_of(benchmark),
        **{f"engine.{key}": settings["engine"][key] for key in ("kind", "model", "batch_size", "tensor_parallel")},
        "system": recipe.prompt.system,
        "suffix": recipe.prompt.suffix,
        "thinking": thinking_mode(recipe),
    }
    directory = stage_dir / f"{benchmark.name}-{prompting}"
    return Unit(directory, inputs, benchmark, prompting, suite, facts["questions"])


def weights_hash(model_dir: Path) -> str:
    """Hash of a checkpoint: the output hash of the stage that wrote it, which owns the folder or its parent."""
    for stage_dir in (model_dir.parent, model_dir):
        manifest = read_manifest(stage_dir)
        if manifest is not None:
            if "output_hash" not in manifest:
                raise UserError(f"the stage in {stage_dir} is not complete; `transfer run` continues it")
            return str(manifest["output_hash"])
    raise UserError(f"{model_dir} belongs to no completed stage; `transfer run` makes it")


def _task_hash(folder: Path, path: Path) -> str:
    """Hash of a task file and of the other files in its folder, which it may include."""
    shared = [p for p in folder.iterdir() if p.is_file() and (p.suffix != ".yaml" or p.name.startswith("_"))]
    return hash_json({p.name: hash_file(p) for p in sorted({path, *shared})})


def require_answers(unit: Unit, rows: Sequence[Response], questions: Sequence[Question]) -> None:
    """Refuse stored rows that are not exactly one for each question, in order.

    Raises:
        UserError: an identity is missing, foreign or there twice.
    """
    stored, expected = [row.question_id for row in rows], [question.question_id for question in questions]
    if stored == expected:
        return
    twice = sorted(question_id for question_id, count in Counter(stored).items() if count > 1)
    missing, foreign = sorted(set(expected) - set(stored)), sorted(set(stored) - set(expected))
    what = [
        f"{len(ids)} {name} (first {ids[0]})"
        for name, ids in (("twice", twice), ("missing", missing), ("of no question", foreign))
        if ids
    ] or ["another order"]
    raise UserError(
        f"{unit.directory} does not hold one row for each question: {', '.join(what)}; delete the folder, and the same "
        "command generates the responses again"
    )
