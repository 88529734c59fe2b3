"""Stage `corpus`: sources -> checked problems -> graded demonstrations.

Writes `problems.parquet` (training and held-out problems), `demonstrations.parquet` (every sample of the
teacher, right or wrong), `rejects.jsonl` (each unused row with its reason) and, in the manifest, the number of
rows each filter removed. All arms read their problems from here.
"""

import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.grading import THINK_CLOSE, THINK_OPEN, Grader
from data.pocket_world import TASKS, benchmark_questions, corpus_problems, teacher_completion
from data.prompt import control_tokens, load_tokenizer, render_prompt
from data.rows import DEMONSTRATIONS, PROBLEMS, REJECTS, Demonstration, Problem
from data.sources import RawRow, read_source
from recipes.errors import UserError
from recipes.manifest import Progress, finish_stage, hash_files, write_atomic
from recipes.schema import BenchmarkSpec, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def problem_id(problem: str) -> str:
    """Content hash of a problem text, insensitive to case and spacing: 16 hexadecimal digits."""
    return hashlib.sha256(" ".join(problem.casefold().split()).encode()).hexdigest()[:16]


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool) -> None:
    """Build the corpus of a recipe into `stage_dir`. It takes seconds, so an interrupted one starts over."""
    spec, grader = recipe.corpus, Grader()
    tokenizer = load_tokenizer(str(study_dir / "base")) if recipe.model is not None else None
    teacher_samples = spec.teacher.samples_per_problem if spec.teacher else 0

    # Rows of all sources, each with a reason not to use it or none.
    rows = [row for source in spec.sources for row in read_source(source, spec.seed)]
    progress = Progress(stage_dir, len(rows), "rows")
    benchmark_ids = _benchmark_ids(recipe)
    seen: set[str] = set()
    kept: list[RawRow] = []
    rejected: list[RawRow] = []
    for number, row in enumerate(rows):
        reason = row.reject or _reject_reason(row, seen, benchmark_ids, grader, recipe, tokenizer)
        if reason is None:
            seen.add(problem_id(row.problem))
            kept.append(row)
        else:
            rejected.append(row._replace(reject=reason))
        progress.update(number + 1)

    # Held-out and training problems; what is left over is a reject too, so that every row is accounted for.
    heldout, train, left = _split(kept, recipe)
    rejected += [row._replace(reject="not_sampled") for row in left]
    if not train:
        counts = dict(Counter(row.reject for row in rejected))
        raise UserError(f"no problem of {len(rows)} rows is left for training; removed by reason: {counts}")

    # Demonstrations for the training problems.
    demonstrations: list[Demonstration] = []
    for row in train if teacher_samples else []:
        if row.question is None:
            raise UserError(
                f"the scripted teacher cannot solve source {row.source!r}; it knows the synthetic world only"
            )
        identity = problem_id(row.problem)
        rng = random.Random(f"teacher {spec.seed} {identity}")
        completions = [teacher_completion(rng, row.question) for _ in range(teacher_samples)]
        grades = grader.grade_many(completions, [row.reference_answer] * teacher_samples, spec.answer_form)
        for index, (completion, grade) in enumerate(zip(completions, grades, strict=True)):
            demonstrations.append(
                Demonstration(
                    identity,
                    completion,
                    completion.partition(THINK_OPEN)[2].partition(THINK_CLOSE)[0].strip(),
                    "scripted",
                    index,
                    grade.outcome.value,
                    len(tokenizer(completion)["input_ids"]) + 1 if tokenizer is not None else 0,
                )
            )
    _check_longest(max((row.tokens for row in demonstrations), default=0), recipe)
    solved = {row.problem_id for row in demonstrations if row.grade == "correct"}

    # Files and counts
    problems = [
        Problem(
            problem_id(row.problem),
            row.problem,
            row.reference_answer,
            row.source,
            row.level,
            split,
            problem_id(row.problem) in solved if teacher_samples and split == "train" else None,
        )
        for split, part in (("train", train), ("heldout", heldout))
        for row in part
    ]
    _write_parquet(stage_dir / PROBLEMS, [row._asdict() for row in problems], _PROBLEM_COLUMNS)
    _write_parquet(stage_dir / DEMONSTRATIONS, [row._asdict() for row in demonstrations], _DEMONSTRATION_COLUMNS)
    rejects = (
        {"source": r.source, "row": r.row_number, "reason": r.reject, "problem": r.problem[:200]} for r in rejected
    )
    write_atomic(stage_dir / REJECTS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejects))
    facts: dict[str, Any] = {
        "rows": len(rows),
        "rejected": dict(sorted(Counter(str(row.reject) for row in rejected).items())),
        "train_problems": len(train),
        "heldout_problems": len(heldout),
        "teacher_solvable": len(solved),
        "demonstrations": dict(sorted(Counter(row.grade for row in demonstrations).items())),
        "decontaminated_against": sorted(b.name for b in _checked_benchmarks(recipe)),
        "licences": {source.name: source.licence for source in spec.sources},
    }
    finish_stage(stage_dir, hash_files(stage_dir, [PROBLEMS, DEMONSTRATIONS]), facts)


