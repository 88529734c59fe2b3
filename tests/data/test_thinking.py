"""Where thinking ends: at the last </think>, unless it begins again behind it."""

import pytest

from data.grading.grader import Grader
from data.prompts.thinking import answer_text, split_thinking, strip_thinking
from eval.scorers.rules import score


@pytest.mark.parametrize(
    ("completion", "thinking", "answer"),
    [
        ("b", None, "b"),
        (" b ", None, " b "),
        ("<think>a</think>\n\nb\n", "a", "\n\nb\n"),
        ("<think></think>b", "", "b"),
        ("a</think>b", "a", "b"),  # its template opened the thinking
        ("<think>a", "a", None),
        # Again: the last mark decides.
        ("<think>a</think>b<think>c</think>d", "a</think>b<think>c", "d"),
        ("<think>a</think>b</think>c", "a</think>b", "c"),
        ("a</think>b<think>c", "a</think>bc", None),
        ("<think>a</think>b<think>c", "a</think>b<think>c", None),
        ("", None, ""),
    ],
)
def test_thinking_ends_at_the_last_mark_unless_it_is_opened_again(completion, thinking, answer):
    assert split_thinking(completion) == (thinking, answer)
    assert answer_text(completion) == answer
    assert strip_thinking(completion) == (completion if thinking is None else (answer or "").lstrip())


def test_thinking_that_the_prompt_opened_lasts_until_it_is_closed():
    assert split_thinking("a\n", opened=True) == ("a", None)
    assert split_thinking("a</think>b", opened=True) == ("a", "b")
    assert split_thinking("a</think>b<think>c", opened=True) == ("a</think>bc", None)


def test_an_answer_before_thinking_that_is_opened_again_does_not_count():
    """Neither that answer nor a box in the open thinking is where the model arrived."""
    grader = Grader()
    reopened = r"<think>a</think>\boxed{7}<think>Wait, \boxed{8}"
    for reference in ("7", "8"):
        assert grader.grade(reopened, reference).outcome == "no_answer"
    assert grader.grade(reopened + r"</think>\boxed{9}", "9").correct
    assert score("<think>a</think>The answer is (C).<think>Or", "C", "choice").outcome == "no_answer"
