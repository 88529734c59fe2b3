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
        # The letter and what explains it
        ("Answer: C (5 eV)", "C"),
        ("**Answer: C** (5 eV)", "C"),
        ("**Answer:** **C** — 5 eV", "C"),
        ("Answer: C—5 eV", "C"),
        ("Answer: C - 5 eV", "C"),
        ("The correct answer is C – a ball", "C"),
        ("The answer is $C$ (5 eV).", "C"),
        ("The answer is C because B is too small.", "C"),
        ("The answer is C since heat flows.", "C"),
        ("The answer is C and not D.", "C"),
        ("The answer is C rather than D.", "C"),
        ("Answer: C → 5 eV", "C"),
        ("The correct answer is therefore D.", "D"),
        ("The answer is thus, most likely, (D).", "D"),
        ("The correct statement is B.", "B"),
        ("The answer can only be B.", "B"),
        # The last statement, not the first
        ("At first glance the answer is A. However, heat flows. Therefore, **C** is the correct answer.", "C"),
        ("Option A is correct about the mass, but not about the charge. So the correct answer is C — 5 eV.", "C"),
        ("The answer would be B. But it moves, so the correct answer is therefore D.", "D"),
        ("The answer seems clear: the answer is A.\nBut heat flows.\n\n**C**", "C"),
        ("Answer: A\n\nWait.\n\nC is correct.", "C"),
        ("The answer is A? No, so C is right.", "C"),
        ("We conclude that D is the best option.", "D"),
        ("(B) is the correct choice because heat flows.", "B"),
        ("If the answer is A, it flows. It does not.\n\nB", "B"),
        ("Option A is correct in part.\n\nB. the ferry", "B"),
        # Boxes with the text of an option
        ("\\boxed{C. E = mc^2}", "C"),
        ("\\boxed{C) x=3}", "C"),
        ("\\boxed{(C)\\ E = mc^2}", "C"),
        ("\\boxed{\\text{C. } E = mc^2}", "C"),
        ("\\boxed{C: v = 3}", "C"),
        ("\\boxed{C \\quad (5 eV)}", "C"),
        ("\\boxed{C — E = mc^2}", "C"),
        # No statement
        ("\\boxed{(B) = 3}", None),
        ("\\boxed{A.x=3}", None),
        ("\\boxed{A - B}", None),
        ("The answer is A (or B).", None),
        ("The answer is A - B.", None),
        ("Answer: C = 5", None),
        ("Answer: B(t) (5 eV)", None),
        ("The answer is C-14, which decays.", None),
        ("Vitamin C is the correct answer to scurvy.", None),
        ("If C is the correct answer, heat flows.", None),
        ("Suppose that C is correct.", None),
        ("If the answer is A, it flows. It does not.", None),
        ("Check whether the correct answer is A.", None),
        ("A is not the correct answer.", None),
        ("The answer is not A because heat flows.", None),
        ("A and B are the correct answer.", None),
        ("A or B is the correct answer.", None),
        ("A is the best conductor.", None),
        ("Option A is correct about the mass.", None),
        ("Is the answer A because heat flows?", None),
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


def coqa(*golds, question="What colour?"):
    return {"question": question, "annotators": list(golds)}


@pytest.mark.parametrize(
    ("rule", "response", "golds", "value"),
    [
        # All agree but one: without the odd one 1, without one of the others still 1.
        ("span_em", "white", ["white", "white", "White", "It was white"], 1),
        # "it was white" of one annotator in four: 0 where that one is left out.
        ("span_em", "it was white", ["white", "white", "White", "It was white"], 3 / 4),
        # F1 with "white" is 1 of 3 words, precision 1/3 and recall 1: 1/2 where the odd one is left out.
        ("span_f1", "it was white", ["white", "white", "White", "It was white"], (3 + 1 / 2) / 4),
        ("span_em", "grey", ["white", "white", "White", "It was white"], 0),
        ("span_em", "white", ["white"], 1),
        ("span_em", "white", ["white", "grey"], 1 / 2),
        # The paper's reading: white and "It was white" count once each.
        ("span_em_first_line", "white", ["white", "white", "White", "It was white"], 1 / 2),
        ("span_f1_first_line", "white", ["white", "white", "White", "It was white"], 3 / 4),
        ("span_em_first_line", "white", ["white", "White"], 1),
    ],
)
def test_annotators_of_coqa(rule, response, golds, value):
    assert score(response, coqa(*golds), rule).value == pytest.approx(value)


def test_annotators_are_scored_as_the_harness_and_the_publishers_do():
    """Against lm-evaluation-harness's own code: on the golds it makes of a row, and, for the publishers, on all."""
    from lm_eval.tasks.coqa.utils import compute_scores, doc_to_target

    for golds in (["a", "b", "b", "A b"], ["yes", "Yes", "Yes.", "yes it is"], ["x y", "y"], ["x"]):
        texts = [{"input_text": ["first", gold]} for gold in golds]
        row = {"questions": {"input_text": ["?", "?"]}, "answers": texts[0]}
        row["additional_answers"] = {str(number): text for number, text in enumerate(texts[1:])}
        for response in ("a b", "yes", "Yes it is", "y", "x y z"):
            unique, all_golds = (compute_scores(some, response) for some in (doc_to_target(row), golds))
            for metric in ("em", "f1"):
                assert score(response, coqa(*golds), f"span_{metric}_first_line").value == unique[metric]
                assert score(response, coqa(*golds), f"span_{metric}").value == all_golds[metric]


