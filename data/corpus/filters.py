"""The filters of the corpus that need no model: from the rows of all sources to the problems of a study.

The stage `corpus` and `transfer validate` apply them alike.
"""

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from data.corpus.funnel import WITHHELD, Funnel, Reason
from data.corpus.rows import problem_id
from data.corpus.sources import RawRow, read_benchmark, read_source
from data.corpus.text_match import BenchmarkIndex, Contamination, jaccard, near_duplicates, shingles, words
from data.corpus.values import figure_mark, is_non_answer
from data.grading.grader import Grader
from data.pocket_world import TASKS, benchmark_questions
from data.prompts.prompt import control_tokens, render_prompt
from recipes.errors import UserError
from recipes.schema import Recipe
from recipes.training_schema import PromptSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.prompts.prompt import AnyTokenizer


_SHOWN_CHARS = 60  # of a benchmark's question
FILTER_STEPS = ("read", "reference answers", "duplicates", "decontamination", "length")


def apply_filters(
    funnel: Funnel,
    recipe: Recipe,
    grader: Grader,
    tokenizer: "PreTrainedTokenizerBase | None",
    done: Callable[[str], None] = lambda name: None,
) -> list[dict[str, Any]]:
    """Read all sources into an empty funnel and drop what cannot be a problem.

    Without `tokenizer` lengths are not looked at. `done` is called after each of `FILTER_STEPS`.

    Returns:
        The problems that are close to a benchmark question, each with that question.

    Raises:
        UserError: a source or benchmark cannot be read.
    """
    spec, locks = recipe.corpus, recipe.lock.get("sources", {})

    # Rows of all sources.
    funnel.take([row for source in spec.sources for row in read_source(source, spec.seed, locks.get(source.name))])
    if spec.figures == "reject":
        marks = ((n, figure_mark(row.problem)) for n, row in enumerate(funnel.kept))
        funnel.drop("figures", {n: ("needs_figure", mark) for n, mark in marks if mark is not None})
    done("read")

    # References the grader can compare with.
    golds = [row.reference_answer for row in funnel.kept]
    gradable = grader.are_gradable(golds)
    unusable = {n: "gold_unparseable" for n, good in enumerate(gradable) if not good}
    unusable |= {n: "gold_placeholder" for n, gold in enumerate(golds) if is_non_answer(gold)}
    funnel.drop("reference answer", {n: (reason, repr(golds[n])) for n, reason in unusable.items()})
    done("reference answers")

    # Duplicates, exact and near.
    _drop_exact_duplicates(funnel, grader)
    if spec.near_duplicate is not None:
        _drop_near_duplicates(funnel, grader, spec.near_duplicate)
    done("duplicates")

    # Benchmark questions.
    contamination = _drop_contaminated(funnel, recipe)
    done("decontamination")

    # Length, with the tokenizer and template every arm uses.
    if tokenizer is not None:
        _drop_by_tokens(funnel, recipe, tokenizer)
    done("length")
    return contamination


def _drop_exact_duplicates(funnel: Funnel, grader: Grader) -> None:
    """Keep the first of equal texts; if their reference answers contradict each other, none can be trusted."""
    copies: dict[str, list[int]] = {}
    for index, row in enumerate(funnel.kept):
        copies.setdefault(problem_id(row.problem), []).append(index)
    repeated = [indices for indices in copies.values() if len(indices) > 1]
    agree = _agreeing(funnel, grader, [(later, indices[0]) for indices in repeated for later in indices[1:]])
    reasons: dict[int, Reason] = {}
    for indices in repeated:
        if other := [later for later in indices[1:] if (later, indices[0]) not in agree]:
            reasons |= dict.fromkeys(indices, ("conflicting_reference", _conflict(funnel, indices, other[0])))
        else:
            reasons |= dict.fromkeys(indices[1:], ("duplicate", None))
    funnel.drop("exact duplicates", reasons)


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
    answers = [row.reference_answer for row in funnel.kept]
    found = near_duplicates([row.text.compared for row in funnel.kept], threshold, answers)
    pairs = [pair for pair in found if _also_whole(funnel.kept[pair[0]], funnel.kept[pair[1]], threshold)]
    agree = _agreeing(funnel, grader, [(later, earlier) for later, earlier, _ in pairs])
    reasons: dict[int, Reason] = {}
    for later, earlier, similarity in pairs:
        if (later, earlier) in agree and earlier not in reasons:
            reasons[later] = "near_duplicate", f"similarity {similarity:.2f} to {funnel.kept[earlier].at}"
    funnel.drop("near-duplicates", reasons)


def _also_whole(later: RawRow, earlier: RawRow, threshold: float) -> bool:
    """Whether whole problems are alike too, where a template prints so little that its own text is the question."""
    if not (later.text.is_little or earlier.text.is_little):
        return True
    return jaccard(shingles(words(later.problem)), shingles(words(earlier.problem))) >= threshold


