"""A base that exists: copied with its end-of-turn settings settled, weights untouched, or refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from recipes.errors import UserError
from recipes.loading import load_recipe
from recipes.manifest import read_manifest, start_stage
from recipes.schema import Recipe
from train import prepared_base

SMOKE = Path(__file__).resolve().parent.parent.parent / "recipes" / "pocket" / "smoke.yaml"


def recipe_with(path) -> Recipe:
    return load_recipe(SMOKE, [f"model={{path: {path}}}"])


def prepare(path, stage_dir):
    start_stage(stage_dir, "base", {})
    prepared_base.run(recipe_with(path), stage_dir.parent, stage_dir, resume=False)


@pytest.fixture
def foreign_base(smoke_study, tmp_path):
    """A checkpoint that, like Qwen3's base models, names three different ends of a turn."""
    folder = tmp_path / "foreign"
    shutil.copytree(smoke_study / "base", folder)
    (folder / "manifest.json").unlink()
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": 7, "pad_token_id": 7}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    endings = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | endings))
    return folder


def test_endings_are_settled_and_weights_kept(foreign_base, smoke_study, tmp_path):
    prepare(foreign_base, tmp_path / "study" / "base")
    base = tmp_path / "study" / "base"
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    generation = json.loads((base / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert json.loads((base / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    before, after = load_file(foreign_base / "model.safetensors"), load_file(base / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_manifest(base)["completed"]
    # What the arms will render with is what the pocket base renders with.
    question = [{"role": "user", "content": "what is 3+4?"}]
    original = AutoTokenizer.from_pretrained(smoke_study / "base")
    assert tokenizer.apply_chat_template(question) == original.apply_chat_template(question)


def test_tokenizer_without_the_turn_tokens_is_refused(foreign_base, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        file = foreign_base / name
        file.write_text(file.read_text().replace("<|im_end|>", "<|turn_end|>"))
    with pytest.raises(UserError, match=r"has no token <\|im_end\|>"):
        prepare(foreign_base, tmp_path / "study" / "base")


def test_pickled_weights_are_refused(foreign_base, tmp_path):
    torch.save(load_file(foreign_base / "model.safetensors"), foreign_base / "pytorch_model.bin")
    (foreign_base / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no model with safetensors weights"):
        prepare(foreign_base, tmp_path / "study" / "base")
