"""Small tokenizers with the chat templates, named tokens and post-processors that published chat models have."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["What is 7 + 5?", "<think>\nSeven and five.\n</think>\n\nIt is \\boxed{12}.", "Be short. Box it."]


@dataclass(frozen=True)
class Shape:
    """A tokenizer and its template."""

    template: str
    special: tuple[str, ...]
    """Added tokens."""
    named: dict[str, str] = field(default_factory=dict)
    """`bos_token` and the like."""
    around: str = "$A"
    """What the post-processor makes of a text."""
    spaces: str | None = None
    """None: byte-level. prepend, first: of the SentencePiece kind, by a normalizer or by Metaspace."""

    def save(self, folder: Path) -> Path:
        """Write it into a folder."""
        bpe = Tokenizer(models.BPE(unk_token=self.named.get("unk_token"), byte_fallback=self.spaces is not None))
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if self.spaces is None:
            bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            bpe.decoder = decoders.ByteLevel()
        else:
            alphabet = sorted({*"".join(TEXTS), *"abcdefghijklmnopqrstuvwxyz[]/INST:\n"} - {" "})
            if self.spaces == "first":
                bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
            else:
                bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        special = list(self.special)
        bpe.train_from_iterator(
            TEXTS, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        )
        written = [token for token in special if token in self.around.split()]
        bpe.post_processor = processors.TemplateProcessing(
            single=self.around, special_tokens=[(token, bpe.token_to_id(token)) for token in written]
        )
        tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=bpe, **self.named)
        tokenizer.chat_template = self.template
        tokenizer.save_pretrained(folder)
        return folder


_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SYSTEM = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}"
_THINKS = (
    "{% for m in messages %}{% set said = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content %}"
    "{{ '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content "
    "+ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_DATED = "{{ bos_token + 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + _LLAMA3.removeprefix("{{ bos_token }}")
_MISTRAL = (
    "{{ bos_token }}{% set first = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + (first + '\n\n' if first else '') + m.content "
    "+ ' [/INST]' }}{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' "
    "+ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "{{ '<｜User｜>' + m.content }}{% else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
_PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{{ 'assistant:' }}"

_LLAMA3_TOKENS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|finetune_right_pad_id|>",
)  # fmt: skip
_LLAMA3_NAMED = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_END = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}

SHAPES = {
    "qwen2": Shape(_SYSTEM + _CHATML, _CHATML_TOKENS, _END),
    "qwen3": Shape(_THINKS, _CHATML_TOKENS, _END),
    # The token that begins a turn is also the one that begins a text; the end of a turn is also the padding.
    "smollm2": Shape(
        _SYSTEM + _CHATML, _CHATML_TOKENS,
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    ),
    "smollm2_bos_is_eos": Shape(
        _SYSTEM + _CHATML, _CHATML_TOKENS,
        {"bos_token": "<|im_start|>", "eos_token": "<|im_start|>", "unk_token": "<|endoftext|>"},
    ),
    "chatml_adds_bos": Shape(_CHATML, _CHATML_TOKENS, {"bos_token": "<|im_start|>", **_END}, "<|im_start|> $A"),
    "llama3": Shape(_LLAMA3, _LLAMA3_TOKENS, _LLAMA3_NAMED, "<|begin_of_text|> $A"),
    "llama3_dated": Shape(_DATED, _LLAMA3_TOKENS, _LLAMA3_NAMED, "<|begin_of_text|> $A"),
    "llama3_adds_eos": Shape(
        _LLAMA3, _LLAMA3_TOKENS, _LLAMA3_NAMED, "<|begin_of_text|> $A <|end_of_text|>"
    ),
    "mistral": Shape(
        _MISTRAL, ("<unk>", "<s>", "</s>"), {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        "<s> $A", "prepend",
    ),
    "mistral_v3": Shape(
        _MISTRAL.replace("[INST] ", "[INST]").replace(" [/INST]", "[/INST]"),
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}, "<s> $A", "first",
    ),
    "gemma": Shape(
        _GEMMA, ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}, "<bos> $A",
    ),
    "r1": Shape(
        _R1, ("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<|fim_pad|>"),
        {
            "bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>",
            "pad_token": "<｜end▁of▁sentence｜>",
        },
        "<｜begin▁of▁sentence｜> $A",
    ),
    "gpt2": Shape(_PLAIN, ("<|endoftext|>",), {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "pad_is_bos": Shape(
        _PLAIN, ("<s>", "</s>"), {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<s>"}, "<s> $A"
    ),
    "wrapped": Shape(
        _PLAIN, ("<s>", "</s>", "<sep>", "<pad>"),
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}, "<s> $A <sep>",
    ),
}  # fmt: skip
