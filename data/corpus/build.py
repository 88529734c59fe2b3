"""Stage `corpus`: sources -> checked problems -> graded demonstrations, the funnel every row goes through.

Writes `problems.parquet` (training and held-out problems), `demonstrations.parquet` (every sample of the teacher,
right or wrong), `rejects.jsonl` (each unused row with its reason), `contamination.jsonl` (problems removed for being
close to a benchmark question, beside that question), `figures.jsonl` (problems that need a figure, if there are any),
`ledger.jsonl` (what sampling cost) and `README.md` (the card). The console shows the count of every reason.
All arms read their problems from here.
"""

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from data.corpus.card import render_card
from data.corpus.demonstrations import draw_samples, graded_demonstrations
from data.corpus.filters import FILTER_STEPS, apply_filters, split_problems
from data.corpus.funnel import Funnel, Reason, figure_rows
from data.corpus.rows import (
    CARD,
    CONTAMINATION,
    DEMONSTRATIONS,
    FIGURES,
    PROBLEMS,
    REJECTS,
    TEACHER_LEDGER,
    Demonstration,
    Problem,
    problem_id,
)
from data.corpus.sources import RawRow, not_compared
from data.grading.grader import Grader
from data.hub import locate_model
from data.pocket_world import TASKS
from data.prompts.prompt import load_tokenizer, prepare_tokenizer
from recipes.files import hash_file, hash_files, write_atomic, write_json_lines, write_parquet
from recipes.manifest import finish_stage
from recipes.progress import NOTES, Progress, write_notes
from recipes.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEPS = (*FILTER_STEPS, "pass rate", "split", "demonstrations", "files")


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool) -> None:
    """Build the corpus of a recipe into `stage_dir`.

    An interrupted build starts over, but for the samples of teacher and base, which are kept beside the studies. A
    failed one leaves the rejects so far and the counts of their reasons.
    """
    for name in (NOTES, REJECTS, FIGURES):  # of an interrupted build
        (stage_dir / name).unlink(missing_ok=True)
    funnel = Funnel()
    try:
        _build(recipe, study_dir, stage_dir, funnel)
    except Exception:  # whatever failed, the rejects so far help to find out why
        write_json_lines(stage_dir / REJECTS, funnel.rejects)
        raise
    finally:
        if funnel.total:
            write_notes(stage_dir, funnel.report())


class _Built(NamedTuple):
    """What the outputs are made of."""

    train: list[RawRow]
    heldout: list[RawRow]
    demonstrations: list[Demonstration]
    pass_rates: dict[str, float]
    contamination: list[dict[str, Any]]
    costs: list[dict[str, Any]]
    """Rows of the ledger."""


def _build(recipe: Recipe, study_dir: Path, stage_dir: Path, funnel: Funnel) -> None:
    begun = time.monotonic()
    progress = Progress(stage_dir, len(STEPS), "steps")
    seconds: dict[str, float] = {}

    def step_done(name: str) -> None:
        seconds[name] = max(0.0, round(time.monotonic() - begun - sum(seconds.values()), 2))
        progress.total, progress.unit = len(STEPS), "steps"
        progress.update(len(seconds), f"{name}, {len(funnel.kept):,} problems left")

    tokenizer = _tokenizer(recipe, study_dir) if recipe.model is not None else None
    grader = Grader(workers=recipe.resources.workers or 2)

    # Rows with a usable problem and a gradable reference answer.
    contamination = apply_filters(funnel, recipe, grader, tokenizer, step_done)

    # The pass rate of the base, if the recipe filters by it.
    pass_rates, costs = _drop_by_pass_rate(funnel, recipe, study_dir, grader, progress)
    step_done("pass rate")

    # Held-out and training problems; what is left over is a reject too, so that every row is accounted for.
    heldout, train = split_problems(funnel, recipe, f"; each is in {stage_dir / REJECTS}")
    step_done("split")

    # Demonstrations for the training problems.
    identified = [(problem_id(row.problem), row) for row in train]
    demonstrations, teacher_costs = graded_demonstrations(
        recipe, study_dir, identified, grader, tokenizer, progress, funnel.passed_over
    )
    grader.close()
    step_done("demonstrations")

    built = _Built(train, heldout, demonstrations, pass_rates, contamination, costs + teacher_costs)
    outputs, facts = _write(recipe, stage_dir, funnel, built, tokenizer)
    finish_stage(stage_dir, outputs, facts | {"seconds": seconds})


def _write(
    recipe: Recipe, stage_dir: Path, funnel: Funnel, built: _Built, tokenizer: "PreTrainedTokenizerBase | None"
) -> tuple[dict[str, str], dict[str, Any]]:
    """Write every file of the stage; the hashes of its outputs, and the facts of its manifest."""
    problems, figures = _problems(recipe, built), figure_rows(built.train + built.heldout)
    tables = {PROBLEMS: _table(problems, _PROBLEM_COLUMNS)}
    if recipe.corpus.teacher is not None:
        tables[DEMONSTRATIONS] = _table(built.demonstrations, _DEMONSTRATION_COLUMNS)
    for name, table in tables.items():
        write_parquet(stage_dir / name, table)
    lists = {REJECTS: funnel.rejects, CONTAMINATION: built.contamination, TEACHER_LEDGER: built.costs}
    if figures:
        lists[FIGURES] = figures
    for name, rows in lists.items():
        write_json_lines(stage_dir / name, rows)
    outputs = hash_files(stage_dir, list(tables))
    facts = _facts(recipe, funnel, problems, built.demonstrations, len(built.contamination), figures)
    write_atomic(stage_dir / CARD, render_card(recipe, facts, outputs, problems, built.demonstrations, tokenizer))
    others = {name: hash_file(stage_dir / name) for name in (*lists, CARD)}
    return outputs, facts | {"other_files": others, "sampling": built.costs}


