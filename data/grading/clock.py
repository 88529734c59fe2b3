"""The time limit of one comparison, in this process as well as in a worker.

Python cannot interrupt a thread, so the readers and the arithmetic ask the clock as they go (`check`), and every single
operation between two checks is bounded in size. Waiting for a free worker does not count.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class OutOfTimeError(Exception):
    """The comparison has used up its time."""


class _Clock(threading.local):
    deadline = math.inf


_clock = _Clock()


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Let `check` in this thread raise `OutOfTimeError` after so many seconds."""
    before, _clock.deadline = _clock.deadline, time.monotonic() + seconds
    try:
        yield
    finally:
        _clock.deadline = before


def check() -> None:
    """Raise `OutOfTimeError` if the comparison of this thread is over its limit."""
    if seconds_left() < 0:
        raise OutOfTimeError


def seconds_left() -> float:
    """Seconds until the limit of this thread; negative once it has passed."""
    return _clock.deadline - time.monotonic()


def waited(seconds: float) -> None:
    """Leave out seconds in which the comparison of this thread waited for a free worker."""
    _clock.deadline += seconds
