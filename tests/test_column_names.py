"""Columns whose names are no identifiers, and tables with another separator: what the message says to do."""

import pytest

from data.corpus.first_row import field_mistakes
from eval.questions.wording import unknown_names, wording_mistakes
from recipes.corpus_schema import SourceSpec

CSV = "How many,To-Unit,gold\n3,cm,300\n"


def mistakes_of(path, *fields):
    spec = SourceSpec(kind="file", name="s", path=str(path), problem_field=fields[0], answer_field="gold")
    return field_mistakes(spec, fields)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "Are {{ How many }}?",
            "source s: line 1 of the template: expected token 'end of print statement', got 'many'; if that is the "
            "column 'How many', write {{ row[\"How many\"] }}",
        ),
        (
            "{{ gold }}\n{{- How many | trim -}}",
            "source s: line 2 of the template: expected token 'end of print statement', got 'many'; if that is the "
            "column 'How many', write {{ row[\"How many\"] }}",
        ),
        (
            "Are {{To-Unit}}?",
            "source s: the template 'Are {{To-Unit}}?' does not fit the first row: 'To' is undefined; the row has the "
            "columns How many, To-Unit, gold; write {{ row[\"To-Unit\"] }} for the column 'To-Unit'",
        ),
        ("{{ gold", "source s: line 1 of the template: unexpected end of template, expected 'end of print statement'."),
    ],
)
def test_a_column_with_a_blank_or_dash_is_read_by_row(tmp_path, template, message):
    (tmp_path / "t.csv").write_text(CSV)
    assert mistakes_of(tmp_path / "t.csv", template, "gold") == [message]


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
