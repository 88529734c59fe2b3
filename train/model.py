"""Loading, seeding and naming of model directories: the only copy."""

import random
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer

from recipes.errors import UserError
from recipes.manifest import hash_files

_MODEL_FILE_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "chat_template.jinja",
)


def model_files(directory: Path) -> list[str]:
    """Names of the files that make a model directory: weights, configurations, tokenizer, chat template."""
    return sorted({path.name for pattern in _MODEL_FILE_PATTERNS for path in directory.glob(pattern)})


def load_model(directory: str | Path, dtype: str, revision: str | None = None) -> PreTrainedModel:
    """A causal language model from safetensors weights; code from the model's repository is never run.

    Raises:
        UserError: there is no such model, or it has no safetensors weights.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(
            directory, revision=revision, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
        )
    except OSError as error:
        raise UserError(f"no model with safetensors weights at {directory}: {str(error).splitlines()[0]}") from None


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def on_cpu() -> bool:
    """Whether there is no accelerator."""
    return not torch.cuda.is_available()


def save_final(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, stage_dir: Path, dtype: str) -> dict[str, str]:
    """Write the trained weights in `dtype` and the tokenizer to `final/`; returns the sha256 of each file."""
    final = stage_dir / "final"
    # Training keeps float32 weights: in bfloat16 an update of 1e-5 on a weight of 0.02 is rounded away.
    trainer.model.to(getattr(torch, dtype))
    trainer.save_model(str(final))
    tokenizer.save_pretrained(final)
    return {f"final/{name}": digest for name, digest in hash_files(final, model_files(final)).items()}
