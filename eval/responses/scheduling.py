"""Scheduling: which response a worker generates next, so that no engine waits while responses are missing.

The unfinished units of a model form one queue, which all workers of the stage share (`claims.py`). With a
`RequestEngine`, one item is one request: a worker claims as many as its engine runs at the same time and some ahead,
and responses are stored as they finish (`journal.py`). Chunk and benchmark borders play no part; a chunk file is
written after its last response. transformers, and log-likelihoods, take one chunk at a time.

Longest expected response first, so that the last requests to run are short. The expected length of a response is the
mean length of another model's responses to the same question; without one, the mean length of the benchmark's responses
so far.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.prompts.prompt import load_tokenizer
from eval.questions.build import load_questions
from eval.responses.claims import Claims, WorkItem
from eval.responses.engines import EngineOnDemand, server_errors
from eval.responses.harness import (
    Prompt,
    build_response,
    count_tokens,
    generate_chunk,
    render,
    request_seeds,
    require_lengths,
)
from eval.responses.journal import Journal, JournalEntry, JournalIndex
from eval.responses.request_engine import RequestEngine
from eval.responses.units import Unit, chunk_seed
from eval.scorers.records import Response, write_responses
from recipes.manifest import read_manifest
from recipes.schema import Recipe

_RECLAIM_SECONDS = 5.0  # between two looks for dead workers


class _UnitQueue:
    """The missing responses of one unit, in the order of their requests."""

    def __init__(self, recipe: Recipe, study_dir: Path, model_dir: Path, unit: Unit) -> None:
        self._recipe, self._study_dir, self._model_dir = recipe, study_dir, model_dir
        self.unit = unit
        self.key = f"{unit.name}-{unit.version}"
        self.by_chunk = unit.likelihoods or unit.suite.engine.kind == "hf"
        """Whether an item is a chunk; else it is a request."""
        self.journal = JournalIndex(unit)
        self.pending: deque[int] = deque()
        """Items that this worker has not tried to claim: chunks, or question * samples + sample."""
        self._prompts: dict[int, Prompt] = {}
        self._seeds: dict[int, list[list[int]]] = {}
        self._known_lengths: list[float] | None = None
        self._tokens = self._responses = 0  # finished so far
        self._popped = 0

    def load(self) -> None:
        """Fill the queue with what is not stored."""
        self.refresh()
        missing = self.unit.missing()
        if self.by_chunk:
            self.pending = deque(missing)
            return
        self._known_lengths = _response_lengths(self._study_dir, self.unit)
        questions = [question for chunk in missing for question in self.unit.positions(chunk)]
        if self._known_lengths is not None:
            questions.sort(key=self._known_lengths.__getitem__, reverse=True)
        samples = self.unit.samples
        keys = [key for question in questions for key in self._keys(question) if key not in self.journal]
        self.pending = deque(question * samples + sample for question, sample in keys)

    def _keys(self, question: int) -> list[tuple[int, int]]:
        return [(question, sample) for sample in range(self.unit.samples)]

    def refresh(self) -> None:
        """Read the responses that other workers and this one have stored since the last call."""
        for entry in self.journal.refresh():
            self._tokens += entry.tokens
            self._responses += 1

    def pop(self) -> WorkItem:
        """The next item to claim."""
        self._popped += 1
        return self.key, self.pending.popleft()

    def priority(self) -> tuple[float, float]:
        """Expected tokens of the next response. Units without an estimate come first, and take turns."""
        if self._known_lengths is not None:
            return self._known_lengths[self.pending[0] // self.unit.samples], 0
        return (self._tokens / self._responses, 0) if self._responses else (float("inf"), -self._popped)

    def is_done(self, index: int) -> bool:
        """Whether the item is stored."""
        if self.by_chunk:
            return self.unit.path(index).exists()
        key = divmod(index, self.unit.samples)
        if key not in self.journal:
            self.refresh()
        return key in self.journal or self.unit.path(self.unit.chunk_of(key[0])).exists()

    def prompt(self, question: int) -> Prompt:
        """The prompt of a question. Raises UserError if any prompt of the unit is too long or cannot be rendered."""
        if question not in self._prompts:
            indices = [index for chunk in self.unit.missing() for index in self.unit.positions(chunk)]
            questions = load_questions(self._recipe, self.unit.benchmark, self._study_dir)
            tokenizer = load_tokenizer(str(self._model_dir))
            prompts = render(
                self._recipe, tokenizer, self.unit.benchmark, self.unit.prompting, [questions[n] for n in indices]
            )
            require_lengths(self._recipe, self._model_dir, prompts)
            self._prompts = dict(zip(indices, prompts, strict=True))
        return self._prompts[question]

    def prompts(self, chunk: int) -> list[Prompt]:
        """The prompts of a chunk."""
        return [self.prompt(question) for question in self.unit.positions(chunk)]

    def seed(self, chunk: int) -> int:
        """The seed of a chunk."""
        return chunk_seed(self.unit.suite, self.unit.label, self.unit.name, chunk)

    def add_request(self, engine: RequestEngine, request_id: int, index: int) -> None:
        """Send an item to an engine."""
        question, sample = divmod(index, self.unit.samples)
        chunk = self.unit.chunk_of(question)
        if chunk not in self._seeds:
            self._seeds[chunk] = request_seeds(engine, self.prompts(chunk), self.seed(chunk))
        prompt = self.prompt(question)
        seed = self._seeds[chunk][question - self.unit.positions(chunk).start][sample]
        engine.add_request(request_id, prompt.text, prompt.gen_kwargs, seed)

    def write_chunk(self, chunk: int, responses: list[Response]) -> None:
        """Write a chunk file, without the prompts of a restricted benchmark."""
        if self.unit.benchmark.restricted:
            responses = [replace(response, prompt=None) for response in responses]
        write_responses(self.unit.path(chunk), responses)

    def write_complete_chunks(self, tokenizer: Any) -> None:
        """Write the chunks all of whose responses are in journals; delete the journals after the last chunk."""
        self.refresh()
        for chunk in self.unit.missing():
            keys = [self._keys(question) for question in self.unit.positions(chunk)]
            if not all(key in self.journal for own in keys for key in own):
                continue
            responses = []
            for prompt, own in zip(self.prompts(chunk), keys, strict=True):
                entries = self.journal.read(own)
                texts, tokens = [entry.text for entry in entries], [entry.tokens for entry in entries]
                responses.append(build_response(prompt, tokenizer, texts, tokens))
            self.write_chunk(chunk, responses)
        if not self.unit.missing():
            for path in self.journal.files():
                path.unlink(missing_ok=True)


class _BatchEnds:
    """Takes the place of the harness's cache, to which a model gives every response when its batch has ended."""

    def __init__(self, report: Callable[[], None]) -> None:
        self.responses, self._report = 0, report

    def add_partial(self, *_: object) -> None:
        """Count a response."""
        self.responses += 1
        self._report()


