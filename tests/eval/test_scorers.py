"""Every scoring rule on small items written for it, with scores worked out by hand."""

import time
from dataclasses import replace
from typing import get_args

import pytest

from data.grading.extraction import extract_answer
from eval.questions.records import Question
from eval.scorers.choices import read_yes_no
from eval.scorers.letters import read_choice
from eval.scorers.programs import last_program, same_output
from eval.scorers.records import Response
from eval.scorers.rules import RULES, score, score_rows
from recipes.suite_schema import TRAITS, Scoring


def test_every_rule_a_recipe_may_name_exists():
    assert set(RULES) == set(TRAITS) == set(get_args(Scoring))


def test_traits_of_rules_by_name():
    """What the names say, which is not what the code goes by."""
    for rule, traits in TRAITS.items():
        assert traits.likelihoods == ("likelihood" in rule)
        assert traits.runs_code == (rule == "code")
        words = {"choice": "letter", "yes_no": "yes_no", "span": "span", "instruction": "instructions", "code": "tests"}
        assert traits.references == next((kind for word, kind in words.items() if word in rule), "text")


def outcome(rule, response, reference, **options):
    result = score(response, reference, rule, **options)
    return result.value, result.outcome


@pytest.mark.parametrize(
    ("rule", "response", "reference", "expected"),
    [
        # MATH-500, AIME: the value counts, in the robust reading; the text in the paper's.
        ("boxed", "so \\boxed{\\frac14}", "0.25", (1, "correct")),
        ("last_box_text", "so \\boxed{\\frac14}", "0.25", (0, "wrong")),
        ("last_box_text", "so \\boxed{\\frac12}", "\\frac{1}{2}", (1, "correct")),
        ("boxed", "<think>\\boxed{7}", "7", (0, "no_answer")),
        ("last_box_text", "<think>\\boxed{7}", "7", (1, "correct")),  # it reads unfinished thinking
        ("boxed", "\\boxed{073}", "73", (1, "correct")),
        ("last_box_text", "\\boxed{073}", "73", (0, "wrong")),
        ("last_box_text", "It is 7.", "7", (0, "no_answer")),
        ("plain", "The answer is 7.", "7", (1, "correct")),
        # Whole texts
        ("exact", "<think>x</think> a  b", "a b", (1, "correct")),
        ("exact", "a b c", "a b", (0, "wrong")),
        ("first_line", "a b\nand more", "a b", (1, "correct")),
        ("first_line", "<think>x</think>\na b", "a b", (0, "wrong")),
        # GPQA, ACPBench, HeadQA
        ("choice", "Option A looks good, but \\boxed{B}", "B", (1, "correct")),
        ("choice", "<think>\\boxed{A}</think>The answer is (C).", "C", (1, "correct")),
        ("choice", "**Final Answer**: D.", "D", (1, "correct")),
        ("choice", "Because of heat.\n\nB. the ferry", "B", (1, "correct")),
        ("choice", "I think A cat is better than Dogs", "A", (0, "no_answer")),
        ("choice", "\\boxed{\\text{C}}", "C", (1, "correct")),
        ("choice", "<think>the answer is A", "A", (0, "no_answer")),
        ("choice_box", "The answer is (C).", "C", (0, "no_answer")),
        ("choice_box", "\\boxed{C}", "C", (1, "correct")),
        ("choice_box", "\\boxed{C. heat}", "C", (0, "wrong")),
        ("choice_anywhere", "The answer is A. Done", "D", (1, "correct")),  # the D of "Done"
        ("choice_anywhere", "the answer is a", "A", (0, "no_answer")),
        # HaluEval
        ("yes_no", "<think>Is it?</think>\nNo", "no", (1, "correct")),
        ("yes_no_first_line", "<think>Is it?</think>\nNo", "no", (0, "no_answer")),
        ("yes_no_first_line", "No, it is not.", "no", (1, "correct")),
        ("yes_no_first_line", "no", "no", (0, "no_answer")),
        ("yes_no_first_line", "Yes or No?", "no", (0, "no_answer")),
        ("yes_no", "Yes and no, but \\boxed{yes}", "yes", (1, "correct")),
        ("yes_no", "It depends.", "yes", (0, "no_answer")),
        # Short answers: the best of several golds; in the paper's reading each is left out in turn.
        ("span_em", "A: White.", ["white"], (1, "correct")),
        ("span_em_first_line", "A: White.", ["white"], (1, "correct")),  # SQuAD drops articles, and this "A" as one
        ("span_em_first_line", "Answer: White.", ["white"], (0, "wrong")),
        ("span_em", "Answer: White.", ["white"], (1, "correct")),
        ("span_em", "white", ["white", "it was white"], (1, "correct")),
        ("span_f1", "was white", ["grey", "it was white"], (0.8, "partial")),  # 2 of 2 words, 2 of 3: 2 (2/3) / (5/3)
        ("span_em_first_line", "white", ["white", "it was white"], (0.5, "partial")),
        # (1/2 + 1) / 2: F1 of 1 word in 3 is 1/2
        ("span_f1_first_line", "white", ["white", "it was white"], (0.75, "partial")),
        ("span_em", "white", "white", (1, "correct")),  # a gold that is no list
        ("span_em_first_line", "white", "white", (1, "correct")),
        ("span_em_first_line", "<think>a</think>\nwhite\nbecause", ["white"], (1, "correct")),
        ("span_em_first_line", "<think>white", ["white"], (0, "wrong")),
        ("span_em", "<think>white", ["white"], (0, "no_answer")),
        ("span_f1", "", ["white"], (0, "no_answer")),
    ],
)
def test_rules_by_hand(rule, response, reference, expected):
    assert outcome(rule, response, reference) == expected


