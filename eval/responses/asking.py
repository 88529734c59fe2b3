"""What is left to ask a model: an engine kept full over chunks and benchmarks, shared by all workers of a stage.

With vLLM and servers every response is an item of its own in the queue of the stage (`claims.py`). A worker claims as
many as its engine can run, and a few more while many are left; answers are kept as they come (`journal.py`) and become
chunks when these are complete. transformers, and likelihoods, are asked one chunk at a time.

The longest come first, so that the last ones running are short: by the lengths of another model's responses to the same
questions, else by the mean length of a benchmark's responses so far.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.prompts.prompt import load_tokenizer
from eval.questions.build import load_questions
from eval.responses.claims import Claims, Item
from eval.responses.continuous import Continuous
from eval.responses.engines import EngineOnDemand, server_errors
from eval.responses.harness import Prompt, ask, render, request_seeds, require_lengths, response_of, text_length
from eval.responses.journal import Answer, Answers, Journal
from eval.responses.units import Unit, chunk_seed
from eval.scorers.records import Response, write_responses
from recipes.manifest import read_manifest
from recipes.schema import Recipe

_RETAKE_SECONDS = 5.0


class _Part:
    """A unit that is not complete: its prompts, what is answered, and what is left in the order of asking."""

    def __init__(self, recipe: Recipe, study_dir: Path, model_dir: Path, unit: Unit) -> None:
        self._recipe, self._study_dir, self._model_dir = recipe, study_dir, model_dir
        self.unit = unit
        self.key = f"{unit.name}-{unit.version}"
        self.whole = unit.likelihoods or unit.suite.engine.kind == "hf"
        """Whether it is asked one chunk at a time."""
        self.answers = Answers(unit)
        self.order: deque[int] = deque()
        """Positions that nobody is known to have claimed: chunks, or question x samples + sample."""
        self._prompts: dict[int, Prompt] = {}
        self._seeds: dict[int, list[list[int]]] = {}
        self._lengths: list[float] | None = None
        self._generated = self._ended = 0
        self._taken = 0

    def open(self) -> None:
        """Find what is left."""
        self.note(self.answers.refresh())
        if self.whole:
            self.order = deque(self.unit.missing())
            return
        self._lengths = _lengths_elsewhere(self._study_dir, self.unit)
        questions = [question for chunk in self.unit.missing() for question in self.unit.positions(chunk)]
        if self._lengths is not None:
            questions.sort(key=self._lengths.__getitem__, reverse=True)
        samples = self.unit.samples
        self.order = deque(
            question * samples + sample
            for question in questions
            for sample in range(samples)
            if (question, sample) not in self.answers
        )

    def note(self, answers: list[Answer]) -> None:
        """Count the lengths of new answers."""
        self._generated += sum(answer.tokens for answer in answers)
        self._ended += len(answers)

    def next(self) -> Item:
        """The next item to claim."""
        self._taken += 1
        return self.key, self.order.popleft()

    def expected(self) -> tuple[float, float]:
        """How long the next response may be; benchmarks of which nothing is known come first, and in turn."""
        if self._lengths is not None:
            return self._lengths[self.order[0] // self.unit.samples], 0
        return (self._generated / self._ended, 0) if self._ended else (float("inf"), -self._taken)

    def done(self, position: int) -> bool:
        """Whether an item is answered."""
        if self.whole:
            return self.unit.path(position).exists()
        question, sample = divmod(position, self.unit.samples)
        if (question, sample) not in self.answers:
            self.note(self.answers.refresh())
        return (question, sample) in self.answers or self.unit.path(self.unit.chunk_of(question)).exists()

    def prompt(self, question: int) -> Prompt:
        """A question as this model is asked it. Raises UserError if one of the unit cannot be asked."""
        if question not in self._prompts:
            wanted = [place for chunk in self.unit.missing() for place in self.unit.positions(chunk)]
            questions = load_questions(self._recipe, self.unit.benchmark, self._study_dir)
            tokenizer = load_tokenizer(str(self._model_dir))
            prompts = render(
                self._recipe, tokenizer, self.unit.benchmark, self.unit.prompting, [questions[n] for n in wanted]
            )
            require_lengths(self._recipe, self._model_dir, prompts)
            self._prompts = dict(zip(wanted, prompts, strict=True))
        return self._prompts[question]

    def prompts(self, chunk: int) -> list[Prompt]:
        """The questions of a chunk."""
        return [self.prompt(question) for question in self.unit.positions(chunk)]

    def seed(self, chunk: int) -> int:
        """The seed of a chunk."""
        return chunk_seed(self.unit.suite, self.unit.label, self.unit.name, chunk)

    def submit(self, engine: Continuous, identity: int, position: int) -> None:
        """Begin one response."""
        question, sample = divmod(position, self.unit.samples)
        chunk = self.unit.chunk_of(question)
        if chunk not in self._seeds:
            self._seeds[chunk] = request_seeds(engine, self.prompts(chunk), self.seed(chunk))
        prompt = self.prompt(question)
        seed = self._seeds[chunk][question - self.unit.positions(chunk).start][sample]
        engine.submit(identity, prompt.text, prompt.decoding, seed)

    def write(self, chunk: int, responses: list[Response]) -> None:
        """Store a chunk, without the prompts of restricted questions."""
        if self.unit.benchmark.restricted:
            responses = [replace(response, prompt=None) for response in responses]
        write_responses(self.unit.path(chunk), responses)

    def assemble(self, tokenizer: Any) -> None:
        """Write the chunks whose questions are all answered; remove the journals with the last."""
        samples = range(self.unit.samples)
        for chunk in self.unit.missing():
            keys = [(question, sample) for question in self.unit.positions(chunk) for sample in samples]
            if all(key in self.answers for key in keys):
                said = iter(self.answers.read(keys))
                rows = [[next(said) for _ in samples] for _ in self.unit.positions(chunk)]
                self.write(
                    chunk,
                    [
                        response_of(prompt, tokenizer, [one.text for one in row], [one.tokens for one in row])
                        for prompt, row in zip(self.prompts(chunk), rows, strict=True)
                    ],
                )
        if not self.unit.missing():
            for path in self.answers.files():
                path.unlink(missing_ok=True)


class Asking:
    """One worker's share in asking a model, for the length of a `with`.

    Raises, in all methods:
        UserError: a prompt cannot be asked, or an engine cannot be had.
    """

    def __init__(self, recipe: Recipe, study_dir: Path, model_dir: Path, units: list[Unit]) -> None:
        self._recipe, self._model_dir = recipe, model_dir
        self._stage_dir = units[0].directory.parent
        self._parts = {part.key: part for part in (_Part(recipe, study_dir, model_dir, unit) for unit in units)}
        self._claims = Claims(self._stage_dir / ".queue")
        self._journals = {key: Journal(part.unit, self._claims.worker) for key, part in self._parts.items()}
        self._retake_at = {True: 0.0, False: 0.0}
        self.answered = 0
        """Responses (of likelihoods: questions) that this worker stored."""

    def __enter__(self) -> "Asking":
        self._claims.__enter__()
        for part in self._parts.values():
            part.open()
        return self

    def __exit__(self, *error: Any) -> None:
        for journal in self._journals.values():
            journal.close()
        self._claims.__exit__(*error)

    def work(self, show: Callable[[], None] = lambda: None) -> None:
        """Ask what no other worker has claimed. The model is loaded for the first question.

        `show` is called often, to report progress.
        """
        label = self._stage_dir.name
        assert self._recipe.suite is not None
        with (
            server_errors(self._recipe.suite.engine),
            EngineOnDemand(self._recipe, self._model_dir, label, self._stage_dir) as engine,
        ):
            self._ask_chunks(engine, show)
            self._ask_one_by_one(engine, show)

    def assemble(self) -> None:
        """Write the chunks that are complete."""
        tokenizer = load_tokenizer(str(self._model_dir))
        for part in self._parts.values():
            if not part.whole:
                part.note(part.answers.refresh())
                part.assemble(tokenizer)

    def done(self) -> int:
        """Responses that are stored, by whichever worker."""
        done = 0
        for part in self._parts.values():
            unit, missing = part.unit, set(part.unit.missing())
            stored = sum(len(unit.positions(chunk)) for chunk in range(unit.chunks) if chunk not in missing)
            done += stored * unit.samples
            if missing and not part.whole:
                part.note(part.answers.refresh())
                done += part.answers.count(missing)
        return done

    def _take(self, whole: bool, count: int) -> list[tuple[_Part, int]]:
        """Claim items of parts of one kind; what dead workers had claimed comes last."""
        taken = self._claims.take(self._wanted(whole), count)
        if not taken and time.monotonic() > self._retake_at[whole]:
            taken = self._claims.retake(
                count, lambda item: self._parts[item[0]].whole is whole, lambda item: self._parts[item[0]].done(item[1])
            )
            if not taken:  # who lives now will live a moment longer
                self._retake_at[whole] = time.monotonic() + _RETAKE_SECONDS
        return [(self._parts[key], position) for key, position in taken]

    def _wanted(self, whole: bool) -> Iterator[Item]:
        parts = [part for part in self._parts.values() if part.whole is whole]
        while parts := [part for part in parts if part.order]:
            yield (parts[0] if whole else max(parts, key=_Part.expected)).next()

    def _ask_chunks(self, engine: EngineOnDemand, show: Callable[[], None]) -> None:
        tokenizer = load_tokenizer(str(self._model_dir))
        while taken := self._take(True, 1):
            for part, chunk in taken:
                if not part.unit.path(chunk).exists():
                    prompts = part.prompts(chunk)
                    part.write(chunk, ask(engine(), tokenizer, prompts, part.seed(chunk)))
                    self.answered += len(prompts) * part.unit.samples
                show()

    def _ask_one_by_one(self, engine: EngineOnDemand, show: Callable[[], None]) -> None:
        tokenizer = load_tokenizer(str(self._model_dir))
        running: dict[int, tuple[_Part, int]] = {}
        begun = 0
        while True:
            for part, position in self._refill(engine, len(running)):
                part.submit(_continuous(engine), begun, position)
                running[begun] = part, position
                begun += 1
            if not running:
                return
            for identity, text in _continuous(engine).collect().items():
                part, position = running.pop(identity)
                question, sample = divmod(position, part.unit.samples)
                answer = Answer(question, sample, text, text_length(tokenizer, text))
                self._journals[part.key].add(answer)
                self.answered += 1
            show()

    def _refill(self, engine: EngineOnDemand, running: int) -> list[tuple[_Part, int]]:
        """Claim what keeps the engine full until the next time, and little more when little is left for others."""
        left = sum(len(part.order) for part in self._parts.values() if not part.whole)
        if not running:
            first = self._take(False, 1)  # no engine is loaded for nothing
            if not first:
                return []
            first[0][0].prompt(first[0][1] // first[0][0].unit.samples)  # nor for a prompt that cannot be asked
            return first + self._take(False, _continuous(engine).capacity - len(first))
        capacity = _continuous(engine).capacity
        ahead = min(capacity // 2, left // 4)
        return self._take(False, capacity + ahead - running) if running < capacity + ahead // 2 else []


def _continuous(engine: EngineOnDemand) -> Continuous:
    loaded = engine()
    assert isinstance(loaded, Continuous)
    return loaded


def _lengths_elsewhere(study_dir: Path, unit: Unit) -> list[float] | None:
    """Mean length of another model's responses to each question of a unit, of the one that ended last; or None."""
    asked = {key: value for key, value in unit.inputs.items() if key != "model"}
    ended: dict[str, Unit] = {}
    for directory in (study_dir / "eval").glob(f"*/{unit.name}"):
        manifest = read_manifest(directory) or {}
        inputs = manifest.get("inputs", {})
        if manifest.get("completed") and {key: value for key, value in inputs.items() if key != "model"} == asked:
            ended[manifest["completed"]] = unit.of_model(directory, inputs)
    if not ended:
        return None
    rows = ended[max(ended)].rows()
    return [sum(row.tokens) / len(row.tokens) for row in rows]
