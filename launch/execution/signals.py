"""Forward the signals of `transfer run` to the worker processes, which save and stop."""

import os
import signal
from contextlib import suppress
from multiprocessing import active_children
from types import FrameType

from train.runtime.ranks import SIGNALS


class ForwardedSignals:
    """Context manager that forwards SIGTERM and SIGUSR1 to all child processes; `received` is the last one's name."""

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> "ForwardedSignals":
        self._handlers = {signal_number: signal.signal(signal_number, self._receive) for signal_number in SIGNALS}
        return self

    def _receive(self, signal_number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(signal_number).name
        self.forward()

    def forward(self) -> None:
        """Send the received signal to all children again, because a worker that is starting ignores it."""
        for worker in active_children():
            if self.received is not None and worker.pid is not None:
                with suppress(ProcessLookupError):  # it has ended
                    os.kill(worker.pid, signal.Signals[self.received])

    def __exit__(self, *error: object) -> None:
        for signal_number, handler in self._handlers.items():
            signal.signal(signal_number, handler)
