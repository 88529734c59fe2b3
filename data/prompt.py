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
from recipes.schema import ModelSpec
from recipes.training_schema import ExternalSpec, PromptSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PADS = ("<|finetune_right_pad_id|>", "<|pad|>", "[PAD]", "<pad>")  # of Llama 3 and others
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
    tokenizer.init_kwargs.pop("local_files_only", None)  # whether the hub was off is no part of what is saved
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer in {directory} has no chat template; prepare the base model first")
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise UserError(f"the tokenizer in {directory} needs an eos token and a pad token that differ")
    return tokenizer


def prepare_tokenizer(
    path: str | Path, spec: ModelSpec | ExternalSpec, template: str | None = None
) -> "PreTrainedTokenizerBase":
    """A checkpoint's tokenizer with eos, pad and chat template as the recipe settles them.

    `template`: a name or the text of a template for a checkpoint that has none; None: qwen3.

    Raises:
        UserError: there is no tokenizer or template, or it lacks one of the two tokens.
    """
    from transformers import AutoTokenizer

    # Without any of them transformers would make an empty tokenizer.
    if not any((Path(path) / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"no tokenizer at {spec.path}: it has no tokenizer.json, tokenizer.model or vocab.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer at {spec.path}: {str(error).splitlines()[0]}") from None
    known = tokenizer.get_vocab()
    eos = spec.eos_token or tokenizer.eos_token
    candidates = (tokenizer.pad_token, PAD_TOKEN, EOS_TOKEN, *_PADS, tokenizer.unk_token, *tokenizer.all_special_tokens)
    unused = (token for token in candidates if token in known and token not in (eos, tokenizer.bos_token))
    for setting, token in (("eos_token", eos), ("pad_token", spec.pad_token or next(unused, None))):
        if token not in known:
            raise UserError(f"the tokenizer of {spec.path} has no token {token}; set its {setting} to one of its own")
        setattr(tokenizer, setting, token)
    if tokenizer.eos_token == tokenizer.pad_token:
        raise UserError(f"eos and pad token of {spec.path} are both {eos}; set its pad_token to another of its own")
    if spec.chat_template is not None or not tokenizer.chat_template:
        own = spec.chat_template
        tokenizer.chat_template = chat_template(own) if own else template or chat_template("qwen3")
    return tokenizer


def chat_template(name: str) -> str:
    """A chat template: a `.jinja` file, or one that TRL ships, by name.

    Raises:
        UserError: there is no such template.
    """
    if name.endswith(".jinja"):
        if not Path(name).is_file():
            raise UserError(f"model.chat_template {name} does not exist")
        return Path(name).read_text(encoding="utf-8")
    trl = find_spec("trl")
    if trl is None or trl.origin is None:
        raise UserError("trl is not installed; run `make setup`")
    folder = Path(trl.origin).with_name("chat_templates")
    if name not in (known := sorted(path.stem for path in folder.glob("*.jinja"))):
        raise UserError(f"model.chat_template {name!r} is neither a .jinja file nor one of {', '.join(known)}")
    return folder.joinpath(f"{name}.jinja").read_text(encoding="utf-8")


def render_prompt(tokenizer: "PreTrainedTokenizerBase", problem: str, prompt: PromptSpec) -> str:
    """The text before the completion: system message, problem with suffix, and the opened assistant turn."""
    messages = [{"role": "user", "content": problem + prompt.suffix}]
    if prompt.system is not None:
        messages.insert(0, {"role": "system", "content": prompt.system})
    mode = {} if prompt.thinking is None else {"enable_thinking": prompt.thinking}
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **mode))
    # Some templates write the token that begins a text, which their tokenizers then add once more.
    return text.removeprefix(str(tokenizer.bos_token)) if adds_bos(tokenizer) else text


def adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer puts the token that begins a text before every text."""
    return tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]


def completion_ids(tokenizer: "PreTrainedTokenizerBase", completions: list[str]) -> list[list[int]]:
    """Token ids of completions, each with the end-of-turn token, as they follow the ids of a prompt."""
    if not completions:
        return []
    rows = tokenizer(completions, add_special_tokens=False)["input_ids"]
    return [[*ids, tokenizer.eos_token_id] for ids in rows]


_CONTRACT_PROBLEM = "What is 7 + 5?"
_CONTRACT_COMPLETIONS = ("<think>\nSeven and five.\n</think>\n\nIt is \\boxed{12}.", "\\boxed{12}", "12")


def check_contract(tokenizer: "PreTrainedTokenizerBase", prompt: PromptSpec, name: str) -> None:
    """Refuse a tokenizer and template with which training and inference would see different tokens.

    Raises:
        UserError: a prompt lacks the problem, begins twice, or already ends the turn; or the text of prompt and
            completion, tokenized as a whole as a server does, is not the ids of the two parts.
    """
    text = render_prompt(tokenizer, _CONTRACT_PROBLEM, prompt)
    ids = tokenizer(text)["input_ids"]

    def refuse(what: str) -> None:
        raise UserError(f"the chat template of {name} cannot be used: {what}; set model.chat_template to another one")

    if _CONTRACT_PROBLEM not in text:
        refuse("the prompt does not contain the problem")
    if tokenizer.bos_token_id is not None and ids.count(tokenizer.bos_token_id) > 1:
        refuse(f"the prompt has {tokenizer.bos_token} more than once")
    if tokenizer.eos_token_id in ids[-2:]:
        refuse(f"the prompt ends with {tokenizer.eos_token}, so there is nothing to continue")
    for completion, ending in zip(
        _CONTRACT_COMPLETIONS, completion_ids(tokenizer, list(_CONTRACT_COMPLETIONS)), strict=True
    ):
        whole = tokenizer(text + completion + str(tokenizer.eos_token))["input_ids"]
        if whole != ids + ending:
            refuse(f"tokens of the prompt and of the completion {completion[:20]!r} merge where they meet")


def template_hash(tokenizer: "PreTrainedTokenizerBase", prompt: PromptSpec) -> str:
    """sha256 over everything that decides the prompt's bytes besides the problem."""
    asked = (prompt.system or "", prompt.suffix, repr(prompt.thinking))
    parts = (str(tokenizer.chat_template), *asked, str(tokenizer.eos_token))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Texts that the tokenizer reads as control tokens; a problem that contains one could forge a turn."""
    return sorted(str(token) for token in tokenizer.all_special_tokens)