def _agreeing(funnel: Funnel, grader: Grader, pairs: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """The pairs of rows whose reference answers are the same, read either way: 10 is right where 10\\% is asked."""
    golds = [row.reference_answer for row in funnel.kept]
    both_ways = [*pairs, *((first, later) for later, first in pairs)]
    grades = grader.grade_many(
        [f"\\boxed{{{golds[left]}}}" for left, _ in both_ways], [golds[right] for _, right in both_ways]
    )
    correct = [grade.correct for grade in grades]
    return {pair for index, pair in enumerate(pairs) if correct[index] or correct[index + len(pairs)]}


def _drop_contaminated(funnel: Funnel, recipe: Recipe) -> list[dict[str, Any]]:
    """Drop problems that are close to a benchmark question; each with that question, for a person to read."""
    spec, locks = recipe.corpus.decontamination, recipe.lock.get("sources", {})
    benchmarks = {item.name: read_benchmark(item, locks.get(item.name)) for item in spec.benchmarks}
    restricted = {item.name for item in spec.benchmarks if item.restricted}
    index = BenchmarkIndex(benchmarks, spec.ngram_words)
    world = _world_questions(recipe)
    overlaps: dict[int, dict[str, Any]] = {}
    for position, row in enumerate(funnel.kept):
        identity = problem_id(row.problem)
        # Questions of the synthetic world are a few numbers in a fixed wording: only equal ones are the same.
        if identity in world:
            match, question = Contamination(world[identity], 0, 1.0, 1.0), row.problem
        elif row.question is None and (found := index.find(row.text, spec.coverage, spec.similarity)):
            match, question = found, benchmarks[found.benchmark][found.question].whole
        else:
            continue
        # A near-copy in the corpus would give a restricted question away as well.
        secret = match.benchmark in restricted
        overlaps[position] = {
            "problem_id": identity,
            "source": row.source,
            "benchmark": match.benchmark,
            "coverage": match.coverage,
            "similarity": match.similarity,
            "problem": WITHHELD if secret else row.problem,
            "question": f"question {match.question}, not copied" if secret else question,
        }
    if restricted:  # what earlier filters removed may be close to a question too
        closed = BenchmarkIndex({name: benchmarks[name] for name in restricted}, spec.ngram_words)
        funnel.withhold(lambda text: closed.find(text, spec.coverage, spec.similarity) is not None)
    withheld = {position for position, overlap in overlaps.items() if overlap["problem"] == WITHHELD}
    reasons: dict[int, Reason] = {}
    for position, overlap in overlaps.items():
        shown = "" if overlap["problem"] == WITHHELD else f": {overlap['question'][:_SHOWN_CHARS]!r}"
        alike = f"similarity {overlap['similarity']:.2f}, coverage {overlap['coverage']:.2f}"
        reasons[position] = "benchmark_overlap", f"like a question of {overlap['benchmark']} ({alike}){shown}"
    funnel.drop("benchmark questions", reasons, withheld)
    return [*overlaps.values()]


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
    control, limit = control_tokens(tokenizer), recipe.prompt.max_prompt_tokens
    funnel.prompt_tokens = prompt_lengths(tokenizer, [row.problem for row in funnel.kept], recipe.prompt)
    reasons: dict[int, Reason] = {}
    for n, (row, tokens) in enumerate(zip(funnel.kept, funnel.prompt_tokens, strict=True)):
        if any(token in row.problem for token in control):
            reasons[n] = "control_token", None
        elif tokens > limit:
            reasons[n] = "too_long", f"{tokens} tokens, prompt.max_prompt_tokens is {limit}"
    funnel.drop("length", reasons)


def prompt_lengths(tokenizer: "AnyTokenizer", problems: Sequence[str], prompt: PromptSpec) -> list[int]:
    """Tokens of each problem's prompt, rendered as for every arm."""
    lengths: list[int] = []
    for start in range(0, len(problems), 1000):  # a batch at a time: token lists are larger than texts
        prompts = [render_prompt(tokenizer, problem, prompt) for problem in problems[start : start + 1000]]
        lengths += map(len, tokenizer(prompts)["input_ids"])
    return lengths


def split_problems(funnel: Funnel, recipe: Recipe, where: str = "") -> tuple[list[RawRow], list[RawRow]]:
    """Held-out and training rows; seeded, and the source's own split is respected.

    Raises:
        UserError: too few rows are left; it says what removed most of the others. `where`: where they are listed.
    """
    spec = recipe.corpus
    shuffled = sorted(range(len(funnel.kept)), key=lambda index: problem_id(funnel.kept[index].problem))
    random.Random(f"split {spec.seed}").shuffle(shuffled)
    heldout = [n for n in shuffled if funnel.kept[n].heldout is not False][: spec.heldout_problems]
    removed = f"{funnel.losses_text()}{where}"
    if len(heldout) < spec.heldout_problems:
        raise UserError(
            f"corpus.heldout_problems is {spec.heldout_problems} but only {len(heldout)} problems are available for "
            f"it; {removed}"
        )
    taken = set(heldout)
    available = [n for n in shuffled if n not in taken and not funnel.kept[n].heldout]
    if not available:
        raise UserError(f"no problem is left for training; {removed}")
    count = spec.train_problems or len(available)
    if count > len(available):
        raise UserError(
            f"corpus.train_problems is {count} but only {len(available)} are left to train on: {len(funnel.kept)} "
            f"passed the filters and {len(funnel.kept) - len(available)} are held out; {removed}; lower "
            f"corpus.train_problems{' or corpus.heldout_problems' if heldout else ''}, or add problems"
        )
    train = available[:count]
    rows = [funnel.kept[n] for n in heldout], [funnel.kept[n] for n in train]
    left_over = {*range(len(funnel.kept))} - taken - {*train}
    funnel.drop("sampling", dict.fromkeys(left_over, ("not_sampled", None)))
    return rows
