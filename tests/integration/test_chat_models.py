"""`transfer eval` on chat models of other families than Qwen, from their own directories to the report."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import zstandard
from transformers import AutoTokenizer, GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

from data.prompts.prompt import load_tokenizer
from eval.questions.build import load_questions
from eval.responses.harness import render, require_lengths
from launch.pairs import evaluation_recipe
from recipes.errors import UserError
from tests.support.template_shapes import SHAPES

LLAMA_PROMPT = (
    "<|start_header_id|>user<|end_header_id|>\n\nWhat is 1 + 1?\n\n\n<|eot_id|><|start_header_id|>assistant"
    "<|end_header_id|>\n\n"
)
GEMMA_PROMPT = "<start_of_turn>user\nWhat is 1 + 1?<end_of_turn>\n<start_of_turn>model\n"


def save_model(folder, name):
    """A random model beside the tokenizer of a shape, as it would come from the hub."""
    tokenizer = AutoTokenizer.from_pretrained(SHAPES[name].save(folder))
    kind, config = (GemmaForCausalLM, GemmaConfig) if name == "gemma" else (LlamaForCausalLM, LlamaConfig)
    torch.manual_seed(0)
    kind(
        config(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, head_dim=16, max_position_embeddings=256,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


SUITE = """\
study: tiny
suite:
  tasks: {folder}
  temperature: 0
  max_prompt_tokens: 200
  max_response_tokens: 8
  engine: {{kind: hf, batch_size: 2}}
  benchmarks:
    - {{name: sums, group: math, scorings: {{robust: plain}},
       data: {{kind: file, path: {folder}/sums.jsonl, licence: own, fields: {{problem: problem}}}}}}
    - {{name: colours, group: words, promptings: [robust, paper], likelihood: [paper],
       scorings: {{robust: yes_no, paper: likelihood}},
       data: {{kind: file, path: {folder}/sums.jsonl, licence: own, fields: {{problem: problem}},
              reference_field: right}}}}
"""


def write_suite(folder):
    """A suite of two questions, generated and by likelihood; the path of its file."""
    rows = [
        {"problem": "What is 7 + 5? “Höflich”, bitte.", "answer": "12", "right": "yes"},
        {"problem": "What is 1 + 1?\n\n\n", "answer": "2", "right": "no"},
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.yaml").write_text('task: sums-native\ndoc_to_text: "{{problem}}{{suffix}}"\n')
    (folder / "colours-robust.yaml").write_text('task: colours-robust\ndoc_to_text: "{{problem}}"\n')
    (folder / "colours-paper.yaml").write_text(
        'task: colours-paper\noutput_type: multiple_choice\ndoc_to_text: "{{problem}}"\n'
        'doc_to_choice: ["no", "yes"]\ndoc_to_target: 0\n'
    )
    (folder / "suite.yaml").write_text(SUITE.format(folder=folder))
    return folder / "suite.yaml"


@pytest.fixture(scope="module")
def two_families(tmp_path_factory, transfer):
    """A finished `transfer eval` of a Llama-like and a Gemma-like model against a Llama-like base."""
    folder = tmp_path_factory.mktemp("families")
    base, gemma = save_model(folder / "llama", "llama3"), save_model(folder / "gemma", "gemma")
    shutil.copytree(base, folder / "copy")
    command = ["eval", "--base", base, "--model", folder / "copy", "--model", gemma, "--suite", write_suite(folder)]
    result = transfer(*command, "--out", folder / "study", "--json")
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout), command


def stored(study: Path, label: str, unit: str) -> list[dict]:
    """What a model was asked in a unit, and said."""
    (chunk,) = study.glob(f"eval/{label}/{unit}/chunk-*.zst")
    return [json.loads(line) for line in zstandard.decompress(chunk.read_bytes()).decode().splitlines()]


def test_each_family_is_asked_with_its_own_template(two_families):
    folder, found, _ = two_families
    prompts = {
        label: stored(folder / "study", label, "sums-native")[1]["prompt"] for label in ("base", "copy", "gemma")
    }
    assert prompts == {"base": LLAMA_PROMPT, "copy": LLAMA_PROMPT, "gemma": GEMMA_PROMPT}
    assert stored(folder / "study", "base", "sums-native") == stored(folder / "study", "copy", "sums-native")
    generation = json.loads((folder / "study" / "external" / "gemma" / "generation_config.json").read_text())
    ids = AutoTokenizer.from_pretrained(folder / "gemma").convert_tokens_to_ids(["<end_of_turn>", "<pad>", "<eos>"])
    assert generation["eos_token_id"] == ids  # the end of a turn, the padding, and its own end of a text
    ours = [warning["message"] for warning in found["warnings"] if warning["code"] in ("other_template", "other_eos")]
    assert ours == ["gemma has a chat template of its own, not the base's, so a part of its gains may be the format"]
    assert ours[0] in (folder / "study" / "report" / "index.html").read_text().replace("&#39;", "'")
    assert found["arms"]["copy"]["groups"]["math"]["estimate"] == 0


def test_likelihoods_follow_the_prompt(two_families):
    """The harness's log-probabilities of the answers are those of the model behind the ids of the prompt."""
    folder, _, _ = two_families
    for label, prompt in (("base", LLAMA_PROMPT), ("gemma", GEMMA_PROMPT)):
        row = stored(folder / "study", label, "colours-paper")[1]
        source = folder / "study" / (label if label == "base" else f"external/{label}")
        tokenizer = AutoTokenizer.from_pretrained(source)
        kind = GemmaForCausalLM if label == "gemma" else LlamaForCausalLM
        model = kind.from_pretrained(source, dtype=torch.float32)
        assert row["answers"] == ["no", "yes"]
        asked = tokenizer(prompt)["input_ids"]
        for answer, likelihood in zip(row["answers"], row["likelihoods"], strict=True):
            said = tokenizer(answer, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([asked + said])).logits[0].log_softmax(-1)
            own = sum(float(logits[len(asked) - 1 + place, token]) for place, token in enumerate(said))
            newlines = len(prompt) - len(prompt.rstrip())  # the harness counts these as part of the answer
            before = tokenizer("\n" * newlines, add_special_tokens=False)["input_ids"]
            first = len(asked) - len(before)
            own += sum(float(logits[first - 1 + place, token]) for place, token in enumerate(before))
            assert likelihood == pytest.approx(own, abs=1e-4)