class ResponseScheduler:
    """Generates the missing responses of one model, together with any other workers of the same stage.

    A context manager: inside it this worker's claims are valid.

    Raises, in all methods:
        UserError: a prompt is too long or cannot be rendered, or the engine cannot be loaded or reached.
    """

    def __init__(self, recipe: Recipe, study_dir: Path, model_dir: Path, units: list[Unit]) -> None:
        self._recipe, self._model_dir = recipe, model_dir
        self._stage_dir = units[0].directory.parent
        queues = [_UnitQueue(recipe, study_dir, model_dir, unit) for unit in units]
        self._queues = {queue.key: queue for queue in queues}
        self._claims = Claims(self._stage_dir / ".queue")
        self._journals = {key: Journal(queue.unit, self._claims.worker_id) for key, queue in self._queues.items()}
        self._next_reclaim = {True: 0.0, False: 0.0}  # by `by_chunk`, on the monotonic clock
        self.generated = 0
        """Responses (of log-likelihoods: questions) that this worker stored."""
        self._unwritten: _BatchEnds | None = None

    def __enter__(self) -> "ResponseScheduler":
        self._claims.__enter__()
        for queue in self._queues.values():
            queue.load()
        return self

    def __exit__(self, *error: object) -> None:
        for journal in self._journals.values():
            journal.close()
        self._claims.__exit__(*error)

    def run(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Generate until everything is stored or claimed by a live worker. The engine is loaded for the first item.

        `on_progress` is called after every batch of a chunk and every step of the engine, several times a second.
        """
        with (
            server_errors(self._recipe.require_suite().engine),
            EngineOnDemand(self._recipe, self._model_dir, self._stage_dir.name, self._stage_dir) as engine,
        ):
            self._run_chunks(engine, on_progress)
            self._run_requests(engine, on_progress)

    def write_complete_chunks(self) -> None:
        """Write the chunk files whose responses are all stored."""
        tokenizer = load_tokenizer(str(self._model_dir))
        for queue in self._queues.values():
            if not queue.by_chunk:
                queue.write_complete_chunks(tokenizer)

    def stored(self) -> int:
        """Number of stored responses, from all workers, and of this worker's in the chunk it is generating."""
        count = self._unwritten.responses if self._unwritten else 0
        for queue in self._queues.values():
            unit, missing = queue.unit, set(queue.unit.missing())
            complete = sum(len(unit.positions(chunk)) for chunk in range(unit.chunks) if chunk not in missing)
            count += complete * unit.samples
            if missing and not queue.by_chunk:
                queue.refresh()
                count += queue.journal.count(missing)
        return count

    def _claim(self, by_chunk: bool, limit: int) -> list[tuple[_UnitQueue, int]]:
        """Claim up to `limit` items of one kind. Items of dead workers come last."""
        items = self._claims.claim(self._candidates(by_chunk), limit)
        if not items and time.monotonic() > self._next_reclaim[by_chunk]:
            items = self._claims.reclaim(
                limit,
                lambda item: self._queues[item[0]].by_chunk is by_chunk,
                lambda item: self._queues[item[0]].is_done(item[1]),
            )
            if not items:
                self._next_reclaim[by_chunk] = time.monotonic() + _RECLAIM_SECONDS
        return [(self._queues[key], index) for key, index in items]

    def _candidates(self, by_chunk: bool) -> Iterator[WorkItem]:
        queues = [queue for queue in self._queues.values() if queue.by_chunk is by_chunk]
        while queues := [queue for queue in queues if queue.pending]:
            yield (queues[0] if by_chunk else max(queues, key=_UnitQueue.priority)).pop()

    def _run_chunks(self, engine: EngineOnDemand, on_progress: Callable[[], None]) -> None:
        tokenizer = load_tokenizer(str(self._model_dir))
        while claimed := self._claim(True, 1):
            for queue, chunk in claimed:
                if not queue.unit.path(chunk).exists():
                    prompts = queue.prompts(chunk)
                    if not queue.unit.likelihoods:  # which it is given by candidate
                        self._unwritten = _BatchEnds(on_progress)
                        engine().set_cache_hook(self._unwritten)
                    queue.write_chunk(chunk, generate_chunk(engine(), tokenizer, prompts, queue.seed(chunk)))
                    self._unwritten = None
                    self.generated += len(prompts) * queue.unit.samples
                on_progress()

    def _run_requests(self, engine: EngineOnDemand, on_progress: Callable[[], None]) -> None:
        tokenizer = load_tokenizer(str(self._model_dir))
        running: dict[int, tuple[_UnitQueue, int]] = {}
        next_id = 0
        while True:
            for queue, index in self._claim_requests(engine, len(running)):
                queue.add_request(_request_engine(engine), next_id, index)
                running[next_id] = queue, index
                next_id += 1
            if not running:
                return
            for request_id, text in _request_engine(engine).step().items():
                queue, index = running.pop(request_id)
                question, sample = divmod(index, queue.unit.samples)
                self._journals[queue.key].append(JournalEntry(question, sample, text, count_tokens(tokenizer, text)))
                self.generated += 1
            on_progress()

    def _claim_requests(self, engine: EngineOnDemand, running: int) -> list[tuple[_UnitQueue, int]]:
        """Claim what keeps the engine full. Requests claimed ahead become fewer towards the end of the queue.

        The engine must not run dry between two calls, and no worker may hold requests that another could run.
        """
        if not running:  # the engine is loaded only if there is a request, and its prompt is valid
            first = self._claim(False, 1)
            if not first:
                return []
            (queue, index), *_ = first
            queue.prompt(index // queue.unit.samples)
            return first + self._claim(False, _request_engine(engine).max_num_seqs - 1)
        max_num_seqs = _request_engine(engine).max_num_seqs
        unclaimed = sum(len(queue.pending) for queue in self._queues.values() if not queue.by_chunk)
        ahead = min(max_num_seqs // 2, unclaimed // 4)
        return self._claim(False, max_num_seqs + ahead - running) if running < max_num_seqs + ahead // 2 else []


def _request_engine(engine: EngineOnDemand) -> RequestEngine:
    loaded = engine()
    assert isinstance(loaded, RequestEngine)
    return loaded


def _response_lengths(study_dir: Path, unit: Unit) -> list[float] | None:
    """Mean tokens of another model's responses to each question of a unit, of the last model that finished it.

    None: no model has.
    """
    inputs_but_model = {key: value for key, value in unit.inputs.items() if key != "model"}
    finished: dict[str, Unit] = {}
    for directory in (study_dir / "eval").glob(f"*/{unit.name}"):
        manifest = read_manifest(directory) or {}
        inputs = manifest.get("inputs", {})
        if manifest.get("completed") and {k: value for k, value in inputs.items() if k != "model"} == inputs_but_model:
            finished[manifest["completed"]] = unit.of_model(directory, inputs)
    if not finished:
        return None
    rows = finished[max(finished)].rows()
    return [sum(row.tokens) / len(row.tokens) for row in rows]
