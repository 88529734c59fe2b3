"""Stages `trajectory/base` and `trajectory/<arm>/seed-<n>`: every checkpoint of a run on a small fixed slice.

The slice: the same few questions of every benchmark, in the primary reading, and held-out problems of the corpus under
the name `heldout`. One table of scores per checkpoint and benchmark, each written once.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.prompts.prompt import load_tokenizer
from eval.questions.build import load_questions, read_source_questions
from eval.questions.forms import sample_slice
from eval.questions.records import Question
from eval.responses.engines import EngineOnDemand, engine_facts, server_errors
from eval.scorers.records import ScoreRow, write_scores
from eval.scorers.rules import score_rows
from recipes.files import hash_files
from recipes.layout import run_folder
from recipes.manifest import finish_stage
from recipes.progress import Progress
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkSpec, Scoring
from train.models.directory import checkpoints_of_run

if TYPE_CHECKING:
    from eval.responses.harness import Prompt

HELDOUT = "heldout"


class Part(NamedTuple):
    """One benchmark of the slice."""

    benchmark: BenchmarkSpec
    prompting: str
    rule: Scoring
    questions: list[Question]


def slice_parts(recipe: Recipe, study_dir: Path) -> list[Part]:
    """The slice of a study, held-out problems first."""
    spec = recipe.require_trajectory()
    # Judged as the reward judges.
    heldout = BenchmarkSpec(name=HELDOUT, group=HELDOUT, scorings={"robust": recipe.corpus.answer_form})
    parts = []
    for benchmark in [heldout, *(item for item in recipe.require_suite().benchmarks if item.name != HELDOUT)]:
        own = benchmark is heldout
        questions = (
            read_source_questions(recipe, benchmark, study_dir) if own else load_questions(recipe, benchmark, study_dir)
        )
        questions = sample_slice(questions, spec.heldout_problems if own else spec.questions)
        prompting, scoring = benchmark.cell(recipe.analysis.reading)
        parts.append(Part(benchmark, prompting, benchmark.scorings[scoring], questions))
    return parts


def checkpoints_of(study_dir: Path, arm: str | None, seed: int | None) -> dict[int, Path]:
    """Step -> weights of every checkpoint of a run, the final one last; of the base, step 0, without `arm`."""
    if arm is None or seed is None:
        return {0: study_dir / "base"}
    return checkpoints_of_run(run_folder(study_dir, arm, seed))


def scores_file(stage_dir: Path, step: int, benchmark: str) -> Path:
    """The table of a checkpoint's scores on one benchmark."""
    return stage_dir / f"step-{step}-{benchmark}.parquet"


def run(
    recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, arm: str | None = None, seed: int | None = None
) -> None:
    """Generate and score what is missing of every checkpoint."""
    parts = slice_parts(recipe, study_dir)
    suite = recipe.require_suite().with_samples(recipe.require_trajectory().samples)
    sliced = recipe.model_copy(update={"suite": suite})
    checkpoints = checkpoints_of(study_dir, arm, seed)
    progress = Progress(stage_dir, len(checkpoints) * len(parts), "evaluations")  # of a checkpoint on a benchmark
    prompts: dict[str, list[Prompt]] = {}
    done = 0
    for step, weights in checkpoints.items():
        missing = [part for part in parts if not scores_file(stage_dir, step, part.benchmark.name).exists()]
        done += len(parts) - len(missing)
        with EngineOnDemand(sliced, weights, stage_dir.parent.name, stage_dir) as engine:
            for part, table in _scores(sliced, weights, engine, missing, prompts, f"{arm} {seed} {step}"):
                write_scores(scores_file(stage_dir, step, part.benchmark.name), table)
                done += 1
                progress.update(done, f"step {step}, {part.benchmark.name}")
    names = [scores_file(stage_dir, step, part.benchmark.name).name for step in checkpoints for part in parts]
    finish_stage(
        stage_dir, hash_files(stage_dir, names), {"steps": list(checkpoints), "engine": engine_facts(stage_dir)}
    )


def _scores(
    recipe: Recipe,
    weights: Path,
    engine: EngineOnDemand,
    parts: list[Part],
    prompts: dict[str, "list[Prompt]"],
    label: str,
) -> Iterator[tuple[Part, list[ScoreRow]]]:
    """The scores of one checkpoint on these parts, each as soon as all its responses are generated.

    `prompts`: by benchmark; those that are missing are added, because all checkpoints of a run have one tokenizer.
    """
    if not parts:
        return
    from eval.responses.harness import generate_chunks, render, require_lengths

    suite, seed = recipe.require_suite(), recipe.require_trajectory().seed
    tokenizer, chunks = load_tokenizer(str(weights)), []
    for part in parts:
        name = part.benchmark.name
        if name not in prompts:
            prompts[name] = render(recipe, tokenizer, part.benchmark, part.prompting, part.questions)
            require_lengths(recipe, weights, prompts[name])
        chunks.append((prompts[name], zlib.crc32(f"{seed} {label} {name}".encode())))
    limit, sandboxed = suite.max_response_tokens, not suite.allow_unsandboxed_code
    with server_errors(suite.engine):
        for index, rows in generate_chunks(engine(), tokenizer, chunks):
            part = parts[index]
            yield part, score_rows(rows, part.questions, part.rule, limit, sandboxed)
