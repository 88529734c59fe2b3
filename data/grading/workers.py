"""Worker processes that compare answers with math-verify, and the pool of them.

A worker that exceeds the limit is killed and replaced, so the limit holds in any thread and for code that ignores
signals.
"""

import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from data.grading.clock import seconds_left, waited
from data.grading.outcome import Outcome

_START_SECONDS = 120.0  # importing sympy on a busy machine


class Worker:
    """A process that compares answers with math-verify, one at a time; see `data/grading/worker.py`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "data.grading.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self.usable = True
        if self._line(_START_SECONDS) != "ready\n":
            self.stop()
            raise RuntimeError("the grading worker did not start; run `python -m data.grading.worker` to see why")

    def _line(self, seconds: float) -> str | None:
        """The next line, which is written at once; empty if the process has ended, None after a timeout."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, seconds))
        return self.process.stdout.readline() if ready else None

    def compare(self, answer: str, reference: str, seconds: float) -> Outcome:
        """The outcome of one pair. If `usable` is False afterwards, the worker must be stopped."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([answer, reference]) + "\n")
            self.process.stdin.flush()
            line = self._line(seconds)
        except OSError:
            line = ""
        self.usable = bool(line)
        return Outcome.TIMEOUT if line is None else Outcome(line.strip() or Outcome.CRASH)

    def stop(self) -> None:
        """Kill the process; it holds no state."""
        self.process.kill()
        self.process.communicate()


class Workers:
    """At most `count` workers, each started when it is first needed.

    Args:
        count: most worker processes at the same time.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.idle: list[Worker] = []
        self._slots = threading.Semaphore(count)

    def ask(self, answer: str, reference: str) -> Outcome:
        """The outcome of a pair, from a free worker. The wait for one, or for its start, is not counted."""
        begun = time.monotonic()
        with self._slots:
            try:
                worker = self.idle.pop()
            except IndexError:
                worker = Worker()
            waited(time.monotonic() - begun)
            outcome = worker.compare(answer, reference, seconds_left())
            if worker.usable:
                self.idle.append(worker)
            else:
                worker.stop()
            return outcome

    def close(self) -> None:
        """Stop idle workers."""
        workers, self.idle = self.idle, []
        for worker in workers:
            worker.stop()
