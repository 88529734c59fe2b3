"""`transfer validate`: the texts of problems and questions with what they are compared with, and the study's suffix."""

import csv
import json
from pathlib import Path

import yaml

from eval.questions.mistakes import suffix_warnings
from launch.commands.main import main
from launch.planning.validation import validate
from recipes.loading import load_recipe
from tests.paths import RECIPES
from tests.support.starters import edit


def test_a_task_file_without_the_suffix_is_warned_of_where_the_scoring_is_that_of_training(law, capsys):
    def warned(*overrides):
        return [text for text in validate(load_recipe(law, list(overrides)), Path("runs/none")).warnings
                if "suffix" in text]  # fmt: skip

    edit(law, suite__benchmarks__0__data__reference_field="answer", prompt__suffix=" Box it.")
    assert warned() == []  # scored `choice`
    edit(law, suite__benchmarks__0__scorings={"robust": "boxed"})
    task = law.parent / "tasks" / "rulings.yaml"
    assert r"\\boxed{}" in task.read_text() and warned() == []  # it asks for a box itself
    task.write_text("task: rulings\ndoc_to_text: '{{question}}'\n")
    sentence = (
        f"prompt.suffix is ' Box it.', but the task file {task} of benchmarks scored `boxed` or `plain` asks without "
        "it; write {{suffix}} at the end of doc_to_text"
    )
    assert warned() == [sentence]
    assert warned("prompt.suffix=''") == []
    assert main(["plan", str(law)]) == 0
    assert f"warning: {sentence}" in "".join(capsys.readouterr())
    task.write_text("task: rulings\ndoc_to_text: '{{question}} Box it.'\n")
    assert warned() == []
    task.write_text("task: rulings\ndoc_to_text: '{{question}} The number alone, in \\boxed{}.'\n")
    assert warned() == []
    task.write_text("task: rulings\ndoc_to_text: '{{question}}{{suffix}}'\n")
    assert (warned(), warned("prompt.suffix=' Box it. Twice.'")) == ([], [])
    found = validate(load_recipe(law), Path("runs/none"))
    texts = {sample.name: sample.text for sample in found.samples}
    assert "What does it follow? Box it.<|im_end|>" in texts["one question of rulings"]
    task.write_text("task: rulings\ndoc_to_text: '{{question}}'\n")
    (task.parent / "sum.yaml").write_text("task: sum\ndoc_to_text: '{{problem}}'\n")
    edit(law, suite__benchmarks__1={"name": "sum", "group": "general", "scorings": {"robust": "plain"}})
    (text,) = warned()
    assert f"the task files {task}, {task.parent}/sum.yaml of benchmarks scored" in text
    # Wordings that a publisher fixed, judged otherwise, are no mistake: `paper` of the twelve benchmarks.
    for name in ("qwen3-14b/paper.yaml", "smollm2-135m/matched.yaml", "released/qwen3-14b.yaml"):
        recipe = load_recipe(RECIPES / name)
        assert recipe.prompt.suffix and suffix_warnings(recipe) == []


def test_references_are_shown_with_the_problem_and_the_questions(law, capsys):
    def shown(*overrides):
        main(["validate", str(law), "--json", *overrides])
        return {row["name"]: row["reference"] for row in json.loads(capsys.readouterr().out)["samples"]}

    assert main(["validate", str(law)]) == 0
    printed = capsys.readouterr().out
    names = ("one problem", "one question of rulings", "one question of repeat")
    told = {name: printed.split(f"\n\n{name}:\n", 1)[1].split("\n\n")[0].split("\n")[-1] for name in names}
    references = shown()
    assert told == {name: f"  reference: {references[name]}" for name in names}
    row = next(csv.DictReader((law.parent / "questions.csv").open()))
    assert references["one question of rulings"] == row["answer"] == "A"
    assert references["one problem"] in "ABC"
    assert references["one demonstration, after that prompt"] is None
    # The wrong column is seen: here the question's text instead of its label.
    first = shown("corpus.sources.0.answer_field=question")["one problem"]
    assert first in {row["question"] for row in csv.DictReader((law.parent / "problems.csv").open())}
    edit(law, suite__benchmarks__0__data__restricted=True)
    assert shown()["one question of rulings"] is None
    # A long one is whole in JSON alone.
    edit(law, suite__benchmarks__0__data__restricted=False, suite__benchmarks__0__scorings={"robust": "exact"})
    edit(law, suite__benchmarks__0__data__reference_field="{{ 'yes ' * 100 }}end")
    assert shown()["one question of rulings"] == "yes " * 100 + "end"
    assert main(["validate", str(law)]) == 0
    start, end = "yes " * 25, ("yes " * 100 + "end")[-100:]
    told = f"\n  reference: {start} [... 203 characters, whole with --json ...] {end}\n"
    assert told in capsys.readouterr().out


