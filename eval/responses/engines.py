"""What generates: transformers, vLLM or a server, as language models of lm-evaluation-harness.

The harness repeats a request to get several responses. Under transformers the repeats differ because one generator
draws them in turn. vLLM and servers take a seed per request, and with one seed for all of them the repeats would be
copies; here each request gets a seed of its own, made from the chunk's seed, the prompt and the number of the repeat.

An engine is loaded when it is first asked for and released where its `with` ends (`EngineOnDemand`): vLLM runs in
processes of its own, which would hold a GPU's memory, and keep the command from ending, until they are told to stop.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from data.language_model import load_model, on_cpu
from data.prompts.prompt import load_tokenizer, render_messages
from data.sampling.server import require_served, server_version
from eval.responses.process_guard import ProcessGuard
from recipes.errors import UserError
from recipes.manifest import write_json
from recipes.schema import Recipe
from recipes.suite_schema import EngineSpec

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedTokenizerBase

ENGINE_FILE = "engine.json"
_STOP_SECONDS = 60.0  # for the processes of a vLLM that is told to stop; then they are killed


def render_chat(tokenizer: Any, messages: Any, add_generation_prompt: bool, template: dict[str, Any]) -> str:
    """Messages as the prompt text, as training renders them."""
    return render_messages(tokenizer, messages, add_generation_prompt, **template)


class Seeds:
    """Seeds of the requests of one chunk: equal prompts get different ones, and a rerun the same again.

    A request that a server failed and that is sent again counts as a further one.
    """

    def __init__(self, chunk_seed: int) -> None:
        self.chunk_seed = chunk_seed
        self._asked: Counter[str] = Counter()

    def draw(self, prompt: Any) -> int:
        """The seed of the next request with this prompt (text or token ids), 31 bits."""
        key = repr(prompt)
        number = self._asked[key]
        self._asked[key] += 1
        return int.from_bytes(sha256(f"{self.chunk_seed} {number} {key}".encode()).digest()[:4], "big") >> 1


def thinking_mode(recipe: Recipe) -> bool | None:
    """The chat template's thinking mode in the evaluation."""
    assert recipe.suite is not None
    return recipe.prompt.thinking if recipe.suite.thinking is None else recipe.suite.thinking


def require_thinking(tokenizer: "PreTrainedTokenizerBase", thinking: bool | None, label: str) -> None:
    """Refuse a thinking mode that the model's template knows nothing of.

    Raises:
        UserError: the template renders the same with and without thinking.
    """
    if thinking is None:
        return
    message: Any = [{"role": "user", "content": "?"}]
    rendered = [
        tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=mode)
        for mode in (True, False)
    ]
    if rendered[0] == rendered[1]:
        raise UserError(
            f"suite.thinking is {str(thinking).lower()} but the chat template of {label} has no thinking mode; set it "
            "to null, or give the model a template that has one"
        )


class EngineOnDemand:
    """The engine of one checkpoint for the length of a `with`: loaded by the first call, released at the end.

    What was loaded is recorded in `stage_dir`, for `engine_facts`.
    """

    def __init__(self, recipe: Recipe, model_dir: Path, label: str, stage_dir: Path) -> None:
        self._asked = recipe, model_dir, label
        self._stage_dir = stage_dir
        self._engine: LM | None = None

    def __call__(self) -> "LM":
        """The engine. Raises what `load_engine` raises."""
        if self._engine is None:
            self._engine = load_engine(*self._asked)
            write_json(self._stage_dir / ENGINE_FILE, describe_engine(self._asked[0], self._engine))
        return self._engine

    def __enter__(self) -> "EngineOnDemand":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            if hasattr(engine, "close"):
                engine.close()
            del engine
            _free_memory()


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()  # the next model must find the memory where one model fills a GPU
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe_engine(recipe: Recipe, engine: Any) -> dict[str, Any]:
    """What an engine is, for the record: name, version, device, dtype; of a server, device and dtype are not known."""
    assert recipe.suite is not None
    spec = recipe.suite.engine
    if spec.kind == "vllm":
        from vllm.platforms import current_platform

        dtype = str(engine.model.llm_engine.model_config.dtype).removeprefix("torch.")
        facts = {"name": "vllm", "version": metadata.version("vllm"), "device": current_platform.device_type}
        return facts | {"dtype": dtype, "tensor_parallel": spec.tensor_parallel, "eager": spec.eager}
    if spec.kind == "endpoint":
        version = server_version(str(spec.base_url), _headers())
        return {"name": "endpoint", "version": version, "device": None, "dtype": None, "model": spec.model}
    facts = {"name": "transformers", "version": metadata.version("transformers"), "device": engine.device.type}
    return facts | {"dtype": str(engine.model.dtype).removeprefix("torch."), "batch_size": spec.batch_size}


