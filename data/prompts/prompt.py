"""The one place that turns a problem into the text a model continues, and knows when a completion has ended.

Training and the length filter render here, so the SFT sample is the GRPO prompt plus a completion. The evaluation
renders inside lm-evaluation-harness, with the same tokenizer, template, system message and suffix; a test holds the
two to the same bytes. Completions end with the tokenizer's eos token, `<|im_end|>` in the Qwen3 template. What a
template must keep to is in `data/prompts/template_contract.py`.
"""

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from jinja2 import TemplateError

from recipes.errors import UserError
from recipes.schema import ModelSpec
from recipes.suggestions import did_you_mean
from recipes.training_schema import ExternalSpec, PromptSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.prompts.tokenizer_files import TokenizerFiles

    AnyTokenizer: TypeAlias = PreTrainedTokenizerBase | TokenizerFiles

_PADS = ("<|finetune_right_pad_id|>", "<|pad|>", "[PAD]", "<pad>")  # of Llama 3 and others
_SPARE = ("pad", "reserved", "unused")  # in the names of added tokens that no text contains
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
EOS_TOKEN = "<|im_end|>"
PAD_TOKEN = "<|endoftext|>"
DEFAULT_TEMPLATE = "qwen3"


@lru_cache(maxsize=8)
def load_tokenizer(directory: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a prepared base or checkpoint.

    Raises:
        UserError: it has no chat template, or eos and pad are missing or the same token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.init_kwargs.pop("local_files_only", None)  # whether the hub was off does not belong to what is saved
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer in {directory} has no chat template; prepare the base model first")
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise UserError(f"the tokenizer in {directory} needs an eos token and a pad token that differ")
    return tokenizer


def prepare_tokenizer(
    path: str | Path, spec: ModelSpec | ExternalSpec, template: str | None = None, key: str = "model"
) -> "PreTrainedTokenizerBase":
    """A checkpoint's tokenizer with eos, pad and chat template as the recipe settles them.

    `template`: the text of a template for a checkpoint that has none; None: qwen3. `key`: the recipe's section that
    `spec` is, for messages.

    Raises:
        UserError: there is no tokenizer or template, or it lacks one of the two tokens.
    """
    from transformers import AutoTokenizer

    # Without any of them transformers would make an empty tokenizer.
    if not any((Path(path) / name).exists() for name in _TOKENIZER_FILES):
        raise UserError(f"no tokenizer at {spec.path}: it has no {', '.join(_TOKENIZER_FILES[:-1])} or vocab.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer at {spec.path}: {str(error).splitlines()[0]}") from None
    if tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]:  # a prompt would be over before it is answered
        tokenizer.add_bos_token = adds_bos(tokenizer)
        tokenizer.add_eos_token = False
    settle(tokenizer, spec, template, key)
    return tokenizer


def settle(
    tokenizer: "AnyTokenizer", spec: ModelSpec | ExternalSpec, template: str | None = None, key: str = "model"
) -> None:
    """Give a tokenizer the chat template, eos token and pad token that a recipe says or leaves to it.

    Raises:
        UserError: the vocabulary has no such token, or both would be the same.
    """
    vocabulary = tokenizer.get_vocab()
    if spec.chat_template is not None:
        tokenizer.chat_template = chat_template(spec.chat_template, key)
    elif isinstance(tokenizer.chat_template, dict):  # several by name, for tools and the like
        named: dict[str, str] = tokenizer.chat_template
        tokenizer.chat_template = named.get("default") or next(iter(named.values()))
    elif not tokenizer.chat_template:
        if template is None and "<|im_start|>" not in vocabulary:
            raise UserError(
                f"the tokenizer of {spec.path} has neither a chat template nor the token <|im_start|> of the default "
                f"one ({DEFAULT_TEMPLATE}); set {key}.chat_template to one made for it, a .jinja file of yours or the "
                "name of one that TRL ships, such as llama3"
            )
        tokenizer.chat_template = template or chat_template(DEFAULT_TEMPLATE)

    end = turn_end(tokenizer)
    eos = spec.eos_token or end or tokenizer.eos_token
    if eos not in vocabulary:
        advice = f"{key}.eos_token to {end}, with which its chat template ends a turn" if end else "its eos_token"
        advice += "" if end else " to one of its own"
        raise UserError(f"the tokenizer of {spec.path} has no token {eos}; set {advice}")
    tokenizer.eos_token = eos

    pad = _unused_token(tokenizer)
    if spec.pad_token is not None and spec.pad_token not in vocabulary:
        advice = f"{key}.pad_token to {pad}" if pad else "its pad_token to one of its own"
        raise UserError(f"the tokenizer of {spec.path} has no token {spec.pad_token}; set {advice}")
    if (spec.pad_token or pad) is None:
        raise UserError(
            f"the tokenizer of {spec.path} has no special token left for padding (its own: "
            f"{', '.join(sorted(set(tokenizer.all_special_tokens)))}); set {key}.pad_token to a token that no text "
            "contains"
        )
    tokenizer.pad_token = spec.pad_token or pad
    if tokenizer.eos_token == tokenizer.pad_token:
        raise UserError(f"eos and pad token of {spec.path} are both {eos}; set its pad_token to another of its own")


