"""Keys and templates of task files: a mistyped one is told before anything runs, once, with what is meant."""

from dataclasses import fields
from pathlib import Path

from lm_eval.api.task import TaskConfig

from eval.questions.wording import _KEYS, task_values
from launch.commands.main import main
from launch.planning.preflight import mistakes
from launch.planning.validation import validate
from recipes.loading import load_recipe

NO_KEY = "which lm-evaluation-harness does not know"


def test_the_known_keys_are_those_of_the_harness():
    assert set(_KEYS) == {field.name for field in fields(TaskConfig)}


def test_a_mistyped_key_is_one_mistake_for_every_command(law, capsys):
    task = law.parent / "tasks" / "rulings.yaml"
    written = task.read_text()
    task.write_text(written.replace("doc_to_text:", "doc_to_txt:"))
    said = f"task file {task} has the key 'doc_to_txt', {NO_KEY}; did you mean doc_to_text?"
    assert validate(load_recipe(law), Path("runs/none")).mistakes == [said]
    for command in ("validate", "plan", "run"):
        assert main([command, str(law)]) == 2
        printed = "".join(capsys.readouterr())
        assert printed.count(said) == 1 and "Traceback" not in printed
    assert not Path("runs").exists()
    task.write_text(f"{written}temprature: 0\nquite_another: 1\n")
    first, second = mistakes(load_recipe(law))
    assert (
        first == f"task file {task} has the key 'temprature', {NO_KEY}; did you mean suite.temperature of the recipe?"
    )
    assert second.startswith(f"task file {task} has the key 'quite_another', {NO_KEY}; allowed are task, task_alias,")
    # What else is wrong is listed too.
    task.write_text(written.replace("doc_to_text:", "doc_to_txt:").replace("{{a}}", "{{d}}"))
    first, second = validate(load_recipe(law), Path("runs/none")).mistakes
    assert first == said
    assert second.startswith(f"benchmark 'rulings': task file {task}, doc_to_text: 'd' is undefined; a question has a,")


def test_keys_of_an_included_file_are_named_with_that_file(tmp_path, law):
    folder = law.parent / "tasks"
    (folder / "_base.yaml").write_text("doc_to_txet: '{{question}} {{suffix}}'\nrepeets: 2\n")
    (folder / "rulings.yaml").write_text("include: _base.yaml\ntask: rulings\n")
    assert mistakes(load_recipe(law)) == [
        f"task file {folder}/_base.yaml has the key 'doc_to_txet', {NO_KEY}; did you mean doc_to_text?",
        f"task file {folder}/_base.yaml has the key 'repeets', {NO_KEY}; did you mean repeats?",
    ]
    assert task_values(folder / "rulings.yaml") == {
        "doc_to_text": "{{question}} {{suffix}}", "repeats": 2, "task": "rulings"
    }  # fmt: skip


def test_a_template_that_does_not_parse_is_shown_and_an_undefined_name_gets_a_suggestion(law):
    task = law.parent / "tasks" / "rulings.yaml"
    task.write_text('task: rulings\ndoc_to_text: "{{question}}\\n(A) {{a}\\n"\n')
    (found,) = mistakes(load_recipe(law))
    assert "doc_to_text: line 2, '(A) {{a}': unexpected '}'; a question has a, b, c, question" in found
    task.write_text('task: rulings\ndoc_to_text: "{{Question}} {{a}}"\n')
    (found,) = mistakes(load_recipe(law))
    names = "a, b, c, question, question_id, suffix"
    assert found.endswith(f"'Question' is undefined; a question has {names}; did you mean 'question'?")
