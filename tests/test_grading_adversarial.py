"""Text that models write, or that is made to break a grader: nothing hangs, kills the pool or eats the memory.

`make test` tries 2,000 strings, `make test-slow` 100,000, from a fixed seed. Half are built from the constructs that
cost algebra systems time (towers of powers, factorials, nesting, long products), half are random and damaged text.
"""

import contextlib
import random
import resource
import string
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.grading.grader import Grader, Outcome, _needs_algebra, _NeedsAlgebraError, compare, extract_answer
from data.grading.notation import plain

LIMIT_SECONDS = 1.0
REFERENCES = ["5", r"\frac{1}{2}", r"x^2+1", r"(1,2)", r"\{1,2\}", r"\sqrt{2}", "Paris", r"x>3", r"10\%", "9^{9^{9}}"]
HAND_MADE = [
    "9" * 100_000,
    "1" + "0" * 5000 + "!",
    "9^" * 400 + "9",
    "9^{" * 50 + "9" + "}" * 50,
    "((" * 900 + "1",
    "(" * 900 + "x" + ")" * 900,
    r"\frac{1}{" * 200 + "2" + "}" * 200,
    r"\sqrt{" * 400 + "2" + "}" * 400,
    "1" + "+1" * 900,
    "x" * 2000,
    "xyzabc" * 300,
    "1,2," * 500,
    r"\{" * 500,
    "{" * 1000,
    "}" * 1000,
    r"\pm" * 300,
    r"3!!!!!!!!!!!!",
    "100000!",
    r"\binom{100000}{50000}",
    r"\prod_{k=1}^{10^9} k",
    r"\sum_{k=1}^{10^{12}} \frac{1}{k}",
    r"\int_0^1 x^{x^{x^x}} dx",
    "\x00\x01\x02\x1b[31m",
    "\u202e\u200b\ufeff5",
    "５",
    "𝟓",
    "½½½",
    "🙂" * 500,
    "\ud800",
    "\ue000\ue001\ue002\ue003\ue004",
    r"\begin{pmatrix}" + "1&" * 900 + r"1\end{pmatrix}",
    r"\begin{pmatrix}1\\",
    r"\text{" * 300,
    "a_" * 500,
    "^" * 500,
    "__import__('os').system('true')",
    "lambda x: x",
    "sin(" * 300,
    "1e999999999",
    "2^{-99999999}",
    "0.\\overline{" + "9" * 900 + "}",
    r"\log_{1} 5",
    r"\log 0",
    "0^0",
    "1/0",
    r"\frac{0}{0}",
    "-" * 1500 + "1",
    "1" + "*9999999" * 200,
    r"\left" * 300,
    "$" * 500,
    " and ".join(["x=1"] * 400),
    "x=" * 500,
    "<" * 500,
    r"1<x<2<3<4",
    "A" * 100_000,
    "\n" * 5000,
    r"\\" * 900,
    "%" * 900,
]
PIECES = (
    r"\frac \sqrt \binom \pi \infty \cup \pm \le \in \text{ \boxed{ \left( \right) \begin{pmatrix} \end{pmatrix} \\ & "
    r"\cdot \log \sin \sum_{k=1}^{n} \int \mathbb{R} \{ \} { } ( ) [ ] ^ _ ! | = < > , ; % $ \$ + - * / . 0 1 7 12 "
    r"999 0.5 1e9 x y n e i cm and or"
).split()