def _unused_token(tokenizer: "AnyTokenizer") -> str | None:
    """A token for padding: the tokenizer's own, a usual one, or a special one that no text contains."""
    known, added = tokenizer.get_vocab(), sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1])
    spare = [token for word in _SPARE for token, _ in added if word in token.lower()]
    special = [str(token) for token in tokenizer.all_special_tokens]
    candidates = (tokenizer.pad_token, PAD_TOKEN, EOS_TOKEN, *_PADS, tokenizer.unk_token, *special, *spare)
    taken = (tokenizer.eos_token, tokenizer.bos_token, turn_end(tokenizer))
    return next((str(token) for token in candidates if token in known and token not in taken), None)


def turn_end(tokenizer: "AnyTokenizer") -> str | None:
    """The token with which the chat template ends the assistant's turn; None if it writes none."""
    answer = "Eleven and one."
    messages = [{"role": "user", "content": "What is 7 + 5?"}, {"role": "assistant", "content": answer}]
    try:
        text = render_messages(tokenizer, messages, add_generation_prompt=False)
    except (TemplateError, TypeError):
        return None
    _, found_answer, after = text.rpartition(answer)
    control = {str(token) for token in tokenizer.all_special_tokens} | set(tokenizer.get_added_vocab())
    ends = [token for token in control if found_answer and token and after.lstrip().startswith(token)]
    return max(ends, key=len, default=None)


def chat_template(name: str, key: str = "model") -> str:
    """A chat template: a `.jinja` file, or one that TRL ships, by name. `key`: the recipe's section, for messages.

    Raises:
        UserError: there is no such template.
    """
    if name.endswith(".jinja"):
        if not Path(name).is_file():
            raise UserError(f"{key}.chat_template {name} does not exist")
        return Path(name).read_text(encoding="utf-8")
    trl = find_spec("trl")
    if trl is None or trl.origin is None:
        raise UserError("trl is not installed; run `make setup`")
    folder = Path(trl.origin).with_name("chat_templates")
    if name not in (known := sorted(path.stem for path in folder.glob("*.jinja"))):
        raise UserError(
            f"{key}.chat_template {name!r} is no .jinja file and TRL ships none of that name; "
            f"{did_you_mean(name, known)}"
        )
    return folder.joinpath(f"{name}.jinja").read_text(encoding="utf-8")


def render_prompt(tokenizer: "AnyTokenizer", problem: str, prompt: PromptSpec, **template: Any) -> str:
    """The text before the completion: system message, problem with suffix, and the opened assistant turn.

    `template`: further variables of the chat template.
    """
    mode = {} if prompt.thinking is None else {"enable_thinking": prompt.thinking}
    return render_messages(tokenizer, messages_of(problem, prompt), add_generation_prompt=True, **mode, **template)


def messages_of(problem: str, prompt: PromptSpec) -> list[dict[str, str]]:
    """A problem as chat messages: the system message, if there is one, and the problem with the suffix."""
    system = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
    return [*system, {"role": "user", "content": problem + prompt.suffix}]


def render_messages(tokenizer: "AnyTokenizer", messages: Any, add_generation_prompt: bool, **template: Any) -> str:
    """Messages as text, without the token that begins a text where the tokenizer adds it once more."""
    text = str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt, **template)
    )
    return text.removeprefix(str(tokenizer.bos_token)) if adds_bos(tokenizer) else text


def adds_bos(tokenizer: "AnyTokenizer") -> bool:
    """Whether the tokenizer puts the token that begins a text before every text."""
    return tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]


def completion_ids(tokenizer: "PreTrainedTokenizerBase", completions: list[str]) -> list[list[int]]:
    """Token ids of completions, each with the end-of-turn token, as they follow the ids of a prompt."""
    if not completions:
        return []
    rows = tokenizer(completions, add_special_tokens=False)["input_ids"]
    if anchor := _anchor(tokenizer):
        before = tokenizer(anchor, add_special_tokens=False)["input_ids"]
        whole = tokenizer([anchor + text for text in completions], add_special_tokens=False)["input_ids"]
        size = len(before)
        rows = [ids[size:] if ids[:size] == before else alone for ids, alone in zip(whole, rows, strict=True)]
    return [[*ids, tokenizer.eos_token_id] for ids in rows]


@lru_cache(maxsize=8)
def _anchor(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Text to put before a completion so that it is tokenized as after a prompt; empty for most tokenizers.

    Tokenizers of the SentencePiece kind put a space before a text, which the middle of a text does not get.
    """
    if tokenizer("a", add_special_tokens=False)["input_ids"] == tokenizer.convert_tokens_to_ids(["a"]):
        return ""
    return render_prompt(tokenizer, "", PromptSpec())


def template_hash(tokenizer: "PreTrainedTokenizerBase", prompt: PromptSpec) -> str:
    """sha256 over everything that decides the prompt's bytes besides the problem."""
    settings = (prompt.system or "", prompt.suffix, repr(prompt.thinking))
    parts = (str(tokenizer.chat_template), *settings, str(tokenizer.eos_token))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Texts that the tokenizer reads as control tokens; a problem that contains one could forge a turn.

    Those without a role of their own, such as Llama's <|start_header_id|>, are not in `all_special_tokens`.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(special | set(map(str, tokenizer.all_special_tokens)))
