"""Engines: transformers, vLLM or a server, as language models of lm-evaluation-harness.

transformers generates fixed batches from one random generator, so it generates a chunk at a time. vLLM and servers take
single requests (`request_engine.py`), each with its own seed, derived from the chunk's seed, the prompt and the index
of the repeat. So a response does not depend on when its request runs, or beside which others.

An engine is loaded on first use and released at the end of a `with` (`EngineOnDemand`). vLLM runs in processes of its
own, which hold a GPU's memory, and keep the command from exiting, until they are shut down.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.language_model import device_name, load_model, on_cpu
from data.prompts.prompt import load_tokenizer
from data.sampling.engine import cpu_arguments
from data.sampling.server import require_served, server_version
from recipes.errors import UserError
from recipes.files import read_json, write_json
from recipes.schema import Recipe
from recipes.suite_schema import EngineSpec

if TYPE_CHECKING:
    from lm_eval.api.model import LM

ENGINE_FILE = "engine.json"


def thinking_mode(recipe: Recipe) -> bool | None:
    """The chat template's thinking mode in the evaluation."""
    suite = recipe.require_suite()
    return recipe.prompt.thinking if suite.thinking is None else suite.thinking


class EngineOnDemand:
    """The engine of one checkpoint: loaded by the first call, released at the end of the `with`.

    Its name, version, device and dtype are written to `stage_dir`, for `engine_facts`.
    """

    def __init__(self, recipe: Recipe, model_dir: Path, label: str, stage_dir: Path) -> None:
        self._arguments = recipe, model_dir, label
        self._stage_dir = stage_dir
        self._engine: LM | None = None

    def __call__(self) -> "LM":
        """The engine. Raises what `load_engine` raises."""
        if self._engine is None:
            self._engine = load_engine(*self._arguments)
            write_json(self._stage_dir / ENGINE_FILE, describe_engine(self._arguments[0], self._engine))
        return self._engine

    def __enter__(self) -> "EngineOnDemand":
        return self

    def __exit__(self, *error: object) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            if hasattr(engine, "close"):
                engine.close()
            del engine
            _free_memory()


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()  # where one model fills a GPU, the next needs its memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe_engine(recipe: Recipe, engine: Any) -> dict[str, Any]:
    """Name, version, device and dtype of an engine; None where a server does not say."""
    spec = recipe.require_suite().engine
    if spec.kind == "vllm":
        from vllm.platforms import current_platform

        dtype = str(engine.model.llm_engine.model_config.dtype).removeprefix("torch.")
        facts = {"name": "vllm", "version": metadata.version("vllm"), "device": current_platform.get_device_name()}
        return facts | {"dtype": dtype, "tensor_parallel": spec.tensor_parallel, "eager": spec.eager}
    if spec.kind == "endpoint":
        version = server_version(str(spec.base_url), _headers())
        return {"name": "endpoint", "version": version, "device": None, "dtype": None, "model": spec.model}
    facts = {"name": "transformers", "version": metadata.version("transformers"), "device": device_name()}
    return facts | {"dtype": str(engine.model.dtype).removeprefix("torch."), "batch_size": spec.batch_size}


def engine_facts(stage_dir: Path) -> dict[str, Any] | None:
    """What `describe_engine` said of the last engine a stage loaded; None if it has loaded none."""
    return read_json(stage_dir / ENGINE_FILE)


def load_engine(recipe: Recipe, model_dir: Path, label: str) -> "LM":
    """Load a checkpoint as a language model of the harness. The caller closes it, as `EngineOnDemand` does.

    Raises:
        UserError: vLLM is not installed, or the server has another model or a shorter context.
    """
    suite = recipe.require_suite()
    if suite.engine.kind == "vllm":
        return _vllm(recipe, model_dir)
    if suite.engine.kind == "endpoint":
        return _server(recipe, model_dir, label)
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=load_model(model_dir, recipe.require_model().dtype),
        tokenizer=load_tokenizer(str(model_dir)),
        batch_size=suite.engine.batch_size,
        device="cpu" if on_cpu() else "cuda",
        max_length=suite.max_prompt_tokens + suite.max_response_tokens,
    )


def _vllm(recipe: Recipe, model_dir: Path) -> "LM":
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise UserError(
            "suite.engine.kind is vllm, which is not installed; run pip install -r requirements-gpu.lock on a GPU "
            "machine, or use the environment of make setup-engines on a CPU"
        )
    # A forked process cannot use a GPU that this one has initialised. vLLM reads this on import.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    from eval.responses.vllm_engine import VLLMEngine

    suite = recipe.require_suite()
    engine = suite.engine
    return VLLMEngine(
        pretrained=str(model_dir),
        dtype=recipe.require_model().dtype,
        tensor_parallel_size=engine.tensor_parallel,
        gpu_memory_utilization=engine.memory_share,
        enforce_eager=engine.eager,
        max_model_len=suite.max_prompt_tokens + suite.max_response_tokens,
        seed=suite.seed,
        batch_size="auto",
        **cpu_arguments(model_dir, suite.max_prompt_tokens + suite.max_response_tokens),
    )


def _server(recipe: Recipe, model_dir: Path, label: str) -> "LM":
    from eval.responses.server_engine import ServerEngine

    suite = recipe.require_suite()
    engine = suite.engine
    assert engine.model is not None and engine.base_url is not None
    name, length = engine.model.replace("{label}", label), suite.max_prompt_tokens + suite.max_response_tokens
    limits = "suite.max_prompt_tokens and suite.max_response_tokens"
    require_served(engine.base_url, _headers(), name, "suite.engine.model", length, limits)
    return ServerEngine(
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
    """Turn the exceptions of a failing server, raised after the harness's retries, into a UserError."""
    if engine.kind != "endpoint":
        yield
        return
    import aiohttp
    import requests

    try:
        yield
    except (aiohttp.ClientError, requests.RequestException, TimeoutError, OSError) as error:
        what = str(error).split(", url=")[0] or type(error).__name__
        status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and 400 <= status < 500:
            raise UserError(
                f"the server at {engine.base_url} refused a request ({what}); its reason is in the log of this stage, "
                "most often another model or a shorter --max-model-len than the suite needs"
            ) from None
        raise UserError(
            f"the server at {engine.base_url} failed ({what}); start it again, and the same command continues"
        ) from None