def endless_strings(seed: int):
    """Strings made of the pieces above, nested and repeated, or random characters."""
    rng = random.Random(seed)
    yield from HAND_MADE
    while True:
        kind = rng.random()
        if kind < 0.5:
            yield "".join(rng.choices(PIECES, k=rng.randint(1, 30)))
        elif kind < 0.65:
            base = "".join(rng.choices(PIECES, k=rng.randint(1, 4)))
            yield base * rng.randint(2, 400)
        elif kind < 0.8:
            tower = str(rng.randint(2, 99))
            for _ in range(rng.randint(1, 8)):
                tower = rng.choice(["{a}^{{{b}}}", "({b})!", "{a}*{b}", r"\frac{{{a}}}{{{b}}}"]).format(
                    a=rng.randint(2, 99), b=tower
                )
            yield tower
        elif kind < 0.9:
            yield "".join(rng.choices(string.printable, k=rng.randint(1, 80)))
        else:
            yield "".join(
                chr(rng.choice([rng.randrange(0x20, 0x2FFF), rng.randrange(0xE000, 0x10FFFF)])) for _ in range(20)
            )


def try_strings(count: int, seed: int) -> None:
    rng = random.Random(seed)
    strings = endless_strings(seed)
    # The last reference is itself a tower that nothing can evaluate: each pair with it costs the whole limit.
    weights = [1.0] * (len(REFERENCES) - 1) + [0.1]
    pairs = [(f"\\boxed{{{next(strings)}}}", rng.choices(REFERENCES, weights)[0]) for _ in range(count)]
    # In this process: reading and comparing is bounded without any clock.
    for completion, reference in pairs:
        begun = time.process_time()
        answer = extract_answer(completion)
        if answer is not None:
            with contextlib.suppress(_NeedsAlgebraError):
                compare(answer, reference, _needs_algebra)
        assert time.process_time() - begun < 5, completion[:200]
    # With the workers: the clock ends what hangs.
    grader = Grader(workers=2, timeout_seconds=LIMIT_SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in range(0, count, 500):
        part = pairs[start : start + 500]
        grades = grader.grade_many([c for c, _ in part], [r for _, r in part])
        assert len(grades) == len(part)
        assert all(isinstance(grade.outcome, Outcome) for grade in grades)
    assert grader.grade(r"\boxed{\sum_{k=1}^{3} k}", "6").correct  # the pool is alive
    for worker in grader._idle:
        (line,) = [
            t for t in Path(f"/proc/{worker.process.pid}/status").read_text().splitlines() if t.startswith("VmHWM")
        ]
        assert int(line.split()[1]) < 2 << 20  # kB: below the limit of 2 GB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    grader.close()


def test_nested_collections_are_bounded():
    """Comparing unordered collections in collections doubles with every level; reading stops before that hurts."""
    answer, reference = r"\{1,2\}", r"\{2,1\}"
    for _ in range(4):
        answer, reference = rf"\{{{answer},0\}}", rf"\{{0,{reference}\}}"
    assert compare(answer, reference, _needs_algebra) is Outcome.CORRECT
    for _ in range(60):
        answer, reference = rf"\{{{answer},0\}}", rf"\{{0,{reference}\}}"
    assert compare(answer, reference, _needs_algebra) is Outcome.GOLD_UNPARSEABLE
    tuples = "(1," * 250 + "7" + ")" * 250
    assert compare(tuples, "5", _needs_algebra) is Outcome.WRONG


def test_two_thousand_strings():
    try_strings(2000, seed=1)


@pytest.mark.slow
def test_hundred_thousand_strings():
    try_strings(100_000, seed=2)


@given(st.text(max_size=200), st.sampled_from(REFERENCES))
@settings(max_examples=300, deadline=None)
def test_comparison_is_total(answer, reference):
    """Any text gets an outcome or a question for the algebra system, never another exception."""
    with contextlib.suppress(_NeedsAlgebraError):
        assert compare(answer, reference, _needs_algebra) in Outcome


@given(st.sampled_from(REFERENCES), st.sampled_from(["${}$", r"\({}\)", r" {} ", r"\displaystyle {}", "{}."]))
@settings(max_examples=60, deadline=None)
def test_dress_does_not_matter(reference, dress):
    assert compare(dress.format(reference), reference, _needs_algebra) is Outcome.CORRECT
    assert plain(dress.format(reference)) == plain(reference)
