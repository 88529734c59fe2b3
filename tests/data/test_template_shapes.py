"""Chat templates and tokenizers as the field has them: the text, the ids, and what is refused with which words."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from data.prompts import template_contract
from data.prompts.prompt import completion_ids, load_tokenizer, prepare_tokenizer, render_prompt, settle, turn_end
from data.prompts.template_contract import check_contract, check_template
from data.prompts.tokenizer_files import TokenizerFiles
from recipes.errors import UserError
from recipes.schema import ModelSpec
from recipes.training_schema import ExternalSpec, PromptSpec
from tests.support.template_shapes import SHAPES

PROBLEM = "What is 7 + 5?"
CHATML = "<|im_start|>user\nWhat is 7 + 5?<|im_end|>\n<|im_start|>assistant\n"
KIND = "<|im_start|>system\nYou are kind.<|im_end|>\n"
LLAMA = (
    "<|start_header_id|>user<|end_header_id|>\n\nWhat is 7 + 5?<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    "\n\n"
)

# shape -> text of the prompt, first token, eos, pad
USABLE = {
    "qwen2": (KIND + CHATML, "<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "qwen3": (CHATML, "<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "smollm2": (KIND + CHATML, "<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "smollm2_bos_is_eos": (KIND + CHATML, "<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    # What the tokenizer adds is not in the text.
    "chatml_adds_bos": (CHATML.removeprefix("<|im_start|>"), "<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    "llama3": (LLAMA, "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"),
    "llama3_adds_eos": (LLAMA, "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"),
    "mistral": ("[INST] What is 7 + 5? [/INST]", "<s>", "</s>", "<unk>"),
    "mistral_v3": ("[INST]What is 7 + 5?[/INST]", "<s>", "</s>", "<unk>"),
    "gemma": (
        "<start_of_turn>user\nWhat is 7 + 5?<end_of_turn>\n<start_of_turn>model\n", "<bos>", "<end_of_turn>", "<pad>",
    ),
    "r1": (
        "<｜User｜>What is 7 + 5?<｜Assistant｜><think>\n", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
        "<|fim_pad|>",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    """The folder of a shape, written once."""
    root, written = tmp_path_factory.mktemp("shapes"), {}

    def folder(name):
        if name not in written:
            written[name] = SHAPES[name].save(root / name)
        return written[name]

    return folder


def prepared(folder, **settings):
    return prepare_tokenizer(folder, ExternalSpec(path="theirs", **settings))


def refusal(tokenizer, prompt, training=True):
    with pytest.raises(UserError) as caught:
        check_contract(tokenizer, prompt, "theirs", "arms.x.external", training)
    return str(caught.value)


@pytest.mark.parametrize("name", USABLE)
def test_text_ids_and_tokens(shape, name, tmp_path):
    text, first, eos, pad = USABLE[name]
    tokenizer = prepared(shape(name))
    check_contract(tokenizer, PromptSpec(), "theirs", training=name != "r1")
    assert render_prompt(tokenizer, PROBLEM, PromptSpec()) == text
    assert (tokenizer.eos_token, tokenizer.pad_token) == (eos, pad)
    assert turn_end(tokenizer) == eos
    ids = tokenizer(text)["input_ids"]
    names = tokenizer.convert_ids_to_tokens(ids)
    assert names[0] == first
    assert names.count(first) == (3 if KIND in text else 2 if "im_start" in first else 1)
    assert eos != names[-1]
    said = completion_ids(tokenizer, ["12", "\\boxed{12}"])
    assert tokenizer.convert_ids_to_tokens(said[0]) == ["12", eos]
    assert tokenizer("".join([text, "\\boxed{12}", eos]))["input_ids"] == ids + said[1]
    # What is written for training, evaluation and servers keeps all of this.
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again(text)["input_ids"] == ids
    assert completion_ids(again, ["12", "\\boxed{12}"]) == said


def test_system_message(shape):
    prompt = PromptSpec(system="Be short.")
    texts = {n: render_prompt(prepared(shape(n)), PROBLEM, prompt) for n in ("smollm2", "llama3", "mistral", "r1")}
    assert texts == {
        "smollm2": "<|im_start|>system\nBe short.<|im_end|>\n" + CHATML,  # in place of the template's own
        "llama3": "<|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>" + LLAMA,
        "mistral": "[INST] Be short.\n\nWhat is 7 + 5? [/INST]",
        "r1": "Be short.<｜User｜>What is 7 + 5?<｜Assistant｜><think>\n",
    }
    assert refusal(prepared(shape("gemma")), prompt) == (
        "the chat template of theirs cannot be used: it takes no system message (no system role here); set "
        "prompt.system to null and say it in prompt.suffix, or arms.x.external.chat_template to one that takes it"
    )
    loses = prepared(shape("qwen3"))
    loses.chat_template = "{% set m = messages[-1] %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}assistant:"
    assert refusal(loses, prompt) == (
        "the chat template of theirs cannot be used: the prompt does not contain prompt.system (the prompt ends "
        "with 'user\\nWhat is 7 + 5?<|im_end|>\\nassistant:'); set prompt.system to null and say it in prompt.suffix, "
        "or set arms.x.external.chat_template to another one"
    )


def test_thinking(shape):
    qwen = prepared(shape("qwen3"))
    assert render_prompt(qwen, PROBLEM, PromptSpec(thinking=False)) == CHATML + "<think>\n\n</think>\n\n"
    assert render_prompt(qwen, PROBLEM, PromptSpec(thinking=True)) == CHATML
    check_contract(qwen, PromptSpec(thinking=False), "theirs")
    assert refusal(prepared(shape("smollm2")), PromptSpec(thinking=True)) == (
        "the chat template of theirs cannot be used: thinking is true but the prompt is the same with it and without "
        "(the prompt ends with ' 7 + 5?<|im_end|>\\n<|im_start|>assistant\\n'); set prompt.thinking and suite.thinking "
        "to null, or arms.x.external.chat_template to one with a thinking mode"
    )
    r1 = prepared(shape("r1"))
    assert refusal(r1, PromptSpec()) == (
        "the chat template of theirs cannot be used: it begins the thinking itself (the prompt ends with "
        "'ser｜>What is 7 + 5?<｜Assistant｜><think>\\n'), so that a demonstration would begin it twice and a reward "
        "could not tell thinking from answer; set arms.x.external.chat_template to a copy of it without that <think>"
    )
    check_contract(r1, PromptSpec(), "theirs", training=False)  # the evaluation knows that the response is thinking


def test_date_is_named(shape):
    assert refusal(prepared(shape("llama3_dated")), PromptSpec()) == (
        "the chat template of theirs cannot be used: it writes today's date, in the form '%d %b %Y', so the prompts of "
        "tomorrow would be other ones; set arms.x.external.chat_template to a copy of it with a fixed date"
    )


def test_wrong_end_of_turn_is_named(shape):
    tokenizer = prepared(shape("llama3"), eos_token="<|end_of_text|>")
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
    assert refusal(tokenizer, PromptSpec()) == (
        "the chat template of theirs cannot be used: it ends the assistant's turn with <|eot_id|>, but completions end "
        "with <|end_of_text|>, where a generation stops; set arms.x.external.eos_token to <|eot_id|>, or set "
        "arms.x.external.chat_template to another one"
    )


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "llama3", {},
            "the tokenizer of theirs has no token <|im_end|>; set model.eos_token to <|eot_id|>, with which its chat "
            "template ends a turn",
        ),
        (
            "llama3", {"eos_token": None},
            "the tokenizer of theirs has no token <|endoftext|>; set model.pad_token to <|finetune_right_pad_id|>",
        ),
        (
            "gpt2", {"eos_token": None, "pad_token": None},
            "the tokenizer of theirs has no special token left for padding (its own: <|endoftext|>); set "
            "model.pad_token to a token that no text contains",
        ),
        (
            "pad_is_bos", {"eos_token": None, "pad_token": None},
            "the tokenizer of theirs has no special token left for padding (its own: </s>, <s>); set model.pad_token "
            "to a token that no text contains",
        ),
        (
            "gpt2", {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"},
            "the tokenizer of theirs has no token <|pad|>; set its pad_token to one of its own",
        ),
    ],
)  # fmt: skip
def test_tokens_that_are_not_there(shape, name, settings, message):
    """The defaults are those of ChatML; what another family needs is said."""
    with pytest.raises(UserError) as caught:
        prepare_tokenizer(shape(name), ModelSpec(path="theirs", **settings))
    assert str(caught.value) == message


def test_padding_in_the_prompt_is_named(shape):
    tokenizer = prepared(shape("pad_is_bos"), pad_token="<s>")
    assert "the prompt contains the padding token <s>" in refusal(tokenizer, PromptSpec())
    assert "set arms.x.external.pad_token to a token that no text contains" in refusal(tokenizer, PromptSpec())


def test_bos_and_eos_may_be_one_token(shape):
    tokenizer = prepared(shape("gpt2"), pad_token="!")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|endoftext|>", "!")
    check_contract(tokenizer, PromptSpec(), "theirs")


def test_tokens_around_a_text(shape):
    wrapped = prepared(shape("wrapped"))
    assert "its tokenizer puts more than the beginning around a text ('<s>'=0 'u'=" in refusal(wrapped, PromptSpec())
    assert "':'=29 '<sep>'=2); take the post_processor out of its tokenizer.json" in refusal(wrapped, PromptSpec())
    twice = prepared(shape("llama3"))
    twice.chat_template = "{{ bos_token }}" + twice.chat_template
    assert "the prompt begins with <|begin_of_text|> more than once" in refusal(twice, PromptSpec())


def test_template_missing_or_several(shape, tmp_path):
    folder = SHAPES["llama3"].save(tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError) as caught:
        prepared(folder)
    assert str(caught.value) == (
        "the tokenizer of theirs has neither a chat template nor the token <|im_start|> of the default one (qwen3); "
        "set model.chat_template to one made for it, a .jinja file of yours or the name of one that TRL ships, such as "
        "llama3"
    )
    assert turn_end(prepared(folder, chat_template="llama3")) == "<|eot_id|>"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": SHAPES["llama3"].template}]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": several}))
    tokenizer = prepared(folder)
    assert tokenizer.chat_template == SHAPES["llama3"].template  # one text, also for who saves or hashes it
    assert render_prompt(tokenizer, PROBLEM, PromptSpec()) == LLAMA


@pytest.mark.parametrize(
    ("template", "name", "message"),
    [
        ("llama3", "llama3", None),
        ("llama3_1", "llama3", None),
        ("llama3_2", "llama3", "it writes today's date, in the form '%d %b %Y'"),
        ("gemma", "gemma", None),
        ("gemma3", "gemma", None),
        ("qwen2_5", "qwen2", None),
        ("qwen3", "qwen3", None),
        ("qwen3_instruct_2507", "qwen3", None),
        ("qwen3_5_think", "qwen3", "it begins the thinking itself"),
        ("deepseek_r1_distill", "r1", "it begins the thinking itself"),
    ],
)
def test_templates_that_trl_ships(shape, template, name, message):
    tokenizer = prepared(shape(name), chat_template=template)
    assert (tokenizer.eos_token, tokenizer.pad_token) == USABLE[name][2:]
    if message is None:
        check_contract(tokenizer, PromptSpec(), "theirs")
    else:
        assert message in refusal(tokenizer, PromptSpec())
    mode = "thinking mode" if template not in ("qwen3", "qwen3_5_think", "llama3_2") else None
    if mode is not None:
        assert mode in refusal(tokenizer, PromptSpec(thinking=False))


def test_unknown_template_names_its_setting(shape):
    with pytest.raises(
        UserError, match=r"^arms\.x\.external\.chat_template 'quen3' is no \.jinja file .* did you mean qwen3"
    ):
        settle(prepared(shape("qwen3")), ExternalSpec(path="theirs", chat_template="quen3"), None, "arms.x.external")


@pytest.mark.parametrize("name", SHAPES)
def test_files_alone_say_the_same(shape, name):
    """What a plan finds without transformers is what the base's stage finds: text, tokens and sentences."""
    spec = ExternalSpec(path="theirs", pad_token="!" if name in ("gpt2", "pad_is_bos") else None)
    whole, files = prepare_tokenizer(shape(name), spec), TokenizerFiles.read(shape(name))
    settle(files, spec)
    assert (files.eos_token, files.pad_token) == (whole.eos_token, whole.pad_token)
    for prompt in (PromptSpec(), PromptSpec(system="Be short."), PromptSpec(thinking=False), PromptSpec(suffix=" Go.")):
        said = []
        for tokenizer in (whole, files):
            try:
                check_template(tokenizer, prompt, "theirs")
                text = render_prompt(tokenizer, PROBLEM, prompt)
                said.append(text.removeprefix(str(tokenizer.bos_token)))
            except UserError as error:
                said.append(str(error).replace(str(tokenizer.bos_token), ""))
        if name != "llama3_dated":
            assert said[0] == said[1]
        assert "today's date" in said[1] if name == "llama3_dated" else "today" not in said[1]


