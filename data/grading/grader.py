r"""Grade a completion: extract its final answer and compare it with the reference answer.

Demonstrations, the RL reward and the math scores all use `Grader`.

Extraction reads the text after the last `</think>`; a completion that opens `<think>` and never closes it has no
answer. Form "boxed" takes the last `\boxed{...}` with balanced braces. Form "plain" takes that box if there is one,
else the text after the last `####`, "answer is" or "answer:", else the last non-empty line.

Comparison: answers are equal if they are the same text without notation, or if their trees are equal (`equality.py`).
Leaves that this cannot decide (inequalities, integrals, sets given by a condition) go to math-verify in a worker
process. A worker that exceeds the wall-clock limit is killed and replaced, so the limit holds in any thread and for
code that ignores signals.
"""

import atexit
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Literal, NamedTuple

from data.grading.answer_tree import MAX_ANSWER_CHARS, UnparseableError, read_answer
from data.grading.equality import Algebra, is_readable_reference, same
from data.grading.notation import plain
from data.grading.words import split_option
from data.prompts.thinking import answer_text

AnswerForm = Literal["boxed", "plain"]

TIMEOUT_SECONDS = 5.0  # of one comparison; math-verify usually needs milliseconds
_REFERENCE_SECONDS = 60.0  # to parse one reference; generous, because a timeout on a busy machine would drop the row
_START_SECONDS = 120.0  # importing sympy on a busy machine
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?=\S)")
_OPTION = re.compile(r"\(?([A-Z])(?:[).:,]|\s*$)")
_PLAIN_MARKER = re.compile(r"####|answer is|answer:", re.IGNORECASE)


class Outcome(StrEnum):
    """Result of grading one completion."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    GOLD_UNPARSEABLE = "gold_unparseable"
    TIMEOUT = "timeout"
    CRASH = "crash"


class Grade(NamedTuple):
    """The outcome for one completion and the answer that was extracted from it."""

    outcome: Outcome
    extracted_answer: str | None

    @property
    def correct(self) -> bool:
        """Whether the outcome is `CORRECT`."""
        return self.outcome is Outcome.CORRECT


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, braces balanced; None if there is none or it never closes."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    opening = boxes[-1].end()
    if text[opening] != "{":  # TeX takes the next character or command: \boxed 7
        argument = re.match(r"\d+(?:\.\d+)?|\\[A-Za-z]+|[^\s{}]", text[opening:])
        return argument.group() if argument else None
    depth = 0
    for position in range(opening, len(text)):
        # `\\{` is a literal set brace, not a group; `\\\\{` is an escaped backslash and a group.
        if text[position] in "{}" and not _escaped(text, position):
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return text[opening + 1 : position]
    return None


def _escaped(text: str, position: int) -> bool:
    backslashes = 0
    while position - backslashes > 0 and text[position - backslashes - 1] == "\\":
        backslashes += 1
    return backslashes % 2 == 1


def extract_answer(completion: str, form: AnswerForm = "boxed") -> str | None:
    """The final answer of a completion, or None. See the module docstring for the two forms."""
    text = answer_text(completion)
    if text is None:
        return None
    answer = last_boxed(text)
    if answer is None and form == "plain" and "\\boxed" not in text:
        markers = list(_PLAIN_MARKER.finditer(text))
        rest = text[markers[-1].end() :] if markers else text
        lines = [line.strip() for line in rest.strip().splitlines() if line.strip()]
        answer = _plain_value(lines[0] if markers else lines[-1]) if lines else None
    answer = answer.strip() if answer is not None else None
    return answer or None


def _plain_value(line: str) -> str:
    """The answer at the start of a line: an option letter, a formula in dollars, or the line without bold marks."""
    line = line.replace("**", "").replace("</answer>", "").strip("*_ ")
    if option := _OPTION.match(line):
        return option.group(1)
    formula = re.match(r"\$([^$]+)\$", line)
    return formula.group(1) if formula else line


def compare(answer: str, reference: str, algebra: Algebra) -> Outcome:
    """Outcome of an extracted answer. Exceptions of `algebra` pass through."""
    if len(answer) > MAX_ANSWER_CHARS:
        return Outcome.WRONG if _is_parseable(reference) else Outcome.GOLD_UNPARSEABLE
    if plain(answer) == plain(reference):
        return Outcome.CORRECT if _is_parseable(reference) else Outcome.GOLD_UNPARSEABLE
    try:
        gold = read_answer(reference)
    except UnparseableError:
        return Outcome.GOLD_UNPARSEABLE
    option, other = split_option(plain(answer)), split_option(plain(reference))
    if option or other:
        return _compare_option(answer, option, reference, other, algebra)
    try:
        if same(read_answer(answer), gold, algebra):
            return Outcome.CORRECT
        # 100,200 may be one number or two; the answers are equal if they agree in either reading.
        ungrouped = read_answer(answer, grouped=False), read_answer(reference, grouped=False)
        ambiguous = ungrouped != (read_answer(answer), gold)
        return Outcome.CORRECT if ambiguous and same(*ungrouped, algebra) else Outcome.WRONG
    except (UnparseableError, RecursionError):
        return Outcome.WRONG


def _compare_option(
    answer: str, option: tuple[str, str] | None, reference: str, other: tuple[str, str] | None, algebra: Algebra
) -> Outcome:
    """Two options such as `(B) 12` are equal if their letters are; a side without a letter may be either part."""
    if option and other:
        return Outcome.CORRECT if option[0] == other[0] else Outcome.WRONG
    if other:
        outcomes = [compare(answer, text, algebra) for text in other]
    else:
        assert option is not None
        outcomes = [compare(text, reference, algebra) for text in option]
    return Outcome.CORRECT if Outcome.CORRECT in outcomes else Outcome.WRONG


def _is_parseable(reference: str) -> bool:
    try:
        read_answer(reference)
    except UnparseableError:
        return False
    return True


class _AlgebraFailedError(Exception):
    """The algebra system timed out or crashed; ends a comparison with that outcome."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


