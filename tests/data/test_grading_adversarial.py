"""Text that models write, or that is made to break a grader: nothing hangs, kills the pool or eats the memory.

`make test` tries 500 pairs, `make test-slow` 100,000, from a fixed seed. Some are built from the constructs that cost
time (towers of powers, factorials, nesting, long products), some are long lists of heavy terms against the same list in
another order, some are random and damaged text. The references are hostile too.
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

from data.grading.grader import Grader, Outcome, _needs_algebra, _NeedsAlgebraError, compare
from data.grading.notation import plain

LIMIT_SECONDS = 1.0
MOST_SECONDS = 10.0  # of one comparison or one check of a reference, whatever the load of the machine
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


HEAVY = [
    r"\binom{{{i}n}}{{n}}", r"\sqrt[{i}]{{\sin {i}x + \pi}}", r"\frac{{{i}!}}{{\ln({i}+x)}}", r"{i}^{{x^{{{i}}}}}",
    r"\sum_{{k=1}}^{{{i}00}} \frac{{1}}{{k}}", r"\prod_{{k=1}}^{{n}} (k+{i})", r"\arctan(\arctan({i}x))",
    r"9^{{9^{{{i}}}}}", r"\int_0^{i} x^{{x^x}} dx", r"\{{x : x^{i} < 2\}}",
    r"x_{{{i}_{{{i}_{i}}}}}", r"e^{{e^{{{i}x}}}}",
    r"\begin{{pmatrix}}{i}&x\\y&\ln {i}\end{{pmatrix}}", r"\begin{{cases}}{i}x & x>{i}\\0&x<{i}\end{{cases}}",
]  # fmt: skip


def heavy_list(rng: random.Random) -> tuple[str, str]:
    """A list of up to 60 terms that are slow to compare, and the same terms in another order, one changed perhaps."""
    kinds = rng.sample(HEAVY, rng.randint(1, 3))
    terms = [rng.choice(kinds).format(i=i) for i in range(2, rng.randint(5, 60))]
    other = terms[::-1]
    if rng.random() < 0.5:
        other[rng.randrange(len(other))] += "+1"
    opening, closing = rng.choice([("", ""), ("(", ")"), (r"\{", r"\}"), ("[", "]")])
    return opening + ", ".join(terms) + closing, opening + ", ".join(other) + closing


def hostile_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of a completion and a reference."""
    rng = random.Random(seed)
    strings = endless_strings(seed)
    # The last reference is itself a tower that nothing can evaluate.
    weights = [1.0] * (len(REFERENCES) - 1) + [0.1]
    pairs = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.02:
            answer, reference = heavy_list(rng)
        elif kind < 0.1:
            answer, reference = next(strings), next(strings)
        else:
            answer, reference = next(strings), rng.choices(REFERENCES, weights)[0]
        pairs.append((f"\\boxed{{{answer}}}", reference))
    return pairs


def try_strings(count: int, seed: int, limit_seconds: float = LIMIT_SECONDS) -> None:
    pairs = hostile_pairs(count, seed)
    grader = Grader(workers=2)
    assert grader.grade(r"\boxed{\int_0^1 x dx}", r"\int_0^1 y dy").correct  # starts a worker, which is not timed
    grader.timeout_seconds = limit_seconds
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for completion, reference in pairs:
        begun = time.monotonic()
        assert isinstance(grader.grade(completion, reference).outcome, Outcome)
        graded = time.monotonic()
        grader.are_gradable([reference])
        assert max(graded - begun, time.monotonic() - graded) < MOST_SECONDS, (completion[:300], reference[:300])
    for start in range(0, count, 2500):
        part = pairs[start : start + 2500 : 5]
        grades = grader.grade_many([c for c, _ in part], [r for _, r in part], limit_seconds=60.0)
        assert len(grades) == len(part)
        assert all(isinstance(grade.outcome, Outcome) for grade in grades)
    grader.timeout_seconds = 5.0
    assert grader.grade(r"\boxed{\int_0^1 x dx}", r"\int_0^1 y dy").correct  # the pool is alive
    for worker in grader._workers.idle:
        (line,) = [
            t for t in Path(f"/proc/{worker.process.pid}/status").read_text().splitlines() if t.startswith("VmHWM")
        ]
        assert int(line.split()[1]) < 2 << 20  # kB: below the limit of 2 GB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    grader.close()


def test_a_long_list_of_heavy_terms_ends_at_the_limit():
    """In this process, where nothing can be interrupted: the readers and the arithmetic ask the clock."""
    grader = Grader(timeout_seconds=0.3)
    terms = [rf"\sum_{{k=1}}^{{{n}}} \frac{{\sin k}}{{k^{{{n}}}}}" for n in range(900, 930)]
    begun = time.monotonic()
    grade = grader.grade(rf"\boxed{{{', '.join(terms)}}}", ", ".join(term + "+1" for term in reversed(terms)))
    assert grade.outcome is Outcome.TIMEOUT
    assert time.monotonic() - begun < 5
    begun = time.monotonic()
    completions = [rf"\boxed{{{', '.join(terms[n:] + terms[:n])}}}" for n in range(10)]
    grades = grader.grade_many(completions, [", ".join(term + "+1" for term in terms)] * 10, limit_seconds=0.6)
    assert [grade.outcome for grade in grades] == [Outcome.TIMEOUT] * 10
    assert time.monotonic() - begun < 8


def test_a_reference_nested_without_end_is_checked_quickly():
    begun = time.monotonic()
    grader = Grader()
    nested = "x" + "_{x" * 300 + "}" * 300
    grader.are_gradable([nested, "{" * 900 + "1" + "}" * 900, r"\frac{1}{" * 100 + "2" + "}" * 100])
    assert time.monotonic() - begun < 5


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


def test_an_equation_of_numbers_too_large_to_compute_is_not_readable():
    for equation in ("9^{9^{9}}=5", "100001!=5", "5=9^{9^{9}}", "9^{9^{9}}=100001!"):
        assert compare(equation, "5", _needs_algebra) is Outcome.WRONG
        assert compare("5", equation, _needs_algebra) is Outcome.GOLD_UNPARSEABLE


def test_five_hundred_strings():
    try_strings(500, seed=1, limit_seconds=0.1)


@pytest.mark.slow
@pytest.mark.faults
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
