"""Loading a causal language model and sampling from it, the only copy; used by teachers, training and evaluation."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(directory: str | Path, dtype: str, attention: str = "sdpa") -> "PreTrainedModel":
    """A causal language model from safetensors weights; code from the model's repository is never run.

    Raises:
        UserError: there is no such model, it has no safetensors weights, or `attention` needs a missing package.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except ImportError as error:
        raise UserError(
            f"model.attention={attention} needs a package: {str(error).splitlines()[0]}; install it, or set "
            "model.attention=sdpa"
        ) from None
    except OSError as error:
        raise UserError(
            f"no model with safetensors weights at {directory}: {str(error).splitlines()[0]}; name a folder or model "
            "that has them (`model.path`, or `model` of the sampler)"
        ) from None


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, on every device."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def on_cpu() -> bool:
    """Whether there is no accelerator."""
    import torch

    return not torch.cuda.is_available()


def device_name() -> str:
    """Name of the GPU, as its driver has it, or `cpu`: what decides how results are rounded."""
    import torch

    return "cpu" if on_cpu() else torch.cuda.get_device_name()


def to_device(model: "PreTrainedModel") -> str:
    """Move a model to the accelerator, if there is one, and out of training mode; returns the device."""
    device = "cpu" if on_cpu() else "cuda"
    model.to(device)
    model.eval()
    return device


def stop_ids(model: "PreTrainedModel") -> set[int]:
    """The tokens at which a generation stops; a checkpoint of the hub may name one, several or none."""
    named = model.generation_config.eos_token_id
    return {named} if isinstance(named, int) else set(named or ())


def generate_ids(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[str],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
) -> list[list[int]]:
    """Continue each prompt once, as one batch; token ids up to and with the stop token, in order."""
    import torch

    seed_everything(seed)
    device = to_device(model)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(device)
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if temperature > 0 else {}
    with torch.no_grad():
        output = model.generate(**inputs, do_sample=temperature > 0, max_new_tokens=max_new_tokens, **sampling)
    stops = stop_ids(model)
    rows = output[:, inputs["input_ids"].shape[1] :].tolist()
    ends = [next((index for index, token in enumerate(row) if token in stops), len(row)) for row in rows]
    return [row[: end + 1] for row, end in zip(rows, ends, strict=True)]


def generate(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: list[str], **decoding: Any
) -> list[tuple[str, int, bool]]:
    """The same as text: (text, generated tokens, finished) in order. `decoding`: see `generate_ids`."""
    stops = stop_ids(model)
    results = []
    for ids in generate_ids(model, tokenizer, prompts, **decoding):
        finished = bool(ids) and ids[-1] in stops
        text = tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
        results.append((text, len(ids), finished))
    return results
