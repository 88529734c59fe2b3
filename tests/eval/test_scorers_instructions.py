"""IFEval: each instruction and whole prompts, strict and loose."""

import pytest

from eval.questions.records import Question
from eval.scorers.records import Response, mean_score
from eval.scorers.rules import score, score_rows

INSTRUCTIONS = {
    "key": 1,
    "prompt": "Write two words without commas, in lower case.",
    "instructions": ["punctuation:no_comma", "change_case:english_lowercase"],
    "arguments": [{}, {}],
}


def test_ifeval_by_hand():
    def judged(rule, text):
        result = score(text, INSTRUCTIONS, rule)
        return result.value, result.weight

    assert judged("instructions_strict", "two words here in lower case") == (1, 1)
    assert judged("instructions_strict", "Two words here in mixed case") == (0, 1)
    assert judged("each_instruction_strict", "Two words here in mixed case") == (0.5, 2)
    # Loose: without its first line the response is in lower case and has no comma.
    text = "Sure, here it is:\ntwo words here in lower case"
    assert judged("instructions_strict", text) == (0, 1)
    assert judged("instructions_loose", text) == (1, 1)
    assert judged("instructions_strict", f"<think>Well, A, B.</think>\n{text.splitlines()[1]}") == (1, 1)
    assert score("<think>never ends", INSTRUCTIONS, "each_instruction_strict").outcome == "no_answer"


@pytest.mark.parametrize(
    ("rule", "text", "finished", "cut_off"),
    [
        ("instructions_strict", "two words in lower case", (1, "correct"), (1, "correct")),
        ("instructions_strict", "Two words", (0, "wrong"), (0, "truncated")),
        ("instructions_loose", "Two words", (0, "wrong"), (0, "truncated")),
        ("each_instruction_strict", "two words in lower case", (1, "correct"), (1, "correct")),
        ("each_instruction_strict", "Two words", (0.5, "partial"), (0.5, "truncated")),  # the metric counts the half
        ("each_instruction_loose", "Two, words", (0, "wrong"), (0, "truncated")),
        ("each_instruction_loose", "<think>never ends", (0, "no_answer"), (0, "truncated")),
    ],
)
def test_a_cut_off_response_that_breaks_an_instruction_is_truncated_with_the_same_score(rule, text, finished, cut_off):
    for limit, expected in ((9, finished), (8, cut_off)):
        row = Response("a", responses=(text,), tokens=(8,))
        (found,) = score_rows([row], [Question("a", {}, INSTRUCTIONS)], rule, limit)
        assert (found.value, found.outcome) == expected
        assert found.weight == (2 if rule.startswith("each") else 1)


def test_blank_lines_behind_the_thinking_are_no_paragraph():
    first_word = {
        "key": 3,
        "prompt": "Write two paragraphs. Begin the first with hello.",
        "instructions": ["length_constraints:nth_paragraph_first_word"],
        "arguments": [{"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "hello"}],
    }
    for thinking in ("", "<think>Hm.</think>\n\n"):
        assert score(f"{thinking}Hello there.\n\nBye.", first_word, "instructions_strict").value == 1
        assert score(f"{thinking}Bye.\n\nHello there.", first_word, "instructions_strict").value == 0


def test_instruction_level_counts_instructions_not_prompts():
    """One prompt with two instructions, both met, and one with one, not met: 2 of 3, not 1 of 2."""
    one = {"key": 2, "prompt": "p", "instructions": ["punctuation:no_comma"], "arguments": [{}]}
    questions = [Question("a", {}, INSTRUCTIONS), Question("b", {}, one)]
    rows = [
        Response("a", responses=("two words here in lower case",), tokens=(6,)),
        Response("b", responses=("well, no",), tokens=(3,)),
    ]
    assert mean_score(score_rows(rows, questions, "each_instruction_strict", 99)) == pytest.approx(2 / 3)
    assert mean_score(score_rows(rows, questions, "instructions_strict", 99)) == pytest.approx(1 / 2)
