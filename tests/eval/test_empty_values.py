"""Questions that leave empty what their task file prints, or do not fill it, are named with their row."""

import csv
import json
from pathlib import Path

import pytest

from eval.questions.wording import printed_empty
from launch.commands.main import main
from launch.planning.references import letter_not_offered
from launch.planning.validation import validate
from recipes.loading import load_recipe
from tests.paths import RECIPES
from tests.support.starters import edit


def said(recipe, capsys):
    """The mistakes that `validate` and `plan` both tell."""
    found = validate(load_recipe(recipe), Path("runs/none")).mistakes
    for text in found:
        assert main(["plan", str(recipe)]) == 2
        assert text in capsys.readouterr().err
    return found


def blank(law, line, column, text=""):
    """Empty a cell of the benchmark."""
    path = law.parent / "questions.csv"
    rows = list(csv.reader(path.open()))
    rows[line - 1][rows[0].index(column)] = text
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_an_empty_cell_that_the_task_file_prints_is_named_with_its_line(law, capsys):
    task = law.parent / "tasks" / "rulings.yaml"
    blank(law, 4, "option_c", " ")
    edit(law, suite__benchmarks__0__data__reference_field="{{ 'A' }}")
    assert said(law, capsys) == [
        "benchmark rulings, questions.csv line 4 (id law-3): 'option_c', the field 'c', is empty, but rulings.yaml "
        "prints it; fill it in, remove the row, or write {% if c | trim %} around it"
    ]
    task.write_text("task: rulings\ndoc_to_text: '{{question}} {{a}} {{b}}'\n")
    assert said(law, capsys) == []
    task.write_text("task: rulings\ndoc_to_text: '{{question}} {{a}} {{b}}{% if c.strip() %} {{c}}{% endif %}'\n")
    assert said(law, capsys) == []
    blank(law, 2, "question")
    assert said(law, capsys) == [
        "benchmark rulings, questions.csv line 2 (id law-1): 'question', the field 'question', is empty, but "
        "rulings.yaml prints it; fill it in, remove the row, or write {% if question %} around it"
    ]
    task.write_text("task: rulings\ndoc_to_text: question\n")
    assert "'question', the field 'question', is empty, but" in said(law, capsys)[0]


