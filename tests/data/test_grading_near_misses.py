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
    # \\pm within braces and tuples is two members
    (r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt5", r"-2, 1+\sqrt5, 1-\sqrt5"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1+\sqrt5\}", r"\{-2, 1+\sqrt5, 1-\sqrt5\}"),
    (r"\{1\pm\sqrt{5},-2\}", r"-2, 1\pm\sqrt3", r"-2, 1\pm\sqrt5"),
    (r"\{\pm 3\}", "3", "3,-3"),
    (r"\{\pm 3\}", r"\{3\}", r"\{-3,3\}"),
    (r"\{\pm 3\}", r"\{\pm3,0\}", r"\pm 3"),
    (r"\{3,-3\}", r"\left\{\pm4\right\}", r"\left\{\pm3\right\}"),
    (r"\{3\pm2\sqrt2\}", r"3+2\sqrt2", r"3\pm2\sqrt2"),
    (r"x\in\{\pm3\}", "x=3", r"x=\pm3"),
    (r"\{a\mp b\}", "a+b", "a-b, a+b"),
    (r"\{\{\pm1\}\}", r"\{1,-1\}", r"\{\{1,-1\}\}"),
    (r"[-3,3]\setminus\{\pm1\}", "[-3,3]", r"[-3,-1)\cup(-1,1)\cup(1,3]"),
    (r"(\pm1,2)", "(1,2)", "(-1,2),(1,2)"),
    (r"(\pm1,2)", r"(2,\pm1)", r"\{(1,2),(-1,2)\}"),
    (r"(\pm1,\pm2)", "(1,2),(-1,-2)", r"(\pm1,\pm2)"),
    ("(1,3),(2,3)", r"(1\text{ or }2,3)", "(2,3),(1,3)"),
    # fonts around a formula
    (r"\frac{3}{4}", r"\textbf{\frac{3}{5}}", r"\textbf{\frac{3}{4}}"),
    (r"\frac{3}{4}", r"\mathbf{\frac{\sqrt{9}}{5}}", r"\mathbf{\frac{\sqrt{9}}{4}}"),
    (r"\frac{3}{4}", r"\text{not \frac{3}{4}}", r"\text{\frac{3}{4}}"),
    (r"\frac{3}{4}", r"\text{about $\frac{3}{4}$}", r"\textbf{$\frac{3}{4}$}"),
    (r"\frac{3}{4}", r"\textbf{-\frac{3}{4}}", r"\textbf{\(x = \frac{3}{4}\)}"),
    (r"\frac{\sqrt{2+\sqrt{3}}}{2}", r"\mathbf{\frac{\sqrt{2-\sqrt{3}}}{2}}", r"\mathbf{\frac{\sqrt{2+\sqrt{3}}}{2}}"),
    (r"\frac{3}{4}\text{ cm}", r"\textbf{\frac{3}{4} m}", r"\textbf{\frac{3}{4} cm}"),
    ("(3,4]", r"\text{[3,4]}", r"\text{(3,4]}"),
    ("(-2,1)", r"\textbf{(1,-2)}", r"\textbf{(-2,1)}"),
    ("4210_{5}", r"\textbf{4210_{6}}", r"\textbf{4210_{5}}"),
    (r"\text{(C)}", r"\textbf{\text{(B)}}", r"\textbf{\text{(C)}}"),
    (r"5.4 \text{ cents}", r"\textbf{5.4 \text{ dollars}}", r"\textbf{5.4 \text{ cents}}"),
    ("B", r"\textbf{(C)}", r"\textbf{(B)}"),
    (r"3\sqrt2\text{ cm}", r"\textbf{3\sqrt{2} \text{ m}}", r"\textbf{3\sqrt{2} \text{ cm}}"),
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
