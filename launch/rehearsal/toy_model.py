"""A random-weight model of a recipe's own architecture and head geometry, small enough for a CPU, with its tokenizer.

What kernels depend on stays: architecture, head size, query heads per key head, tied or untied embeddings, vocabulary.
Width, depth and the number of heads shrink. A few steps teach the model to end its turn after a boxed answer, so that
completions have rewards, gradients and ends like those of a real base.
"""

import json
import re
import shutil
from math import lcm
from pathlib import Path
from typing import Any

from data.hub import locate_model
from data.prompts.prompt import EOS_TOKEN, PAD_TOKEN, chat_template, completion_ids, prepare_tokenizer, render_prompt
from recipes.errors import UserError
from recipes.schema import ModelSpec, Recipe
from recipes.training_schema import ExternalSpec
from train.accounting.cost import KNOWN_SHAPES, ModelShape
from train.models.prepared_base import TOY

_HIDDEN, _MULTIPLE, _LAYERS = 128, 32, 2  # width at least, and a number that divides it; layers
_STEPS, _COPIES = 60, 8
_TOKENIZER_FILES = ("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.jinja")
_CONTROL = re.compile(r"<\|[a-z0-9_]+\|>")


def locked_model(name: str, recipe: Recipe, revision: str | None) -> Path | None:
    """Directory of a model on this machine; None if it is not there."""
    try:
        return locate_model(name, recipe.lock_of_model(name, revision), revision)
    except UserError:
        return None


def toy_config(source: Path | None, name: str, tensor_parallel: int) -> dict[str, Any]:
    """`config.json` of a model, shrunk; without `source`, from the shapes that this project knows.

    Raises:
        UserError: the model is unknown, or its configuration cannot be read.
    """
    if source is None:
        families = {known: known.split("/")[-1].removesuffix("-Base").lower() for known in KNOWN_SHAPES}
        named_after = [known for known, family in families.items() if family in name.lower()]  # as released models are
        like = name if name in KNOWN_SHAPES else max(named_after, key=len, default=None)
        if like is None:
            raise UserError(
                f"the architecture of {name} is unknown; run `transfer fetch RECIPE` where there is a network, which "
                "downloads its config.json, or set model.path to a local directory"
            )
        config = _config_of(KNOWN_SHAPES[like])
    else:
        try:
            config = dict(json.loads((source / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(f"{source / 'config.json'} cannot be read: {error}") from None
    return shrunk(config, tensor_parallel)


def _config_of(shape: ModelShape) -> dict[str, Any]:
    """A shape as transformers' configuration."""
    kind, architecture = ("qwen3", "Qwen3ForCausalLM") if shape.head_norms else ("llama", "LlamaForCausalLM")
    return {
        "model_type": kind,
        "architectures": [architecture],
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "tie_word_embeddings": shape.tied_embeddings,
        "max_position_embeddings": shape.context,
    }


def shrunk(config: dict[str, Any], tensor_parallel: int = 1) -> dict[str, Any]:
    """A configuration with fewer and narrower layers; head size and query heads per key head stay.

    One key head for each GPU of `tensor_parallel`, which divides heads among GPUs.
    """
    heads = config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or heads
    fewer = heads // key_heads * tensor_parallel
    step = lcm(fewer, _MULTIPLE)  # Llama's configuration refuses a width that the heads do not divide
    hidden = -(-_HIDDEN // step) * step
    small = config | {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": fewer,
        "num_key_value_heads": tensor_parallel,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
    }
    if isinstance(config.get("layer_types"), list):
        small["layer_types"] = config["layer_types"][:_LAYERS]
    if config.get("max_window_layers") is not None:
        small["max_window_layers"] = min(config["max_window_layers"], _LAYERS)
    for key, value in (("num_experts", 4), ("num_local_experts", 4), ("num_experts_per_tok", 2)):
        if key in config:
            small[key] = value
    if "moe_intermediate_size" in config:
        small["moe_intermediate_size"] = hidden
    return small


def write_tokenizer(target: Path, source: Path | None, spec: ModelSpec | ExternalSpec, texts: list[str]) -> bool:
    """Write the tokenizer of `source` to `target`, or one trained on `texts`; returns whether it is the model's own."""
    if source is not None:
        for pattern in _TOKENIZER_FILES:
            for path in source.glob(pattern):
                shutil.copyfile(path, target / path.name)
        return True
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    eos, pad = spec.eos_token or EOS_TOKEN, spec.pad_token or PAD_TOKEN
    template = chat_template(spec.chat_template or "qwen3")
    begin = "<|begin_of_text|>" if "bos_token" in template else None  # Llama 3's tokenizer prepends it to every text
    control = list(dict.fromkeys([pad, *([begin] if begin else []), *_CONTROL.findall(template), eos]))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*texts, *(["\\boxed{}"] * 50), "\nuser\nassistant\nsystem\n"], trainer)
    if begin is not None:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, bpe.token_to_id(begin))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=eos,
        pad_token=pad,
        bos_token=begin,
        extra_special_tokens=[token for token in control if token not in (eos, pad, begin)],
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(target)
    return False


def write_toy_model(
    target: Path,
    recipe: Recipe,
    spec: ModelSpec | ExternalSpec,
    texts: list[str],
    answers: list[str],
    seed: int,
    tensor_parallel: int = 1,
    endless: bool = False,
) -> bool:
    """Write a small model of a recipe's base or of an external checkpoint; returns whether the tokenizer is its own.

    `texts`: to train a tokenizer on, if the model's own is not on this machine. `answers`: to teach it. `endless`: also
    teach it a completion without end, so that some reach the length limit.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    target.mkdir(parents=True, exist_ok=True)
    source = locked_model(str(spec.path), recipe, spec.revision)
    config = toy_config(source, str(spec.path), tensor_parallel)
    own = write_tokenizer(target, source, spec, texts)
    tokenizer = prepare_tokenizer(target, spec)
    if not own:
        config["vocab_size"] = -(-len(tokenizer) // 64) * 64
    config |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(seed)
    torch.set_num_threads(recipe.resources.threads)  # more would be slower on a busy machine
    kind = str(config.pop("model_type"))
    config[TOY] = True
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))
    _teach(model, tokenizer, recipe, texts, answers, endless)
    model.to(getattr(torch, recipe.require_model().dtype)).save_pretrained(target)
    return own


def _teach(model: Any, tokenizer: Any, recipe: Recipe, texts: list[str], answers: list[str], endless: bool) -> None:
    """Train on prompts of the recipe, each followed by a boxed answer and the end of the turn."""
    import torch

    boxed = completion_ids(tokenizer, [f"\\boxed{{{answer}}}" for answer in answers])
    if endless:
        boxed.append(tokenizer("\\boxed" * 24, add_special_tokens=False)["input_ids"])
    longest = max(map(len, boxed))
    pad = tokenizer.pad_token_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(_STEPS):
        # One prompt with several answers, so that all rows of a batch have the same prompt length.
        prompt = tokenizer(render_prompt(tokenizer, texts[step % len(texts)], recipe.prompt))["input_ids"]
        chosen = [boxed[(step * _COPIES + copy) % len(boxed)] for copy in range(_COPIES)]
        rows = torch.tensor([[*prompt, *answer, *([pad] * (longest - len(answer)))] for answer in chosen])
        labels = torch.tensor([[*answer, *([-100] * (longest - len(answer)))] for answer in chosen])
        logits = model(input_ids=rows, logits_to_keep=longest + 1).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
