"""Every scoring rule on small items written for it, with scores worked out by hand."""

import time
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.grading.extraction import extract_answer
from eval.questions.records import Question
from eval.scorers.choices import read_yes_no
from eval.scorers.letters import read_choice
from eval.scorers.programs import last_program, same_output
from eval.scorers.records import Response, mean_score
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
        # CoQA: "white" against golds white / it was white: each left out in turn, the best of the rest.
        ("span_em", "A: White.", ["white"], (1, "correct")),
        ("span_em_first_line", "A: White.", ["white"], (1, "correct")),  # SQuAD drops articles, and this "A" as one
        ("span_em_first_line", "Answer: White.", ["white"], (0, "wrong")),
        ("span_em", "Answer: White.", ["white"], (1, "correct")),
        ("span_em", "white", ["white", "it was white"], (0.5, "partial")),
        ("span_f1", "white", ["white", "it was white"], (0.75, "partial")),  # (1/2 + 1) / 2, F1 of 1 word in 3 is 1/2
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


def pairs(*labels):
    return [Question(f"c{i}", {}, label, cluster="s", unit="q1" if i < 3 else "q2") for i, label in enumerate(labels)]


def rows_of(*texts):
    return [Response(f"c{i}", responses=(text,), tokens=(1,)) for i, text in enumerate(texts)]


def test_mc_taco_is_judged_question_by_question():
    """Two questions with three and two candidates, one of five judged wrong."""
    questions = pairs("yes", "no", "no", "yes", "no")
    rows = rows_of("yes", "yes", "no", "yes", "no")
    plain = score_rows(rows, questions, "yes_no", 10)
    assert mean_score(plain) == pytest.approx(4 / 5)
    strict = score_rows(rows, questions, "strict_yes_no", 10)
    assert [(row.question_id, row.value, row.cluster) for row in strict] == [("q1", 0, "s"), ("q2", 1, "s")]
    f1 = score_rows(rows, questions, "f1_yes_no", 10)
    # First: 1 of 2 called plausible is right, 1 of 1 plausible found: 2 (1/2)(1) / (3/2) = 2/3. Second: 1.
    assert [row.value for row in f1] == pytest.approx([2 / 3, 1])
    none = score_rows(rows_of("no", "no", "no", "yes", "?"), questions, "strict_yes_no", 10)
    assert [(row.value, row.outcome) for row in none] == [(0, "wrong"), (0, "no_answer")]
    # Where nothing is plausible, calling nothing plausible is right, and saying nothing is not.
    silent = score_rows(rows_of("?", "?", "?", "no", "no"), pairs("no", "no", "no", "no", "no"), "f1_yes_no", 10)
    assert [(row.value, row.outcome) for row in silent] == [(0, "no_answer"), (1, "correct")]
    # Nothing called plausible: precision 1 by definition, recall 0.
    assert score_rows(rows_of("no", "no", "no", "no", "no"), questions, "f1_yes_no", 10)[0].value == 0


def test_likelihoods():
    questions = [Question("a", {}, "yes"), Question("b", {}, "B")]
    rows = [
        Response("a", answers=("no", "yes"), likelihoods=(-2.0, -1.0)),
        # -3 over 10 bytes is -0.3; -2 over 2 bytes is -1: by text the first, by byte the second wins.
        Response("b", answers=("ab", "abcdefghij"), likelihoods=(-2.0, -3.0)),
    ]
    assert [row.value for row in score_rows(rows, questions, "likelihood", 10)] == [1, 0]
    assert [row.value for row in score_rows(rows, questions, "likelihood_per_byte", 10)] == [1, 1]


def by_likelihood(reference, answers, likelihoods, rule="likelihood"):
    rows = [Response("q", answers=tuple(answers), likelihoods=tuple(likelihoods))]
    (row,) = score_rows(rows, [Question("q", {}, reference)], rule, 10)
    return row.value


def test_a_letter_is_not_taken_for_an_answer_that_reads_like_one():
    groups = ("O", "A", "B", "AB")  # the reference is B, the blood group A
    assert [by_likelihood("B", groups, [float(n == index) for n in range(4)]) for index in range(4)] == [0, 1, 0, 0]
    assert by_likelihood("AB", groups, [0, 0, 0, 1]) == 1, "no letter, so it is the text"


