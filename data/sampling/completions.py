"""Completions written before training: by a model behind an OpenAI-compatible server, or by a local model.

Every answer is appended to the store (`data/sampling/store.py`) as it arrives and never requested again: a killed run
continues with what is missing, and so does another study with the same requests.
"""

import asyncio
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from data.prompts.prompt import load_tokenizer, messages_of, render_prompt
from data.prompts.thinking import THINK_CLOSE, THINK_OPEN, strip_thinking
from data.sampling.server import require_served
from data.sampling.store import Sample, SampleStore, sample_seed, shown_prompt, whole_characters
from recipes.corpus_schema import SamplerSpec
from recipes.errors import UserError
from recipes.progress import Progress, duration, remaining_seconds
from recipes.training_schema import PromptSpec

_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_GIVE_UP_AFTER = 20  # problems in a row without an answer: the server is gone, not one problem difficult
_FINISHED = ("stop", "eos")
_BROKEN_OFF = (None, "abort", "error")  # the server stopped, not the model: another try brings the text


class Answered(NamedTuple):
    """What one request brought."""

    completions: list[tuple[str, bool]]
    """Text and whether it was finished."""
    generated_tokens: int
    lengths: list[int]
    """Characters of each completion as generated, with the thinking that `stripped` removes."""

    def token_shares(self) -> list[float]:
        """Tokens of each completion: its share of the sum by characters, as servers report only the sum."""
        total = sum(self.lengths)
        return [self.generated_tokens * (n / total if total else 1 / len(self.lengths)) for n in self.lengths]


