"""A completions server as engine: requests run in an event loop, in a thread of their own."""

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
from eval.responses.request_engine import RequestEngine

_WAIT_SECONDS = 1.0


class ServerEngine(RequestEngine, LocalCompletionsAPI):
    """The harness's client of a server, with requests that are added while others run.

    Payload and parsing are the harness's.
    """

    def __init__(self, **arguments: Any) -> None:
        LocalCompletionsAPI.__init__(self, **arguments)
        self.max_num_seqs = self._concurrent
        self._finished: queue.SimpleQueue[tuple[int, Future[str]]] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._session, self._slots = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    async def _open(self) -> tuple[ClientSession, asyncio.Semaphore]:
        timeout = ClientTimeout(total=self.timeout)
        session = ClientSession(connector=TCPConnector(limit=self._concurrent), timeout=timeout)
        return session, asyncio.Semaphore(self._concurrent)

    @override
    def seed_key(self, prompt: str) -> str:
        return repr(prompt)

    @override
    def add_request(self, request_id: int, prompt: str, gen_kwargs: dict[str, Any], seed: int) -> None:
        request = asyncio.run_coroutine_threadsafe(self._request(prompt, gen_kwargs | {"seed": seed}), self._loop)
        request.add_done_callback(lambda finished: self._finished.put((request_id, finished)))

    async def _request(self, prompt: str, gen_kwargs: dict[str, Any]) -> str:
        with_retries = retry(
            stop=stop_after_attempt(self.max_retries),
            wait=wait_exponential(multiplier=0.5, min=1, max=10),
            reraise=True,
        )
        (text,) = await with_retries(self.amodel_call)(self._session, self._slots, [prompt], gen_kwargs=gen_kwargs)
        return whole_characters(str(text))

    def _create_payload(self, messages: Any, generate: bool = False, **arguments: Any) -> dict[str, Any]:
        if generate:  # the harness would send one seed for all requests
            arguments["seed"] = arguments["gen_kwargs"].pop("seed")
        return dict(super()._create_payload(messages, generate=generate, **arguments))

    @override
    def step(self) -> dict[int, str]:
        if self._failure is not None:
            raise self._failure
        texts: dict[int, str] = {}
        try:
            while True:
                request_id, request = self._finished.get(timeout=0 if texts else _WAIT_SECONDS)
                texts[request_id] = request.result()
        except queue.Empty:
            pass
        except Exception as error:
            if not texts:
                raise
            self._failure = error  # raised by the next call, after the caller has stored these texts
        return texts

    def close(self) -> None:
        """Cancel running requests and end the thread."""
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
