"""Stage `base` for a checkpoint that exists: copy it into the study with its end-of-turn settings settled.

Qwen3 base checkpoints disagree with themselves about the end of a turn (config, generation_config and tokenizer
name different tokens), so a model could train on one and be stopped on another. Every arm and the evaluation
start from the directory written here: eos `<|im_end|>`, pad `<|endoftext|>`, both of them stop ids, one template.
"""

from pathlib import Path

from data.hub import locate_model
from data.language_model import load_model
from data.prompt import prepare_tokenizer
from recipes.manifest import Progress, finish_stage, hash_files
from recipes.schema import Recipe
from train.model import model_files


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool) -> None:
    """Write the prepared base into `stage_dir`.

    Raises:
        UserError: the model is not on this machine, or its tokenizer lacks `<|im_end|>` or `<|endoftext|>`.
    """
    assert recipe.model is not None and recipe.model.path is not None
    spec = recipe.model
    progress = Progress(stage_dir, 2, "steps")
    source = locate_model(str(spec.path), recipe.lock.get("models", {}).get(spec.path), spec.revision)
    model = load_model(source, spec.dtype)
    tokenizer = prepare_tokenizer(source, str(spec.path))
    progress.update(1, "loaded")
    model.config.eos_token_id, model.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(stage_dir)
    tokenizer.save_pretrained(stage_dir)
    progress.update(2, "written")
    facts = {"parameters": model.num_parameters(), "source": str(spec.path), "revision": spec.revision}
    finish_stage(stage_dir, hash_files(stage_dir, model_files(stage_dir)), facts)