def units(tmp_path, rows, task, likelihood=True, **fields):
    """A benchmark of one's own over JSON lines."""
    (tmp_path / "tasks").mkdir(exist_ok=True)
    (tmp_path / "tasks" / "units.yaml").write_text("\n".join(["task: units", *task, ""]))
    (tmp_path / "units.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"kind": "file", "path": "units.jsonl", "fields": fields, "reference_field": "right"}
    benchmark = {"name": "units", "group": "law", "scorings": {"robust": "choice"}, "data": data}
    if likelihood:
        benchmark |= {"likelihood": ["native"], "scorings": {"robust": "likelihood"}}
    recipe = {"study": "units", "suite": {"tasks": "./tasks", "benchmarks": [benchmark]}}
    path = tmp_path / "units-recipe.yaml"
    path.write_text(json.dumps(recipe | {"analysis": {"trained_group": "law"}}))
    return path


OPTIONS = {"stem": "Of mass?", "options": ["gram", "bar", "day"], "a": "gram", "b": "bar", "c": "day", "right": "A"}
ASKED = ["doc_to_text: '{{stem}}'", "output_type: multiple_choice"]


@pytest.mark.parametrize("choices", ["'{{[a, b, c]}}'", "'{{options}}'", "options"])
def test_an_empty_answer_of_a_likelihood_benchmark_is_named_with_its_line(tmp_path, capsys, choices):
    fields = {"stem": "stem", "options": "options", "a": "a", "b": "b", "c": "c"}
    rows = [OPTIONS, OPTIONS | {"stem": "Of time?", "options": ["bar", "day", " "], "c": " "}]
    recipe = units(tmp_path, rows, [*ASKED, f"doc_to_choice: {choices}"], **fields)
    assert said(recipe, capsys) == [
        "benchmark units, units.jsonl line 2: answer 3 of doc_to_choice in units.yaml is empty; fill it in, remove the "
        'row, or leave it out, as in doc_to_choice: "{{[a, b] | select | list}}"'
    ]
    rows[1] |= {"options": ["bar", "day", ""], "c": ""}
    listed = [*ASKED, """doc_to_choice: "{{options | select | list}}\""""]
    assert said(units(tmp_path, rows, listed, **fields), capsys) == []


def test_an_empty_value_inside_a_field_is_found(tmp_path, capsys):
    rows = [OPTIONS, OPTIONS | {"stem": "Of time?", "options": ["bar", "", "day"]}]
    looped = ["doc_to_text: '{{stem}}{% for text in options %} {{text}}{% endfor %}'"]
    recipe = units(tmp_path, rows, looped, likelihood=False, stem="stem", options="options")
    (text,) = said(recipe, capsys)
    assert text == (
        "benchmark units, units.jsonl line 2: 'options', the field 'options', has a value that is empty, but "
        "units.yaml prints it; fill it in, remove the row, or write {% if text %} around it"
    )


def test_an_option_that_is_missing_is_named_with_its_row(tmp_path, capsys):
    rows = [OPTIONS | {"stem": f"Of mass {n}?"} for n in range(40)]
    rows[20] = rows[20] | {"options": ["gram", "bar"]}
    template = "{{stem}} (A) {{options[0]}} (B) {{options[1]}} (C) {{options[2]}}"
    recipe = units(tmp_path, rows, [f"doc_to_text: '{template}'"], likelihood=False, stem="stem", options="options")
    task = tmp_path / "tasks" / "units.yaml"
    missing = (
        f"benchmark 'units': task file {task}, doc_to_text: list object has no element 2, in units.jsonl line 21; a "
        "question has options, question_id, stem, suffix"
    )
    assert said(recipe, capsys) == [missing]
    # With a tokenizer the harness renders them.
    values = json.loads(recipe.read_text()) | {"model": {"pocket": {"documents": 500}}}
    recipe.write_text(json.dumps(values))
    assert said(recipe, capsys) == [missing]
    choices = [*ASKED, "doc_to_choice: '{{[options[0], options[1], options[2]]}}'"]
    recipe = units(tmp_path, rows, choices, stem="stem", options="options")
    assert said(recipe, capsys) == [
        f"benchmark 'units': task file {task}, doc_to_choice gives \"['gram', 'bar', Undefined]\" in units.jsonl line "
        "21, where a value that it names is missing; fill it in, or remove the row"
    ]
    recipe = units(tmp_path, rows, [*ASKED, "doc_to_choice: '{{[options[0], options[1], options[2] ~ 1]}}'"], **{
        "stem": "stem", "options": "options"})  # fmt: skip
    assert said(recipe, capsys) == [missing.replace("doc_to_text", "doc_to_choice")]
    # A name that no question has is a mistake of the task file.
    recipe = units(tmp_path, rows, ["doc_to_text: '{{stm}}'"], likelihood=False, stem="stem", options="options")
    (text,) = said(recipe, capsys)
    assert "'stm' is undefined; a question has" in text and "line" not in text


@pytest.mark.parametrize(
    ("choices", "mistake"),
    [
        (
            "[first, second]",
            "doc_to_choice is a list, which is taken literally: 'first' would be an answer, not the field of that name;"
            ' write doc_to_choice: "{{[first, second]}}"',
        ),
        ("[first, third]", None),
        ("[A, B]", None),
        (
            "[no, yes]",
            "doc_to_choice is [False, True]: YAML reads yes, no, on and off as true and false; write each answer in "
            'quotes, as in doc_to_choice: ["no", "yes"]',
        ),
        ("['no', '']", "doc_to_choice is ['no', ''], of which an answer is empty; fill it in"),
    ],
)
def test_a_list_of_answers_is_taken_literally_and_so_is_no_list_of_fields(tmp_path, capsys, choices, mistake):
    fields = {"stem": "stem", "first": "a", "second": "b", "A": "a", "B": "b"}
    rows = [OPTIONS, OPTIONS | {"stem": "Of time?"}]
    recipe = units(tmp_path, rows, [*ASKED, f"doc_to_choice: {choices}"], **fields)
    if choices.startswith("['no"):
        rows = [row | {"right": "no"} for row in rows]
    found = said(recipe, capsys)
    task = tmp_path / "tasks" / "units.yaml"
    assert found == ([] if mistake is None else [f"benchmark 'units': task file {task}, {mistake}"])


def test_names_of_fields_as_answers_are_found_before_the_rows_are_here(tmp_path, capsys):
    recipe = units(tmp_path, [OPTIONS], [*ASKED, "doc_to_choice: [a, b]"], stem="stem", a="a", b="b")
    values = json.loads(recipe.read_text())
    values["suite"]["benchmarks"][0]["data"] |= {"kind": "hub", "dataset": "o/d", "files": ["x.jsonl"], "path": None}
    recipe.write_text(json.dumps(values))
    found = validate(load_recipe(recipe), Path("runs/none")).mistakes
    assert len(found) == 1 and "'a' would be an answer, not the field of that name" in found[0]


@pytest.mark.parametrize(
    ("text", "letter", "missing"),
    [
        ("Which?\n(A) 1\n(B) 2\n(C)", "C", True),
        ("Which?\n(A) 1\n(B) 2\n(C) \nEnd with a letter.", "C", True),
        ("Which? (A) 1 (B) (C) 3", "B", True),
        ("Which? (A) 1 (B) (C) 3", "C", False),
        ("Which?\nA. 1\nB. 2\nC.\n", "C", True),
        ("Which?\nA) 1\nB)\nC) 3", "B", True),
        ("Which?\n(A) 1\n(B) 2\n(C) both (A) and (B)", "B", False),
        ("Which?\n(A)\n1\n(B)\n2", "B", False),  # options on lines of their own
        ("Which?\n(A)\n1\n(B)\n2", "C", True),
        ("Which is (C)?", "C", False),
    ],
)
def test_an_option_without_text_is_not_offered(text, letter, missing):
    assert letter_not_offered(letter, text) == missing


def test_publishers_forms_may_have_empty_values():
    """HaluEval has nothing asked of a summary, and its task file prints no question there."""
    tasks = RECIPES.parent / "eval" / "tasks" / "twelve"
    fields = {"kind": "summarization", "context": "A text.", "asked": "", "candidate": "It."}
    for name in ("halueval-robust", "halueval-paper"):
        assert printed_empty(tasks / f"{name}.yaml", fields) is None
        asked = printed_empty(tasks / f"{name}.yaml", fields | {"kind": "qa"})
        assert asked is not None and asked.paths == ("asked",)