@pytest.mark.parametrize(
    ("response", "taken"),
    [
        ("\\boxed{\\text{white}}", "white"),
        ("\\boxed{\\textbf{\\text{the white}}}", "the white"),
        ("\\boxed{\\mathrm{white\\ house}}", "white house"),
        ("\\boxed{\\text{in}~\\text{1984}}", "in 1984"),
        ("\\boxed{\\text{Answer: white}}", "white"),
        ("$\\text{white}$", "$white$"),
        ("\\boxed{\\textwidth}", "\\textwidth"),  # no command that holds words
        ("Answer:\nwhite", "white"),
        ("**Answer:** white", "white"),
        ("**Answer**: **white**\nbecause", "white"),
        ("A: **white**", "white"),
        ("Q: What colour?\n\nA: white", "white"),
        ("Q: What colour?\nA: white\n\nQ: Who?\nA: the cat", "white"),
        ("Q: Who?\nA: the cat\nQ: What colour?\nA: white", "white"),
        ("**Q: what colour**\n\n**A: White.**", "White."),
        ("Question: And what colour?\nAnswer:\nwhite", "white"),
        ("Q: What colour is the cat? A: white", "white"),
        ("Q: What colour is it?\nA: grey\nQ: What colour?\nA: white", "white"),
        ("<think>Q: What colour?\nA: grey</think>Q: What colour?\nA: white", "white"),
        ("Q: What colour?\n\nA: \\text{white}", "white"),
        # An answer to a question that nobody asked is none, nor is a question without an answer.
        ("Q: Who was it?\n\nA: white", "Q: Who was it?"),
        ("Q: What colour?", "Q: What colour?"),
        ("Q: What colour?\nQ: Who?\nA: white", "Q: What colour?"),
        ("white\n\nQ: What colour?\nA: grey", "white"),
        ("Queen A: white", "Queen A: white"),
        ("A cat: white", "A cat: white"),
    ],
)
def test_short_answers_behind_artefacts_of_format(response, taken):
    assert score(response, coqa("white"), "span_em").answer == taken


def test_a_question_that_is_not_known_may_be_any():
    assert score("Q: Who was it?\n\nA: white", ["white"], "span_em").value == 1


@pytest.mark.parametrize(
    ("response", "word"),
    [
        ("No part is supported.\n\nFinal answer: $\\boxed{\\text{yes}}$", "yes"),
        ("No evidence supports this. \\boxed{Yes, it does}", "yes"),
        ("No information supports this.\n\n**Yes**", "yes"),
        ("No, because it is not said.", "no"),
        ("\\boxed{maybe} yes", None),
        ("Judgement: No. Yes would be wrong.", "no"),
        # "no" in front of a noun is no answer, wherever it stands
        ("There is no mention of it in the document, so it is unsupported.", None),
        ("It is plausible: there is no reason why it should take longer.", None),
        ("There is **no** mention of it. So yes, this is made up.", "yes"),
        ("No evidence in the document supports this.", None),
        ("No mention of it is made.\n\nYes, it is hallucinated.", "yes"),
        ("\\boxed{\\text{no mention}}", None),
        ("The answer is no longer supported. Yes", "yes"),
        ("Answer: No information is given on this.", None),
        ("It is no more than a guess; nobody said so, and no one could. Yes.", "yes"),
        ("The summary is faithful, and no-one would object: no", "no"),
        ("See No. 5 of the list.", None),
        # "no" that answers
        ("No it is not plausible.", "no"),
        ("No the summary does not hold up.", "no"),
        ("**No** - the summary is faithful.", "no"),
        ("No\n\nThe summary is faithful.", "no"),
        ("I would say no because it takes longer.", "no"),
        ("I would say no, it takes longer.", "no"),
        ("No hallucination.", "no"),
        ("\\boxed{\\text{No hallucination}}", "no"),
        ("The answer is no, since there is no reason for it.", "no"),
        # The last line, alone, is later than any statement
        ('The candidate answer is "no". A dog can do so, so this is plausible.\n\nYes', "yes"),
        ("The answer is no, one may think. But dogs can.\n\n**Yes.**", "yes"),
        ("The answer seems to be: no.\nBut dogs can.\n- Yes", "yes"),
        ("A dog can do so. Therefore, yes.", "yes"),
        ("Is it plausible? No.", "no"),
        ("Plausible (Yes/No): Yes", "yes"),
        ("#Your Judgement#: Yes", "yes"),
        ("The verdict is **no**.\nThe document says otherwise.", "no"),
        ("**Judgement:**\n\nNo, all of it is said.", "no"),
        ("The answer is yes.\n\nNo further explanation is needed.", "yes"),
        ("The answer should be yes, as dogs can.", "yes"),
        # No statement of the model's own
        ('The candidate answer is "no". That is plausible.', None),
        ("The given answer: no. It is plausible, and the answer is yes, dogs can.", "yes"),
        ("We must say whether the answer is yes or no.", None),
        ("If the answer is no, the dog is dead. It barks, so the answer is yes.", "yes"),
        ("Yes, dogs can. If the answer is no, then no dog barks at all.", "yes"),
        ("One may ask: dogs bark, no?\nYes, they can.", "yes"),
        ("Yes or no?", None),
        ("Yes/No", None),
    ],
)
def test_words_that_models_settle_on(response, word):
    assert read_yes_no(response) == word


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
