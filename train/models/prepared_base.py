"""Stages `base` and `external/<arm>` for existing checkpoints: their files, with consistent end-of-turn tokens.

Qwen3 base checkpoints contradict themselves about the end of a turn (config, generation_config and tokenizer
name different tokens), so a model could train on one token and stop at another. Every arm, the evaluation and vLLM
start from the directory written here: the recipe's eos and pad token, both of them stop ids, one template. Weights are
copied as files and never loaded, so preparing needs no memory for the model.
"""

import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.hub import locate_model
from data.prompts.prompt import load_tokenizer, prepare_tokenizer, render_prompt, template_hash
from data.prompts.template_contract import check_contract, prompts_of
from data.prompts.tokenizer_files import own_tokens
from recipes.errors import UserError
from recipes.files import hash_files, write_json
from recipes.manifest import finish_stage
from recipes.progress import Progress
from recipes.schema import Recipe
from train.models.directory import model_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOY = "transfer_rehearsal"  # in the config.json of a rehearsal's models
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, arm: str | None = None) -> None:
    """Write the prepared base into `stage_dir`, or the external checkpoint of `arm`.

    Raises:
        UserError: the model is not on this machine, has no safetensors weights or needs code of its own, its tokenizer
            lacks the recipe's tokens, or its template fails the contract of `data/prompts/template_contract.py`.
    """
    spec = recipe.require_model() if arm is None else recipe.external[arm]
    key = "model" if arm is None else f"arms.{arm}.external"
    source = locate_model(str(spec.path), recipe.lock_of_model(spec.path, spec.revision), spec.revision)
    weights = sorted(path for pattern in _WEIGHTS for path in source.glob(pattern))
    if not any(path.suffix == ".safetensors" for path in weights):
        raise UserError(
            f"no model with safetensors weights at {source}; name one that has them in {key}.path, or convert it with "
            "transformers: save_pretrained writes them"
        )
    config, parameters = _config(source, key), parameters_of_checkpoint(source)
    if config.get(TOY) and not recipe.rehearsal:
        raise UserError(f"{spec.path} is a tiny random model of `transfer rehearse`; name a model that was trained")

    # Tokenizer, with the contract checked before gigabytes are copied
    base_template = None if arm is None else str(load_tokenizer(str(study_dir / "base")).chat_template)
    tokenizer = prepare_tokenizer(source, spec, base_template, key)
    for prompt in prompts_of(recipe, external=arm is not None):
        check_contract(tokenizer, prompt, str(spec.path), key, training=arm is None and bool(recipe.trained))
    tokenizer.save_pretrained(stage_dir)

    # Configurations that agree with it
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    write_json(stage_dir / "config.json", config | {"eos_token_id": eos, "pad_token_id": pad})
    # Its sampling defaults are not copied: some engines would apply them where a recipe sets nothing, others not.
    stops = _stop_ids(source, tokenizer)
    write_json(stage_dir / "generation_config.json", {"eos_token_id": stops, "pad_token_id": pad})

    # Weights
    progress = Progress(stage_dir, len(weights), "files")
    for count, path in enumerate(weights, start=1):
        copy_or_link(path, stage_dir / path.name)
        progress.update(count, path.name)
    facts = {
        "parameters": parameters,
        "source": str(spec.path),
        "revision": spec.revision,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "own_tokens": own_tokens(source),
        "template_hash": template_hash(tokenizer, recipe.prompt),
        "prompt": render_prompt(tokenizer, "PROBLEM", recipe.prompt),
    }
    finish_stage(stage_dir, hash_files(stage_dir, model_files(stage_dir)), facts)


def _stop_ids(source: Path, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids at which a generation stops: the end of a turn, the padding, and what the checkpoint itself stops at.

    Ordinary tokens that a checkpoint names by mistake are left out.
    """
    control = {*map(str, tokenizer.all_special_tokens), *tokenizer.get_added_vocab()}
    path = source / "generation_config.json"
    own = _json(path).get("eos_token_id") if path.is_file() else None
    named = [own] if isinstance(own, int) else own or []
    if (token := own_tokens(source).get("eos_token")) is not None:
        named = [*named, tokenizer.convert_tokens_to_ids(token)]
    ends = [token_id for token_id in named if tokenizer.convert_ids_to_tokens(token_id) in control]
    return [*dict.fromkeys([tokenizer.eos_token_id, tokenizer.pad_token_id, *ends])]


def _config(source: Path, key: str) -> dict[str, Any]:
    """The checkpoint's configuration, if transformers supports its model type without remote code.

    `key`: of the recipe, below which the checkpoint is named.
    """
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source} has an unsupported model type or configuration: {str(error).splitlines()[0]}; name a model in "
            f"{key}.path that the installed transformers loads without code from its repository"
        ) from None
    return _json(source / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; fetch or copy it again") from None


def parameters_of_checkpoint(directory: Path) -> int:
    """Parameters in a directory's safetensors files, from their headers alone; tied weights are stored once.

    Raises:
        UserError: a file is damaged, or a shard of the index is missing.
    """
    from safetensors import SafetensorError, safe_open

    index = directory / "model.safetensors.index.json"
    names = sorted(set(_json(index)["weight_map"].values())) if index.exists() else None
    paths = sorted(directory.glob("*.safetensors")) if names is None else [directory / name for name in names]
    total = 0
    for path in paths:
        try:
            with safe_open(path, "np") as file:
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); fetch or copy it again") from None
    return total


def copy_or_link(source: Path, target: Path) -> None:
    """A hard link where the file is a blob of the hub's cache, which never changes; else a copy."""
    blob = source.resolve()
    target.unlink(missing_ok=True)
    if "blobs" in blob.parts:
        try:
            os.link(blob, target)
            return
        except OSError:
            pass  # another file system
    shutil.copyfile(blob, target)
