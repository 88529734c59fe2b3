"""A tokenizer from its files alone, without transformers, whose import takes seconds; for the checks of a plan.

It renders templates as transformers does and knows the vocabulary; it tokenizes where it is given a tokenizer.
"""

import json
import re
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

_MASKS = re.compile(r"\{%-?\s*generation\b")  # marks assistant tokens for training: an extension of transformers
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class TokenizerFiles:
    """The chat template, the named tokens and the vocabulary of a directory.

    Attributes:
        tokenizer: its `tokenizer.json`, where lengths are to be known.
    """

    def __init__(self, template: str | None, tokens: dict[str, str | None], vocabulary: dict[str, int]) -> None:
        self.tokenizer: Tokenizer | None = None
        self.chat_template = template
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = (tokens.get(name) for name in _TOKENS)
        self._vocabulary = vocabulary
        self._added: dict[str, int] = {}

    @classmethod
    def read(cls, folder: Path) -> "TokenizerFiles | None":
        """What a directory holds; None where only transformers can tell, by the defaults of a tokenizer's class."""
        try:
            settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            separate = folder / "chat_template.jinja"
            template = separate.read_text(encoding="utf-8") if separate.is_file() else settings.get("chat_template")
            # A class of its own may know tokens that the file does not name.
            if not {"bos_token", "eos_token", "pad_token"} <= settings.keys() and settings.get(
                "tokenizer_class"
            ) not in (None, "PreTrainedTokenizerFast", "TokenizersBackend"):
                return None
            vocabulary = content["model"]["vocab"]
            if isinstance(vocabulary, list):  # of Unigram: pairs of token and score
                vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
            tokens = {name: _text(settings.get(name)) for name in _TOKENS}
            files = cls(template, tokens, vocabulary)
            files._added = {item["content"]: item["id"] for item in content["added_tokens"]}
            known = template is None or (isinstance(template, str) and not _MASKS.search(template))
            return files if known else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text."""
        return None if self.bos_token is None else self.get_vocab().get(self.bos_token)

    @property
    def all_special_tokens(self) -> list[str]:
        """The named tokens."""
        named = (self.bos_token, self.eos_token, self.unk_token, self.pad_token)
        return list(dict.fromkeys(token for token in named if token is not None))

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return self._vocabulary | self._added

    def get_added_vocab(self) -> dict[str, int]:
        """The tokens that were added to the model's own."""
        return self._added

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, list[Any]]:
        """The ids of one text or of each of several; without a tokenizer nothing, which changes no check of text."""
        if self.tokenizer is None:
            return {"input_ids": []}
        if isinstance(text, str):
            return {"input_ids": self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}
        return {"input_ids": [self(item, add_special_tokens)["input_ids"] for item in text]}

    def apply_chat_template(
        self, messages: Any, tokenize: bool = False, add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """The messages as text.

        Raises:
            jinja2.TemplateError: the template is wrong, or refuses them.
        """
        named = {name: value for name in _TOKENS if (value := getattr(self, name)) is not None}
        given = {"messages": messages, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        return _compiled(str(self.chat_template)).render(**(named | given | variables))


@lru_cache(maxsize=8)
def _compiled(template: str) -> "Template":
    """A chat template with what transformers gives it. Compiling takes longer than rendering."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    return environment.from_string(template)


def _text(value: Any) -> str | None:
    """A token as files write it: a text, or a mapping with one."""
    return value["content"] if isinstance(value, dict) else value


def own_tokens(folder: Path) -> dict[str, str]:
    """The named tokens of a directory as its tokenizer's settings write them, before a recipe settles any."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return {name: token for name in _TOKENS if (token := _text(settings.get(name)))}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}
