"""Prompts and requests of lm-evaluation-harness, from questions and task files."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import env as harness_templates
from transformers import AutoConfig, set_seed

from data.prompts.prompt import load_tokenizer, render_messages
from data.prompts.thinking import THINK_OPEN
from eval.questions.choices import require_output_type
from eval.questions.records import Question
from eval.questions.task_files import task_folder, task_path
from eval.questions.wording import key_mistakes
from eval.responses.engines import thinking_mode
from eval.responses.request_engine import RequestEngine, RequestSeeds
from eval.scorers.records import Response
from recipes.errors import UserError
from recipes.files import hash_json
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkSpec

# The harness compiles the templates of a task file again for every question.
harness_templates.from_string = lru_cache(harness_templates.from_string)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One rendered question with its requests."""

    question_id: str
    name: str
    """What a reader finds the question by."""
    text: str
    requests: tuple[Instance, ...]
    """The harness's: one to generate from, or one for each given answer."""

    @property
    def gen_kwargs(self) -> dict[str, Any]:
        """The harness's keyword arguments of generation: stop sequences, sampling parameters, token limit."""
        return dict(self.requests[0].args[1])

    @property
    def samples(self) -> int:
        """Texts to generate."""
        return int(self.requests[0].repeats or 1)

    @property
    def likelihoods(self) -> bool:
        """Whether likelihoods of given answers are wanted instead of texts."""
        return str(self.requests[0].request_type) == "loglikelihood"


class _Rows(list[dict[str, Any]]):
    """What the harness reads of a data set. Arrow's would give all rows the types and keys of the first ones."""

    @property
    def features(self) -> dict[str, None]:
        return dict.fromkeys(self[0])