@pytest.mark.parametrize("name", ["smollm2", "llama3", "mistral", "mistral_v3", "gemma"])
def test_training_and_evaluation_see_the_same_ids(shape, name, tmp_path):
    """An SFT row is the ids of the prompt and of the completion; the harness renders and tokenizes the same prompt."""
    from lm_eval.models.huggingface import HFLM

    from eval.questions.records import Question
    from eval.responses.harness import render
    from recipes.loading import load_recipe
    from tests.paths import SMOKE
    from train.sft import tokenized_dataset

    tokenizer = prepared(shape(name))
    prompt = render_prompt(tokenizer, PROBLEM, PromptSpec())
    (row,) = tokenized_dataset(tokenizer, [{"prompt": prompt, "completion": "It is \\boxed{12}."}])
    asked = tokenizer(prompt)["input_ids"]
    assert row["input_ids"] == asked + completion_ids(tokenizer, ["It is \\boxed{12}."])[0]
    assert row["input_ids"] == tokenizer(prompt + "It is \\boxed{12}." + tokenizer.eos_token)["input_ids"]
    assert row["labels"] == [-100] * len(asked) + row["input_ids"][len(asked) :]
    recipe = load_recipe(SMOKE, [])
    question = Question("q", {"problem": PROBLEM}, "12")
    text = render(recipe, tokenizer, recipe.suite.benchmarks[0], "native", [question])[0].text
    assert text == prompt
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=1))
    harness = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu")
    assert harness.tok_encode(text) == asked
    ids, mask = harness.tok_batch_encode([text, text + "12"])
    assert ids[0][mask[0].bool()].tolist() == asked


