"""Stage `corpus`: sources -> checked problems -> graded demonstrations, the funnel every row goes through.

Writes `problems.parquet` (training and held-out problems), `demonstrations.parquet` (every sample of the teacher,
right or wrong), `rejects.jsonl` (each unused row with its reason), `contamination.jsonl` (problems removed for being
close to a benchmark question, beside that question), `figures.jsonl` (problems that need a figure, if there are any),
`ledger.jsonl` (what sampling cost) and `README.md` (the card). The console shows the count of every reason.
All arms read their problems from here.
"""

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.corpus.card import render_card
from data.corpus.demonstrations import draw_samples, write_demonstrations
from data.corpus.funnel import WITHHELD, Funnel, figure_rows
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
from data.corpus.sources import RawRow, not_compared, read_benchmark, read_source
from data.corpus.text_match import BenchmarkIndex, near_duplicates
from data.corpus.values import figure_mark, is_non_answer
from data.grading.grader import Grader
from data.hub import locate_model
from data.pocket_world import TASKS, benchmark_questions
from data.prompts.prompt import control_tokens, load_tokenizer, prepare_tokenizer, render_prompt
from recipes.errors import UserError
from recipes.manifest import NOTES, Progress, finish_stage, hash_file, hash_files, write_atomic, write_notes
from recipes.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    except Exception:
        _write_lines(stage_dir / REJECTS, funnel.rejects)
        raise
    finally:
        if funnel.total:
            write_notes(stage_dir, funnel.report())


def _build(recipe: Recipe, study_dir: Path, stage_dir: Path, funnel: Funnel) -> None:
    spec, locks = recipe.corpus, recipe.lock.get("sources", {})
    begun = time.monotonic()
    progress = Progress(stage_dir, 9, "steps")
    seconds: dict[str, float] = {}

    def step_done(name: str, number: int) -> None:
        seconds[name] = max(0.0, round(time.monotonic() - begun - sum(seconds.values()), 2))
        progress.total, progress.unit = 9, "steps"
        progress.update(number, f"{name}, {len(funnel.kept):,} problems left")

    tokenizer = _tokenizer(recipe, study_dir) if recipe.model is not None else None
    grader = Grader(workers=recipe.resources.workers or 2)

    # Rows of all sources.
    funnel.take([row for source in spec.sources for row in read_source(source, spec.seed, locks.get(source.name))])
    if spec.figures == "reject":
        marks = {n: mark for n, row in enumerate(funnel.kept) if (mark := figure_mark(row.problem)) is not None}
        funnel.drop("figures", dict.fromkeys(marks, "needs_figure"), marks)
    step_done("read", 1)

    # References the grader can compare with.
    gradable = grader.are_gradable([row.reference_answer for row in funnel.kept])
    unusable = {n: "gold_unparseable" for n, good in enumerate(gradable) if not good}
    unusable |= {n: "gold_placeholder" for n, row in enumerate(funnel.kept) if is_non_answer(row.reference_answer)}
    golds = {n: repr(funnel.kept[n].reference_answer) for n in unusable}
    funnel.drop("reference answer", unusable, golds)
    step_done("reference answers", 2)

    # Duplicates, exact and near.
    _drop_exact_duplicates(funnel, grader)
    if spec.near_duplicate is not None:
        _drop_near_duplicates(funnel, grader, spec.near_duplicate)
    step_done("duplicates", 3)

    # Benchmark questions.
    contamination = _drop_contaminated(funnel, recipe)
    step_done("decontamination", 4)

    # Length, with the tokenizer and template every arm uses.
    if tokenizer is not None:
        _drop_by_tokens(funnel, recipe, tokenizer)
    step_done("length", 5)

    # What the base can do already, if the recipe asks for it.
    pass_rates, costs = _drop_by_pass_rate(funnel, recipe, study_dir, grader, progress)
    step_done("pass rate", 6)

    # Held-out and training problems; what is left over is a reject too, so that every row is accounted for.
    heldout, train = _split(funnel, recipe, stage_dir / REJECTS)
    step_done("split", 7)

    # Demonstrations for the training problems.
    identified = [(problem_id(row.problem), row) for row in train]
    demonstrations, cost = write_demonstrations(recipe, study_dir, identified, grader, tokenizer, progress)
    costs += [cost.row()] if cost is not None else []
    grader.close()
    step_done("demonstrations", 8)

    # Files
    solved = {row.problem_id for row in demonstrations if row.usable}
    problems = [
        Problem(
            identity,
            row.problem,
            row.reference_answer,
            row.source,
            row.level,
            split,
            identity in solved if spec.teacher is not None and split == "train" else None,
            pass_rates.get(identity),
        )
        for split, part in (("train", train), ("heldout", heldout))
        for identity, row in ((problem_id(row.problem), row) for row in part)
    ]
    _write_parquet(stage_dir / PROBLEMS, problems, _PROBLEM_COLUMNS)
    if spec.teacher is not None:
        _write_parquet(stage_dir / DEMONSTRATIONS, demonstrations, _DEMONSTRATION_COLUMNS)
    _write_lines(stage_dir / REJECTS, funnel.rejects)
    figures = figure_rows(train + heldout)
    others = [REJECTS, CONTAMINATION, TEACHER_LEDGER, CARD]
    if figures:
        _write_lines(stage_dir / FIGURES, figures)
        others.append(FIGURES)
    _write_lines(stage_dir / CONTAMINATION, contamination)
    _write_lines(stage_dir / TEACHER_LEDGER, costs)
    outputs = hash_files(stage_dir, [PROBLEMS, *([DEMONSTRATIONS] if spec.teacher is not None else [])])
    facts = _facts(recipe, funnel, problems, demonstrations, len(contamination), figures)
    card = render_card(recipe, facts, outputs, problems, demonstrations, tokenizer)
    write_atomic(stage_dir / CARD, card)
    hashes = {name: hash_file(stage_dir / name) for name in others}
    finish_stage(stage_dir, outputs, facts | {"seconds": seconds, "other_files": hashes, "sampling": costs})


