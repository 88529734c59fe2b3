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
from contextlib import suppress
from pathlib import Path

from data.grading.clock import Clock
from data.grading.outcome import Outcome

_START_SECONDS = 120.0  # importing sympy on a busy machine


class Worker:
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


class Workers:
    """At most `count` workers, each started when it is first needed.

    Args:
        count: most worker processes at the same time.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.idle: list[Worker] = []
        self._slots = threading.Semaphore(count)
        self._lock = threading.Lock()

    def ask(self, request: dict[str, str], clock: Clock) -> Outcome:
        """The outcome of a request, from a free worker. The wait for one, or for its start, is not counted."""
        begun = time.monotonic()
        with self._slots:
            with self._lock:
                worker = self.idle.pop() if self.idle else None
            worker = worker or Worker()
            clock.waited(time.monotonic() - begun)
            outcome = worker.send(request, clock.seconds_left())
            if worker.usable:
                with self._lock:
                    self.idle.append(worker)
            else:
                worker.stop()
            return outcome

    def close(self) -> None:
        """Stop idle workers."""
        with self._lock:
            workers, self.idle = self.idle, []
        for worker in workers:
            worker.stop()
