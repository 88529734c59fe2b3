"""Engines that take a request at any time, and the seeds of requests."""

from abc import ABC, abstractmethod
from collections import Counter
from hashlib import sha256
from typing import Any


class Continuous(ABC):
    """An engine that takes requests while others are running."""

    capacity: int
    """Requests that it works on at the same time."""

    @property
    @abstractmethod
    def pending(self) -> int:
        """Requests that were submitted and not collected."""

    @abstractmethod
    def seed_key(self, prompt: str) -> str:
        """What a prompt's seeds are made from; equal for prompts that are the same to the engine."""

    @abstractmethod
    def submit(self, identity: int, prompt: str, decoding: dict[str, Any], seed: int) -> None:
        """Begin a request. `decoding`: the harness's arguments of generation."""

    @abstractmethod
    def collect(self) -> dict[int, str]:
        """Texts of requests that have ended, by identity; waits a moment for one, and may return none."""


class Seeds:
    """Seeds of the requests of one chunk: equal prompts get different ones, and a rerun the same again."""

    def __init__(self, chunk_seed: int) -> None:
        self.chunk_seed = chunk_seed
        self._asked: Counter[str] = Counter()

    def draw(self, key: str) -> int:
        """The seed of the next request with this prompt, 31 bits."""
        number = self._asked[key]
        self._asked[key] += 1
        return int.from_bytes(sha256(f"{self.chunk_seed} {number} {key}".encode()).digest()[:4], "big") >> 1
