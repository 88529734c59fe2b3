"""Stage `eval/<model>`: one checkpoint answers every question of the suite, in chunks that are written once.

A unit is a benchmark in one prompting. Its chunks are `chunk-<n>.jsonl.zst`; a chunk that is there is never asked
again, so a killed stage loses at most one. Whoever holds the lock of a chunk generates it, and `transfer work` lets
other processes and machines take chunks of the same stage. Random numbers are seeded per model, benchmark, prompting
and chunk, so a response does not depend on who drew it. When all chunks are there they are scored.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from eval.questions.build import FOLDER, load_questions
from eval.questions.forms import Question
from eval.questions.task_files import task_folder, task_path
from eval.responses.engines import EngineOnDemand, engine_facts, server_errors, thinking_mode
from eval.scorers.rules import RULES, mean_score, score_rows
from recipes.errors import UserError
from recipes.manifest import (
    Progress,
    finish_stage,
    hash_file,
    hash_files,
    hash_json,
    read_manifest,
    stage_state,
    start_stage,
    write_atomic,
)
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkSpec, Scoring, SuiteSpec

_POLL_SECONDS = 2.0
_GENERATION = ("temperature", "top_p", "top_k", "max_response_tokens", "max_prompt_tokens", "seed", "chunk_questions")


class Unit:
    """One benchmark in one prompting, for one model."""

    def __init__(self, recipe: Recipe, stage_dir: Path, weights: str, benchmark: BenchmarkSpec, prompting: str) -> None:
        assert recipe.suite is not None
        self.benchmark, self.prompting, self.suite = benchmark, prompting, recipe.suite
        self.name = f"{benchmark.name}-{prompting}"
        self.directory = stage_dir / self.name
        self.label = stage_dir.name
        fixed = read_manifest(stage_dir.parent.parent / FOLDER)
        assert fixed is not None
        self.facts = fixed["facts"]["benchmarks"][benchmark.name]
        folder = task_folder(recipe.suite)
        suite = recipe.suite.model_dump(mode="json")
        self.inputs: dict[str, Any] = {
            "model": weights,
            "questions": self.facts["content"],
            "task file": _task_hash(folder, task_path(folder, benchmark.name, prompting)),
            "dtype": recipe.model.dtype if recipe.model is not None else None,
            "samples": recipe.suite.samples(benchmark),
            **{key: suite[key] for key in _GENERATION},
            "temperature of the benchmark": recipe.suite.temperature_of(benchmark),
            **{f"engine.{key}": suite["engine"][key] for key in ("kind", "model", "batch_size", "tensor_parallel")},
            "system": recipe.prompt.system,
            "suffix": recipe.prompt.suffix,
            "thinking": thinking_mode(recipe),
        }

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.facts["questions"] // self.suite.chunk_questions)

    def path(self, chunk: int) -> Path:
        """File of a chunk. Its name tells what it was made from, so that a late writer cannot mix two versions."""
        return self.directory / f"chunk-{chunk:04}-{hash_json(self.inputs)[:8]}.jsonl.zst"

    def missing(self) -> list[int]:
        """Chunks that nobody has written."""
        return [chunk for chunk in range(self.chunks) if not self.path(chunk).exists()]

    def rows(self) -> list[dict[str, Any]]:
        """All stored rows in the order of the questions."""
        return [row for chunk in range(self.chunks) for row in read_chunk(self.path(chunk))]


def _task_hash(folder: Path, path: Path) -> str:
    """Hash of a task file and of everything in its folder that is no task, which it may include."""
    shared = [p for p in folder.iterdir() if p.is_file() and (p.suffix != ".yaml" or p.name.startswith("_"))]
    return hash_json({p.name: hash_file(p) for p in sorted({path, *shared})})


def read_chunk(path: Path) -> list[dict[str, Any]]:
    """The rows of a chunk. Raises UserError if the file is damaged."""
    try:
        return [json.loads(line) for line in zstandard.decompress(path.read_bytes()).decode().splitlines()]
    except (zstandard.ZstdError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it, and the same command asks its questions again"
        ) from None


def chunk_seed(suite: SuiteSpec, label: str, unit: str, chunk: int) -> int:
    """Seed of the random numbers of one chunk."""
    digest = hashlib.sha256(f"{suite.seed} {label} {unit} {chunk}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, model_dir: str) -> None:
    """Generate what is missing and score all benchmarks for the checkpoint in `study_dir / model_dir`."""
    assert recipe.suite is not None
    units = open_units(recipe, study_dir, stage_dir, model_dir)
    for unit in units:
        if stage_state(unit.directory, unit.inputs).state not in ("done", "resume"):
            start_stage(unit.directory, f"eval/{unit.label}/{unit.name}", unit.inputs)

    # Generation
    total = sum(unit.chunks for unit in units)
    progress = Progress(stage_dir, total, "chunks")
    started, before = time.monotonic(), total - sum(len(unit.missing()) for unit in units)

    def show() -> None:
        done = total - sum(len(unit.missing()) for unit in units)
        made = done - before
        left = (time.monotonic() - started) / made * (total - done) if made else None
        progress.update(done, "" if left is None or not total - done else f"{_duration(left)} left")

    incomplete = {unit.name for unit in units if unit.missing()}
    generate(recipe, study_dir, study_dir / model_dir, units, show)
    while any(unit.missing() for unit in units):  # others hold the rest
        time.sleep(_POLL_SECONDS)
        generate(recipe, study_dir, study_dir / model_dir, units, show)

    # Scores
    outputs: dict[str, str] = {}
    facts: dict[str, Any] = {}
    for unit in units:
        done = stage_state(unit.directory, unit.inputs).state == "done" and unit.name not in incomplete
        if not done or not _scored(unit):
            write_scores(recipe, study_dir, unit)
        manifest = read_manifest(unit.directory) or {}
        outputs |= {f"{unit.name}/{file}": digest for file, digest in manifest["outputs"].items()}
        facts[unit.name] = manifest["facts"]
    accuracy = _accuracies(recipe, facts)
    answered = {"accuracy": accuracy, "model": model_dir, "units": facts, "engine": engine_facts(stage_dir)}
    finish_stage(stage_dir, outputs, answered)


def _accuracies(recipe: Recipe, facts: dict[str, Any]) -> dict[str, float]:
    assert recipe.suite is not None
    cells = {benchmark.name: benchmark.cell(recipe.analysis.reading) for benchmark in recipe.suite.benchmarks}
    return {name: facts[f"{name}-{prompting}"]["scores"][scoring] for name, (prompting, scoring) in cells.items()}


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def open_units(recipe: Recipe, study_dir: Path, stage_dir: Path, model_dir: str) -> list[Unit]:
    """The units of a model's stage. Raises UserError if the stage that wrote its weights is not complete."""
    assert recipe.suite is not None
    weights = _weights_hash(study_dir / model_dir)
    return [
        Unit(recipe, stage_dir, weights, benchmark, prompting)
        for benchmark in recipe.suite.benchmarks
        for prompting in benchmark.promptings
    ]