def test_a_benchmark_that_cannot_be_judged_says_what_can_be_done(law, capsys):
    def said(*overrides):
        assert main(["plan", str(law), *overrides]) == 2
        return capsys.readouterr().err

    first = "suite.benchmarks.0"
    assert (
        "scoring 'robust' of 'rulings' is 'code', which judges rows of the form 'livecodebench' or 'humaneval', not "
        "'fields'; rules for 'fields' are boxed, plain, exact, last_box_text, first_line, choice, choice_box, "
        "choice_anywhere, yes_no, yes_no_first_line, strict_yes_no, f1_yes_no, span_em, span_f1, span_em_first_line, "
        "span_f1_first_line, likelihood, likelihood_per_byte, strict_likelihood, f1_likelihood\n"
    ) in said(f"{first}.scorings.robust=code")
    assert "suite: the benchmark 'repeat' is listed twice; give each a name" in said(f"{first}.name=repeat")
    assert (
        "'choice' compares with A, B, C, D, E, F, G, H, I, J; correct the references, name their column or a template "
        "that makes them in data.reference_field, as in \"{{ 'ABCD'[label | int] }}\" for labels from 0, `label | int "
        "- 1` from 1, or choose"
    ) in said(f"{first}.data.reference_field=id")
    (law.parent / "tasks" / "rulings.yaml").unlink()
    none = f"has no task file rulings.yaml in {law.parent}/tasks; the folder has none; `transfer init benchmark` writes"
    assert none in said()


def test_short_answers_of_an_own_file_are_scored_as_spans(law):
    edit(law, suite__benchmarks__0__scorings={"robust": "span_em", "f1": "span_f1"})
    edit(law, suite__benchmarks__0__data__reference_field="option_a")
    assert validate(load_recipe(law), Path("runs/none")).mistakes == []


def test_an_empty_cell_of_a_benchmark_is_named_with_its_line(law, capsys):
    path = law.parent / "questions.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3].rpartition(",")[0] + ",", *lines[4:]]) + "\n")
    for command in ("validate", "plan"):
        assert main([command, str(law)]) == 2
        said = (
            "benchmark rulings, questions.csv line 4: 'answer', the reference answer, is empty; fill it in, or remove"
        )
        assert said in "".join(capsys.readouterr())


