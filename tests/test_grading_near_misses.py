"""Answers that differ from the reference in one place, and were called correct; and the same answer beside each."""

import pytest

from data.grading.grader import Outcome, _needs_algebra, compare

CASES = [
    # (reference, wrong, right)
    ("0:1:2", "0:5:7", "0:2:4"),
    ("1:2", "0:0", "2:4"),
    ("(x,y)=(1,2)", "(y,x)=(1,2)", "(y,x)=(2,1)"),
    ("2,2,3", "2,3", "2,3,2"),
    (r"C_1\cos(\pi x)+C_2\sin(\pi x)", r"C_1\cos(\pi x)", r"C_2\sin(\pi x)+C_1\cos(\pi x)"),
    (r"C_1x+C_2|x|", "C_1x+C_2x", "C_2|x|+C_1x"),
    (r"\frac{x^n}{n!}", r"\frac{|x|^n}{n!}", r"\frac{1}{n!}x^n"),
    ("x^2+|y|=3", "x^2+y=3", "|y|+x^2=3"),
    ("x^2+|y+5|=9", "x^2+y+5=9", "|y+5|+x^2=9"),
    ("|x+3|+y<5", "x+3+y<5", "y+|x+3|<5"),
    ("|x-2024|", "2024-x", "|2024-x|"),
    (r"\frac{1}{23}x=5", r"\frac{12}{3}x=5", r"\frac{x}{23}=5"),
    (r"\$5", r"5\%", "5"),
    (r"5^\circ", r"5\%", r"5\text{ degrees}"),
    ("e", "E", "e^1"),
    ("101", "101_2", "101_{10}"),
]


@pytest.mark.parametrize(("reference", "wrong", "right"), CASES)
def test_a_near_miss_is_wrong_and_another_form_is_right(reference, wrong, right):
    assert compare(wrong, reference, _needs_algebra) is Outcome.WRONG
    assert compare(right, reference, _needs_algebra) is Outcome.CORRECT


@pytest.mark.parametrize("answer", [r"5\text{ per cent}", r"5\text{ percent}", "5"])
def test_percent_in_words(answer):
    assert compare(answer, r"5\%", _needs_algebra) is Outcome.CORRECT


@pytest.mark.parametrize("length", ["|AB|=3", r"\overline{AB}=3", "AB=3"])
def test_bars_around_a_side_are_its_length(length):
    assert compare(length, "AB=3", _needs_algebra) is Outcome.CORRECT
    assert compare("|x|=3", "x=3", _needs_algebra) is Outcome.WRONG