def _weights_hash(model_dir: Path) -> str:
    """Hash of a checkpoint: the output hash of the stage that wrote it, which owns the folder or its parent."""
    for stage_dir in (model_dir.parent, model_dir):
        manifest = read_manifest(stage_dir)
        if manifest is not None:
            if "output_hash" not in manifest:
                raise UserError(f"the stage in {stage_dir} is not complete; `transfer run` continues it")
            return str(manifest["output_hash"])
    raise UserError(f"{model_dir} belongs to no completed stage; `transfer run` makes it")


def generate(recipe: Recipe, study_dir: Path, model_dir: Path, units: list[Unit], show: Callable[[], None]) -> int:
    """Generate every missing chunk that no other process holds; returns how many. The model is loaded for the first."""
    assert recipe.suite is not None
    made = 0
    folder = task_folder(recipe.suite)
    if not any(unit.missing() for unit in units):
        return 0
    from eval.responses.harness import ask, build_task

    with EngineOnDemand(recipe, model_dir, units[0].label, units[0].directory.parent) as engine:
        for unit in units:
            questions: list[Question] = []
            for chunk in unit.missing():
                with _claimed(unit, chunk) as mine:
                    if not mine:
                        continue
                    questions = questions or load_questions(recipe, unit.benchmark, study_dir)
                    size = recipe.suite.chunk_questions
                    part = questions[chunk * size : (chunk + 1) * size]
                    task, chat = build_task(recipe, folder, unit.benchmark, unit.prompting, part)
                    seed = chunk_seed(recipe.suite, unit.label, unit.name, chunk)
                    model = engine()
                    with server_errors(recipe.suite.engine):
                        rows = ask(recipe, model, task, chat, part, seed)
                    if unit.facts["restricted"]:
                        rows = [{key: value for key, value in row.items() if key != "prompt"} for row in rows]
                    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                    write_atomic(unit.path(chunk), zstandard.compress(text.encode()))
                    made += 1
                show()
    return made