def test_more_answers_than_letters():
    answers = [f"answer {number}" for number in range(12)]
    assert by_likelihood("answer 11", answers, range(12)) == 1
    assert by_likelihood("J", answers, range(12)) == 0


def test_the_blank_in_front_of_an_answer_is_no_byte_of_it():
    """-1 over 2 bytes is less than -4.5 over 10; over 3 and 11 it would be more."""
    assert by_likelihood("B", (" ab", " abcdefghij"), (-1.0, -4.5), "likelihood_per_byte") == 1


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


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("A) is wrong.\nB) is right.\nC) no.\nD) is wrong.\n\nTherefore, option B is correct.", "B"),
        ("Answer: a beta blocker, i.e. B.\n**B**", "B"),
        ("The answer is a difficult thing to say.", None),
        ("\\boxed{Option B}", "B"),
        ("\\boxed{Answer: B}", "B"),
        ("\\boxed{A (the ferry)}", "A"),
        ("\\boxed{B. the ferry}", "B"),
        ("\\boxed{\\textbf{(C)}}", "C"),
        ("\\boxed{12}", None),
        ("The answer is $B$", "B"),
        ("Final answer: \\(B\\)", "B"),
        ("So it is heat.\n\n\\[B\\]", "B"),
        ("So it is heat.\n\n\\[\n\\text{B}\n\\]", "B"),
        ("\\(B = 3\\)", None),
        ("If it is heat:\n\\[ A", None),  # cut off
        ("The answer is (A) and (B).", None),
        ("The correct answer is `B`", "B"),
        ("Option B is correct.", "B"),
        ("I would go with B.", "B"),
        ("So it is heat.\n\n(C)", "C"),
        ("The answer is (B) because of heat.", "B"),
        ("The answer is **D**.\nA and B are wrong.", "D"),
        ("Reasons:\nB. the ferry", "B"),
        ("Let's evaluate each choice:\n\n(A) is wrong.\n(B) works.\n\nB", "B"),
        ("Evaluate option:\nA\nThe answer is B.", "B"),
        ("The answer is:\n\n**B**", "B"),
        ("The best answer is\n\nB. the ferry", "B"),
        ("**Final Answer**\n\n(C)", "C"),
        ("Answer: D\n\n\\boxed{B(t) = 3t}", "D"),
        ("\\boxed{3x} hence\nAnswer: D", "D"),
        ("\\boxed{A} no wait. \\boxed{B}", "B"),
        ("\\boxed{B}\nWait, the answer is C.\nBest regards", "C"),  # the B of "Best" is not the box
        ("\\boxed{12}\nB\nbecause it is 12", "B"),
        ("\\boxed{A, C}", None),
        ("\\boxed{A \\text{ and } C}", None),
        ("\\boxed{B(t) = 3t}", None),
        ("\\boxed{D = 5}", None),
        ("The figure:\n  D\nso\n\\boxed{32}", None),  # a letter in the working
        ("so \\boxed{32}\nD", "D"),
        ("The answer is A and B.", None),
        ("Answer: A, B", None),
        ("Answer: A, because it is.", "A"),
    ],
)
def test_letters_that_models_settle_on(response, letter):
    assert read_choice(response) == letter


@given(
    st.text(alphabet="ABD x1=.:\n*()\\{}answer is choice boxed", max_size=80),
    st.sampled_from(["The answer is B.", "**Answer:** C", "Answer: (D)", "So \\boxed{A}."]),
)
@settings(max_examples=200, deadline=None)
def test_text_before_the_final_letter_does_not_change_the_reading(before, statement):
    assert read_choice(f"{before}\n{statement}") == read_choice(statement)


@pytest.mark.parametrize(
    ("response", "word"),
    [
        ("No part is supported.\n\nFinal answer: $\\boxed{\\text{yes}}$", "yes"),
        ("No evidence supports this. \\boxed{Yes, it does}", "yes"),
        ("No information supports this.\n\n**Yes**", "yes"),
        ("No, because it is not said.", "no"),
        ("\\boxed{maybe} yes", None),
        ("Judgement: No. Yes would be wrong.", "no"),
    ],
)
def test_words_that_models_settle_on(response, word):
    assert read_yes_no(response) == word


@pytest.mark.parametrize(
    "unit", ["(", "*", "\n", "answer is ", "answer: (", "choice $", "\\(A", "<answer>", "- ", "`", "\\boxed{"]
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
