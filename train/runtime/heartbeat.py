"""Heartbeats from inside a step: every forward pass, every engine step of vLLM, a server's count of tokens.

Sampling from a large model takes longer than any sensible silence limit. Only finished work sends a heartbeat, so a
rank that hangs in a collective, a kernel or a reward is silent, and the launcher ends the run.
"""

import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from train.runtime.pace import cut_short
from train.runtime.preemption import PaceKeeper
from train.runtime.ranks import PreemptedError, beat, world_size

_EVERY_SECONDS = 1.0
_ASK_SERVER_EVERY_SECONDS = 10.0


class Heartbeat:
    """Touches the rank's heartbeat file, at most once a second.

    In a process without ranks it also ends a run that cannot save before it is killed.
    """

    def __init__(self, directory: Path, keeper: PaceKeeper) -> None:
        self.directory, self.keeper = directory, keeper
        self._last = -_EVERY_SECONDS

    def __call__(self) -> None:
        """Report finished work.

        Raises:
            PreemptedError: the process is about to be killed, and there are no other ranks.
        """
        now = time.monotonic()
        if now - self._last < _EVERY_SECONDS:
            return
        self._last = now
        beat(self.directory)
        if world_size() == 1 and (why := cut_short(self.keeper.pace)):
            raise PreemptedError(why)

    def follow(self, trainer: Any) -> None:
        """Send heartbeats from a trainer: from the forward passes of its models, and from vLLM."""
        for model in (trainer.model, getattr(trainer, "ref_model", None)):
            if model is not None:
                self.follow_model(trainer.accelerator.unwrap_model(model))
        generation = getattr(trainer, "vllm_generation", None)
        if generation is None:
            return
        if generation.mode == "colocate":
            self.follow_engine(generation.llm.llm_engine)
        elif trainer.accelerator.is_main_process:
            client = generation.vllm_client
            client.generate = self._with_server_progress(client.generate, client.base_url)

    def follow_model(self, model: Any) -> None:
        """Send a heartbeat at every forward pass: sampled tokens, chunks of log-probabilities, micro-batches."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        # The decoder, because adapters and TRL's fused head call the whole model's forward without its hooks.
        inner.get_decoder().register_forward_pre_hook(lambda *_: self())

    def follow_engine(self, engine: Any) -> None:
        """Send a heartbeat after every step of a vLLM engine in this process."""
        step = engine.step

        def step_and_report(*args: Any, **kwargs: Any) -> Any:
            outputs = step(*args, **kwargs)
            self()
            return outputs

        engine.step = step_and_report

    def _with_server_progress(self, generate: Callable[..., Any], url: str) -> Callable[..., Any]:
        def generate_and_report(*args: Any, **kwargs: Any) -> Any:
            with server_progress(url, lambda: beat(self.directory)):
                return generate(*args, **kwargs)

        return generate_and_report


def generated_tokens(metrics: str) -> float:
    """Tokens that a vLLM server has generated since it started, from the text of its /metrics."""
    return sum(float(count) for count in re.findall(r"^vllm:generation_tokens_total(?:\{.*\})? (\S+)$", metrics, re.M))


@contextmanager
def server_progress(url: str, report: Callable[[], None]) -> Iterator[None]:
    """Context in which `report` is called whenever a vLLM server's count of generated tokens has grown."""
    done = threading.Event()

    def poll() -> None:
        before = -1.0
        while not done.wait(_ASK_SERVER_EVERY_SECONDS):
            try:
                with urllib.request.urlopen(f"{url}/metrics", timeout=5) as response:
                    now = generated_tokens(response.read().decode())
            except OSError:
                continue
            if before >= 0 and now > before:
                report()
            before = now

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
