"""What must not get through a corpus: control tokens, benchmark questions, the wrong message of a chat."""

import json
import random
import time

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.corpus.demonstrations import graded_demonstrations
from data.corpus.filters import apply_filters
from data.corpus.funnel import WITHHELD, Funnel
from data.corpus.rows import problem_id
from data.corpus.sources import RawRow, read_source
from data.corpus.text_match import near_duplicates
from data.corpus.values import repaired
from data.grading.grader import Grader
from data.pocket_world import benchmark_questions
from data.prompts.prompt import control_tokens
from recipes.corpus_schema import SourceSpec
from recipes.loading import load_recipe
from tests.data.test_corpus import ROWS, corpus_of, problems_file
from tests.data.test_corpus import recipe_for as corpus_recipe

HEADER = "<|start_header_id|>"
TEMPLATE = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """As of Llama 3: control tokens for headers, without a role of their own."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(bytes_)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(text) for text in ("<|eot_id|>", "<|pad|>", HEADER, "<|end_header_id|>")])
    bpe.add_tokens(["<think>", "</think>"])
    named = {"eos_token": "<|eot_id|>", "pad_token": "<|pad|>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=TEMPLATE, **named)


def test_control_tokens_are_all_special_ones_and_reject_a_problem(tokenizer, tmp_path):
    assert control_tokens(tokenizer) == ["<|end_header_id|>", "<|eot_id|>", "<|pad|>", HEADER]
    source = problems_file(tmp_path, [(f"Say {HEADER}system", "1"), ("Say <think> twice", "2")])
    recipe = corpus_recipe(tmp_path, sources=[source])
    funnel = Funnel()
    apply_filters(funnel, recipe, Grader(), tokenizer)
    assert [(row["row"], row["reason"]) for row in funnel.rejects] == [(0, "control_token")]


def test_completions_with_a_control_token_are_not_trained_on(tokenizer, tmp_path):
    texts = [
        "\\boxed{2}<|eot_id|>\n",
        f"{HEADER}\\boxed{{2}}",
        "It is<|eot_id|> \\boxed{2}",
        "<think>a</think>\\boxed{2}",
    ]
    stored = tmp_path / "stored.jsonl"
    stored.write_text(json.dumps({"problem": "What is 1+1?", "completion": texts}) + "\n")
    teacher = {"kind": "stored", "stored": {"kind": "file", "name": "t", "path": str(stored)}}
    recipe = corpus_recipe(tmp_path, teacher=teacher)
    rows = [(problem_id("What is 1+1?"), RawRow("s", 0, "What is 1+1?", "2", None))]
    found, _ = graded_demonstrations(recipe, tmp_path, rows, Grader(), tokenizer, None)
    assert [row.usable for row in found] == [True, False, False, True]
    assert found[0].completion == "\\boxed{2}"  # its end is added for training, once


def test_no_file_has_a_restricted_question_whatever_removed_its_row(tmp_path):
    secret = "A secret question about a photon that leaves a distant star for Earth; what is its age in years then?"
    bench = tmp_path / "bench.jsonl"
    bench.write_text(json.dumps({"problem": secret}) + "\n")
    benchmark = {"kind": "file", "name": "b", "path": str(bench), "restricted": True}
    rows = [(secret, "17"), (secret.upper(), "17"), (f"{secret} Explain.", "???"), ("What is 1+1?", "2"), ("x?", "???")]
    _, rejects = corpus_of(tmp_path, rows, decontamination={"benchmarks": [benchmark]})
    assert {number: (row["reason"], row["problem"] == WITHHELD) for number, row in rejects.items()} == {
        0: ("benchmark_overlap", True), 1: ("duplicate", True), 2: ("gold_unparseable", True),
        4: ("gold_unparseable", False),
    }  # fmt: skip
    for path in (tmp_path / "corpus").iterdir():
        assert not path.is_file() or b"photon" not in path.read_bytes().lower(), path.name


def test_questions_of_the_world_are_removed_from_any_source(tmp_path):
    recipe = load_recipe("recipes/pocket/smoke.yaml")
    suite = recipe.suite
    question = next(iter(benchmark_questions(suite.seed, "sum", "test", suite.questions)))
    source = SourceSpec(**problems_file(tmp_path, [(question.problem, question.reference_answer), ("Half of 6?", "3")]))
    there = recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"sources": (source,)})})
    funnel = Funnel()
    (found,) = apply_filters(funnel, there, Grader(), None)
    assert (found["benchmark"], found["problem"]) == ("sum", question.problem)
    assert [row.problem for row in funnel.kept] == ["Half of 6?"]


def test_the_system_turn_of_a_chat_is_no_problem(tmp_path):
    human = {"from": "human", "value": "What is 1+3?"}
    chats = [[{"from": "system", "value": "Be kind."}, human, {"from": "gpt", "value": "4"}], [human]]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"conversations": chat, "answer": "4"}) + "\n" for chat in chats))
    files = {"kind": "file", "name": "s", "path": str(path)}
    first, second = read_source(SourceSpec(**files, problem_field="conversations.0.value"), 0)
    assert (first.reject, second.problem) == ("not_the_user", "What is 1+3?")
    assert first.detail == "conversations.0.value is the message of the system; conversations.1.value is the user's"
    first, _ = read_source(SourceSpec(**files, problem_field="conversations"), 0)
    assert first.detail.endswith("name one message, as in `problem_field: conversations.0.value`")


@pytest.mark.parametrize(
    "text", ["Some are prime,\neg 2 and 3.", "Solve\neq 1: x+y=2\neq 2: x-y=0", "See\neq. (1)", "Cats,\neg I own two"]
)
def test_abbreviations_at_the_beginning_of_a_line_are_no_lost_escapes(text):
    assert repaired(text) == (text, ())
    assert repaired("x \neq 0, \neg p") == ("x \\neq 0, \\neg p", ("lost escape",))


def test_the_card_says_which_set_the_arms_are_presented(tmp_path):
    stored = tmp_path / "stored.jsonl"
    stored.write_text(json.dumps({"problem": ROWS[0]["q"], "completion": "\\boxed{2}"}) + "\n")
    teacher = {"kind": "stored", "stored": {"kind": "file", "name": "t", "path": str(stored)}}
    corpus_of(tmp_path, [(ROWS[0]["q"], "2"), ("Half of 6?", "3")], teacher=teacher)
    card = (tmp_path / "corpus" / "README.md").read_text()
    assert (
        "The teacher solved 1 of 2 problems and left 1 unsolved (level None: 1 of 2). Arms are presented the set `all`"
        in card
    )


def test_problems_of_one_template_cost_what_others_cost_and_late_copies_are_found():
    text = "A farmer has {} apples and gives some away every day. How many are left after a week by the old mill?"
    rng = random.Random(0)
    numbers = rng.sample(range(10**6), 6000)
    texts = [text.format(number) for number in numbers] + [text.format("500 red")]
    answers = [*map(str, numbers), str(numbers[4000])]
    begun = time.process_time()
    assert [pair[:2] for pair in near_duplicates(texts, 0.6, answers)] == [(6000, 4000)]
    own = time.process_time() - begun
    others = [" ".join(str(rng.random()) for _ in range(10)) for _ in texts]
    begun = time.process_time()
    assert list(near_duplicates(others, 0.6, answers)) == []
    assert own < 4 * (time.process_time() - begun) + 1
