r"""Grade a completion: extract its final answer and compare it with the reference answer.

Demonstrations, the RL reward and the math scores all use `Grader`. The policy is in docs/grading.md.

Extraction is `extraction.py`. Answers are equal if their trees are (`reading.py`, `equality.py`). Integrals, limits and
infinite sums go to math-verify in a worker process (`workers.py`). Every comparison has one limit of time for both.
"""

import atexit
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from data.grading.clock import OutOfTimeError, limited
from data.grading.equality import Algebra, Comparison, Note, ignore
from data.grading.extraction import AnswerForm, extract_answer, last_boxed
from data.grading.notation import plain
from data.grading.outcome import Grade, Outcome
from data.grading.policy import DEFAULT, Policy
from data.grading.reading import MAX_ANSWER_CHARS, UnparseableError, read_answer
from data.grading.tree import Node
from data.grading.values import is_number
from data.grading.words import split_option
from data.grading.workers import Workers

TIMEOUT_SECONDS = 5.0  # of one comparison; most need less than a millisecond


def compare(answer: str, reference: str, algebra: Algebra, policy: Policy = DEFAULT, note: Note = ignore) -> Outcome:
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
    if option and other:
        note("letters of options")
        if option[0] != other[0]:
            return Outcome.WRONG
        # (B) 8 is not (B) 7, but of texts the letters decide.
        numbers = is_number(option[1]) and is_number(other[1])
        return compare(option[1], other[1], algebra, policy, note) if numbers else Outcome.CORRECT
    if option or other:
        pairs = [(answer, text) for text in other] if other else [(text, reference) for text in option or ()]
        outcomes = [compare(*pair, algebra, policy, note) for pair in pairs]
        note("an option's letter or its text")
        return Outcome.CORRECT if Outcome.CORRECT in outcomes else Outcome.WRONG
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
    except RecursionError:
        note("nested too deeply")
    return Outcome.WRONG


def _unboxed(text: str) -> str:
    """A reference or answer that is itself a box, as some corpora store it."""
    bare = text.strip().strip("$").strip()
    inner = last_boxed(bare) if bare.startswith(("\\boxed", "\\fbox")) and bare.endswith("}") else None
    return inner if inner is not None and bare.count("\\boxed") == 1 + inner.count("\\boxed") else text


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
        return Grade(self._compare(answer, reference_answer, self._algebra), answer)

    def explain(self, completion: str, reference_answer: str, form: AnswerForm = "boxed") -> Explanation:
        """Grade one completion, and tell what was extracted, how both sides were read, and by which rules."""
        answer = extract_answer(completion, form)
        rules: list[str] = []
        outcome = self._compare(answer, reference_answer, self._algebra, rules.append)
        trees = [_tree_or_reason(text, self.timeout_seconds) for text in (answer or "", reference_answer)]
        return Explanation(Grade(outcome, answer), trees[0], trees[1], tuple(reversed(dict.fromkeys(reversed(rules)))))

    def grade_many(
        self,
        completions: Sequence[str],
        reference_answers: Sequence[str],
        form: AnswerForm = "boxed",
        limit_seconds: float = math.inf,
    ) -> list[Grade]:
        """Grade pairs in order. Equal pairs of answer and reference are compared once; algebra uses all workers.

        Args:
            completions: texts to grade.
            reference_answers: one for each completion.
            form: how the final answer is extracted.
            limit_seconds: limit for all comparisons together; those not started by then time out.
        """
        deadline = time.monotonic() + limit_seconds

        def compared(pair: tuple[str | None, str], algebra: Algebra) -> Outcome:
            late = pair[0] is not None and time.monotonic() > deadline
            return Outcome.TIMEOUT if late else self._compare(*pair, algebra)

        pairs = [(extract_answer(text, form), gold) for text, gold in zip(completions, reference_answers, strict=True)]
        outcomes: dict[tuple[str | None, str], Outcome] = {}
        hard = []
        for pair in dict.fromkeys(pairs):
            try:
                outcomes[pair] = compared(pair, _needs_algebra)
            except _NeedsAlgebraError:
                hard.append(pair)
        with ThreadPoolExecutor(self._workers.count) as pool:
            outcomes.update(zip(hard, pool.map(lambda pair: compared(pair, self._algebra), hard), strict=True))
        return [Grade(outcomes[pair], pair[0]) for pair in pairs]

    def are_gradable(self, reference_answers: Sequence[str]) -> list[bool]:
        """For each reference answer, whether a completion can be graded against it."""
        return [not isinstance(_tree_or_reason(text, self.timeout_seconds), str) for text in reference_answers]

    def _compare(self, answer: str | None, reference: str, algebra: Algebra, note: Note = ignore) -> Outcome:
        if answer is None:
            return Outcome.NO_ANSWER
        try:
            with limited(self.timeout_seconds):
                return compare(answer, reference, algebra, self.policy, note)
        except OutOfTimeError:
            return Outcome.TIMEOUT
        except _AlgebraFailedError as error:
            return error.outcome

    def _algebra(self, left: str, right: str) -> bool:
        outcome = self._workers.ask(left, right)
        if outcome in (Outcome.TIMEOUT, Outcome.CRASH):
            raise _AlgebraFailedError(outcome)
        return outcome is Outcome.CORRECT

    def close(self) -> None:
        """Stop idle workers."""
        self._workers.close()


def _tree_or_reason(text: str, seconds: float) -> Node | str:
    try:
        with limited(seconds):
            return read_answer(_unboxed(text))
    except (UnparseableError, OutOfTimeError) as error:
        return str(error) or "not read within the limit of time"
