"""What generates: transformers, vLLM or a server, as language models of lm-evaluation-harness.

The harness repeats a request to get several responses. Under transformers the repeats differ because one generator
draws them in turn. vLLM and servers take a seed per request, and with one seed for all of them the repeats would be
copies; here each request gets a seed of its own, made from the chunk's seed, the prompt and the number of the repeat.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

from data.language_model import load_model, on_cpu
from data.prompt import load_tokenizer, render_messages
from recipes.errors import UserError
from recipes.schema import Recipe
from recipes.suite_schema import EngineSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def load_engine(recipe: Recipe, model_dir: Path, label: str) -> LM:
    """The language model of a checkpoint.

    Raises:
        UserError: vLLM is wanted and not installed, or the template lacks the thinking mode.
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


def _vllm(recipe: Recipe, model_dir: Path, template: dict[str, Any]) -> LM:
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise UserError(
            "suite.engine.kind is vllm, which is not installed; run pip install -e '.[gpu]' on a GPU machine"
        )
    from lm_eval.models.vllm_causallms import VLLM

    class SeededVLLM(VLLM):
        seeds = Seeds(0)

        def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
            if generate and isinstance(sampling_params, list):
                for ids, parameters in zip(requests, sampling_params, strict=True):
                    parameters.seed = self.seeds.draw(ids)
            return super()._model_generate(requests, generate, sampling_params)

        # The harness's own loses `enable_thinking` when it is given among the template's arguments.
        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return render_chat(self.tokenizer, chat_history, add_generation_prompt, template)

    assert recipe.suite is not None and recipe.model is not None
    engine, suite = recipe.suite.engine, recipe.suite
    return SeededVLLM(
        pretrained=str(model_dir),
        dtype=recipe.model.dtype,
        tensor_parallel_size=engine.tensor_parallel,
        gpu_memory_utilization=engine.memory_share,
        max_model_len=suite.max_prompt_tokens + suite.max_response_tokens,
        seed=suite.seed,
        batch_size="auto",
    )


def _server(recipe: Recipe, model_dir: Path, label: str, template: dict[str, Any]) -> LM:
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
    assert engine.model is not None
    key = os.environ.get("OPENAI_API_KEY")
    return SeededServer(
        model=engine.model.replace("{label}", label),
        base_url=engine.base_url,
        tokenizer=str(model_dir),
        tokenizer_backend="huggingface",
        tokenized_requests=False,
        num_concurrent=engine.concurrent,
        max_length=suite.max_prompt_tokens + suite.max_response_tokens,
        max_retries=5,
        timeout=engine.timeout_seconds,
        header=None if key is None else {"Authorization": f"Bearer {key}"},
    )


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
        raise UserError(
            f"the server at {engine.base_url} failed ({what}); start it again, and the same command continues"
        ) from None