def _tokenizer(recipe: Recipe, study_dir: Path) -> "PreTrainedTokenizerBase":
    """That of the prepared base; of the model itself in a recipe that only builds a corpus."""
    if (study_dir / "base").is_dir():
        return load_tokenizer(str(study_dir / "base"))
    assert recipe.model is not None
    name = str(recipe.model.path)
    lock = recipe.lock.get("models", {}).get(name)
    return prepare_tokenizer(locate_model(name, lock, recipe.model.revision), recipe.model)


def _drop_exact_duplicates(funnel: Funnel, grader: Grader) -> None:
    """Keep the first of equal texts; if their reference answers contradict each other, none can be trusted."""
    copies: dict[str, list[int]] = {}
    for index, row in enumerate(funnel.kept):
        copies.setdefault(problem_id(row.problem), []).append(index)
    repeated = [indices for indices in copies.values() if len(indices) > 1]
    agree = _agreeing(funnel, grader, [(later, indices[0]) for indices in repeated for later in indices[1:]])
    reasons: dict[int, str] = {}
    details: dict[int, str] = {}
    for indices in repeated:
        if other := [later for later in indices[1:] if (later, indices[0]) not in agree]:
            reasons.update(dict.fromkeys(indices, "conflicting_reference"))
            details.update(dict.fromkeys(indices, _conflict(funnel, indices, other[0])))
        else:
            reasons.update(dict.fromkeys(indices[1:], "duplicate"))
    funnel.drop("exact duplicates", reasons, details)


