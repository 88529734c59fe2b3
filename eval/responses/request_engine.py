"""Engines with continuous batching, which take a request at any time, and the seeds of requests."""

from abc import ABC, abstractmethod
from collections import Counter
from hashlib import sha256
from typing import Any


class RequestEngine(ABC):
    """An engine that takes single requests while others are running: vLLM, or a server."""

    max_num_seqs: int
    """Requests that run at the same time; more wait in the engine's own queue."""

    @abstractmethod
    def seed_key(self, prompt: str) -> str:
        """What the seeds of a prompt's requests are derived from: its tokens, or its text where only that is sent."""

    @abstractmethod
    def add_request(self, request_id: int, prompt: str, gen_kwargs: dict[str, Any], seed: int) -> None:
        """Queue a request. `gen_kwargs`: lm-evaluation-harness's; the seed (31 bits) is of this request alone."""

    @abstractmethod
    def step(self) -> dict[int, str]:
        """Texts of the requests that finished since the last call, by request id.

        Blocks for a moment, at most about a second, and may return none. Raises what the engine raises.
        """


class RequestSeeds:
    """Seeds of the requests of one chunk: equal prompts get different ones, and a rerun gets the same again."""

    def __init__(self, chunk_seed: int) -> None:
        self._chunk_seed = chunk_seed
        self._drawn: Counter[str] = Counter()

    def draw(self, key: str) -> int:
        """Seed of the next request with this `RequestEngine.seed_key`, 31 bits."""
        repeat = self._drawn[key]
        self._drawn[key] += 1
        return int.from_bytes(sha256(f"{self._chunk_seed} {repeat} {key}".encode()).digest()[:4], "big") >> 1
