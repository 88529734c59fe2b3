"""Given answers whose likelihoods are compared: what the harness would read, what is refused, what `validate` shows."""

import re
from pathlib import Path

import pytest
import yaml

from data.prompts.pocket_tokenizer import pocket_tokenizer
from eval.questions.build import read_source_questions
from eval.questions.choices import choice_reader
from eval.responses.harness import render
from launch.commands.main import main
from launch.planning.preflight import mistakes
from launch.planning.validation import validate
from recipes.errors import UserError
from recipes.loading import load_recipe
from recipes.schema import PocketModelSpec

LIKELIHOOD = {
    "name": "units", "group": "law", "likelihood": ["native"], "scorings": {"robust": "likelihood"},
    "data": {"kind": "file", "path": "units.csv", "fields": {"stem": "stem", "a": "a", "b": "b", "c": "c"},
             "reference_field": "right"},
}  # fmt: skip


TASK = """
task: units
output_type: multiple_choice
doc_to_text: "{{stem}}"
doc_to_choice: "{{[a, b, c]}}"
"""
ROWS = """stem,a,b,c,right
Of length?,litre,gram,metre,C
Of mass?,day,gram,bar,gram
"""


def write_recipe(path, benchmark):
    suite = {"tasks": "./tasks", "benchmarks": [benchmark]}
    path.write_text(yaml.safe_dump({"study": "units", "suite": suite, "analysis": {"trained_group": "law"}}))


@pytest.fixture
def units(tmp_path):
    """A multiple-choice benchmark of one's own, by likelihoods."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "units.yaml").write_text(TASK)
    (tmp_path / "units.csv").write_text(ROWS)
    write_recipe(tmp_path / "units.yaml", LIKELIHOOD)
    return tmp_path / "units.yaml"


def test_choices_and_references_of_likelihoods_are_shown_and_checked(units, capsys):
    task, rows = units.parent / "tasks" / "units.yaml", units.parent / "units.csv"

    def found(*overrides):
        return validate(load_recipe(units, list(overrides)), Path("runs/none"))

    assert found().mistakes == []
    (sample,) = [sample for sample in found().samples if sample.name.startswith("one question of units")]
    assert (sample.choices, sample.reference) == (["litre", "gram", "metre"], "C")
    main(["validate", str(units)])
    assert "\n  choices: (A) litre, (B) gram, (C) metre\n  reference: C\n" in capsys.readouterr().out
    # What the harness would compare.
    recipe = load_recipe(units)
    benchmark = recipe.suite.benchmarks[0]
    questions = read_source_questions(recipe, benchmark, Path())
    prompts = render(recipe, pocket_tokenizer(PocketModelSpec(documents=500)), benchmark, "native", questions)
    read = choice_reader(task)
    for prompt, question in zip(prompts, questions, strict=True):
        assert [request.args[1].strip() for request in prompt.requests] == read(question)

    rows.write_text(rows.read_text().replace("C\n", "metr\n"))
    (text,) = found().mistakes
    assert re.fullmatch(
        r"benchmark units: the reference of units.csv line 2 is 'metr' but 'likelihood' compares with the letter of a "
        r"choice \(A, B, C\) or its text \('litre', 'gram', 'metre'\); correct the references or doc_to_choice, or "
        r"name their column, or a template that makes them, in data.reference_field", text)  # fmt: skip
    for command in ("plan", "run"):
        assert main([command, str(units)]) == 2
        assert text in capsys.readouterr().err
    rows.write_text(rows.read_text().replace("metr\n", "D\n"))
    assert "is 'D' but" in found().mistakes[0]
    rows.write_text(rows.read_text().replace("D\n", "metre\n"))
    assert found().mistakes == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["output_type: multiple_choice", "doc_to_choice: ['{{a}}', '({{ b }})', 'none']"],
            "doc_to_choice is a list, which is taken literally: '{{a}}' would be an answer; write doc_to_choice: "
            "\"{{[a, '(' ~ b ~ ')', 'none']}}\"",
        ),
        (
            ["output_type: multiple_choice", "doc_to_choice: '{{a}}, {{b}}'"],
            "doc_to_choice gives 'litre, gram' in units.csv line 2, which is no list of answers; write a template "
            'that prints a list, as in doc_to_choice: "{{[a, b]}}"',
        ),
        (
            ["output_type: multiple_choice", "doc_to_choice: '{{[a, d]}}'"],
            "doc_to_choice: d undefined; a question has a, b, c, question_id, stem, suffix",
        ),
        (
            ["output_type: multiple_choice", "doc_to_choice: a"],
            "doc_to_choice gives 'litre' in units.csv line 2, which is no list",
        ),
        (["output_type: multiple_choice"], "has output_type multiple_choice but no doc_to_choice; add it, as in"),
        (
            ["doc_to_choice: '{{[a, b, c]}}'"],
            "has output_type generate_until but the recipe lists 'native' under `likelihood` of units; set "
            "output_type: multiple_choice and doc_to_choice, or leave it out of `likelihood`",
        ),
    ],
)
def test_choices_that_the_evaluation_cannot_compare_are_one_mistake(units, capsys, lines, said):
    task = units.parent / "tasks" / "units.yaml"
    task.write_text("\n".join(["task: units", "doc_to_text: '{{stem}}'", *lines, ""]))
    (text,) = validate(load_recipe(units), Path("runs/none")).mistakes
    assert text.startswith("benchmark 'units': ") and str(task) in text and said in text
    assert main(["plan", str(units)]) == 2
    assert capsys.readouterr().err == f"transfer: {text}\n"


def test_a_likelihood_that_the_recipe_does_not_list_names_the_key(units, capsys):
    write_recipe(units, LIKELIHOOD | {"likelihood": [], "scorings": {"robust": "choice"}})
    (text,) = [text for text in mistakes(load_recipe(units)) if "output_type" in text]
    assert text.endswith(
        "has output_type multiple_choice but the recipe does not list 'native' under `likelihood` of units; add "
        "`likelihood: [native]` and a scoring `likelihood`, or leave output_type out"
    )
    write_recipe(units, LIKELIHOOD | {"likelihood": []})
    with pytest.raises(
        UserError, match=r"the responses to its prompting 'native'; add one, or `likelihood: \[native\]`"
    ):
        load_recipe(units)
