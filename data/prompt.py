"""The one place that turns a problem into the text a model continues, and knows when a completion has ended.

Training and the length filter render here, so the SFT sample is the GRPO prompt plus a completion. The evaluation
renders inside lm-evaluation-harness, with the same tokenizer, template, system message and suffix; a test holds the
two to the same bytes. Completions end with the tokenizer's eos token,
`<|im_end|>` in the Qwen3 template.
"""

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.errors import UserError
from recipes.schema import PromptSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EOS_TOKEN = "<|im_end|>"
PAD_TOKEN = "<|endoftext|>"


@lru_cache(maxsize=8)
def load_tokenizer(directory: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a prepared base or checkpoint.

    Raises:
        UserError: it has no chat template, or eos and pad are missing or the same token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer in {directory} has no chat template; prepare the base model first")
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise UserError(f"the tokenizer in {directory} needs an eos token and a pad token that differ")
    return tokenizer


def prepare_tokenizer(path: str | Path, name: str) -> "PreTrainedTokenizerBase":
    """A checkpoint's tokenizer with its end-of-turn settings settled: eos `<|im_end|>`, pad `<|endoftext|>`.

    `name` is used in messages.

    Raises:
        UserError: there is no tokenizer, or it lacks one of the two tokens.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer at {name}: {str(error).splitlines()[0]}") from None
    known = tokenizer.get_vocab()
    for token in (EOS_TOKEN, PAD_TOKEN):
        if token not in known:
            raise UserError(f"the tokenizer of {name} has no token {token}; only Qwen-style chat bases are supported")
    tokenizer.eos_token, tokenizer.pad_token = EOS_TOKEN, PAD_TOKEN
    tokenizer.chat_template = tokenizer.chat_template or qwen3_chat_template()
    return tokenizer


def qwen3_chat_template() -> str:
    """The Qwen3 chat template as TRL ships it."""
    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        raise UserError("trl is not installed; run `make setup`")
    return Path(spec.origin).with_name("chat_templates").joinpath("qwen3.jinja").read_text(encoding="utf-8")


def render_prompt(tokenizer: "PreTrainedTokenizerBase", problem: str, prompt: PromptSpec) -> str:
    """The text before the completion: system message, problem with suffix, and the opened assistant turn."""
    messages = [{"role": "user", "content": problem + prompt.suffix}]
    if prompt.system is not None:
        messages.insert(0, {"role": "system", "content": prompt.system})
    mode = {} if prompt.thinking is None else {"enable_thinking": prompt.thinking}
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **mode)
    return str(text)


def template_hash(tokenizer: "PreTrainedTokenizerBase", prompt: PromptSpec) -> str:
    """sha256 over everything that decides the prompt's bytes besides the problem."""
    asked = (prompt.system or "", prompt.suffix, repr(prompt.thinking))
    parts = (str(tokenizer.chat_template), *asked, str(tokenizer.eos_token))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Texts that the tokenizer reads as control tokens; a problem that contains one could forge a turn."""
    return sorted(str(token) for token in tokenizer.all_special_tokens)
