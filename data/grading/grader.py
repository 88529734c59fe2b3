r"""Grade a completion: extract its final answer and compare it with the reference answer.

Demonstrations, the RL reward and the math scores all use `Grader`. The policy is in docs/grading.md.

Extraction is `extraction.py`. Answers are equal if their trees are (`reading.py`, `equality.py`). Integrals, limits and
infinite sums go to math-verify in a worker process (`workers.py`). Every comparison has one limit of time for both.
"""

import atexit
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from data.grading.clock import Clock, OutOfTimeError, limited
from data.grading.equality import Algebra, Comparison
from data.grading.extraction import AnswerForm, extract_answer, last_boxed
from data.grading.notation import plain
from data.grading.outcome import Grade, Outcome
from data.grading.policy import DEFAULT, Policy
from data.grading.reading import MAX_ANSWER_CHARS, UnparseableError, read_answer
from data.grading.tree import Node
from data.grading.values import is_number
from data.grading.words import split_option
from data.grading.workers import Workers

__all__ = [
    "AnswerForm",
    "Explanation",
    "Grade",
    "Grader",
    "Outcome",
    "Policy",
    "compare",
    "extract_answer",
    "last_boxed",
]

TIMEOUT_SECONDS = 5.0  # of one comparison; most need less than a millisecond


def compare(
    answer: str,
    reference: str,
    algebra: Algebra,
    policy: Policy = DEFAULT,
    note: Callable[[str], None] = lambda rule: None,
) -> Outcome:
    """Outcome of an extracted answer. Exceptions of `algebra` and of the clock pass through.

    Args:
        answer: the extracted answer.
        reference: the reference answer.
        algebra: compares what needs an algebra system.
        policy: the switches.
        note: called with every rule that is applied; the last one decided.
    """
    reference = _unboxed(reference)
    try:
        gold = read_answer(reference)
    except UnparseableError:
        return Outcome.GOLD_UNPARSEABLE
    if len(answer) > MAX_ANSWER_CHARS:
        note("too long for an answer")
        return Outcome.WRONG
    answer = _unboxed(answer)
    option, other = split_option(plain(answer)), split_option(plain(reference))
    if option or other:
        return _compare_option(
            answer, option, reference, other, lambda a, b: compare(a, b, algebra, policy, note), note
        )
    comparison = Comparison(algebra, policy, note)
    try:
        tree = read_answer(answer)
        if comparison.same(tree, gold):
            return Outcome.CORRECT
        # 100,200 may be one number or two; the answers are equal if they agree in either reading.
        ungrouped = read_answer(answer, grouped=False), read_answer(reference, grouped=False)
        ambiguous = ungrouped != (tree, gold)
        return Outcome.CORRECT if ambiguous and comparison.same(*ungrouped) else Outcome.WRONG
    except UnparseableError as error:
        note(f"the answer is not readable: {error}")
        return Outcome.WRONG
    except RecursionError:
        note("nested too deeply")
        return Outcome.WRONG


def _unboxed(text: str) -> str:
    """A reference or answer that is itself a box, as some corpora store it."""
    bare = text.strip().strip("$").strip()
    inner = last_boxed(bare) if bare.startswith(("\\boxed", "\\fbox")) and bare.endswith("}") else None
    return inner if inner is not None and bare.count("\\boxed") == 1 + inner.count("\\boxed") else text


def _compare_option(
    answer: str,
    option: tuple[str, str] | None,
    reference: str,
    other: tuple[str, str] | None,
    compare: Callable[[str, str], Outcome],
    note: Callable[[str], None],
) -> Outcome:
    """Two options such as `(B) 12` are equal if their letters are; a side without a letter may be either part."""
    if option and other:
        note("letters of options")
        if option[0] == other[0] and is_number(option[1]) and is_number(other[1]):
            return compare(option[1], other[1])  # (B) 8 is not (B) 7
        return Outcome.CORRECT if option[0] == other[0] else Outcome.WRONG
    if other:
        outcomes = [compare(answer, text) for text in other]
    else:
        assert option is not None
        outcomes = [compare(text, reference) for text in option]
    note("an option's letter or its text")
    return Outcome.CORRECT if Outcome.CORRECT in outcomes else Outcome.WRONG


class Explanation(NamedTuple):
    """How a grade came about."""

    grade: Grade
    answer: Node | str
    """The tree of the answer; a sentence if it is not readable."""
    reference: Node | str
    rules: tuple[str, ...]
    """The rules that were applied, in order; the last one decided."""


