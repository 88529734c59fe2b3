"""Watchdog of a training stage: heartbeats of the ranks, and health of their vLLM server."""

import time
import urllib.request
from pathlib import Path

from recipes.resource_schema import ResourceSpec
from train.runtime.ranks import server_address

SERVER_SILENT_SECONDS = 60.0
_CHECK_EVERY_SECONDS = 10.0


class Watch:
    """Checks ranks and server every ten seconds.

    `directory`: `ranks/` of the stage, with the heartbeat files (`train/runtime/heartbeat.py`).
    """

    def __init__(self, resources: ResourceSpec, directory: Path) -> None:
        self.silence_seconds = 60.0 * resources.silence_minutes
        self.directory = directory
        self.url = server_address(resources.vllm)
        self._checked = self._answered = time.monotonic()

    def reason_to_end(self) -> str | None:
        """Why the ranks must be ended; None if they need not be."""
        if time.monotonic() - self._checked < _CHECK_EVERY_SECONDS:
            return None
        self._checked = time.monotonic()
        return self._silent_ranks() or self._silent_server()

    def _silent_ranks(self) -> str | None:
        beats = {path.stem: path.stat().st_mtime for path in self.directory.glob("*.pid")}
        if not beats or time.time() - max(beats.values()) < self.silence_seconds:
            return None
        first = min(beats, key=lambda rank: beats[rank])
        minutes = (time.time() - beats[first]) / 60
        return (
            f"no rank has sent a heartbeat for {self.silence_seconds / 60:g} minutes, rank {first} not for "
            f"{minutes:.0f}: a hung node or a lost connection. The same command continues from the last checkpoint; "
            "resources.silence_minutes is the limit"
        )

    def _silent_server(self) -> str | None:
        if self.url is None:
            return None
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                self._answered = time.monotonic()
        except OSError as error:
            silent = time.monotonic() - self._answered
            if silent > SERVER_SILENT_SECONDS:
                return (
                    f"the vLLM server at {self.url} has not answered for {silent:.0f} s ({error}); start it again, "
                    "then the same command continues"
                )
        return None
