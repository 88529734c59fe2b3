"""Columns whose names are no identifiers, and tables with another separator: what the message says to do."""

import pytest

from data.corpus.first_row import field_mistakes
from data.corpus.sources import read_rows
from eval.questions.wording import unknown_names, wording_mistakes
from recipes.corpus_schema import BenchmarkTexts, SourceSpec, StoredCompletions
from recipes.errors import UserError
from recipes.suite_schema import BenchmarkData

CSV = "How many,To-Unit,gold\n3,cm,300\n"


def mistakes_of(path, *fields):
    spec = SourceSpec(kind="file", name="s", path=str(path), problem_field=fields[0], answer_field="gold")
    return field_mistakes(spec, fields)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "Are {{ How many }}?",
            "line 1 of the template: expected token 'end of print statement', got 'many'; if that is the "
            "column 'How many', write {{ row[\"How many\"] }}",
        ),
        (
            "{{ gold }}\n{{- How many | trim -}}",
            "line 2 of the template: expected token 'end of print statement', got 'many'; if that is the "
            "column 'How many', write {{ row[\"How many\"] }}",
        ),
        (
            "Are {{To-Unit}}?",
            "the template 'Are {{To-Unit}}?' does not fit the first row: 'To' is undefined; the row has the "
            "columns How many, To-Unit, gold; write {{ row[\"To-Unit\"] }} for the column 'To-Unit'",
        ),
        (
            "{{ gold",
            "line 1 of the template: unexpected end of template, expected 'end of print statement'.",
        ),
    ],
)
def test_a_column_with_a_blank_or_dash_is_read_by_row(tmp_path, template, message):
    (tmp_path / "t.csv").write_text(CSV)
    assert mistakes_of(tmp_path / "t.csv", template, "gold") == [f"source s: problem_field: {message}"]


BROKEN = "line 1 of the template: unexpected '}'"


def test_the_key_of_a_broken_template_is_named(tmp_path):
    (tmp_path / "t.csv").write_text(CSV)
    file, broken = {"kind": "file", "name": "s", "path": str(tmp_path / "t.csv")}, "{{ gold } }}"

    for key in ("answer_field", "level_field"):
        spec = SourceSpec.model_validate(file | {"problem_field": "gold", "answer_field": "gold", key: broken})
        assert field_mistakes(spec, ["gold", broken]) == [f"source s: {key}: {BROKEN}"]
    spec = SourceSpec.model_validate(file | {"where": {broken: ["1"]}})
    assert field_mistakes(spec, [broken]) == [f"source s: where: {BROKEN}"]
    texts = BenchmarkTexts.model_validate(file | {"text_fields": ["gold", broken]})
    assert field_mistakes(texts, texts.text_fields) == [f"source s: text_fields.1: {BROKEN}"]
    stored = StoredCompletions.model_validate(file | {"problem_field": "gold", "completion_field": broken})
    assert field_mistakes(stored, ["gold", broken]) == [f"source s: completion_field: {BROKEN}"]
    data = BenchmarkData.model_validate(file | {"fields": {"question": broken}, "reference_field": "gold"})
    assert field_mistakes(data, [broken, "gold"]) == [f"source s: fields.question: {BROKEN}"]


def test_the_key_of_a_template_that_a_later_row_does_not_fill_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("question,gold\nQ1,1\nQ2,x\n")
    data = {"kind": "file", "name": "s", "path": str(tmp_path / "t.csv"), "reference_field": "{{ 'AB'[gold | int] }}"}
    with pytest.raises(UserError) as caught:
        list(read_rows(BenchmarkData.model_validate(data), ["question", data["reference_field"]], None))
    assert str(caught.value) == (
        "source s, t.csv line 3: the template of reference_field cannot be filled: the filter int got 'x', which is no "
        "integer"
    )


def test_the_form_in_the_message_works(tmp_path):
    (tmp_path / "t.csv").write_text(CSV)
    assert mistakes_of(tmp_path / "t.csv", '{{ row["How many"] }} {{ row["To-Unit"] }}', "gold") == []


def test_a_task_file_gets_another_name_for_it(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("doc_to_text: 'Are {{ How many }}?'\n")
    advice = "; 'How many' is no name for a template: call it for instance 'How_many' under data.fields"
    (sentence,) = wording_mistakes(path, {"How many": "3"})
    assert sentence.endswith(f"got 'many'; a question has How many, question_id, suffix{advice}")
    (sentence,) = unknown_names(path, ["How many"])
    assert sentence.endswith(f"got 'many'{advice}")
    assert "under data.fields" not in wording_mistakes(path, {"many": "3"})[0]


SEPARATOR = (
    "is its separator ';'? Then write it with commas, or with tabs as .tsv, for instance by a spreadsheet's export"
)


@pytest.mark.parametrize(
    ("name", "text", "field", "message"),
    [
        (
            "t.csv",
            "n;unit;gold\n3;cm;300\n",
            "unit",
            f"has one column, n;unit;gold; {SEPARATOR}",
        ),
        (
            "t.csv",
            "n\tunit\n3\tcm\n",
            "unit",
            "one column, 'n\\tunit'; is its separator '\\t'? Then name the file .tsv",
        ),
        (
            "t.tsv",
            "n,unit\n3,cm\n",
            "unit",
            "has one column, n,unit; is its separator ','? Then name the file .csv",
        ),
        (
            "t.csv",
            "n;my unit\n3;cm\n",
            '{{ row["my unit"] }}',
            f"has one column, n;my unit; {SEPARATOR}",
        ),
        ("t.csv", "n;unit\n3,5;cm\n", "unit", f"line 2 has 2 values for 1 columns (n;unit); {SEPARATOR}"),
        ("t.csv", "n\n3,5\n", "n", "line 2 has 2 values for 1 columns (n); quote values that contain commas"),
        ("t.csv", "a;b,c\n3,4\n", "d", "has no column 'd'; it has a;b, c"),
    ],
)
def test_a_table_with_another_separator(tmp_path, name, text, field, message):
    (tmp_path / name).write_text(text)
    assert mistakes_of(tmp_path / name, field)[0].endswith(message)


def test_a_missing_column_in_a_template_is_called_that(tmp_path):
    (tmp_path / "t.csv").write_text(CSV)
    (sentence,) = mistakes_of(tmp_path / "t.csv", '{{ row["To Unit"] }}')
    assert sentence.endswith("the row has no column 'To Unit'; the row has the columns How many, To-Unit, gold")


def test_one_column_with_such_a_name_is_read(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\n3\n")
    assert mistakes_of(tmp_path / "t.csv", "a;b") == []
