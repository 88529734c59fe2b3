"""A completions server as engine: requests run in an event loop in a thread of its own."""

import asyncio
import queue
import threading
from concurrent.futures import Future
from typing import Any

from aiohttp import ClientSession, ClientTimeout, TCPConnector
from lm_eval.models.openai_completions import LocalCompletionsAPI
from tenacity import retry, stop_after_attempt, wait_exponential
from typing_extensions import override

from data.sampling.store import whole_characters
from eval.responses.continuous import Continuous

_WAIT_SECONDS = 1.0


class ContinuousServer(Continuous, LocalCompletionsAPI):
    """The harness's client, whose requests are added while others run. Payload and parsing are the harness's."""

    def __init__(self, **arguments: Any) -> None:
        LocalCompletionsAPI.__init__(self, **arguments)
        self.capacity = self._concurrent
        self._pending = 0
        self._ended: queue.SimpleQueue[tuple[int, Future[str]]] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._session, self._slots = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    async def _open(self) -> tuple[ClientSession, asyncio.Semaphore]:
        timeout = ClientTimeout(total=self.timeout)
        session = ClientSession(connector=TCPConnector(limit=self._concurrent), timeout=timeout)
        return session, asyncio.Semaphore(self._concurrent)

    @property
    @override
    def pending(self) -> int:
        return self._pending

    @override
    def seed_key(self, prompt: str) -> str:
        return repr(prompt)

    @override
    def submit(self, identity: int, prompt: str, decoding: dict[str, Any], seed: int) -> None:
        self._pending += 1
        request = asyncio.run_coroutine_threadsafe(self._request(prompt, decoding | {"seed": seed}), self._loop)
        request.add_done_callback(lambda ended: self._ended.put((identity, ended)))

    async def _request(self, prompt: str, decoding: dict[str, Any]) -> str:
        again = retry(
            stop=stop_after_attempt(self.max_retries),
            wait=wait_exponential(multiplier=0.5, min=1, max=10),
            reraise=True,
        )
        (text,) = await again(self.amodel_call)(self._session, self._slots, [prompt], gen_kwargs=decoding)
        return whole_characters(str(text))

    def _create_payload(self, messages: Any, generate: bool = False, **arguments: Any) -> dict[str, Any]:
        if generate:  # each request has its own; the harness would send one for all
            arguments["seed"] = arguments["gen_kwargs"].pop("seed")
        return dict(super()._create_payload(messages, generate=generate, **arguments))

    @override
    def collect(self) -> dict[int, str]:
        if self._failure is not None:
            raise self._failure
        texts: dict[int, str] = {}
        try:
            while True:
                identity, request = self._ended.get(timeout=0 if texts else _WAIT_SECONDS)
                self._pending -= 1
                texts[identity] = request.result()
        except queue.Empty:
            pass
        except Exception as error:
            if not texts:
                raise
            self._failure = error  # after what was answered has been kept
        return texts

    def close(self) -> None:
        """Cancel what is running and end the thread."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._session.close()
