"""The time limit of one comparison, in this process as well as in a worker.

Python cannot interrupt a thread, so the readers and the arithmetic ask the clock as they go (`check`), and every single
operation between two checks is bounded in size. Waiting for a free worker does not count.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_current = threading.local()


class OutOfTimeError(Exception):
    """The comparison has used up its time."""


class Clock:
    """Wall-clock limit of one comparison, however many questions it has for the algebra system."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def seconds_left(self) -> float:
        """Seconds until the limit; negative once it has passed."""
        return self.deadline - time.monotonic()

    def waited(self, seconds: float) -> None:
        """Leave out seconds in which the comparison waited for a free worker."""
        self.deadline += seconds


@contextmanager
def limited(clock: Clock) -> Iterator[None]:
    """Let `check` in this thread raise `OutOfTimeError` once the clock has run out."""
    before = getattr(_current, "clock", None)
    _current.clock = clock
    try:
        yield
    finally:
        _current.clock = before


def check() -> None:
    """Raise `OutOfTimeError` if the comparison of this thread is over its limit; without a clock, return."""
    clock = getattr(_current, "clock", None)
    if clock is not None and clock.deadline < time.monotonic():
        raise OutOfTimeError