class NotAnsweredError(Exception):
    """A request failed in a way that another try may cure; `retry_after` is the server's header."""

    def __init__(self, message: str, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _RefusedError(Exception):
    """The server refuses this problem; another try would not help."""


class _Meter:
    """Progress with tokens per second and remaining time."""

    def __init__(self, progress: Progress | None, done: int, total: int) -> None:
        self.progress, self.done, self.total = progress, done, total
        self.begun = time.monotonic()
        self.tokens = 0
        self._at_start = done

    def add(self, problems: int, tokens: int) -> None:
        self.done += problems
        self.tokens += tokens
        seconds = max(1e-3, time.monotonic() - self.begun)
        left = remaining_seconds(seconds, self.done - self._at_start, self.total - self.done)
        if self.progress is not None:
            self.progress.total, self.progress.unit = self.total, "problems sampled"
            rest = "" if left is None else f", {duration(left)} left"
            self.progress.update(self.done, f"{self.tokens / seconds:,.0f} tokens/s{rest}")


def sample_from_endpoint(
    spec: SamplerSpec,
    prompt: PromptSpec,
    problems: Sequence[tuple[str, str]],
    store: SampleStore,
    progress: Progress | None = None,
) -> None:
    """Ask a server for what `store` lacks of `problems`, (problem id, problem text) pairs.

    Raises:
        UserError: the server cannot be reached, refuses the request, or problems remain without an answer after all
            attempts. Completed samples are kept; the same command requests the rest.
    """
    todo = [(identity, text) for identity, text in problems if store.missing(identity, spec.samples_per_problem)]
    meter = _Meter(progress, len(problems) - len(todo), len(problems))
    if todo:
        random.shuffle(todo)  # two studies that sample at the same time then rarely request the same
        asyncio.run(_ask_all(spec, prompt, todo, store, meter))


class _Request(NamedTuple):
    """One request: so many choices with a seed, and which of them are which samples."""

    seed: int
    choices: int
    wanted: dict[int, int]
    """Index among the choices -> sample index."""


def _requests(spec: SamplerSpec, identity: str, store: SampleStore) -> Iterator[_Request]:
    """The requests that one problem needs.

    A sample that a shorter limit cut off is requested as before, with its seed and all choices: a
    server whose seeds hold then writes the same text to its end. A new draw instead would not do: texts that are
    kept when they are short and drawn again when they are long are too short on average.
    """
    fresh = []
    again: dict[tuple[int, int], dict[int, int]] = {}
    for index in store.missing(identity, spec.samples_per_problem):
        cut = store.cut_short(identity, index)
        if cut is None or cut.seed is None:
            fresh.append(index)
        else:
            again.setdefault((cut.seed, cut.choices), {})[cut.choice] = index
    for (seed, choices), wanted in again.items():
        yield _Request(seed, choices, wanted)
    if fresh:
        yield _Request(sample_seed(spec.seed, identity, fresh[0]), len(fresh), dict(enumerate(fresh)))


async def _ask_all(
    spec: SamplerSpec, prompt: PromptSpec, todo: list[tuple[str, str]], store: SampleStore, meter: _Meter
) -> None:
    import httpx

    headers = {}
    if spec.api_key_variable is not None:
        key = os.environ.get(spec.api_key_variable)
        if not key:
            raise UserError(f"the environment variable {spec.api_key_variable} with the server's key is not set")
        headers["Authorization"] = f"Bearer {key}"
    longest = shown_prompt(spec, prompt).max_completion_tokens
    room, lowered = prompt.max_prompt_tokens + longest, "max_completion_tokens of the sampler"
    require_served(spec.base_url, headers, str(spec.model), "its `model`", room, lowered, least=longest + 1)
    queue = iter(todo)
    failures: list[str] = []
    failed_in_a_row = 0
    timeout = httpx.Timeout(spec.timeout_seconds, connect=min(30.0, spec.timeout_seconds))
    limits = httpx.Limits(max_connections=spec.concurrency)

    async def ask(client: httpx.AsyncClient, identity: str, text: str) -> int:
        """Ask for what one problem lacks; the tokens that were generated."""
        tokens = 0
        for request in list(_requests(spec, identity, store)):
            body = request_body(spec, prompt, text, request.choices, request.seed)
            answered = await retried(partial(_post, client, body, spec), spec.attempts)
            shares = answered.token_shares()
            drawn = ((index, choice, *answered.completions[choice]) for choice, index in request.wanted.items())
            store.add(
                [
                    Sample(identity, index, text, finished, shares[choice], longest, *request[:2], choice)
                    for index, choice, text, finished in drawn
                ]
            )
            tokens += answered.generated_tokens
        return tokens

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal failed_in_a_row
        for identity, text in queue:
            if failed_in_a_row >= _GIVE_UP_AFTER:
                return
            store.refresh()  # another study may have sampled it meanwhile
            try:
                tokens = await ask(client, identity, text)
            except (NotAnsweredError, _RefusedError) as error:
                failures.append(f"problem {identity}: {error}")
                failed_in_a_row += isinstance(error, NotAnsweredError)
                continue
            failed_in_a_row = 0
            meter.add(1, tokens)

    async with httpx.AsyncClient(
        base_url=spec.base_url.rstrip("/") + "/", headers=headers, timeout=timeout, limits=limits
    ) as client:
        workers = [asyncio.create_task(work(client)) for _ in range(min(spec.concurrency, len(todo)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
    if failures:
        unasked = sum(1 for _ in queue)
        raise UserError(
            f"{len(failures)} of {len(todo)} problems got no answer from {spec.base_url} (the first: {failures[0]})"
            + (f", {unasked} were not requested; " if unasked else "; ")
            + "completed samples are kept, the same command requests the rest"
        )


def request_body(spec: SamplerSpec, prompt: PromptSpec, problem: str, count: int, seed: int) -> dict[str, Any]:
    """The JSON of one chat completion request."""
    shown = shown_prompt(spec, prompt)
    body: dict[str, Any] = {
        "model": spec.model,
        "messages": messages_of(problem, shown),
        "n": count,
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        "max_tokens": shown.max_completion_tokens,
        "seed": seed,
    }
    # These two are vLLM's; a server that does not know them would refuse the request, so defaults are left out.
    if spec.top_k:
        body["top_k"] = spec.top_k
    if spec.thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": spec.thinking != "off"}
    return body


async def _post(client: Any, body: dict[str, Any], spec: SamplerSpec) -> Answered:
    """One try of one request."""
    import httpx

    try:
        response = await client.post("chat/completions", json=body)
    except httpx.TimeoutException:
        raise NotAnsweredError(f"no answer within {spec.timeout_seconds:g} s") from None
    except httpx.HTTPError as error:
        raise NotAnsweredError(f"connection failed ({type(error).__name__})") from None
    if response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
        raise NotAnsweredError(f"status {response.status_code}", response.headers.get("retry-after"))
    if response.status_code in (401, 403, 404):
        raise UserError(
            f"{spec.base_url} refuses the request with status {response.status_code}: {response.text[:200]!r}; "
            "check base_url, model and api_key_variable"
        )
    if response.status_code >= 400:
        raise _RefusedError(f"status {response.status_code}: {response.text[:200]!r}")
    try:
        return parse_reply(response.json(), body["n"], stripped=spec.thinking == "stripped")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise NotAnsweredError(f"the answer is not a chat completion ({type(error).__name__}: {error})") from None


def parse_reply(answer: dict[str, Any], count: int, stripped: bool) -> Answered:
    """The completions of a chat completion answer.

    Raises:
        ValueError, KeyError, TypeError: it has another form, or another number of choices than requested.
    """
    choices = answer["choices"]
    if len(choices) != count:
        raise ValueError(f"{len(choices)} choices instead of {count}")
    completions, lengths = [], []
    # A seed's choices are told apart by their index: a server may list them as they finish.
    for choice in sorted(choices, key=lambda choice: choice.get("index") or 0):
        if choice["finish_reason"] in _BROKEN_OFF:
            raise ValueError(f"finish_reason is {choice['finish_reason']}")
        message = choice["message"]
        text = message.get("content") or ""
        # A server with a reasoning parser hands the thinking over beside the content.
        thinking = message.get("reasoning_content") or message.get("reasoning")
        if thinking:
            text = f"{THINK_OPEN}\n{thinking.strip()}\n{THINK_CLOSE}\n\n{text.lstrip()}"
        if not isinstance(text, str):
            raise TypeError("content is not text")
        text = whole_characters(text)
        lengths.append(len(text))
        completions.append((strip_thinking(text) if stripped else text, choice["finish_reason"] in _FINISHED))
    usage = answer.get("usage") or {}
    return Answered(completions, int(usage.get("completion_tokens") or 0), lengths)


async def retried(call: Callable[[], Awaitable[Answered]], attempts: int) -> Answered:
    """Try until it works, waiting twice as long each time (or as long as the server says), a little at random."""
    wait = _FIRST_WAIT_SECONDS
    for attempt in range(attempts):
        try:
            return await call()
        except NotAnsweredError as error:
            if attempt == attempts - 1:
                raise
            told = re.fullmatch(r"\d+(?:\.\d+)?", error.retry_after or "", re.ASCII)
            seconds = float(told.group()) if told else wait
            await asyncio.sleep(min(_LONGEST_WAIT_SECONDS, seconds) * random.uniform(0.75, 1.25))
            wait *= 2
    raise AssertionError("unreachable")


def sample_locally(
    spec: SamplerSpec,
    prompt: PromptSpec,
    problems: Sequence[tuple[str, str]],
    store: SampleStore,
    model_dir: str,
    dtype: str,
    progress: Progress | None = None,
) -> None:
    """Let a local transformers model answer what `store` lacks of `problems`, in batches of `spec.concurrency`.

    A batch is a slice of the problems in the order of their ids, with random numbers of its own, so what a killed run
    still had to do comes out as it would have without the kill.
    """
    from data.language_model import generate, load_model

    shown, count = shown_prompt(spec, prompt), spec.samples_per_problem
    problems = sorted(problems)
    batches = [problems[start : start + spec.concurrency] for start in range(0, len(problems), spec.concurrency)]
    todo = [batch for batch in batches if any(store.missing(identity, count) for identity, _ in batch)]
    meter = _Meter(progress, len(problems) - sum(map(len, todo)), len(problems))
    if not todo:
        return
    tokenizer = load_tokenizer(model_dir)
    model = load_model(model_dir, dtype)
    for batch in todo:
        # Usually a batch has no sample yet, or all its problems have as many as an earlier, smaller
        # `samples_per_problem` asked for. Else a write was torn or a shorter limit cut some off. The whole batch is
        # then drawn again, so that the missing samples are those it would have had.
        store.refresh()
        lacking = [store.missing(identity, count) for identity, _ in batch]
        if not any(lacking):
            meter.add(len(batch), 0)
            continue
        cut = any(store.cut_short(identity, index) for identity, _ in batch for index in range(count))
        first = lacking[0][0] if lacking[0] and not cut and all(indices == lacking[0] for indices in lacking) else 0
        wanted = range(first, count)
        prompts = [render_prompt(tokenizer, text, shown) for _, text in batch for _ in wanted]
        results = generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=shown.max_completion_tokens,
            temperature=spec.temperature,
            top_p=spec.top_p,
            top_k=spec.top_k,
            seed=sample_seed(spec.seed, batch[0][0], first),
        )
        rows = []
        for position, (text, tokens, finished) in enumerate(results):
            identity, index = batch[position // len(wanted)][0], wanted[position % len(wanted)]
            kept = strip_thinking(text) if spec.thinking == "stripped" else text
            rows.append(Sample(identity, index, kept, finished, float(tokens), shown.max_completion_tokens))
        store.add(rows)
        meter.add(len(batch), sum(int(row.generated_tokens) for row in rows))
