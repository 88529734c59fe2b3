"""The text that a template puts around every problem takes no part in comparisons; the values it prints do."""

import json

import pytest

from data.corpus.fields import printed_values
from data.corpus.filters import apply_filters
from data.corpus.funnel import WITHHELD, Funnel
from data.grading.grader import Grader
from recipes.loading import validate_recipe

INSTRUCTION = (  # 30 words
    "Read the ticket of the customer with care, decide which of the teams named above can solve it the fastest, and "
    "put the one letter of that team into a box"
)
QUESTION = "A lender may take the house if the loan is not repaid. What does the lender hold?"
PARAPHRASE = "A lender may take the house when the loan is not repaid. What does the lender hold?"
LETTERS = "{{ q }}\n(A) {{ a }}\n(B) {{ b }}\n(C) {{ c }}\n\n" + INSTRUCTION


def filtered(tmp_path, rows, field, questions=(), texts="q", **benchmark):
    """The funnel of rows of question, answer and options, and the problems close to one of the questions."""
    columns = ("q", "answer", "a", "b", "c")
    for name, table in (("p", rows), ("b", questions or [["Nothing here."]])):
        lines = (json.dumps(dict(zip(columns, row, strict=False))) for row in table)
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    source = {"kind": "file", "name": "p", "path": str(tmp_path / "p.jsonl"), "problem_field": field}
    bench = {"kind": "file", "name": "b", "path": str(tmp_path / "b.jsonl"), "text_fields": [texts]} | benchmark
    corpus = {"sources": [source], "decontamination": {"benchmarks": [bench]}}
    funnel = Funnel()
    overlaps = apply_filters(funnel, validate_recipe({"study": "c", "corpus": corpus}, "test"), Grader(), None)
    return funnel, overlaps


def reasons(funnel):
    return {row["row"]: row["reason"] for row in funnel.rejects}


@pytest.mark.parametrize("field", ["q", f"{{{{ q }}}}\n{INSTRUCTION}"])
def test_problems_with_one_instruction_are_as_alike_as_without_it(tmp_path, field):
    rows = [
        ("My card is lost.", "A"),
        ("My parcel is late.", "A"),
        ("The page for invoices of last year stays empty on my phone.", "B"),
        ("The page for invoices of last year stays empty on my phone!  Help", "B"),
    ]
    funnel, _ = filtered(tmp_path, rows, field)
    assert reasons(funnel) == {3: "near_duplicate"}
    # 10 three-word runs of 12 words, 11 of 13.
    assert funnel.rejects[0]["detail"] == "similarity 0.91 to p, p.jsonl line 3"
    assert len(funnel.kept) == 3


def test_where_values_are_few_words_the_template_is_the_question(tmp_path):
    sources = "{% if b %}What is the capital of {{ q }}?{% else %}Where is the largest harbour of {{ q }}?{% endif %}"
    rows = [("France", "Paris", "", True), ("France", "Paris", "", False), ("france", "Paris", "", True)]
    funnel, _ = filtered(tmp_path, rows, sources)
    assert reasons(funnel) == {2: "duplicate"}


@pytest.mark.parametrize("field", ["q", LETTERS, f"{{{{ q }}}}\n{INSTRUCTION}"])
@pytest.mark.parametrize("texts", ["q", f"{INSTRUCTION}\n{{{{ q }}}}"])
def test_a_question_in_other_words_is_found_beside_options_and_instruction(tmp_path, field, texts):
    options = ("a mortgage on the land", "a trade mark of the lender", "a treaty with the borrower")
    rows = [
        (PARAPHRASE, "A", *options),
        ("A tenant pays the landlord for the use of a flat each month. What is it called?", "B", *options),
    ]
    funnel, (overlap,) = filtered(tmp_path, rows, field, [(QUESTION,)], texts)
    assert reasons(funnel) == {0: "benchmark_overlap"}
    # 15 three-word runs each, three with the changed word: 12 of 18 without options.
    assert overlap["similarity"] == pytest.approx(12 / 18, abs=1e-3)
    assert QUESTION in overlap["question"]


def test_an_option_or_instruction_in_a_question_is_no_overlap(tmp_path):
    option = "the one who pays has to show the receipt to the clerk"
    rows = [("Who is right in the case of the broken vase at noon?", "A", option, "nobody", "both")]
    question = f"{INSTRUCTION}. A vase is sold and comes back, and says the law that {option}, or so it seems. Why?"
    funnel, overlaps = filtered(tmp_path, rows, LETTERS, [(question,)])
    assert (len(funnel.kept), overlaps) == (1, [])


def test_a_short_question_is_found_if_equal_without_the_template(tmp_path):
    rows = [("Who wrote Hamlet?", "A"), ("Who wrote Faust?", "B")]
    funnel, _ = filtered(tmp_path, rows, f"{{{{ q }}}}\n{INSTRUCTION}", [("who wrote hamlet",)])
    assert reasons(funnel) == {0: "benchmark_overlap"}


def test_a_question_that_templates_write_around_numbers_is_found(tmp_path):
    asked = "A farmer has {{ a }} sheep and buys {{ b }} more every month for a year. How many are there?"
    rows = [("", "52", 4, 4, ""), ("", "27", 3, 2, "")]
    whole = [("A farmer has 4 sheep and buys 4 more every month for a year. How many are there?",)]
    funnel, _ = filtered(tmp_path, rows, asked, whole)
    assert reasons(funnel)[0] == "benchmark_overlap"


def test_a_restricted_question_beside_options_is_in_no_reject(tmp_path):
    options = ("a mortgage on the land of another", "a trade mark of the lender", "a treaty with the borrower")
    rows = [(PARAPHRASE, "???", *options), ("What is rent?", "???", *options)]
    funnel, _ = filtered(tmp_path, rows, LETTERS, [(QUESTION,)], restricted=True)
    assert {row["row"]: (row["reason"], row["problem"] == WITHHELD) for row in funnel.rejects} == {
        0: ("gold_unparseable", True), 1: ("gold_unparseable", False),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("Q: {{ q }}\n(A) {{ a }} ({{ 'B' }})", ("Why?", "x", "B")),
        ("{% for o in l %}({{ loop.index }}) {{ o }}\n{% endfor %}Answer.", ("1", "y", "2", "z")),
        ("{% set s %}{{ a }}-1{% endset %}{% if s == 'x-1' %}Then {{ q }}{% endif %}", ("Why?",)),
        ("{{ q }}{{ a }}", ("Why?x",)),
        ("Only {{ blank }} text", ()),
    ],
)
def test_what_a_template_prints_of_a_row(template, values):
    assert printed_values({"q": "Why?", "a": "x", "l": ["y", "z"], "blank": " "}, template) == values
