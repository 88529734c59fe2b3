"""What a model directory consists of, and writing one: the only copy. Loading is in `data/language_model.py`."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, Trainer

from recipes.manifest import hash_files
from train.ranks import barrier, rank

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


def save_final(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, stage_dir: Path, dtype: str) -> dict[str, str]:
    """Write the trained weights in `dtype` and the tokenizer to `final/`; returns the sha256 of each file."""
    final = stage_dir / "final"
    if trainer.is_deepspeed_enabled:  # its engine holds the weights, in the format it trains in
        trainer.save_model(str(final))
        barrier()
        if rank() != 0:
            return {}
        tokenizer.save_pretrained(final)
        return {f"final/{name}": digest for name, digest in hash_files(final, model_files(final)).items()}
    if rank() != 0:
        return {}
    # Training keeps float32 weights: in bfloat16 an update of 1e-5 on a weight of 0.02 is rounded away.
    trainer.model.to(getattr(torch, dtype))
    trainer.save_model(str(final))
    tokenizer.save_pretrained(final)
    return {f"final/{name}": digest for name, digest in hash_files(final, model_files(final)).items()}