def test_system_message_is_refused_before_anything_runs(two_families, transfer, tmp_path):
    _, _, command = two_families
    for dry in (["--dry-run"], []):
        result = transfer(*command, *dry, "--out", tmp_path / "study", "prompt.system=Be short.")
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == (
            f"transfer: the chat template of {command[6]} cannot be used: it takes no system message (no system role "
            "here); set prompt.system to null and say it in prompt.suffix, or arms.gemma.external.chat_template to one "
            "that takes it\n"
        )
    assert not (tmp_path / "study").exists()


def test_prompt_that_fills_the_context_is_refused(two_families):
    """The models were made for 256 tokens; a longer prompt would be answered with noise."""
    folder, _, _ = two_families
    overrides = ["suite.max_prompt_tokens=1000", f"prompt.suffix='{'why ' * 80}'"]
    models = {"gemma": str(folder / "gemma")}
    recipe = evaluation_recipe(str(folder / "llama"), models, folder / "suite.yaml", "tiny", overrides)
    benchmark = recipe.suite.benchmarks[0]
    questions = load_questions(recipe, benchmark, folder / "study")
    tokenizer = load_tokenizer(str(folder / "study" / "base"))
    prompts = render(recipe, tokenizer, benchmark, "native", questions)
    with pytest.raises(UserError) as caught:
        require_lengths(recipe, folder / "study" / "base", prompts)
    length = len(tokenizer(prompts[0].text)["input_ids"])
    assert length > 256
    assert str(caught.value) == (
        f"the prompt of question {questions[0].question_id} of sums-native has {length} tokens and the model's context "
        "is 256, which leaves none for a response; leave this benchmark out, or that question"
    )


def test_bos_that_is_eos_is_said(transfer, tmp_path):
    base = save_model(tmp_path / "smol", "smollm2_bos_is_eos")
    command = ["eval", "--base", base, "--model", base, "--suite", write_suite(tmp_path), "--out", tmp_path / "study"]
    result = transfer(*command, "--json")
    assert result.returncode == 0, result.stderr
    said = [w["message"] for w in json.loads(result.stdout)["warnings"] if w["code"] == "shared_bos_eos"]
    assert said == [
        f"{label}: its tokenizer names <|im_start|> as bos and as eos token; its responses end at <|im_end|>, with "
        "which its chat template ends a turn"
        for label in ("base", "smol")
    ]


@pytest.mark.skipif("TRANSFER_REAL_MODEL" not in os.environ, reason="TRANSFER_REAL_MODEL names no model directory.")
def test_a_real_model_answers(transfer, tmp_path):
    model = Path(os.environ["TRANSFER_REAL_MODEL"]).resolve()
    command = ["eval", "--base", model, "--model", model, "--suite", write_suite(tmp_path), "--out", tmp_path / "study"]
    result = transfer(*command, "--json")
    assert result.returncode == 0, result.stderr
    (arm,) = json.loads(result.stdout)["arms"].values()
    assert arm["groups"] == {
        group: {"estimate": 0.0, "low": 0.0, "high": 0.0} for group in ("math", "words")
    }  # a model against itself
    for unit in ("sums-native", "colours-robust"):
        rows = stored(tmp_path / "study", "base", unit)
        assert ["<|" in text or not text for row in rows for text in row["responses"]] == [False, False]
