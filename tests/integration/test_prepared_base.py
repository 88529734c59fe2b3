"""A base that exists: copied with its end-of-turn settings settled, weights untouched, or refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from data.prompts.prompt import prepare_tokenizer
from data.prompts.template_contract import check_ids
from recipes.errors import UserError
from recipes.loading import load_recipe
from recipes.manifest import read_manifest, start_stage
from recipes.schema import Recipe
from tests.paths import SMOKE
from train.models import prepared_base


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
    with pytest.raises(UserError, match=r"no model with safetensors weights at .*; name one .* in model\.path"):
        prepare(foreign_base, tmp_path / "study" / "base")


def test_sharded_weights_are_counted_and_copied_without_loading(foreign_base, smoke_study, tmp_path, monkeypatch):
    from data.language_model import load_model
    from train.models.prepared_base import parameters_of_checkpoint

    model = load_model(foreign_base, "float32")
    (foreign_base / "model.safetensors").unlink()
    model.save_pretrained(foreign_base, max_shard_size="200KB")
    shards = sorted(foreign_base.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert parameters_of_checkpoint(foreign_base) == model.num_parameters()
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)  # weights must not be loaded
    prepare(foreign_base, tmp_path / "study" / "base")
    base = tmp_path / "study" / "base"
    assert [(base / path.name).read_bytes() == path.read_bytes() for path in shards] == [True] * len(shards)
    assert read_manifest(base)["facts"]["parameters"] == model.num_parameters()
    shards[1].write_bytes(shards[1].read_bytes()[:100])
    with pytest.raises(UserError, match=r"model-0000\d-of-.* cannot be read"):
        prepare(foreign_base, tmp_path / "other" / "base")
    shards[1].unlink()
    with pytest.raises(UserError, match=r"model-00002-of-.* cannot be read"):
        prepare(foreign_base, tmp_path / "third" / "base")


def test_hub_blobs_are_linked_and_local_files_copied(foreign_base, tmp_path):
    from train.models.prepared_base import copy_or_link

    blobs = tmp_path / "hub" / "blobs"
    blobs.mkdir(parents=True)
    shutil.copy(foreign_base / "model.safetensors", blobs / "abc")
    (tmp_path / "model.safetensors").symlink_to(blobs / "abc")
    copy_or_link(tmp_path / "model.safetensors", tmp_path / "linked")
    assert (tmp_path / "linked").samefile(blobs / "abc")
    copy_or_link(foreign_base / "model.safetensors", tmp_path / "copied")
    assert not (tmp_path / "copied").samefile(foreign_base / "model.safetensors")


def test_directory_without_tokenizer_or_of_unknown_kind_is_a_sentence(foreign_base, tmp_path):
    config = json.loads((foreign_base / "config.json").read_text())
    (foreign_base / "config.json").write_text(json.dumps(config | {"model_type": "nobody_knows"}))
    with pytest.raises(UserError, match=r"has an unsupported model type .*; name a model in model\.path"):
        prepare(foreign_base, tmp_path / "a" / "base")
    (foreign_base / "config.json").write_text(json.dumps(config))
    for path in foreign_base.glob("*token*"):
        path.unlink()
    with pytest.raises(UserError, match="no tokenizer at"):
        prepare(foreign_base, tmp_path / "b" / "base")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n", "the prompt does not contain the problem"),
        ("{{ messages[0].content }}<|im_end|>", "the prompt ends with <|im_end|>, so there is nothing to continue"),
        (
            "{{ messages[0].content }} the answer is ",
            "; let the template end with {{ '\\n' }} or a special token instead, or set model.chat_template to another",
        ),
    ],
)
def test_template_that_fails_the_contract_is_refused(foreign_base, tmp_path, template, message):
    (tmp_path / "template.jinja").write_text(template)
    recipe = load_recipe(SMOKE, [f"model={{path: {foreign_base}, chat_template: {tmp_path}/template.jinja}}"])
    start_stage(tmp_path / "study" / "base", "base", {})
    with pytest.raises(UserError, match="cannot be used") as caught:
        prepared_base.run(recipe, tmp_path / "study", tmp_path / "study" / "base", resume=False)
    assert message in str(caught.value)
    assert not (tmp_path / "study" / "base" / "model.safetensors").exists()  # before anything large is copied


@pytest.mark.parametrize("end", ["{{ '\\n' }}", "<|im_start|>"])
def test_a_template_that_ends_as_the_message_says_is_accepted(foreign_base, end):
    recipe = load_recipe(SMOKE, [f"model={{path: {foreign_base}}}"])
    tokenizer = prepare_tokenizer(foreign_base, recipe.model)
    tokenizer.chat_template = "{{ messages[0].content }} the answer is" + end
    check_ids(tokenizer, recipe.prompt, "it")


def test_unknown_template_is_a_sentence(foreign_base, tmp_path):
    recipe = load_recipe(SMOKE, [f"model={{path: {foreign_base}, chat_template: quen3}}"])
    start_stage(tmp_path / "study" / "base", "base", {})
    with pytest.raises(UserError, match=r"'quen3' is no \.jinja file .*; did you mean qwen3\?"):
        prepared_base.run(recipe, tmp_path / "study", tmp_path / "study" / "base", resume=False)
    with pytest.raises(UserError, match="are both '<a>'; they must differ"):
        load_recipe(SMOKE, [f"model={{path: {foreign_base}, eos_token: <a>, pad_token: <a>}}"])