def engine_facts(stage_dir: Path) -> dict[str, Any] | None:
    """The engine that answered in a stage, the last one if it was resumed with another; None if none was recorded."""
    try:
        return dict(json.loads((stage_dir / ENGINE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def load_engine(recipe: Recipe, model_dir: Path, label: str) -> "LM":
    """The language model of a checkpoint. Its user closes it; `EngineOnDemand` does.

    Raises:
        UserError: vLLM is wanted and not installed, the template lacks the thinking mode, or a server serves another
            model or shorter texts.
    """
    assert recipe.suite is not None and recipe.model is not None
    engine, suite = recipe.suite.engine, recipe.suite
    thinking = thinking_mode(recipe)
    tokenizer = load_tokenizer(str(model_dir))
    require_thinking(tokenizer, thinking, label)
    template: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    if engine.kind == "vllm":
        return _vllm(recipe, model_dir, template)
    if engine.kind == "endpoint":
        return _server(recipe, model_dir, label, template)
    from lm_eval.models.huggingface import HFLM

    class TrainedRendering(HFLM):
        # The harness's own leaves out a system message that the template refuses.
        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return render_chat(self.tokenizer, chat_history, add_generation_prompt, template)

    return TrainedRendering(
        pretrained=load_model(model_dir, recipe.model.dtype),
        tokenizer=tokenizer,
        batch_size=engine.batch_size,
        chat_template_args=template,
        device="cpu" if on_cpu() else "cuda",
        max_length=suite.max_prompt_tokens + suite.max_response_tokens,
    )


def _vllm(recipe: Recipe, model_dir: Path, template: dict[str, Any]) -> "LM":
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise UserError(
            "suite.engine.kind is vllm, which is not installed; run pip install -r requirements-gpu.lock on a GPU "
            "machine, or use the environment of make setup-engines on a CPU"
        )
    # A forked process cannot use a GPU that this one has initialised; read when vLLM is imported.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    from lm_eval.models.vllm_causallms import VLLM
    from vllm import SamplingParams, TokensPrompt

    class SeededVLLM(VLLM):
        seeds = Seeds(0)

        def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
            if generate:
                for ids, parameters in zip(requests, sampling_params, strict=True):
                    parameters.seed = self.seeds.draw(ids)
            else:
                sampling_params = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False)
            # The harness asks for vLLM's progress bar, which divides by zero where bars are switched off.
            prompts = [TokensPrompt(prompt_token_ids=ids) for ids in requests]
            return self.model.generate(prompts, sampling_params=sampling_params, use_tqdm=False)

        # The harness's own loses `enable_thinking` when it is given among the template's arguments.
        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return render_chat(self.tokenizer, chat_history, add_generation_prompt, template)

        def close(self) -> None:
            """Stop vLLM's processes and wait for their end."""
            try:
                self.model.llm_engine.engine_core.shutdown(timeout=_STOP_SECONDS)
            finally:
                self.guard.close()

    assert recipe.suite is not None and recipe.model is not None
    engine, suite = recipe.suite.engine, recipe.suite
    guard = ProcessGuard()
    try:
        model = SeededVLLM(
            pretrained=str(model_dir),
            dtype=recipe.model.dtype,
            tensor_parallel_size=engine.tensor_parallel,
            gpu_memory_utilization=engine.memory_share,
            enforce_eager=engine.eager,
            max_model_len=suite.max_prompt_tokens + suite.max_response_tokens,
            seed=suite.seed,
            batch_size="auto",
        )
    except BaseException:  # also Ctrl-C: an engine that was loading would keep its memory
        guard.close()
        raise
    guard.started()
    model.guard = guard
    return model


def _server(recipe: Recipe, model_dir: Path, label: str, template: dict[str, Any]) -> "LM":
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class SeededServer(LocalCompletionsAPI):
        seeds = Seeds(0)

        def _create_payload(self, messages: Any, generate: bool = False, **arguments: Any) -> dict[str, Any]:
            arguments["seed"] = self.seeds.draw(messages) if generate else arguments.get("seed", 0)
            return dict(super()._create_payload(messages, generate=generate, **arguments))

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return render_chat(self.tokenizer, chat_history, add_generation_prompt, template)

    assert recipe.suite is not None
    engine, suite = recipe.suite.engine, recipe.suite
    assert engine.model is not None and engine.base_url is not None
    name, length = engine.model.replace("{label}", label), suite.max_prompt_tokens + suite.max_response_tokens
    limits = "suite.max_prompt_tokens and suite.max_response_tokens"
    require_served(engine.base_url, _headers(), name, "suite.engine.model", length, limits)
    return SeededServer(
        model=name,
        base_url=engine.base_url,
        tokenizer=str(model_dir),
        tokenizer_backend="huggingface",
        tokenized_requests=False,
        num_concurrent=engine.concurrent,
        max_length=length,
        max_retries=5,
        timeout=engine.timeout_seconds,
        header=_headers() or None,
    )


def _headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {} if key is None else {"Authorization": f"Bearer {key}"}


@contextmanager
def server_errors(engine: EngineSpec) -> Iterator[None]:
    """Turn what a server that fails raises, after the harness's retries, into a sentence."""
    if engine.kind != "endpoint":
        yield
        return
    import aiohttp
    import requests

    try:
        yield
    except (aiohttp.ClientError, requests.RequestException, TimeoutError, OSError) as error:
        what = str(error).split(", url=")[0] or type(error).__name__
        if 400 <= getattr(error, "status", 0) < 500:
            raise UserError(
                f"the server at {engine.base_url} refused a request ({what}); its reason is in the log of this stage, "
                "most often another model or a shorter --max-model-len than the suite needs"
            ) from None
        raise UserError(
            f"the server at {engine.base_url} failed ({what}); start it again, and the same command continues"
        ) from None