def test_cut_off_is_told_from_wrong():
    assert outcome("boxed", "so the", "4", cut_off=True) == (0, "truncated")
    assert outcome("boxed", "\\boxed{5}", "4", cut_off=True) == (0, "wrong")
    assert outcome("boxed", "\\boxed{4}", "4", cut_off=True) == (1, "correct")
    assert outcome("exact", "a b", "a b c", cut_off=True) == (0, "truncated")
    assert outcome("yes_no_first_line", "<think>hm", "yes", cut_off=True) == (0, "truncated")


def olympiad(answer, unit="", tolerance=0.0):
    return {"answer": answer, "unit": unit, "tolerance": tolerance}


@pytest.mark.parametrize(
    ("response", "reference", "robust", "paper"),
    [
        ("\\boxed{1,3,5}", olympiad("1,3,5"), 1, 1),
        ("\\boxed{5, 1, 3}", olympiad("1,3,5"), 1, 0),
        ("\\boxed{1,3}", olympiad("1,3,5"), 0, 0),
        ("\\boxed{1,3,5,7}", olympiad("1,3,5"), 0, 0),
        ("\\boxed{84, 69}", olympiad("$69$,$84$"), 1, 0),
        ("\\boxed{(3,2),(1,1)}", olympiad("$(1,1), (3,2)$"), 1, 0),
        ("\\boxed{(2,3),(1,1)}", olympiad("$(1,1), (3,2)$"), 0, 0),
        ("\\boxed{f(x)=2-x \\text{ and } f(x)=x}", olympiad("$f(x)=x$,$f(x)=2-x$"), 1, 0),
        ("\\boxed{166 cm^2}", olympiad("$166$", unit="$cm^2$"), 1, 0),
        ("\\boxed{166}", olympiad("$166$", unit="$cm^2$"), 1, 0),  # the paper keeps the dollar signs
        ("\\boxed{02.0}", olympiad("2"), 1, 1),
        ("\\boxed{4.15}", olympiad("4.2", unit="%", tolerance=0.1), 1, 0),
        ("\\boxed{4.35}", olympiad("4.2", unit="%", tolerance=0.1), 0, 0),
        ("\\boxed{4.15\\%}", olympiad("4.2", unit="%", tolerance=0.1), 1, 0),
        ("\\boxed{1.1 \\mathrm{~m}}", olympiad("1.05", unit="m", tolerance=0.1), 1, 0),
        ("\\boxed{\\frac{11}{10}}", olympiad("1.05", unit="m", tolerance=0.1), 1, 0),
        ("\\boxed{1.1 km}", olympiad("1.05", unit="m", tolerance=0.1), 0, 0),
        ("\\boxed{2}", olympiad("2"), 1, 1),
        ("\\boxed{1e400}", olympiad("4.2", unit="%", tolerance=0.1), 0, 0),  # larger than any float
        (f"\\boxed{{1{'0' * 320}}}", olympiad("4.2", unit="%", tolerance=0.1), 0, 0),
    ],
)
def test_olympiadbench_answers(response, reference, robust, paper):
    assert score(response, reference, "boxed").value == robust
    assert score(response, reference, "last_box_text").value == paper