@contextmanager
def _claimed(unit: Unit, chunk: int) -> Iterator[bool]:
    """Whether this process may generate a chunk: nobody else holds it, and it is still missing."""
    from filelock import FileLock, Timeout

    lock = FileLock(unit.directory / f".chunk-{chunk:04}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield not unit.path(chunk).exists()
    finally:
        lock.release()


def scores_path(directory: Path, scoring: str) -> Path:
    """The table of a unit's scores by one scoring."""
    return directory / f"scores-{scoring}.parquet"


def _scored(unit: Unit) -> bool:
    """Whether the scores on disk are by the rules the recipe names now."""
    manifest = read_manifest(unit.directory)
    there = all(scores_path(unit.directory, name).is_file() for name in _rules(unit))
    return there and manifest is not None and manifest.get("facts", {}).get("rules") == _rules(unit)


def _rules(unit: Unit) -> dict[str, Scoring]:
    scorings = unit.benchmark.scorings.items()
    return {name: rule for name, rule in scorings if unit.benchmark.fits(unit.prompting, name)}


def write_scores(recipe: Recipe, study_dir: Path, unit: Unit) -> None:
    """Judge a unit's stored responses by every scoring that fits and complete its manifest.

    Raises:
        UserError: the stored rows are not one for each question, or code would have to run without a sandbox.
    """
    questions = load_questions(recipe, unit.benchmark, study_dir)
    rows = unit.rows()
    require_answers(unit, rows, questions)
    limit = unit.suite.max_response_tokens
    files = [unit.path(chunk).name for chunk in range(unit.chunks)]
    scores: dict[str, float] = {}
    outcomes: dict[str, dict[str, int]] = {}
    for name, rule in _rules(unit).items():
        sandboxed = not unit.suite.allow_unsandboxed_code
        if RULES[rule].runs_code and sandboxed:
            from eval.scorers.sandbox import require_sandbox

            require_sandbox()
        table = score_rows(rows, questions, rule, limit, sandboxed)
        write_table(scores_path(unit.directory, name), table)
        files.append(scores_path(unit.directory, name).name)
        scores[name] = mean_score(table)
        outcomes[name] = count_outcomes(table)
    facts = {
        "scores": scores,
        "outcomes": outcomes,
        "rules": _rules(unit),
        "questions": len(questions),
        "tokens": sum(sum(row.get("tokens", [])) for row in rows),
        "restricted": unit.facts["restricted"],
    }
    finish_stage(unit.directory, hash_files(unit.directory, files), facts)


def count_outcomes(table: list[dict[str, Any]]) -> dict[str, int]:
    """How many responses had each outcome."""
    return dict(sorted(Counter(row["outcome"] for row in table).items()))


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as Parquet, atomically."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    write_atomic(path, sink.getvalue().to_pybytes())


def require_answers(unit: Unit, rows: list[dict[str, Any]], questions: list[Question]) -> None:
    """Refuse stored rows that are not exactly one for each question, in order.

    Raises:
        UserError: an identity is missing, foreign or there twice.
    """
    stored, expected = [row["question_id"] for row in rows], [question.question_id for question in questions]
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
        "command asks again"
    )
