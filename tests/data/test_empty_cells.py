"""Rows that leave a cell empty which their template prints: a corpus removes them, as those with a null."""

import csv
import json

import pytest

from data.corpus.demonstrations import _stored
from data.corpus.fields import field_value
from data.corpus.first_row import field_mistakes
from data.corpus.printed import EmptyPrintError
from data.corpus.rows import problem_id
from data.corpus.sources import read_benchmark, read_source
from data.corpus.stored import PassedOver
from launch.commands.main import main
from recipes.corpus_schema import BenchmarkTexts, SourceSpec
from recipes.loading import load_recipe
from tests.support.starters import edit

ROWS = [
    ["stem", "a", "b", "c", "note", "right"],
    ["Which is even?", "1", "2", "3", "of whole numbers", "B"],
    ["", "1", "2", "4", "", "C"],
    ["Which is odd?", "2", "3", " ", "", "C"],
    ["Which is big?", "1", "2", "900", "", "C"],
]
TEMPLATE = "{% if note %}({{ note }}) {% endif %}{{ stem }}\n(A) {{ a }}\n(B) {{ b }}\n(C) {{ c }}"


def source(path, **mapping):
    return SourceSpec(
        kind="file", name="s", path=str(path), **{"problem_field": TEMPLATE, "answer_field": "right"} | mapping
    )


def table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_row_of_a_table_whose_template_prints_an_empty_cell_is_rejected(tmp_path):
    found = read_source(source(table(tmp_path / "r.csv", ROWS)), 0)
    assert [(row.line, row.reject, row.detail) for row in found] == [
        (2, None, None),
        (3, "template_failed", "'stem' is empty; if it may be, write {% if stem %} around it"),
        (4, "template_failed", "'c' is empty; if it may be, write {% if c | trim %} around it"),
        (5, None, None),
    ]
    assert found[0].problem == "(of whole numbers) Which is even?\n(A) 1\n(B) 2\n(C) 3"
    assert found[3].problem == "Which is big?\n(A) 1\n(B) 2\n(C) 900"
    path = tmp_path / "r.tsv"
    path.write_text("\n".join("\t".join(row) for row in ROWS) + "\n")
    assert [row.reject for row in read_source(source(path), 0)] == [None, "template_failed", "template_failed", None]


def test_an_empty_cell_of_the_first_row_removes_that_row_alone(tmp_path):
    spec = source(table(tmp_path / "r.csv", [ROWS[0], ROWS[2], ROWS[1]]))
    assert field_mistakes(spec, [TEMPLATE, "right"]) == []
    assert [row.reject for row in read_source(spec, 0)] == ["template_failed", None]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ q }} {{ a | trim }}", "'a' is empty; |a"),
        ("{{ q.split('?')[1] }}", "'q' is empty; |q"),
        ("{{ 'A ' ~ a }}", "'a' is empty; |a"),
        ("{{ 'A ' + a }}", "'a' is empty; |a"),
        ("{{ a if q else b }}", "'a' is empty; |a"),
        ("{{ a or null }}", "one of 'a', 'null' is null; |a"),
        ('{{ row["a b"] }}', "'a b' is empty; |row[\"a b\"]"),
        ("{{ o.x }}{{ o.y }}", "'o.y' is empty; |o.y"),
        ("{{ o['z'] }}", "'o.z' is null; |o[\"z\"]"),
        ("{% for k, v in o.items() %}{{ v }}{% endfor %}", "a value of 'o' is empty; |v"),
        ("{% for t in [q, a] %}{{ t }}{% endfor %}", "one of 'q', 'a' is empty; |t"),
        ("{% set t = a %}{{ t }}", "'a' is empty; |t"),
        ("{{ [q, a] | join(', ') }}", "'a' is empty; |SELECT"),
        ("{{ l | join | upper }}", "a value of 'l' is empty; |SELECT"),
    ],
)
def test_whatever_is_printed_of_an_empty_value_is_found(template, said):
    row = {"q": "Why?", "a": "", "a b": "", "null": None, "o": {"x": "1", "y": "", "z": None}, "l": ["1", ""]}
    with pytest.raises(ValueError, match=r"is (empty|null)") as error:
        field_value(row, template)
    what, _, asked = said.partition("|")
    remedy = (
        "leave it out with `| select` before `| join`" if asked == "SELECT" else f"write {{% if {asked} %}} around it"
    )
    assert str(error.value) == f"{what}if it may be, {remedy}"
    assert not isinstance(error.value, EmptyPrintError)  # but the reason that rejects.jsonl has


@pytest.mark.parametrize(
    ("template", "printed"),
    [
        ("{{ q }}{% if a %} ({{ a }}){% endif %}", "Why?"),
        ("{{ q }}{{ a or '' }}", "Why?"),
        ("{{ a or q }}", "Why?"),
        ("{{ q }}{{ a | default('') }}", "Why?"),
        ("{{ q }}{{ ' (' ~ a ~ ')' if a else '' }}", "Why?"),
        ("{{ [q, a] | select | join(', ') }}", "Why?"),
        ("{% for t in [q, a] if t %}{{ t }}{% endfor %}", "Why?"),
        ("{% set s = '' %}{{ q }}{{ s }}", "Why?"),
        ("{{ 'AB'[n] }}{{ n + 1 }}{{ n }}", "A10"),
    ],
)
def test_what_is_empty_on_purpose_is_printed(template, printed):
    assert field_value({"q": "Why?", "a": "", "n": 0}, template) == printed


def test_texts_to_compare_with_may_have_empty_cells_and_demonstrations_are_passed_over(tmp_path, law):
    """A question is still compared with the corpus; a demonstration of a row that is rejected is passed over."""
    path = table(tmp_path / "r.csv", ROWS)
    texts = BenchmarkTexts(kind="file", name="t", path=str(path), text_fields=["{{ stem }} {{ c }}"])
    assert [text.whole for text in read_benchmark(texts, None)[1:3]] == [" 4", "Which is odd?  "]
    rows = list(csv.reader((law.parent / "problems.csv").open()))
    assert rows[0][:2] == ["question", "option_a"]
    rows[1][0] = ""
    table(law.parent / "problems.csv", rows)
    recipe = load_recipe(law)
    (kept, *_) = [row for row in read_source(recipe.corpus.sources[0], 0) if row.reject is None]
    (samples,) = _stored(recipe, [problem_id(kept.problem)], "", PassedOver()).values()
    assert [sample.completion for sample in samples] == [rows[2][rows[0].index("solution")]]


def test_validate_names_the_line_and_the_column_of_a_corpus(law, capsys):
    rows = list(csv.reader((law.parent / "problems.csv").open()))
    rows[3][rows[0].index("option_c")] = ""
    table(law.parent / "problems.csv", rows)
    assert main(["validate", str(law), "--json"]) in (0, 2)
    corpus = json.loads(capsys.readouterr().out)["corpus"]
    assert (corpus["rows"], corpus["problems"], corpus["removed"]) == (24, 23, {"template_failed": 1})
    first = "my-problems, problems.csv line 4: 'option_c' is empty; if it may be, write {% if option_c %} around it"
    assert corpus["first_removed"] == {"template_failed": first}
    edit(law, corpus__sources__0__problem_field="{{ question }} {{ option_c | default('') }}")
    main(["validate", str(law), "--json"])
    assert json.loads(capsys.readouterr().out)["corpus"]["problems"] == 24
