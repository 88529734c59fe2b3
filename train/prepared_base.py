"""Stage `base` for a checkpoint that exists: copy it into the study with its end-of-turn settings settled.

Qwen3 base checkpoints disagree with themselves about the end of a turn (config, generation_config and tokenizer
name different tokens), so a model could train on one and be stopped on another. Every arm and the evaluation
start from the directory written here: eos `<|im_end|>`, pad `<|endoftext|>`, both of them stop ids, one template.
"""

from pathlib import Path

from transformers import AutoTokenizer

from data.prompt import EOS_TOKEN, PAD_TOKEN, qwen3_chat_template
from recipes.errors import UserError
from recipes.manifest import Progress, finish_stage, hash_files
from recipes.schema import Recipe
from train.model import load_model, model_files


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool) -> None:
    """Write the prepared base into `stage_dir`.

    Raises:
        UserError: there is no such model, or its tokenizer lacks `<|im_end|>` or `<|endoftext|>`.
    """
    assert recipe.model is not None and recipe.model.path is not None
    spec = recipe.model
    progress = Progress(stage_dir, 2, "steps")
    model = load_model(str(spec.path), spec.dtype, spec.revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(spec.path, revision=spec.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer at {spec.path}: {str(error).splitlines()[0]}") from None
    known = tokenizer.get_vocab()
    for token in (EOS_TOKEN, PAD_TOKEN):
        if token not in known:
            raise UserError(
                f"the tokenizer of {spec.path} has no token {token}; only Qwen-style chat bases are supported"
            )
    progress.update(1, "loaded")
    tokenizer.eos_token, tokenizer.pad_token = EOS_TOKEN, PAD_TOKEN
    tokenizer.chat_template = tokenizer.chat_template or qwen3_chat_template()
    model.config.eos_token_id, model.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(stage_dir)
    tokenizer.save_pretrained(stage_dir)
    progress.update(2, "written")
    facts = {"parameters": model.num_parameters(), "source": str(spec.path), "revision": spec.revision}
    finish_stage(stage_dir, hash_files(stage_dir, model_files(stage_dir)), facts)