def _check_longest(tokens: int, recipe: Recipe) -> None:
    if tokens > recipe.prompt.max_completion_tokens:
        raise UserError(
            f"the longest demonstration has {tokens} tokens but prompt.max_completion_tokens is "
            f"{recipe.prompt.max_completion_tokens}; raise it, because a cut demonstration never learns to end"
        )


def check_scripted_demonstrations(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse a length limit that the scripted teacher's longest answer of a sample of problems exceeds."""
    if recipe.corpus.teacher is not None:
        rng = random.Random("longest demonstration")
        texts = [teacher_completion(rng, question) for question in corpus_problems(recipe.corpus.seed, "train", 400)]
        _check_longest(max(len(tokenizer(text)["input_ids"]) + 1 for text in texts), recipe)


def _reject_reason(
    row: RawRow,
    seen: set[str],
    benchmark_ids: set[str],
    grader: Grader,
    recipe: Recipe,
    tokenizer: "PreTrainedTokenizerBase | None",
) -> str | None:
    """Why a mapped row is not used; the cheap tests first."""
    identity = problem_id(row.problem)
    if identity in seen:
        return "duplicate"
    if identity in benchmark_ids:
        return "benchmark_overlap"
    if not grader.is_gradable(row.reference_answer):
        return "gold_unparseable"
    if tokenizer is not None:
        if any(token in row.problem for token in control_tokens(tokenizer)):
            return "control_token"
        tokens = len(tokenizer(render_prompt(tokenizer, row.problem, recipe.prompt))["input_ids"])
        if tokens > recipe.prompt.max_prompt_tokens:
            return "too_long"
    return None


def _checked_benchmarks(recipe: Recipe) -> list[BenchmarkSpec]:
    """The benchmarks whose questions can be compared with the corpus: those of the synthetic world so far."""
    if recipe.suite is None or recipe.suite.tasks != "pocket":
        return []
    return [benchmark for benchmark in recipe.suite.benchmarks if benchmark.name in TASKS]


def _benchmark_ids(recipe: Recipe) -> set[str]:
    """Problem ids of the benchmark questions at hand, on either side of dev and test."""
    suite = recipe.suite
    return {
        problem_id(question.problem)
        for benchmark in _checked_benchmarks(recipe)
        if suite is not None
        for split in ("dev", "test")
        for question in benchmark_questions(suite.seed, benchmark.name, split, suite.questions)
    }


def _split(kept: list[RawRow], recipe: Recipe) -> tuple[list[RawRow], list[RawRow], list[RawRow]]:
    """Held-out, training and unused rows; seeded, and the source's own split is respected."""
    spec = recipe.corpus
    shuffled = sorted(kept, key=lambda row: problem_id(row.problem))
    random.Random(f"split {spec.seed}").shuffle(shuffled)
    heldout = [row for row in shuffled if row.heldout is not False][: spec.heldout_problems]
    if len(heldout) < spec.heldout_problems:
        raise UserError(
            f"corpus.heldout_problems is {spec.heldout_problems} but only {len(heldout)} problems are available for it"
        )
    taken = {problem_id(row.problem) for row in heldout}
    rest = [row for row in shuffled if problem_id(row.problem) not in taken]
    available = [row for row in rest if not row.heldout]
    count = spec.train_problems or len(available)
    if count > len(available):
        raise UserError(f"corpus.train_problems is {count} but only {len(available)} problems passed the filters")
    train = available[:count]
    chosen = {problem_id(row.problem) for row in train}
    return heldout, train, [row for row in rest if problem_id(row.problem) not in chosen]


_PROBLEM_COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("problem_id", "problem", "reference_answer", "source", "level", "split")]
    + [("teacher_solvable", pa.bool_())]
)
_DEMONSTRATION_COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("problem_id", "completion", "thinking", "teacher")]
    + [("sample_index", pa.int64()), ("grade", pa.string()), ("tokens", pa.int64())]
)


def _write_parquet(path: Path, rows: list[dict[str, Any]], columns: pa.Schema) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=columns), sink)
    write_atomic(path, sink.getvalue().to_pybytes())