class _AlgebraFailedError(Exception):
    """The algebra system timed out or crashed; ends a comparison with that outcome."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


class _NeedsAlgebraError(Exception):
    """A comparison needs a worker process."""


def _needs_algebra(left: str, right: str) -> bool:
    raise _NeedsAlgebraError


class Grader:
    """Grades completions. Worker processes start when a comparison first needs algebra.

    Args:
        workers: most worker processes at the same time.
        timeout_seconds: wall-clock limit of one comparison, without the wait for a free worker.
        policy: the switches.
    """

    def __init__(self, workers: int = 1, timeout_seconds: float = TIMEOUT_SECONDS, policy: Policy = DEFAULT) -> None:
        self.timeout_seconds = timeout_seconds
        self.policy = policy
        self._workers = Workers(workers)
        atexit.register(self.close)

    def grade(self, completion: str, reference_answer: str, form: AnswerForm = "boxed") -> Grade:
        """Grade one completion against its reference answer."""
        answer = extract_answer(completion, form)
        if answer is None:
            return Grade(Outcome.NO_ANSWER, None)
        return Grade(self._compare(answer, reference_answer), answer)

    def explain(self, completion: str, reference_answer: str, form: AnswerForm = "boxed") -> Explanation:
        """Grade one completion, and tell what was extracted, how both sides were read, and by which rules."""
        answer = extract_answer(completion, form)
        rules: list[str] = []
        outcome = Outcome.NO_ANSWER if answer is None else self._compare(answer, reference_answer, rules.append)
        trees = [_tree_or_reason(text, self.timeout_seconds) for text in (answer or "", reference_answer)]
        return Explanation(Grade(outcome, answer), trees[0], trees[1], tuple(reversed(dict.fromkeys(reversed(rules)))))

    def grade_many(
        self,
        completions: Sequence[str],
        reference_answers: Sequence[str],
        form: AnswerForm = "boxed",
        limit_seconds: float | None = None,
    ) -> list[Grade]:
        """Grade pairs in order. Equal pairs of answer and reference are compared once; algebra uses all workers.

        Args:
            completions: texts to grade.
            reference_answers: one for each completion.
            form: how the final answer is extracted.
            limit_seconds: limit for all comparisons together; those not started by then time out. None: no limit.
        """
        answers = [extract_answer(completion, form) for completion in completions]
        pairs = dict.fromkeys(zip(answers, reference_answers, strict=True))
        outcomes: dict[tuple[str | None, str], Outcome] = {}
        deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
        hard = []
        for answer, reference in pairs:
            if answer is None:
                outcomes[answer, reference] = Outcome.NO_ANSWER
                continue
            if deadline is not None and time.monotonic() > deadline:
                outcomes[answer, reference] = Outcome.TIMEOUT
                continue
            try:
                outcomes[answer, reference] = self._limited(
                    Clock(self.timeout_seconds), answer, reference, _needs_algebra
                )
            except _NeedsAlgebraError:
                hard.append((answer, reference))
        if hard:
            with ThreadPoolExecutor(self._workers.count) as pool:
                compared = pool.map(lambda pair: self._compare_before(deadline, *pair), hard)
                outcomes.update(zip(hard, compared, strict=True))
        return [Grade(outcomes[pair], pair[0]) for pair in zip(answers, reference_answers, strict=True)]

    def are_gradable(self, reference_answers: Sequence[str]) -> list[bool]:
        """For each reference answer, whether a completion can be graded against it."""
        return [not isinstance(_tree_or_reason(text, self.timeout_seconds), str) for text in reference_answers]

    def _compare_before(self, deadline: float | None, answer: str, reference: str) -> Outcome:
        if deadline is not None and time.monotonic() > deadline:
            return Outcome.TIMEOUT
        return self._compare(answer, reference)

    def _compare(self, answer: str, reference: str, note: Callable[[str], None] = lambda rule: None) -> Outcome:
        clock = Clock(self.timeout_seconds)

        def algebra(left: str, right: str) -> bool:
            outcome = self._workers.ask({"answer": left, "reference": right}, clock)
            if outcome in (Outcome.TIMEOUT, Outcome.CRASH):
                raise _AlgebraFailedError(outcome)
            return outcome is Outcome.CORRECT

        try:
            return self._limited(clock, answer, reference, algebra, note)
        except _AlgebraFailedError as error:
            return error.outcome

    def _limited(
        self,
        clock: Clock,
        answer: str,
        reference: str,
        algebra: Algebra,
        note: Callable[[str], None] = lambda rule: None,
    ) -> Outcome:
        try:
            with limited(clock):
                return compare(answer, reference, algebra, self.policy, note)
        except OutOfTimeError:
            return Outcome.TIMEOUT

    def close(self) -> None:
        """Stop idle workers."""
        self._workers.close()


def _tree_or_reason(text: str, seconds: float) -> Node | str:
    try:
        with limited(Clock(seconds)):
            return read_answer(_unboxed(text))
    except (UnparseableError, OutOfTimeError) as error:
        return str(error) or "not read within the limit of time"
