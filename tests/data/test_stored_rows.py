"""Rows of stored completions that have no problem or no completion: they are passed over and counted."""

import csv
import json

import pytest

from data.corpus.build import run as build_corpus
from data.corpus.fields import EmptyCellError, TemplateFailedError, field_value
from data.corpus.first_row import field_mistakes
from data.corpus.rows import read_demonstrations
from launch.commands.main import main
from launch.fetch import _count_rows
from launch.planning.lengths import check_lengths
from recipes.corpus_schema import StoredCompletions
from recipes.errors import UserError
from recipes.loading import load_recipe, validate_recipe
from recipes.manifest import read_manifest, start_stage
from tests.support.starters import edit

HEADER = ["Ticket", "Agent Note", "Routed To"]
ROWS = [
    ["The invoice is wrong.", "Money.", "Billing"],
    ["The page is blank.", "A fault.", ""],
    ["Who are you?", "", "Sales"],
    ["The door is stuck.", " ", "Billing"],
    ["The price is high.", "Money.", "Spam"],
    ["I want two more.", "An order.", "Sales"],
]
LETTER = "{{ {'Billing': 'A', 'Sales': 'B'}[row['Routed To']] }}"
COMPLETION = "{{ row['Agent Note'] }} \\boxed{ " + LETTER + " }"
KEYS = "(its keys: 'Billing', 'Sales')"
EIGHT = "0, 1, 2, 3, 4, 5, 6, 7"
NO_KEY = f"completion_field: a mapping has no key '' {KEYS}"


def stored(path, rows, **fields):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    fields = {"problem_field": "Ticket", "completion_field": COMPLETION} | fields
    return {"kind": "file", "name": "agent-notes", "path": str(path)} | fields


def build(tmp_path, rows, **fields):
    """The corpus stage with stored completions: facts, lines of the console, completions with their grades."""
    problems = tmp_path / "problems.jsonl"
    asked = [(row[0], "B" if row[2] == "Sales" else "A") for row in ROWS]
    problems.write_text("".join(json.dumps({"problem": text, "answer": answer}) + "\n" for text, answer in asked))
    source = {"kind": "file", "name": "s", "path": str(problems)}
    teacher = {"kind": "stored", "stored": stored(tmp_path / "export.csv", rows, **fields)}
    corpus = {"sources": [source], "problem_set": "all", "teacher": teacher}
    stage = tmp_path / "corpus"
    start_stage(stage, "corpus", {})
    build_corpus(validate_recipe({"study": "c", "corpus": corpus}, "test"), tmp_path, stage, resume=False)
    found = [(row.completion, row.grade) for rows in read_demonstrations(stage).values() for row in rows]
    return read_manifest(stage)["facts"], (stage / "notes.txt").read_text().splitlines(), sorted(found)


def test_rows_that_do_not_fill_their_template_are_passed_over_and_counted(tmp_path):
    facts, console, found = build(tmp_path, ROWS)
    assert found == [("An order. \\boxed{ B }", "correct"), ("Money. \\boxed{ A }", "correct")]
    first = f"agent-notes, export.csv line 3: {NO_KEY}"
    assert facts["stored_passed_over"] == {"rows": 4, "first": first}
    assert console[-1] == f"4 rows of the stored completions passed over (the first: {first})"
    assert facts["rejected"] == {}  # the problems stay
    assert "Rows of the stored completions that were passed over: 4. " in (tmp_path / "corpus/README.md").read_text()


def test_an_empty_cell_inside_a_completion_is_no_demonstration(tmp_path):
    facts, _, _ = build(tmp_path, [ROWS[0], *ROWS[2:]])
    assert facts["stored_passed_over"] == {
        "rows": 3,
        "first": "agent-notes, export.csv line 3: completion_field: 'Agent Note' is empty; if it may be, write "
        '{% if row["Agent Note"] %} around it',
    }