def _conflict(funnel: Funnel, copies: list[int], other: int) -> str:
    """What contradicts what, and a guess at the cause where most of a corpus is one text."""
    first, second = funnel.kept[copies[0]], funnel.kept[other]
    text = (
        f"{first.reference_answer[:60]!r} in {first.at}, {second.reference_answer[:60]!r} in {second.at}; "
        f"{len(copies)} rows have this problem"
    )
    constant = len(copies) > max(2, len(funnel.kept) // 2)
    return f"{text}, so its field may not hold the problem: {first.problem[:60]!r}" if constant else text


def _drop_near_duplicates(funnel: Funnel, grader: Grader, threshold: float) -> None:
    """Drop what reads nearly like an earlier problem and has the same answer; with another answer it is another one."""
    pairs = list(near_duplicates([row.problem for row in funnel.kept], threshold))
    agree = _agreeing(funnel, grader, [(later, earlier) for later, earlier, _ in pairs])
    reasons: dict[int, str] = {}
    details: dict[int, str] = {}
    for later, earlier, similarity in pairs:
        if (later, earlier) in agree and earlier not in reasons:
            reasons[later] = "near_duplicate"
            details[later] = f"{similarity:.2f} like {problem_id(funnel.kept[earlier].problem)}"
    funnel.drop("near-duplicates", reasons, details)


def _agreeing(funnel: Funnel, grader: Grader, pairs: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """The pairs of rows whose reference answers are the same, read either way: 10 is right where 10\\% is asked."""
    golds = [row.reference_answer for row in funnel.kept]
    both = [*pairs, *((first, later) for later, first in pairs)]
    grades = grader.grade_many([f"\\boxed{{{golds[left]}}}" for left, _ in both], [golds[right] for _, right in both])
    correct = [grade.correct for grade in grades]
    return {pair for number, pair in enumerate(pairs) if correct[number] or correct[number + len(pairs)]}


def _drop_contaminated(funnel: Funnel, recipe: Recipe) -> list[dict[str, Any]]:
    """Drop problems that are close to a benchmark question; each with that question, for a person to read."""
    spec, locks = recipe.corpus.decontamination, recipe.lock.get("sources", {})
    benchmarks = {item.name: read_benchmark(item, locks.get(item.name)) for item in spec.benchmarks}
    restricted = {item.name for item in spec.benchmarks if item.restricted}
    index = BenchmarkIndex(benchmarks, spec.ngram_words)
    world = _world_questions(recipe)
    reasons, found = {}, []
    withheld = set()
    for number, row in enumerate(funnel.kept):
        identity = problem_id(row.problem)
        problem = row.problem
        if row.question is not None:
            # Questions of the synthetic world are a few numbers in a fixed wording: only equal ones are the same.
            if identity not in world:
                continue
            name, question, coverage, similarity = world[identity], row.problem, 1.0, 1.0
        else:
            match = index.find(row.problem, spec.coverage, spec.similarity)
            if match is None:
                continue
            name, question = match.benchmark, benchmarks[match.benchmark][match.question]
            coverage, similarity = match.coverage, match.similarity
            if name in restricted:  # a near-copy in the corpus would give the question away as well
                withheld.add(number)
                question, problem = f"question {match.question}, not copied", WITHHELD
        reasons[number] = "benchmark_overlap"
        found.append(
            {
                "problem_id": identity,
                "source": row.source,
                "benchmark": name,
                "coverage": coverage,
                "similarity": similarity,
                "problem": problem,
                "question": question,
            }
        )
    funnel.drop("benchmark questions", reasons, withheld=withheld)
    return found


def _world_questions(recipe: Recipe) -> dict[str, str]:
    """Problem id -> benchmark, for the suite's questions of the synthetic world, on either side of dev and test."""
    suite = recipe.suite
    if suite is None or suite.tasks != "pocket":
        return {}
    return {
        problem_id(question.problem): benchmark.name
        for benchmark in suite.benchmarks
        if benchmark.name in TASKS
        for split in ("dev", "test")
        for question in benchmark_questions(suite.seed, benchmark.name, split, suite.questions)
    }


def _drop_by_tokens(funnel: Funnel, recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Drop problems that contain a control token or whose rendered prompt is too long."""
    control = control_tokens(tokenizer)
    reasons = {
        n: "control_token" for n, row in enumerate(funnel.kept) if any(token in row.problem for token in control)
    }
    for start in range(0, len(funnel.kept), 1000):
        rows = funnel.kept[start : start + 1000]
        prompts = [render_prompt(tokenizer, row.problem, recipe.prompt) for row in rows]
        for place, ids in enumerate(tokenizer(prompts)["input_ids"]):
            if len(ids) > recipe.prompt.max_prompt_tokens:
                reasons.setdefault(start + place, "too_long")
    funnel.drop("length", reasons)


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
    reasons = {}
    count = spec.sampler.samples_per_problem
    flat = [sample.completion for identity, _ in texts for sample in samples[identity]]
    golds = [row.reference_answer for row in funnel.kept for _ in range(count)]
    grades = grader.grade_many(flat, golds, recipe.corpus.answer_form)
    for number, (identity, _) in enumerate(texts):
        rates[identity] = sum(grade.correct for grade in grades[number * count : (number + 1) * count]) / count
        if not spec.low <= rates[identity] <= spec.high:
            reasons[number] = "pass_rate_too_low" if rates[identity] < spec.low else "pass_rate_too_high"
    funnel.drop("pass rate of the base", reasons)
    return rates, [cost.row()]


def _split(funnel: Funnel, recipe: Recipe, rejects: Path) -> tuple[list[RawRow], list[RawRow]]:
    """Held-out and training rows; seeded, and the source's own split is respected.

    Raises:
        UserError: too few rows are left; it says what removed the others. `rejects`: where they will be listed.
    """
    spec = recipe.corpus
    shuffled = sorted(range(len(funnel.kept)), key=lambda index: problem_id(funnel.kept[index].problem))
    random.Random(f"split {spec.seed}").shuffle(shuffled)
    heldout = [n for n in shuffled if funnel.kept[n].heldout is not False][: spec.heldout_problems]
    removed = f"of {funnel.total:,} rows the filters removed {funnel.reasons_text()}; each is in {rejects}"
    if len(heldout) < spec.heldout_problems:
        raise UserError(
            f"corpus.heldout_problems is {spec.heldout_problems} but only {len(heldout)} problems are available for "
            f"it; {removed}"
        )
    taken = set(heldout)
    available = [n for n in shuffled if n not in taken and not funnel.kept[n].heldout]
    if not available:
        raise UserError(f"no problem of {funnel.total} rows is left for training; {removed}")
    count = spec.train_problems or len(available)
    if count > len(available):
        raise UserError(
            f"corpus.train_problems is {count} but only {len(available)} problems passed the filters; {removed}"
        )
    train = available[:count]
    parts = [funnel.kept[n] for n in heldout], [funnel.kept[n] for n in train]
    chosen = taken | set(train)
    funnel.drop("sampling", {n: "not_sampled" for n in range(len(funnel.kept)) if n not in chosen})
    return parts


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
    pocket = [] if recipe.suite is None else [b.name for b in recipe.suite.benchmarks if b.name in TASKS]
    seldom = {"repaired": funnel.repaired, "figures": dict(sorted(Counter(row["figure"] for row in figures).items()))}
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
        **{name: counts for name, counts in seldom.items() if counts},
    }


_PROBLEM_COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("problem_id", "problem", "reference_answer", "source", "level", "split")]
    + [("teacher_solvable", pa.bool_()), ("base_pass_rate", pa.float64())]
)
_DEMONSTRATION_COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("problem_id", "completion", "thinking", "teacher")]
    + [("sample_index", pa.int64()), ("grade", pa.string()), ("tokens", pa.int64()), ("fits", pa.bool_())]
)


def _write_parquet(path: Path, rows: list[Any], columns: pa.Schema) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row._asdict() for row in rows], schema=columns), sink)
    write_atomic(path, sink.getvalue().to_pybytes())


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