def _problems(recipe: Recipe, built: _Built) -> list[Problem]:
    """Training and held-out problems, with what teacher and base made of them."""
    solved = {row.problem_id for row in built.demonstrations if row.usable}
    return [
        Problem(
            identity,
            row.problem,
            row.reference_answer,
            row.source,
            row.level,
            split,
            identity in solved if recipe.corpus.teacher is not None and split == "train" else None,
            built.pass_rates.get(identity),
        )
        for split, part in (("train", built.train), ("heldout", built.heldout))
        for identity, row in ((problem_id(row.problem), row) for row in part)
    ]


def _tokenizer(recipe: Recipe, study_dir: Path) -> "PreTrainedTokenizerBase":
    """That of the prepared base; of the model itself in a recipe that only builds a corpus."""
    if (study_dir / "base").is_dir():
        return load_tokenizer(str(study_dir / "base"))
    model = recipe.require_model()
    lock = recipe.lock_of_model(model.path, model.revision)
    return prepare_tokenizer(locate_model(str(model.path), lock, model.revision), model)


def _drop_by_pass_rate(
    funnel: Funnel, recipe: Recipe, study_dir: Path, grader: Grader, progress: Progress
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Drop problems the base solves too rarely or too often; all pass rates, and what measuring them cost."""
    spec = recipe.corpus.pass_rate
    if spec is None:
        return {}, []
    texts = [(problem_id(row.problem), row.problem) for row in funnel.kept]
    samples, cost = draw_samples(spec.sampler, recipe, study_dir, texts, progress, "pass_rate")
    rates: dict[str, float] = {}
    reasons: dict[int, Reason] = {}
    count = spec.sampler.samples_per_problem
    flat = [sample.completion for identity, _ in texts for sample in samples[identity]]
    golds = [row.reference_answer for row in funnel.kept for _ in range(count)]
    grades = grader.grade_many(flat, golds, recipe.corpus.answer_form)
    for index, (identity, _) in enumerate(texts):
        rates[identity] = sum(grade.correct for grade in grades[index * count : (index + 1) * count]) / count
        if not spec.low <= rates[identity] <= spec.high:
            reasons[index] = "pass_rate_too_low" if rates[identity] < spec.low else "pass_rate_too_high", None
    funnel.drop("pass rate of the base", reasons)
    return rates, [cost]


def _facts(
    recipe: Recipe,
    funnel: Funnel,
    problems: list[Problem],
    demonstrations: list[Demonstration],
    contaminated: int,
    figures: list[dict[str, Any]],
) -> dict[str, Any]:
    """What the manifest and the card say about the corpus."""
    train = [row for row in problems if row.split == "train"]
    unsolved = [row for row in train if row.teacher_solvable is False]
    pocket = [benchmark.name for benchmark in recipe.benchmarks if benchmark.name in TASKS]
    passed_over = funnel.passed_over
    if_any = {
        "repaired": funnel.repaired,
        "figures": dict(sorted(Counter(row["figure"] for row in figures).items())),
        "stored_passed_over": {"rows": passed_over.rows, "first": passed_over.first} if passed_over.rows else {},
    }
    return {
        "rows": funnel.total,
        "funnel": funnel.steps,
        "rejected": funnel.rejected(),
        "train_problems": len(train),
        "heldout_problems": len(problems) - len(train),
        "teacher_solvable": sum(row.teacher_solvable is True for row in train),
        "unsolved_by_level": dict(sorted(Counter(str(row.level) for row in unsolved).items())),
        "train_by_level": dict(sorted(Counter(str(row.level) for row in train).items())),
        "demonstrations": dict(sorted(Counter(row.grade for row in demonstrations).items())),
        "demonstrations_that_fit": sum(row.fits for row in demonstrations),
        "contaminated": contaminated,
        "decontaminated_against": sorted([*pocket, *(b.name for b in recipe.corpus.decontamination.benchmarks)]),
        "not_compared": not_compared(recipe),
        "licences": {source.name: source.licence for source in recipe.corpus.sources},
        **{name: counts for name, counts in if_any.items() if counts},
    }


_PROBLEM_COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("problem_id", "problem", "reference_answer", "source", "level", "split")]
    + [("teacher_solvable", pa.bool_()), ("base_pass_rate", pa.float64())]
)
_DEMONSTRATION_COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("problem_id", "completion", "thinking", "teacher")]
    + [("sample_index", pa.int64()), ("grade", pa.string()), ("tokens", pa.int64()), ("fits", pa.bool_())]
)


def _table(rows: list[Any], columns: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([row._asdict() for row in rows], schema=columns)
