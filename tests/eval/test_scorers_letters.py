"""Letters of options as models settle on them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scorers.letters import read_choice


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