def test_the_template_of_a_task_file_is_compiled_once(shape, monkeypatch):
    """The harness alone compiles it for every question, which takes longer than answering with a small model."""
    from eval.questions.records import Question
    from eval.responses.harness import harness_templates, render
    from recipes.loading import load_recipe
    from tests.paths import SMOKE

    compiled, compile_ = [], harness_templates.compile
    monkeypatch.setattr(harness_templates, "compile", lambda text: compiled.append(text) or compile_(text))
    harness_templates.from_string.cache_clear()
    recipe, tokenizer = load_recipe(SMOKE, []), prepared(shape("llama3"))
    problems = [f"{number} + 1 = ?" for number in range(5)]
    questions = [Question(problem, {"problem": problem}, "2") for problem in problems]
    prompts = render(recipe, tokenizer, recipe.suite.benchmarks[0], "native", questions)
    assert [prompt.text for prompt in prompts] == [render_prompt(tokenizer, p, PromptSpec()) for p in problems]
    assert len(compiled) == len(set(compiled)) == 2  # of the prompt and of the target


def test_control_tokens_that_a_tokenizer_does_not_have_are_named(shape, monkeypatch):
    """Llama's template on a tokenizer of ChatML: its header falls apart into pieces that merge with the answer."""
    other = prepared(shape("smollm2"))
    other.chat_template = prepared(shape("llama3")).chat_template
    monkeypatch.setattr(template_contract, "completion_ids", lambda tokenizer, texts: [[0] for _ in texts])
    with pytest.raises(UserError) as refused:
        template_contract.check_ids(other, PromptSpec(), "theirs")
    assert str(refused.value) == (
        "the chat template of theirs cannot be used: it writes <|start_header_id|>, <|end_header_id|>, <|eot_id|>, "
        "which are no tokens of its tokenizer and fall apart; set model.chat_template to another one, made for this "
        "tokenizer"
    )
