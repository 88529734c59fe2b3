"""Completions written before training: by a model behind an OpenAI-compatible server, or by a local model.

Every answer is appended to a file as it arrives and never asked for again: a killed run continues with what is
missing. The file belongs to one way of asking (model, prompt, decoding); another way has a file of its own.
"""

import asyncio
import hashlib
import json
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data.served import require_served
from data.thinking import THINK_CLOSE, THINK_OPEN, strip_thinking
from recipes.corpus_schema import SamplerSpec
from recipes.errors import UserError
from recipes.manifest import Progress, hash_json
from recipes.training_schema import PromptSpec

_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_GIVE_UP_AFTER = 20  # problems in a row without an answer: the server is gone, not one problem difficult
_FINISHED = ("stop", "eos")


class Sample(NamedTuple):
    """One completion of one problem."""

    problem_id: str
    sample_index: int
    completion: str
    """The whole text after the prompt, thinking included, without the end-of-turn token."""
    finished: bool
    """False if it was cut off by the length limit."""
    generated_tokens: float
    """Tokens the model generated for it (the mean over a request, where the server tells only the sum)."""


class Answered(NamedTuple):
    """What one request brought."""

    completions: list[tuple[str, bool]]
    """Text and whether it was finished."""
    generated_tokens: int
    prompt_tokens: int


class NotAnsweredError(Exception):
    """A request failed in a way that another try may cure; `retry_after` is the wait the server asked for."""

    def __init__(self, message: str, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _RefusedError(Exception):
    """The server will refuse this problem however often it is asked."""


def asking(spec: SamplerSpec, prompt: PromptSpec, weights: str | None = None) -> dict[str, Any]:
    """Everything that decides what a sampler would answer, as JSON values. `weights`: hash of a local model."""
    values = spec.model_dump(
        mode="json", include={"model", "revision", "thinking", "temperature", "top_p", "top_k", "seed"}
    )
    return values | {
        "system": spec.system if spec.system is not None else prompt.system,
        "suffix": spec.suffix if spec.suffix is not None else prompt.suffix,
        "max_completion_tokens": spec.max_completion_tokens or prompt.max_completion_tokens,
        # Batches of a local model share random numbers, so their size is part of the result.
        "local": {"weights": weights, "batch": spec.concurrency} if spec.kind == "transformers" else None,
        "thinking_mode": _thinking_mode(spec, prompt) if spec.kind == "transformers" else None,
    }


def store_path(directory: Path, asked: dict[str, Any]) -> Path:
    """The file of one way of asking, under a study's `samples/`."""
    name = "".join(letter if letter.isalnum() else "-" for letter in str(asked["model"]).rpartition("/")[2])
    return directory / f"{name}-{hash_json(asked)[:12]}.jsonl"


class SampleStore:
    """The samples on disk of one way of asking, and appending to them.

    Args:
        path: JSON lines, one per sample; a line cut off by a kill is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._samples: dict[str, dict[int, Sample]] = defaultdict(dict)
        kept = 0
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    kept += len(line)
                    try:
                        sample = Sample(*json.loads(line))
                    except (ValueError, TypeError):
                        raise UserError(f"{path} is damaged; delete it to draw these samples again") from None
                    self._samples[sample.problem_id][sample.sample_index] = sample
            os.truncate(path, kept)
        self._file = path.open("a", encoding="utf-8")

    def missing(self, problem_id: str, count: int) -> list[int]:
        """Sample indices below `count` that are not there yet."""
        return [index for index in range(count) if index not in self._samples[problem_id]]

    def add(self, samples: list[Sample]) -> None:
        """Append samples and hand them to the operating system, so that a killed process loses none."""
        for sample in samples:
            self._samples[sample.problem_id][sample.sample_index] = sample
        self._file.write("".join(json.dumps(sample) + "\n" for sample in samples))  # ASCII: whatever a server says
        self._file.flush()

    def of(self, problem_id: str, count: int) -> list[Sample]:
        """The first `count` samples of a problem, by index."""
        return [self._samples[problem_id][index] for index in range(count)]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def sample_seed(seed: int, problem_id: str, index: int) -> int:
    """Seed of a request, from what it asks for and nothing else: 31 bits."""
    digest = hashlib.sha256(f"{seed} {problem_id} {index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


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
        left = seconds * (self.total - self.done) / max(1, self.done - self._at_start)
        if self.progress is not None:
            self.progress.total, self.progress.unit = self.total, "problems sampled"
            self.progress.update(self.done, f"{self.tokens / seconds:,.0f} tokens/s, {_duration(left)} left")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
            attempts. What was answered is kept; the same command asks for the rest.
    """
    todo = [(identity, text, store.missing(identity, spec.samples_per_problem)) for identity, text in problems]
    todo = [item for item in todo if item[2]]
    meter = _Meter(progress, len(problems) - len(todo), len(problems))
    if todo:
        asyncio.run(_ask_all(spec, prompt, todo, store, meter))


async def _ask_all(
    spec: SamplerSpec, prompt: PromptSpec, todo: list[tuple[str, str, list[int]]], store: SampleStore, meter: _Meter
) -> None:
    import httpx

    headers = {}
    if spec.api_key_variable is not None:
        key = os.environ.get(spec.api_key_variable)
        if not key:
            raise UserError(f"the environment variable {spec.api_key_variable} with the server's key is not set")
        headers["Authorization"] = f"Bearer {key}"
    longest = asking(spec, prompt)["max_completion_tokens"]
    room = prompt.max_prompt_tokens + longest
    lowered = "max_completion_tokens of the sampler"
    require_served(spec.base_url, headers, str(spec.model), "its `model`", room, lowered, least=longest + 1)
    queue = iter(todo)
    failures: list[str] = []
    failed_in_a_row = 0
    timeout = httpx.Timeout(spec.timeout_seconds, connect=min(30.0, spec.timeout_seconds))
    limits = httpx.Limits(max_connections=spec.concurrency)

    async def work(client: httpx.AsyncClient) -> None:
        nonlocal failed_in_a_row
        for identity, text, indices in queue:
            if failed_in_a_row >= _GIVE_UP_AFTER:
                return
            body = request_body(spec, prompt, text, len(indices), sample_seed(spec.seed, identity, indices[0]))
            try:
                answered = await retried(partial(_post, client, body, spec), spec.attempts)
            except (NotAnsweredError, _RefusedError) as error:
                failures.append(f"problem {identity}: {error}")
                failed_in_a_row += isinstance(error, NotAnsweredError)
                continue
            failed_in_a_row = 0
            mean = answered.generated_tokens / len(indices)
            rows = zip(indices, answered.completions, strict=True)
            store.add([Sample(identity, index, words, ended, mean) for index, (words, ended) in rows])
            meter.add(1, answered.generated_tokens)

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
            + (f", {unasked} were not asked any more; " if unasked else "; ")
            + "what was answered is kept, the same command asks for the rest"
        )