def test_references_are_counted_and_a_letter_without_an_option_is_warned_of(law, capsys):
    assert main(["validate", str(law)]) == 0
    shown = capsys.readouterr().out
    assert (
        "corpus: 24 rows, 24 problems after the filters: 20 for training, 4 held out\n"
        "  references: A (9×), B (8×), C (7×)\n"
    ) in shown
    assert "\n  demonstrations: 20, of which 20 are correct and fit, for 20 of the 20 problems for training\n" in shown
    assert main(["validate", str(law), "corpus.train_problems=10"]) == 0
    sampled = capsys.readouterr().out
    assert sampled.startswith(
        "corpus: 24 rows, 24 problems after the filters, 14 of them sampled: 10 for training, 4 held out\n"
        "  references: A "
    )
    assert main(["validate", str(law), "corpus.train_problems=10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["corpus"]["train_problems"], found["corpus"]["heldout_problems"]) == (10, 4)
    assert sum(found["references"][""].values()) == 14
    assert "  rulings: 12 questions\n    references: A (4×), B (4×), C (4×)\n" in shown and "no option" not in shown
    edit(law, suite__benchmarks__0__data__reference_field="{{ 'E' if id == 'law-2' else answer }}")
    edit(law, corpus__sources__0__answer_field="{{ 'DBC'[label | int] }}")
    found = validate(load_recipe(law), Path("runs/none"))
    assert found.references["rulings"] == {"A": 4, "B": 3, "C": 4, "E": 1}
    told = [text for text in found.warnings if "no option" in text]
    assert told == [
        "the corpus: the reference of my-problems, problems.csv line 4 is 'D', but it has no option D (9 such "
        "references); correct the labels",
        "benchmark 'rulings': the reference of questions.csv line 3 (id law-2) is 'E', but it has no option E; "
        "correct the labels",
    ]


def test_a_column_of_solutions_in_the_place_of_answers_is_warned_of(law):
    """A reference that only contains its answer is never found in a response."""

    def told(template, **more):
        edit(law, corpus__sources__0__answer_field=template)
        (source,) = yaml.safe_load(law.read_text())["corpus"]["sources"]
        edit(law, corpus__sources=[source | more])
        return [
            text for text in validate(load_recipe(law), Path("runs/none")).warnings if "column of solutions" in text
        ]

    box = "'\\\\boxed{' ~ 'ABC'[label | int] ~ '}'"
    assert told(f"So the answer is {{{{ {box} }}}}.") == [
        "the corpus: the reference of my-problems, problems.csv line 2 is a text with \\boxed{} (24 such references); "
        "if answer_field is a column of solutions, set answer_in: boxed for this source"
    ]
    assert told(f"So the answer is {{{{ {box} }}}}.", answer_in="boxed") == []
    (text,) = told("1 + 1 = 2 #### {{ 'ABC'[label | int] }}", answer_in="value")
    assert text.endswith("set answer_in: after_hashes for this source")
    assert told(f"${{{{ {box} }}}}$") == []  # the grader reads a reference that is a box
    # 8 of the 24 references contain a box, then 16.
    assert told(f"{{% if label == '1' %}}so {{{{ {box} }}}}{{% else %}}A{{% endif %}}") == []
    assert len(told(f"{{% if label != '1' %}}so {{{{ {box} }}}}{{% else %}}A{{% endif %}}")) == 1


def test_every_reason_for_which_rows_are_removed_has_its_first_row(law, capsys):
    path = law.parent / "problems.csv"
    header, *rows = list(csv.reader(path.open()))
    rows[4][0] = rows[9][0] = ""
    rows += [rows[0], [*rows[1][:-2], "2" if rows[1][-2] != "2" else "0", rows[1][-1]]]
    assert header[0] == "question" and header[-2] == "label"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    main(["validate", str(law)])
    printed = capsys.readouterr().out
    told = printed[printed.index("  removed:") :].split("\n\n")[0].split("\n")
    assert told[0] == "  removed: 5 rows"
    assert [line.split(" (the first: my-problems, problems.csv line ")[0] for line in told[1:]] == [
        "    2 conflicting_reference", "    2 template_failed", "    1 duplicate",
    ]  # fmt: skip
    lines = [line.partition(" line ")[2] for line in told[1:]]
    assert [line.split(":")[0].rstrip(")") for line in lines] == ["3", "6", "26"]
    assert lines[1] == "6: 'question' is empty; if it may be, write {% if question %} around it)"
    main(["validate", str(law), "--json"])
    first = json.loads(capsys.readouterr().out)["corpus"]["first_removed"]
    assert list(first) == ["conflicting_reference", "duplicate", "template_failed"]
    assert first["template_failed"].startswith("my-problems, problems.csv line 6: 'question' is empty")