@pytest.mark.parametrize(
    ("fields", "rows", "count", "first"),
    [
        ({"completion_field": "Agent Note"}, ROWS, 2, "4: completion_field: 'Agent Note' is empty"),
        ({"completion_field": "{{ row['Agent Note'] or '' }}"}, ROWS, 2, "4: completion_field: its text is empty"),
        ({}, [ROWS[0], ["", "Money.", "Sales"]], 1, "3: problem_field: 'Ticket' is empty"),
        (
            {"problem_field": "{{ Ticket }}"},
            [ROWS[0], ["", "Money.", "Sales"]],
            1,
            "3: problem_field: 'Ticket' is empty; if it may be, write {% if Ticket %} around it",
        ),
    ],
)
def test_empty_columns_and_empty_texts_are_passed_over_too(tmp_path, fields, rows, count, first):
    facts, _, _ = build(tmp_path, rows, **fields)
    assert facts["stored_passed_over"] == {"rows": count, "first": f"agent-notes, export.csv line {first}"}


def test_no_row_at_all_is_a_mistake(tmp_path):
    with pytest.raises(UserError) as caught:
        build(tmp_path, ROWS[1:5])
    first = f"agent-notes, export.csv line 2: {NO_KEY}"
    assert str(caught.value) == f"no row of corpus.teacher.stored can be read; the first, {first}"
    with pytest.raises(UserError, match=r"problem_suffix; 1 row of the stored completions passed over, the first: age"):
        build(tmp_path, [ROWS[1], ["Another ticket.", "Money.", "Sales"]])


def test_nothing_is_said_where_every_row_is_read(tmp_path):
    facts, console, found = build(tmp_path, [ROWS[0], ROWS[5]])
    assert "stored_passed_over" not in facts
    assert len(found) == 2
    assert not [line for line in console if "passed over" in line]


def test_an_empty_cell_of_the_first_row_stops_nothing_and_a_wrong_template_does(tmp_path):
    def found(row, **fields):
        spec = StoredCompletions(**stored(tmp_path / "export.csv", [row, ROWS[0]], **fields))
        return field_mistakes(spec, [spec.problem_field, spec.completion_field])

    assert found(ROWS[1]) == []
    assert found(ROWS[2]) == []
    (sentence,) = found(ROWS[4])
    assert f"does not fit the first row: a mapping has no key 'Spam' {KEYS}; the row has the columns" in sentence
    (sentence,) = found(ROWS[0], completion_field="{{ Note }}")
    assert "'Note' is undefined" in sentence


def test_the_lock_counts_every_row(tmp_path):
    assert _count_rows(StoredCompletions(**stored(tmp_path / "export.csv", ROWS)), None) == 6


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("{{ {'x': 'A'}[label] }}", EmptyCellError, "a mapping has no key '' (its keys: 'x')"),
        ("{{ {'x': 'A'}[nothing] }}", EmptyCellError, "a mapping has no key None (its keys: 'x')"),
        ("{{ {'1': 'A', '2': 'B'}[number] }}", TemplateFailedError, "a mapping has no key 1 (its keys: '1', '2')"),
        ("{{ options.E }}", TemplateFailedError, f"a mapping has no key 'E' (its keys: {EIGHT} and 2 more)"),
        ("{{ {}['x'] }}", TemplateFailedError, "a mapping has no key 'x' (its keys: none)"),
    ],
)
def test_a_key_that_a_mapping_lacks_is_named_with_those_it_has(template, error, message):
    row = {"label": "", "nothing": None, "number": 1, "options": dict.fromkeys(range(10), "o")}
    with pytest.raises(TemplateFailedError) as caught:
        field_value(row, template)
    assert (type(caught.value), str(caught.value)) == (error, message)


def test_a_mapping_may_have_a_default():
    assert field_value({"label": ""}, "{{ {'x': 'A'}[label] | default('B') }}") == "B"


def test_validate_goes_on_and_names_the_row(law, capsys):
    path = law.parent / "problems.csv"
    rows = list(csv.reader(path.open()))
    solution = rows[0].index("solution")
    rows[5][solution] = rows[7][solution] = ""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert main(["validate", str(law)]) == 0
    first = "my-demonstrations, problems.csv line 6: completion_field: 'solution' is empty"
    assert f"\n  2 rows of the stored completions passed over (the first: {first})\n" in capsys.readouterr().out
    main(["validate", str(law), "--json"])
    assert json.loads(capsys.readouterr().out)["corpus"]["stored_passed_over"] == {"rows": 2, "first": first}
    edit(law, corpus__teacher__stored__completion_field="{{ {'x': 'y'}[solution] }}")
    with pytest.raises(UserError, match=r"no row of corpus\.teacher\.stored can be read; the first, my-demonstrations"):
        check_lengths(load_recipe(law))  # before the base is made
    assert main(["validate", str(law)]) == 2