def request_body(spec: SamplerSpec, prompt: PromptSpec, problem: str, count: int, seed: int) -> dict[str, Any]:
    """The JSON of one chat completion request."""
    asked = asking(spec, prompt)
    messages = [{"role": "user", "content": problem + asked["suffix"]}]
    if asked["system"] is not None:
        messages.insert(0, {"role": "system", "content": asked["system"]})
    body: dict[str, Any] = {
        "model": spec.model,
        "messages": messages,
        "n": count,
        "temperature": spec.temperature,
        "top_p": spec.top_p,
        "max_tokens": asked["max_completion_tokens"],
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
        return read_answer(response.json(), body["n"], stripped=spec.thinking == "stripped")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise NotAnsweredError(f"the answer is not a chat completion ({type(error).__name__}: {error})") from None


def read_answer(answer: dict[str, Any], count: int, stripped: bool) -> Answered:
    """The completions of a chat completion answer.

    Raises:
        ValueError, KeyError, TypeError: it has another form, or another number of choices than asked for.
    """
    choices = answer["choices"]
    if len(choices) != count:
        raise ValueError(f"{len(choices)} choices in place of {count}")
    completions = []
    for choice in choices:
        message = choice["message"]
        text = message.get("content") or ""
        # A server with a reasoning parser hands the thinking over beside the content.
        thinking = message.get("reasoning_content") or message.get("reasoning")
        if thinking:
            text = f"{THINK_OPEN}\n{thinking.strip()}\n{THINK_CLOSE}\n\n{text.lstrip()}"
        if not isinstance(text, str):
            raise TypeError("content is no text")
        completions.append((strip_thinking(text) if stripped else text, choice["finish_reason"] in _FINISHED))
    usage = answer.get("usage") or {}
    return Answered(completions, int(usage.get("completion_tokens", 0)), int(usage.get("prompt_tokens", 0)))


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
    from data.prompt import load_tokenizer, render_prompt

    asked = asking(spec, prompt)
    shown = PromptSpec(system=asked["system"], suffix=asked["suffix"], thinking=_thinking_mode(spec, prompt))
    count = spec.samples_per_problem
    problems = sorted(problems)
    batches = [problems[start : start + spec.concurrency] for start in range(0, len(problems), spec.concurrency)]
    todo = [batch for batch in batches if any(store.missing(identity, count) for identity, _ in batch)]
    meter = _Meter(progress, len(problems) - sum(map(len, todo)), len(problems))
    if not todo:
        return
    tokenizer = load_tokenizer(model_dir)
    model = load_model(model_dir, dtype)
    for batch in todo:
        # Usually none is there, or all have as many as an earlier, smaller `samples_per_problem` asked for; else a
        # write was torn, and the batch is drawn again so that what is missing comes out as it would have.
        lacking = [store.missing(identity, count) for identity, _ in batch]
        first = lacking[0][0] if lacking[0] and all(indices == lacking[0] for indices in lacking) else 0
        wanted = range(first, count)
        prompts = [render_prompt(tokenizer, text, shown) for _, text in batch for _ in wanted]
        results = generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=asked["max_completion_tokens"],
            temperature=spec.temperature,
            top_p=spec.top_p,
            top_k=spec.top_k,
            seed=sample_seed(spec.seed, batch[0][0], first),
        )
        rows = []
        for place, (text, tokens, finished) in enumerate(results):
            identity, index = batch[place // len(wanted)][0], wanted[place % len(wanted)]
            kept = strip_thinking(text) if spec.thinking == "stripped" else text
            rows.append(Sample(identity, index, kept, finished, float(tokens)))
        store.add([row for row in rows if row.sample_index in store.missing(row.problem_id, count)])
        meter.add(len(batch), sum(int(row.generated_tokens) for row in rows))


def _thinking_mode(spec: SamplerSpec, prompt: PromptSpec) -> bool | None:
    return prompt.thinking if spec.thinking is None else spec.thinking != "off"