class _NeedsAlgebraError(Exception):
    """A comparison needs a worker process."""


def _needs_algebra(left: str, right: str) -> bool:
    raise _NeedsAlgebraError


class _Clock:
    """Wall-clock limit of one comparison, however many questions it has for the algebra system.

    It starts with the first question that reaches a worker: waiting for a free worker does not count.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._deadline: float | None = None

    def seconds_left(self) -> float:
        """Seconds until the limit; the first call starts the clock."""
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._limit_seconds
        return self._deadline - now


class _Worker:
    """A process that compares answers with math-verify, one at a time; see `data/grading/worker.py`."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "data.grading.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._buffer = b""
        self.usable = True
        try:
            started = self._read(_START_SECONDS) == {"ready": True}
        except EOFError:
            started = False
        if not started:
            self.stop()
            raise RuntimeError("the grading worker did not start; run `python -m data.grading.worker` to see why")

    def _read(self, seconds: float) -> dict[str, object] | None:
        """The next line as JSON; None after a timeout. Raises EOFError if the process has ended."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return dict(json.loads(line))

    def send(self, request: dict[str, str], seconds: float) -> Outcome:
        """The outcome of one request. If `usable` is False afterwards, the worker must be stopped."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            reply = self._read(seconds)
        except (EOFError, OSError):
            self.usable = False
            return Outcome.CRASH
        self.usable = reply is not None
        return Outcome.TIMEOUT if reply is None else Outcome(str(reply["outcome"]))

    def stop(self) -> None:
        """Kill the process; it holds no state."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # unread requests of a killed worker
                    pipe.close()


class Grader:
    """Grades completions. Worker processes start when a comparison first needs algebra.

    Args:
        workers: most worker processes at the same time.
        timeout_seconds: wall-clock limit of one comparison in a worker, without the wait for a free worker.
    """

    def __init__(self, workers: int = 1, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.timeout_seconds = timeout_seconds
        self._slots = threading.Semaphore(workers)
        self._workers = workers
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        atexit.register(self.close)

    def grade(self, completion: str, reference_answer: str, form: AnswerForm = "boxed") -> Grade:
        """Grade one completion against its reference answer."""
        answer = extract_answer(completion, form)
        if answer is None:
            return Grade(Outcome.NO_ANSWER, None)
        return Grade(self._compare(answer, reference_answer), answer)

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
        hard = []
        for answer, reference in pairs:
            if answer is None:
                outcomes[answer, reference] = Outcome.NO_ANSWER
                continue
            try:
                outcomes[answer, reference] = compare(answer, reference, _needs_algebra)
            except _NeedsAlgebraError:
                hard.append((answer, reference))
        if hard:
            with ThreadPoolExecutor(self._workers) as pool:
                deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
                compared = pool.map(lambda pair: self._compare_before(deadline, *pair), hard)
                outcomes.update(zip(hard, compared, strict=True))
        return [Grade(outcomes[pair], pair[0]) for pair in zip(answers, reference_answers, strict=True)]

    def are_gradable(self, reference_answers: Sequence[str]) -> list[bool]:
        """For each reference answer, whether a completion can be graded against it."""
        known: dict[str, bool | None] = {}
        for reference in dict.fromkeys(reference_answers):
            try:
                known[reference] = is_readable_reference(reference)
            except UnparseableError:
                known[reference] = False
        hard = [reference for reference, readable in known.items() if readable is None]
        if hard:
            with ThreadPoolExecutor(self._workers) as pool:
                known.update(zip(hard, pool.map(self._parses, hard), strict=True))
        return [bool(known[reference]) for reference in reference_answers]

    def _parses(self, reference: str) -> bool:
        """Whether the algebra system can parse a reference answer."""
        return self._ask({"reference": plain(reference)}, _Clock(_REFERENCE_SECONDS)) is Outcome.CORRECT

    def _compare_before(self, deadline: float | None, answer: str, reference: str) -> Outcome:
        if deadline is not None and time.monotonic() > deadline:
            return Outcome.TIMEOUT
        return self._compare(answer, reference)

    def _compare(self, answer: str, reference: str) -> Outcome:
        clock = _Clock(self.timeout_seconds)

        def algebra(left: str, right: str) -> bool:
            outcome = self._ask({"answer": left, "reference": right}, clock)
            if outcome in (Outcome.TIMEOUT, Outcome.CRASH):
                raise _AlgebraFailedError(outcome)
            return outcome is Outcome.CORRECT

        try:
            return compare(answer, reference, algebra)
        except _AlgebraFailedError as error:
            return error.outcome

    def _ask(self, request: dict[str, str], clock: _Clock) -> Outcome:
        """Send a request to a free worker, waiting for one if necessary."""
        with self._slots:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            worker = worker or _Worker()
            outcome = worker.send(request, clock.seconds_left())
            if worker.usable:
                with self._lock:
                    self._idle.append(worker)
            else:
                worker.stop()
            return outcome

    def close(self) -> None:
        """Stop idle workers."""
        with self._lock:
            workers, self._idle = self._idle, []
        for worker in workers:
            worker.stop()
