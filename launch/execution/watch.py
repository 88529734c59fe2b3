"""Whether the ranks of a stage are getting on, and whether the vLLM server they sample from answers."""

import time
import urllib.request
from pathlib import Path

from recipes.resource_schema import ResourceSpec
from train.runtime.ranks import server_address

SERVER_SILENT_SECONDS = 60.0
_ASK_EVERY_SECONDS = 10.0


class Watch:
    """Asked several times a second while ranks run; looks every ten seconds.

    Args:
        resources: how long ranks may be silent, and where the server is.
        directory: `ranks/` of the stage; a rank touches its file there with every forward pass and every step of
            vLLM's engine, once a second at most (`train/runtime/heartbeat.py`).
    """

    def __init__(self, resources: ResourceSpec, directory: Path) -> None:
        self.silence_seconds = 60.0 * resources.silence_minutes
        self.directory = directory
        self.url = server_address(resources.vllm)
        self._looked = self._answered = time.monotonic()

    def complaint(self) -> str | None:
        """Why the ranks must be ended, as a sentence; None while all is well."""
        if time.monotonic() - self._looked < _ASK_EVERY_SECONDS:
            return None
        self._looked = time.monotonic()
        return self._silent_ranks() or self._silent_server()

    def _silent_ranks(self) -> str | None:
        beats = {path.stem: path.stat().st_mtime for path in self.directory.glob("*.pid")}
        if not beats or time.time() - max(beats.values()) < self.silence_seconds:
            return None
        first = min(beats, key=lambda rank: beats[rank])
        minutes = (time.time() - beats[first]) / 60
        return (
            f"no rank has sampled a token or begun a micro-batch for {self.silence_seconds / 60:g} minutes; rank "
            f"{first} was the first to fall silent, {minutes:.0f} minutes ago: a hung node or a lost connection. The "
            "same command continues from the last checkpoint; resources.silence_minutes is the limit"
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