@pytest.mark.parametrize(
    "unit", ["(", "*", "\n", "answer is ", "answer: (", "choice $", "\\(A", "<answer>", "- ", "`", "\\boxed{", " "]
)
def test_degenerate_responses_are_read_in_linear_time(unit):
    """A model that repeats itself to its limit: 400 brackets once took the reader of letters 20 seconds."""
    started = time.perf_counter()
    for text in (unit * 20_000, f"The answer is {unit * 20_000}", f"\\boxed{{{unit * 20_000}}}"):
        read_choice(text)
        read_yes_no(text)
        extract_answer(text, "plain")
        extract_answer(text, "boxed")
        last_program(text)
        score(text, ["x"], "span_em")
    assert time.perf_counter() - started < 10


def test_program_is_the_last_block_of_python():
    fence = "```"
    other = f"{fence}text\nout\n{fence}\nThe program:\n{fence}python\nprint(3)\n{fence}"
    assert last_program(other) == "print(3)\n"
    assert last_program(f"{other}\nIt prints\n{fence}\n3\n{fence}") == "print(3)\n"
    assert last_program(f"{fence} Python\nprint(1)\n{fence}\n{fence}\nx\n{fence}") == "print(1)\n"
    assert last_program(f"{fence}\nprint(2)\n{fence}") == "print(2)\n"
    assert last_program(f"{fence}cpp\nint x;\n{fence}") is None
    assert last_program(f"{fence}python\nprint(2)") is None
    # In a list: the indentation of the fence is not the program's.
    assert last_program(f"1. So:\n\n   {fence}python\n   if x:\n       y\n\n   {fence}") == "if x:\n    y\n\n"
    assert last_program(f"1. {fence}python\n   if x:\n       y\n   {fence}") == "if x:\n    y\n"
    assert last_program(f"- {fence}python\nif x:\n  y\n{fence}") == "if x:\n  y\n"
    assert last_program(f"{fence}python\n    return 1\n{fence}") == "    return 1\n"
    odd = "print('a\u2028b\x0c\x85')"  # a line ends at a line feed only
    assert last_program(f"{fence}python\r\n{odd}\r\n{fence}") == f"{odd}\n"


def test_thinking_that_the_template_opened_is_thinking():
    row = Response("a", responses=("First \\boxed{5}, but", "so</think>\\boxed{5}"), tokens=(9, 3))
    questions = [Question("a", {}, "5")]
    assert [r.outcome for r in score_rows([replace(row, opens_thinking=True)], questions, "boxed", 9)] == [
        "truncated",
        "correct",
    ]
    assert [r.outcome for r in score_rows([row], questions, "boxed", 9)] == ["correct", "correct"]


def test_readers_do_not_take_a_letter_of_a_word():
    assert read_choice("A good answer is Cold.") is None
    assert read_choice("The answer is: **C**") == "C"
    assert read_yes_no("Note that nothing is known.") is None
    assert read_yes_no("**No.**") == "no"


def test_program_output_is_compared_by_lines_and_numbers():
    assert same_output("1 2\n3\n", "1  2\n3")
    assert same_output("1.0", "1")
    assert not same_output("1\n2", "1")
    assert not same_output("a 1.0", "a 1")
    assert not same_output("sNaN", "1")
