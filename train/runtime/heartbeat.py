"""Signs of life from inside an update: every forward pass, every step of vLLM's engine, a server's counted tokens.

A sampling of a large model takes longer than any sensible limit for silence. The signs come only from work that was
done, so a rank that waits for ever in a collective, in a kernel or in a reward is silent, and the launcher ends
the run.
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
    """Called from inside long work; touches the rank's file once a second at most.

    In a process without ranks it is also where a run ends that cannot save before it is killed.

    Args:
        directory: of the run.
        keeper: knows how long an update takes.
    """

    def __init__(self, directory: Path, keeper: PaceKeeper) -> None:
        self.directory, self.keeper = directory, keeper
        self._beaten = -_EVERY_SECONDS

    def __call__(self) -> None:
        """Something was done.

        Raises:
            PreemptedError: the process is about to be killed, and there are no other ranks.
        """
        now = time.monotonic()
        if now - self._beaten < _EVERY_SECONDS:
            return
        self._beaten = now
        beat(self.directory)
        if world_size() == 1 and (why := cut_short(self.keeper.pace)):
            raise PreemptedError(why)

    def follow(self, trainer: Any) -> None:
        """Beat with what a trainer does: the forward passes of its models, and vLLM."""
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
            client.generate = self._while_server_gets_on(client.generate, client.base_url)

    def follow_model(self, model: Any) -> None:
        """Beat at every forward pass: each sampled token, each chunk of log-probabilities, each micro-batch."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        # The decoder: adapters and TRL's language-model head call the forward of the whole model past its hooks.
        inner.get_decoder().register_forward_pre_hook(lambda *_: self())

    def follow_engine(self, engine: Any) -> None:
        """Beat after every step of a vLLM engine in this process."""
        step = engine.step

        def step_and_beat(*args: Any, **kwargs: Any) -> Any:
            outputs = step(*args, **kwargs)
            self()
            return outputs

        engine.step = step_and_beat

    def _while_server_gets_on(self, generate: Callable[..., Any], url: str) -> Callable[..., Any]:
        def generate_and_beat(*args: Any, **kwargs: Any) -> Any:
            with server_progress(url, lambda: beat(self.directory)):
                return generate(*args, **kwargs)

        return generate_and_beat


def generated_tokens(metrics: str) -> float:
    """Tokens that a vLLM server has generated since it started, from the text of its /metrics."""
    return sum(
        float(number) for number in re.findall(r"^vllm:generation_tokens_total(?:\{.*\})? (\S+)$", metrics, re.M)
    )


@contextmanager
def server_progress(url: str, report: Callable[[], None]) -> Iterator[None]:
    """Within it, `report` is called whenever a vLLM server has generated more tokens than when it was last asked."""
    done = threading.Event()

    def ask() -> None:
        before = -1.0
        while not done.wait(_ASK_SERVER_EVERY_SECONDS):
            try:
                with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
                    now = generated_tokens(answer.read().decode())
            except OSError:
                continue
            if before >= 0 and now > before:
                report()
            before = now

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