def _build_task(
    recipe: Recipe, folder: Path, benchmark: BenchmarkSpec, prompting: str, questions: Sequence[Question]
) -> tuple[Task, bool]:
    """A benchmark's task over the given questions, and whether it uses the chat template.

    What the task file says stands; what is the same for all files (data, samples, decoding) is added.
    """
    suite = recipe.require_suite()
    path = task_path(folder, benchmark.name, prompting)
    if sentences := key_mistakes(path):
        raise UserError("\n".join(sentences))
    config = load_yaml(path)
    config.setdefault("task", path.stem)
    config.setdefault("output_type", "generate_until")
    chat = bool((config.get("metadata") or {}).get("chat_template", True))
    stores_likelihood = config["output_type"] == "multiple_choice"
    require_output_type(path, config["output_type"], benchmark, prompting)
    if "process_docs" in config:
        raise UserError(f"{path} has process_docs, but rows come from the recipe; write it into doc_to_text")
    rows = _Rows({"question_id": q.question_id, "suffix": recipe.prompt.suffix, **q.fields} for q in questions)
    config |= {
        "custom_dataset": lambda **_: {"test": rows},
        "dataset_kwargs": None,
        "test_split": "test",
        "num_fewshot": 0,
        "process_results": lambda document, results: {"answered": 1.0},
        "metric_list": [{"metric": "answered", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0} | (config.get("metadata") or {}),
    }
    config.setdefault("doc_to_target", "{{question_id}}")
    if not stores_likelihood:
        temperature = suite.temperature_of(benchmark)
        decoding: dict[str, Any] = {"do_sample": temperature > 0, "max_gen_toks": suite.max_response_tokens}
        if temperature > 0:
            decoding |= {"temperature": temperature, "top_p": suite.top_p}
            if suite.engine.kind == "hf":
                decoding["top_k"] = suite.top_k  # 0 means all here, and must be said: the default is 50
            elif suite.top_k:
                decoding["top_k"] = suite.top_k
        until = (config.get("generation_kwargs") or {}).get("until", [])
        config |= {"generation_kwargs": {"until": until, **decoding}, "repeats": suite.samples(benchmark)}
    return TaskManager(include_path=str(folder), include_defaults=False).load([config])["tasks"][config["task"]], chat


def render(
    recipe: Recipe,
    tokenizer: Any,
    benchmark: BenchmarkSpec,
    prompting: str,
    questions: Sequence[Question],
    folder: Path | None = None,
) -> list[Prompt]:
    """The prompts of a benchmark for models with this tokenizer. Needs no model.

    A prompt depends on its question alone, not on those it is rendered with. `folder`: of the task files; None: the
    suite's.

    Raises:
        UserError: the file is not a task, or stores text where the recipe expects likelihoods, or the reverse.
    """
    task, chat = _build_task(recipe, folder or task_folder(recipe.require_suite()), benchmark, prompting, questions)
    mode = thinking_mode(recipe)
    template: dict[str, Any] = {} if mode is None else {"enable_thinking": mode}

    # The harness's own leaves out a system message that the template refuses, and loses `enable_thinking` under vLLM.
    def apply(messages: Any, add_generation_prompt: bool = True) -> str:
        return render_messages(tokenizer, messages, add_generation_prompt, **template)

    task.build_all_requests(
        rank=0,
        world_size=1,
        system_instruction=recipe.prompt.system,
        apply_chat_template=chat,
        chat_template=apply if chat else None,
        tokenizer_name=str(tokenizer.name_or_path) if chat else "",
    )
    requests: dict[int, list[Instance]] = {}
    for instance in task.instances:
        requests.setdefault(int(instance.doc_id or 0), []).append(instance)
    return [
        Prompt(question.question_id, question.name, requests[index][0].args[0], tuple(requests[index]))
        for index, question in enumerate(questions)
    ]


def require_lengths(recipe: Recipe, model_dir: Path, prompts: Iterable[Prompt]) -> None:
    """Refuse prompts that would be cut, which the harness does from the left without a word, or fill the context.

    Raises:
        UserError: a prompt is longer than `suite.max_prompt_tokens`, or leaves no room in the model's context.
    """
    tokenizer, config = load_tokenizer(str(model_dir)), AutoConfig.from_pretrained(model_dir)
    longest = recipe.require_suite().max_prompt_tokens
    context = None if recipe.model is None or recipe.model.pocket else _context(config)
    for prompt in prompts:
        length = len(tokenizer(prompt.text)["input_ids"])
        subject = f"the prompt of question {prompt.name} of {prompt.requests[0].task_name} has {length} tokens"
        if length > longest:
            raise UserError(f"{subject} but suite.max_prompt_tokens is {longest}; raise it")
        if context is not None and length >= context:
            raise UserError(
                f"{subject} and the model's context is {context:g}, which leaves none for a response; leave this "
                "benchmark out, or that question"
            )


def _context(config: Any) -> float | None:
    """Tokens a model was made for, generously where its positions are scaled; None if the configuration has none."""
    longest = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return None if longest is None else longest * max(1, scaling.get("factor") or 1)


def build_response(
    prompt: Prompt, tokenizer: Any, texts: Sequence[str], tokens: Sequence[int] | None = None
) -> Response:
    """The record of the responses to one prompt. `tokens`: their lengths; None: they are counted."""
    lengths = tuple(count_tokens(tokenizer, text) for text in texts) if tokens is None else tuple(tokens)
    return _response(prompt, responses=tuple(texts), tokens=lengths)


def _response(prompt: Prompt, **answered: Any) -> Response:
    """The record of a prompt with what was answered to it."""
    opens_thinking = prompt.text.rstrip().endswith(THINK_OPEN)  # the template does, so the response does not
    return Response(prompt.question_id, hash_json(prompt.text), prompt.text, opens_thinking, **answered)


def count_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of a response. The harness returns text, so this is the length of the text tokenized again."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def request_seeds(engine: RequestEngine, prompts: Sequence[Prompt], chunk_seed: int) -> list[list[int]]:
    """The seed of each request of a chunk, by question and sample. It does not depend on the order of requests."""
    seeds = RequestSeeds(chunk_seed)
    keys = [engine.seed_key(prompt.text) for prompt in prompts]
    return [[seeds.draw(key) for _ in range(prompt.samples)] for key, prompt in zip(keys, prompts, strict=True)]


Chunk = tuple[Sequence[Prompt], int]
"""The prompts of a chunk, and its seed."""


def generate_chunk(model: LM, tokenizer: Any, prompts: Sequence[Prompt], seed: int) -> list[Response]:
    """A model's responses to the prompts of one chunk."""
    ((_, responses),) = generate_chunks(model, tokenizer, [(prompts, seed)])
    return responses


def generate_chunks(model: LM, tokenizer: Any, chunks: Sequence[Chunk]) -> Iterator[tuple[int, list[Response]]]:
    """The index of each chunk and its responses, as chunks are completed.

    A `RequestEngine` runs the requests of all chunks together; another model takes one chunk after the other.
    """
    requests: list[tuple[int, int, int, int]] = []
    """Chunk, question, sample and seed of each request."""
    for index, (prompts, seed) in enumerate(chunks):
        if prompts[0].likelihoods:
            yield index, _likelihoods(model, prompts)
        elif isinstance(model, RequestEngine):
            for question, seeds in enumerate(request_seeds(model, prompts, seed)):
                requests += [(index, question, sample, sample_seed) for sample, sample_seed in enumerate(seeds)]
        else:
            set_seed(seed)
            texts = iter(model.generate_until([p.requests[0] for p in prompts for _ in range(p.samples)]))
            yield index, [build_response(p, tokenizer, [next(texts) for _ in range(p.samples)]) for p in prompts]
    if isinstance(model, RequestEngine):
        yield from _run_requests(model, tokenizer, chunks, requests)


def _run_requests(
    engine: RequestEngine, tokenizer: Any, chunks: Sequence[Chunk], requests: Sequence[tuple[int, int, int, int]]
) -> Iterator[tuple[int, list[Response]]]:
    texts = {index: [[""] * prompt.samples for prompt in chunks[index][0]] for index, *_ in requests}
    for request_id, (index, question, _, seed) in enumerate(requests):
        prompt = chunks[index][0][question]
        engine.add_request(request_id, prompt.text, prompt.gen_kwargs, seed)
    unfinished = Counter(index for index, *_ in requests)
    while texts:
        for request_id, text in engine.step().items():
            index, question, sample, _ = requests[request_id]
            texts[index][question][sample] = text
            unfinished[index] -= 1
            if not unfinished[index]:
                pairs = zip(chunks[index][0], texts.pop(index), strict=True)
                yield index, [build_response(prompt, tokenizer, own) for prompt, own in pairs]


def _likelihoods(model: LM, prompts: Sequence[Prompt]) -> list[Response]:
    values = iter(model.loglikelihood([request for prompt in prompts for request in prompt.requests]))
    return [
        _response(
            prompt,
            answers=tuple(request.args[1] for request in prompt.requests),
            likelihoods=tuple(float(next(values)[0]) for _ in prompt.requests),
        )
        for prompt in prompts
    ]
