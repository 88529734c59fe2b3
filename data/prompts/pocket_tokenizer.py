"""The pocket model's tokenizer: a byte-level BPE trained on the synthetic world's text, which needs no torch."""

from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from data.pocket_world import pretraining_documents
from data.prompts.prompt import EOS_TOKEN, PAD_TOKEN, chat_template
from data.prompts.tokenizer_files import TokenizerFiles
from recipes.schema import PocketModelSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

TOKENIZER_DOCUMENTS = 20000
"""Documents of the pre-training text that the vocabulary is made from."""
_START = "<|im_start|>"
_THINKING = ("<think>", "</think>")
# Qwen2's pre-tokenisation rule: contractions, words with one leading mark, single digits, punctuation, spaces.
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_bpe(documents: list[tuple[str, str]], vocab_size: int) -> "Tokenizer":
    """A byte-level BPE trained on (problem, completion) pairs, with Qwen3's control tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        (f"{problem}\n{completion}\nuser\nassistant\n" for problem, completion in documents),
        trainers.BpeTrainer(
            vocab_size=max(0, vocab_size - len(_THINKING)),
            special_tokens=[PAD_TOKEN, _START, EOS_TOKEN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return bpe


def build_tokenizer(documents: list[tuple[str, str]], vocab_size: int) -> "PreTrainedTokenizerFast":
    """The tokenizer with Qwen3's control tokens and chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(documents, vocab_size),
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        extra_special_tokens=[_START],
    )
    # As in Qwen3 these are single tokens but not special: decoding a completion keeps them.
    tokenizer.add_tokens(list(_THINKING))
    tokenizer.chat_template = chat_template("qwen3")
    return tokenizer


def pocket_tokenizer(spec: PocketModelSpec) -> "PreTrainedTokenizerFast":
    """The tokenizer that the pocket model of a recipe will have."""
    return build_tokenizer(_documents(spec), spec.vocab_size)


@lru_cache(maxsize=2)
def counting_tokenizer(spec: PocketModelSpec) -> TokenizerFiles:
    """What counts tokens as `pocket_tokenizer` does, without importing transformers."""
    return _counting(train_bpe(_documents(spec), spec.vocab_size))


@lru_cache(maxsize=1)
def byte_tokenizer() -> TokenizerFiles:
    """What counts a token for each byte, without training: no text has more tokens in any pocket model."""
    return _counting(train_bpe([], 0))


def _counting(bpe: "Tokenizer") -> TokenizerFiles:
    bpe.add_tokens(list(_THINKING))
    files = TokenizerFiles(chat_template("qwen3"), {"eos_token": EOS_TOKEN, "pad_token": PAD_TOKEN}, bpe.get_vocab())
    files.tokenizer = bpe
    return files


def _documents(spec: PocketModelSpec) -> list[tuple[str, str]]:
    return list(islice(pretraining_documents(spec.seed, spec.documents), TOKENIZER_DOCUMENTS))
