"""SFT sample = GRPO prompt + completion = evaluation prompt + answer, in bytes and ids, for Qwen3 and Llama 3."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.language_model import load_model
from data.prompts.prompt import completion_ids, load_tokenizer, render_prompt
from data.prompts.template_contract import check_contract
from recipes.loading import load_recipe
from recipes.manifest import start_stage
from recipes.training_schema import PromptSpec
from tests.paths import SMOKE
from tests.support.trainers import grpo_trainer, replace, sft_trainer
from train.arms import resolve_arm
from train.models import prepared_base

PROBLEM, THOUGHT = "What is 3 + 4?", "<think>\nThree and four.\n</think>\n\nIt is \\boxed{7}."


@pytest.fixture(scope="module")
def llama_base(tmp_path_factory):
    """A random Llama whose tokenizer begins every text with a token of its own, as Llama 3's does."""
    folder = tmp_path_factory.mktemp("llama")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator([PROBLEM, THOUGHT], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    bpe.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bpe.token_to_id("<|begin_of_text|>"))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[3:]})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prepared_llama(llama_base, tmp_path_factory):
    settings = "eos_token: <|eot_id|>, pad_token: <|finetune_right_pad_id|>, chat_template: llama3"
    recipe = load_recipe(SMOKE, [f"model={{path: {llama_base}, {settings}}}"])
    study = tmp_path_factory.mktemp("study")
    start_stage(study / "base", "base", {})
    prepared_base.run(recipe, study, study / "base", resume=False)
    return study / "base"


@pytest.fixture(params=["qwen3", "llama3"])
def tokenizer(request, smoke_study, prepared_llama):
    return load_tokenizer(str(smoke_study / "base" if request.param == "qwen3" else prepared_llama))


def test_rendered_bytes(smoke_study, prepared_llama):
    qwen, llama = load_tokenizer(str(smoke_study / "base")), load_tokenizer(str(prepared_llama))
    prompt = PromptSpec(system="Be short.", suffix=" Box it.")
    assert render_prompt(qwen, PROBLEM, prompt) == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhat is 3 + 4? Box it.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert render_prompt(qwen, PROBLEM, PromptSpec(thinking=False)).endswith(
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    # The token that begins the text is added by the tokenizer, once.
    text = render_prompt(llama, PROBLEM, prompt)
    assert text == (
        "<|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "What is 3 + 4? Box it.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    ids = llama(text)["input_ids"]
    assert ids.count(llama.bos_token_id) == 1
    assert ids[0] == llama.bos_token_id


def test_sft_sample_is_prompt_and_completion_with_the_loss_on_all_of_the_completion(tokenizer, tmp_path):
    settings = replace(resolve_arm(load_recipe(SMOKE), "off_policy_sft"), steps=1)
    check_contract(tokenizer, settings.prompt, "this tokenizer")
    prompt = render_prompt(tokenizer, PROBLEM, settings.prompt)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    rows = [{"prompt": prompt, "completion": text} for text in (THOUGHT, "7")] * 16
    trainer = sft_trainer(settings, LlamaForCausalLM(config), tokenizer, rows, tmp_path, 0)
    batch = next(iter(trainer.get_train_dataloader()))
    for place, text in ((0, THOUGHT), (1, "7")):
        asked, said = tokenizer(prompt)["input_ids"], completion_ids(tokenizer, [text])[0]
        real = batch["attention_mask"][place].bool() if "attention_mask" in batch else batch["labels"][place] > -200
        ids, labels = batch["input_ids"][place][real].tolist(), batch["labels"][place][real].tolist()
        assert ids == asked + said
        assert labels == [-100] * len(asked) + said  # thinking and the end of the turn included, nothing after it
        assert said[-1] == tokenizer.eos_token_id
        # A server that gets the whole text sees the same ids.
        assert tokenizer(prompt + text + tokenizer.eos_token)["input_ids"] == ids


def test_grpo_asks_with_the_same_ids(tokenizer, tmp_path):
    settings = replace(
        resolve_arm(load_recipe(SMOKE), "grpo"), steps=1, problems_per_step=1, completions_per_problem=2,
        prompt=PromptSpec(max_completion_tokens=4), micro_batch_size=2,
    )  # fmt: skip
    prompt = render_prompt(tokenizer, PROBLEM, settings.prompt)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    seen = {}

    def reward(prompts, completions, completion_ids, **columns):
        seen["ids"] = completion_ids
        return [0.0, 1.0]

    trainer = grpo_trainer(settings, LlamaForCausalLM(config), tokenizer, [{"prompt": prompt}], tmp_path, 0, reward)
    captured = {}
    inner = trainer._generate_and_score_completions

    def capture(inputs):
        captured["batch"] = inner(inputs)
        return captured["batch"]

    trainer._generate_and_score_completions = capture
    trainer.train()
    batch = captured["batch"]
    for place in range(2):
        assert batch["prompt_ids"][place][batch["prompt_mask"][place].bool()].tolist() == tokenizer(prompt)["input_ids"]
        assert batch["completion_ids"][place].tolist()[: len(seen["ids"][place])] == seen["ids"][place]


def test_evaluation_asks_with_the_same_ids(smoke_study, prepared_llama):
    """lm-evaluation-harness renders and tokenizes by itself."""
    from lm_eval.models.huggingface import HFLM

    for directory in (smoke_study / "base", prepared_llama):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        harness = HFLM(pretrained=copy.deepcopy(load_model(directory, "float32")), tokenizer=tokenizer, device="cpu")
        text = harness.apply_chat_template([{"role": "user", "content": PROBLEM}])
        ids = harness.tok_encode(text)
        expected = tokenizer(render_prompt(tokenizer, PROBLEM, PromptSpec()))["input_ids"]
        assert ids == expected


def test_prepared_llama_stops_at_both_ends(prepared_llama):
    model, tokenizer = load_model(prepared_llama, "float32"), load_tokenizer(str(prepared_llama))
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|eot_id|>", "<|finetune_right_pad_id|>")
    assert model.config.eos_token_id == tokenizer.eos_token_id
