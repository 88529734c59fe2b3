r"""What "correct" means: extract a final answer, compare it with the reference, return an outcome.

The one grader of the project. Demonstrations, the RL reward and the math scores all call `Grader.grade`.

Extraction looks only at the text after the last `</think>`; a completion that opened `<think>` and never closed
it has no answer. Form "boxed" takes the last `\boxed{...}` with balanced braces. Form "plain" takes that box if
there is one, else what follows the last `####` or "answer is" / "answer:", else the last non-empty line.

Comparison: equal after normalising notation; plain numbers by value; references made of letters (an option, a
name, "true") as text, because an algebra system would find "a b" and "b a" equal; everything else by math-verify
in a worker process. The worker is killed and replaced when a comparison exceeds the wall-clock limit, counted
from the start of the work, so the limit also holds off the main thread and against code that ignores signals.
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
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

AnswerForm = Literal["boxed", "plain"]

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
TIMEOUT_SECONDS = 5.0  # one comparison; math-verify usually needs milliseconds
_START_SECONDS = 120.0  # importing sympy on a busy machine
_MAX_ANSWER_CHARS = 2000  # longer "answers" are text the model forgot to end
_NUMBER = re.compile(r"-?(\d+(\.\d*)?|\.\d+)(/\d+)?$")
_GROUPED_NUMBER = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?%?$")
_TEXT = re.compile(r"[A-Za-z][A-Za-z \-']*$")
_PLAIN_MARKER = re.compile(r"####|answer is|answer:", re.IGNORECASE)


class Outcome(StrEnum):
    """How the grading of one completion ended."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    GOLD_UNPARSEABLE = "gold_unparseable"
    TIMEOUT = "timeout"
    CRASH = "crash"


class Grade(NamedTuple):
    """The outcome of grading one completion and the answer that was judged."""

    outcome: Outcome
    extracted_answer: str | None

    @property
    def correct(self) -> bool:
        """Whether the completion earns the reward and counts as accurate."""
        return self.outcome is Outcome.CORRECT


def answer_text(completion: str) -> str | None:
    """The part of a completion that answers: what follows the thinking. None if the thinking never ended."""
    _, closed, tail = completion.rpartition(THINK_CLOSE)
    if closed:
        return tail
    return None if THINK_OPEN in completion else completion


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, braces balanced; None if there is none or it never closes."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    opening = text.index("{", start)
    depth = 0
    for position in range(opening, len(text)):
        # An escaped brace is a literal set brace, not a group.
        if text[position] in "{}" and text[position - 1] != "\\":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return text[opening + 1 : position]
    return None


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
        answer = (lines[0] if markers else lines[-1]) if lines else None
    answer = answer.strip() if answer is not None else None
    return answer or None


def normalise(answer: str) -> str:
    """An answer with notation that does not change its meaning removed: spacing commands, $, \\text, 1,000."""
    text = answer.strip().strip("$").strip()
    text = re.sub(r"(,\\!|\{,\})(?=\d{3})", "", text)  # LaTeX's two spellings of a thousands separator
    for command in ("\\left", "\\right", "\\!", "\\,", "\\;", "\\ ", "\\displaystyle"):
        text = text.replace(command, " " if command == "\\ " else "")
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\%", "%").replace("\\$", "$")
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox)\{([^{}]*)\}", r"\1", text)
    text = text.removesuffix(".").strip().strip("$").strip()
    # A bare comma groups digits only in a lone number: in (1,234) or {100,200} it separates.
    if _GROUPED_NUMBER.match(text):
        text = text.replace(",", "")
    return " ".join(text.split())


def _number(text: str) -> Fraction | None:
    if not _NUMBER.match(text):
        return None
    try:
        numerator, _, denominator = text.partition("/")
        return Fraction(numerator.rstrip(".") or "0") / Fraction(denominator or 1)
    except (ValueError, ZeroDivisionError):
        return None


def compare_fast(answer: str, reference: str) -> Outcome | None:
    """Outcome where notation decides it; None where algebra is needed."""
    left, right = normalise(answer), normalise(reference)
    if not right:
        return Outcome.GOLD_UNPARSEABLE
    if left == right or (left.replace(" ", "") == right.replace(" ", "") and not _TEXT.match(right)):
        return Outcome.CORRECT
    if len(left) > _MAX_ANSWER_CHARS:
        return Outcome.WRONG
    if _TEXT.match(right):
        return Outcome.CORRECT if left.strip("() ").casefold() == right.casefold() else Outcome.WRONG
    values = _number(left), _number(right)
    if values[0] is not None and values[1] is not None:
        return Outcome.CORRECT if values[0] == values[1] else Outcome.WRONG
    return None


class _Worker:
    """A process that compares answers with math-verify, one at a time; see `data/grading_worker.py`."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "data.grading_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._buffer = b""
        try:
            started = self._read(_START_SECONDS) == {"ready": True}
        except EOFError:
            started = False
        if not started:
            self.stop()
            raise RuntimeError("the grading worker did not start; run `python -m data.grading_worker` to see why")

    def _read(self, seconds: float) -> dict[str, object] | None:
        """One JSON line; None on timeout; raises EOFError if the process ended."""
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

    def ask(self, request: dict[str, str], seconds: float) -> Outcome:
        """The outcome of one request; TIMEOUT or CRASH leave the worker unusable."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            reply = self._read(seconds)
        except (EOFError, BrokenPipeError):
            return Outcome.CRASH
        return Outcome.TIMEOUT if reply is None else Outcome(str(reply["outcome"]))

    def stop(self) -> None:
        """Kill the process; it holds no state."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Grader:
    """Grades completions; starts worker processes only when a comparison needs algebra.

    Args:
        workers: worker processes, at most; comparisons beyond that wait.
        timeout_seconds: wall-clock limit of one comparison, counted from the start of the work.
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
        outcome = compare_fast(answer, reference_answer)
        if outcome is None:
            outcome = self._ask({"answer": normalise(answer), "reference": normalise(reference_answer)})
        return Grade(outcome, answer)

    def grade_many(
        self, completions: Sequence[str], reference_answers: Sequence[str], form: AnswerForm = "boxed"
    ) -> list[Grade]:
        """Grade pairs in order, using all workers."""
        if self._workers == 1:
            return [self.grade(c, reference, form) for c, reference in zip(completions, reference_answers, strict=True)]
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(self.grade, completions, reference_answers, [form] * len(completions)))

    def is_gradable(self, reference_answer: str) -> bool:
        """Whether a correct completion could be recognised: the reference is text, a number, or parses."""
        text = normalise(reference_answer)
        if not text or len(text) > _MAX_ANSWER_CHARS:
            return False
        if _TEXT.match(text) or _number(text) is not None:
            return True
        return self._ask({"reference": text}) is Outcome.CORRECT

    def _ask(self, request: dict[str, str]) -> Outcome:
        with self._slots:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            worker = worker or _Worker()
            outcome = worker.ask(request, self.timeout_seconds)
            if outcome in (Outcome.TIMEOUT, Outcome.CRASH):
                worker.stop()
            else:
                with self._lock:
                    self._idle.append(worker)
            return outcome

    def close(self) -> None:
        """Stop idle workers."""
        with self._lock:
            workers, self._idle = self._idle, []
        for worker in workers:
            worker.stop()
