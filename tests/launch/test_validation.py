"""`transfer validate` and `transfer init`: every mistake at once, texts as models see them, starters that are valid."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from data.corpus.rows import Demonstration
from data.corpus.sources import RawRow
from data.prompts.pocket_tokenizer import counting_tokenizer, pocket_tokenizer
from data.prompts.prompt import render_prompt
from eval.questions.wording import unknown_names, wording_mistakes
from launch.commands.main import main
from launch.planning.lengths import Lengths, check_lengths, lengths_of
from launch.planning.preflight import check_before_running, mistakes
from launch.planning.unusable import first_unusable, none_usable
from launch.planning.validation import validate
from recipes.errors import UserError
from recipes.files import write_json
from recipes.loading import load_recipe
from recipes.schema import PocketModelSpec
from tests.paths import RECIPES, SMOKE
from tests.support.starters import edit

LAW = "corpus.sources.0"
STATUTES = "suite.benchmarks.0"


def test_all_mistakes_of_a_recipe_are_told_in_one_run_of_plan_and_run(law, capsys):
    (law.parent / "tasks" / "rulings.yaml").write_text("task: rulings\ndoc_to_text: '{{case}} (A) {{a}}'\n")
    edit(
        law,
        corpus__sources__0__answer_field="lable",
        corpus__sources__0__problem_field="{{ question }} {{ optoin_a }}",
        corpus__decontamination__benchmarks__0__path="absent.csv",
        corpus__teacher__stored__completion_field="solved",
    )
    more = yaml.safe_load(law.read_text())
    more["suite"]["benchmarks"] += [
        {"name": "asked", "group": "law", "scorings": {"robust": "choice"},
         "data": {"kind": "file", "path": "questions.csv", "reference_field": "answer"}},
        {"name": "sum", "group": "law", "promptings": ["short"], "scorings": {"robust": "boxed"}},
    ]  # fmt: skip
    law.write_text(yaml.safe_dump(more))
    expected = (
        "source my-problems: problem_field: the template '{{ question }} {{ optoin_a }}' does not fit the first row: "
        "'optoin_a' is undefined",
        f"source my-problems: {law.parent}/problems.csv has no column 'lable'; it has label, option_a, option_b, "
        "option_c, question, solution; did you mean 'label'?",
        "source rulings: its file absent.csv is neither beside the recipe nor in the working directory; "
        "set corpus.decontamination.benchmarks.0.path=FILE",
        "has no column 'solved'",
        "benchmark 'rulings': task file",
        "'case' is undefined; a question has a, b, c, question, question_id, suffix",
        "benchmark 'asked' has no `data.fields`, so its task file could not use any column",
        "benchmark 'asked' has no task file asked.yaml",
        "benchmark 'sum' has no task file sum-short.yaml",
    )
    for command in ("plan", "run", "rehearse", "validate"):
        assert main([command, str(law)]) == 2
        printed = capsys.readouterr()
        for text in expected:
            assert text in printed.out + printed.err, (command, text)
    assert not Path("runs").exists()


def test_a_name_that_no_question_has_is_one_mistake(law, capsys):
    task = law.parent / "tasks" / "rulings.yaml"
    task.write_text(task.read_text().replace("{{question}}", "{{questn}}"))
    assert main(["validate", str(law)]) == 2
    printed = capsys.readouterr().out
    assert printed.count("'questn' is undefined") == 1
    assert printed.endswith("did you mean 'question'?\nlaw has 1 mistake\n")


def test_a_missing_file_is_said_with_the_script_beside_the_recipe_that_makes_it(law, capsys, monkeypatch):
    edit(law, corpus__sources__0__path="made/problems.csv", suite__benchmarks__0__data__path="made/questions.csv")
    script = law.with_name("prepare.py")
    script.touch()

    def said(*arguments):
        assert main([*arguments]) == 2
        printed = capsys.readouterr()
        return printed.out + printed.err

    made = "{}/made lacks data of the recipe; `python {}` makes them\n"  # once for both files
    for command in ("validate", "plan", "run"):
        assert said(command, str(law)).count(made.format(law.parent, script)) == 1
        assert "made/" not in said(command, str(law)).replace(made.format(law.parent, script), "")
    monkeypatch.chdir(law.parent.parent)
    assert made.format("law", "law/prepare.py") in said("plan", "law/law.yaml")
    other = said("plan", "law/law.yaml", "corpus.sources.0.path=other.csv")
    assert "file other.csv is neither beside the recipe nor in the working directory; set corpus" in other
    script.unlink()
    assert "prepare.py" not in said("plan", "law/law.yaml")


def test_a_path_of_the_command_line_is_looked_up_here_and_then_beside_the_recipe(law, tmp_path):
    (law.parent / "other.csv").write_text("beside")
    (law.parent / "my_tasks").mkdir()
    source, tasks = "corpus.sources.0.path=other.csv", "suite.tasks=./my_tasks"

    def read(*overrides):
        recipe = load_recipe(law, overrides)
        return recipe.corpus.sources[0].path, recipe.suite.tasks

    assert read(source, tasks) == (str(law.parent / "other.csv"), str(law.parent / "my_tasks"))
    assert read("corpus.sources.0.path=othr.csv")[0] == str(law.parent / "othr.csv")  # for its suggestion
    assert read("corpus.sources.0.path=absent.csv")[0] == "absent.csv"
    Path("other.csv").write_text("here")  # the working directory is another folder
    Path("my_tasks").mkdir()
    here = tmp_path / "elsewhere"
    assert read(source, tasks) == (str(here / "other.csv"), str(here / "my_tasks"))
    assert read("train.steps=3") == (str(law.parent / "problems.csv"), str(law.parent / "tasks"))


def test_demonstrations_of_the_wrong_column_are_shown_with_what_the_grader_looked_for(law, capsys):
    assert main(["validate", str(law), "corpus.teacher.stored.completion_field=label"]) == 2
    told = (
        "no demonstration is correct (grades: no_answer), so no problem is teacher-solvable; the first is '0', in "
        "which the grader looks for 'A' in \\boxed{} (corpus.answer_form: boxed); is completion_field the column of "
        "whole solutions, and answer_field that of the answers alone?"
    )
    assert told in "".join(capsys.readouterr())
    row = Demonstration("p", "word " * 40, "", "stored", 0, "wrong", 40, True)
    text = none_usable([row], 10, {"p": "7"}, "plain")
    assert f"the first is '{'word ' * 15}...', in which the grader looks for '7' as its last value" in text


def test_the_first_demonstration_that_cannot_be_trained_on_is_named(law, capsys):
    problems = law.parent / "problems.csv"
    lines = problems.read_text().splitlines()
    assert lines[2].endswith("2,\\boxed{C}")
    problems.write_text("\n".join([*lines[:2], lines[2][:-2] + "A}", *lines[3:]]) + "\n")
    assert main(["validate", str(law), "corpus.heldout_problems=0", "corpus.train_problems=24"]) == 0
    shown = capsys.readouterr().out
    assert (
        "  demonstrations: 24, of which 23 are correct and fit, for 23 of the 24 problems for "
        "training\n    the first that is not, for the "
        "problem at my-problems, problems.csv line 3, '\\\\boxed{A}', is graded wrong: the grader looks for 'C' in "
        "\\boxed{}\n"
    ) in shown
    assert "have none that is correct" not in shown
    # 7 of 24 are more than a quarter, 6 are not.
    for wrong in (6, 7):
        spoiled = [line.rpartition(",")[0] + ",\\boxed{D}" for line in lines[1 : 1 + wrong]]
        problems.write_text("\n".join([lines[0], *spoiled, *lines[1 + wrong :]]) + "\n")
        assert main(["validate", str(law), "corpus.heldout_problems=0", "corpus.train_problems=24"]) == 0
        warned = "warning: 7 of 24 problems with demonstrations have none that is correct and fits, so they are not"
        assert (warned in capsys.readouterr().out) == (wrong == 7)
    row = Demonstration("p", "It is \\boxed{7}.", "", "stored", 0, "correct", 40, False)
    of = {"p": RawRow("s", 0, "", "7", None)}
    assert first_unusable([row], 10, of, "plain").endswith("has 40 tokens, more than prompt.max_completion_tokens 10")
    assert first_unusable([row], 50, of, "plain").endswith("is unfinished or has a control token")
    assert first_unusable([row._replace(fits=True)], 50, of, "plain") == ""


def test_a_mistyped_file_or_path_gets_a_suggestion(law, capsys, monkeypatch):
    edit(law, corpus__sources__0__path="problms.csv", suite__benchmarks__0__data__path="question.csv")
    meant = "{0}/problms.csv does not exist; did you mean {0}/problems.csv? If not, set corpus.sources.0.path=FILE"
    for command in ("validate", "plan"):
        assert main([command, str(law)]) == 2
        printed = "".join(capsys.readouterr())
        assert f"source my-problems: its file {meant.format(law.parent)}\n" in printed
        assert f"{law.parent}/question.csv does not exist; did you mean {law.parent}/questions.csv?" in printed
    row = {"item": {"name": "What is right?", "id": 3}, "label": 0}
    (law.parent / "nested.jsonl").write_text(json.dumps(row) + "\n")
    nested = {"kind": "file", "name": "nested", "path": "nested.jsonl", "answer_field": "label"}
    edit(law, corpus__sources__0=nested | {"problem_field": "item.nme"})
    assert main(["plan", str(law)]) == 2
    said = "source nested: no row has a value at 'item.nme'; item has name, id; did you mean 'item.name'?\n"
    assert said in capsys.readouterr().err


def test_limits_that_leave_nothing_are_explained_with_a_value_that_works(law):
    def only(*overrides):
        return validate(load_recipe(law, list(overrides)), Path("runs/none")).mistakes

    assert only("prompt.max_prompt_tokens=20") == [
        "prompt.max_prompt_tokens is 20 and drops every problem: the shortest has 96 tokens; raise it"
    ]
    assert only("prompt.max_completion_tokens=3") == [
        "no correct demonstration is within prompt.max_completion_tokens 3: all 20 are correct, the shortest of them "
        "has 5 tokens; raise prompt.max_completion_tokens"
    ]
    (text,) = only("prompt.max_prompt_tokens=108")
    kept = re.match(r"corpus.train_problems is 20 but only (\d+) are left to train on: (\d+) passed the filters and "
                    r"4 are held out; the filters removed (\d+) of 24 rows, most often as too_long", text)  # fmt: skip
    left, passed, removed = map(int, kept.groups())
    assert (passed - 4, 24 - removed) == (left, passed)
    assert text.endswith("; lower corpus.train_problems or corpus.heldout_problems, or add problems")


def test_counts_and_limits_are_refused_before_the_base_is_made(law, capsys):
    for override, text in (
        ("corpus.heldout_problems=30", "corpus.heldout_problems is 30 but only 24 problems are available for it"),
        (
            "corpus.train_problems=21",
            "corpus.train_problems is 21 but only 20 are left to train on: 24 passed the filters and 4 are held out; "
            "the filters removed 0 of 24 rows; lower corpus.train_problems or corpus.heldout_problems, or",
        ),
        (
            "prompt.max_prompt_tokens=60",
            "prompt.max_prompt_tokens is 60 and drops every problem: the shortest has 96 tokens; raise it",
        ),
        (
            "prompt.max_completion_tokens=3",
            "prompt.max_completion_tokens is 3 and drops every demonstration: the shortest has 5 tokens; raise it",
        ),
        (f"{STATUTES}.data.id_field=court", "has no column 'court'"),
        (f"{STATUTES}.data.rows=40", "benchmark rulings has 12 questions, but `rows` is 40"),
        (f"{STATUTES}.data.reference_field=question", "but 'choice' compares with A, B, C"),
    ):
        for command in ("plan", "run"):
            assert main([command, str(law), override]) == 2
            assert text in capsys.readouterr().err, (command, override)
    assert not Path("runs").exists()


def test_a_sample_smaller_than_what_is_judged_together_is_refused(law):
    rows = [
        {"sentence": "He ate.", "question": "How long?", "answer": f"{n} hours", "label": "no"} for n in range(15)
    ] + [{"sentence": "She ran.", "question": "How long?", "answer": f"{n} hours", "label": "no"} for n in range(15)]
    (law.parent / "taco.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    taco = {"kind": "file", "path": "taco.jsonl", "form": "mc_taco", "rows": 12}
    edit(law, suite__benchmarks__0={"name": "mctaco", "group": "law", "promptings": ["robust"],
                                    "scorings": {"robust": "yes_no"}, "data": taco})  # fmt: skip
    with pytest.raises(UserError, match=r"`rows` is 12, but .* parts of up to 15, so none .*; set data\.rows=15 or mo"):
        check_before_running(load_recipe(law))
    check_before_running(load_recipe(law, [f"{STATUTES}.data.rows=15"]))


def test_a_source_without_a_lock_is_missing_and_the_rest_is_checked(law):
    hub = "{kind: hub, name: gsm8k, dataset: openai/gsm8k, files: [main/train-*.parquet], problem_field: question}"
    values = yaml.safe_load(law.read_text())
    values["corpus"]["sources"].append(yaml.safe_load(hub))
    law.write_text(yaml.safe_dump(values))
    found = validate(load_recipe(law), Path("runs/none"))
    assert found.mistakes == []
    assert found.missing == [f"source gsm8k is not resolved; run `transfer fetch {law}` on a connected machine"]
    study = law.parent / "study"
    write_json(study / "study.json", load_recipe(law).dump())
    assert load_recipe(study).fetch_command == "transfer fetch RECIPE"  # which does not take a folder
    assert found.not_checked == ["whether there are enough problems: a source is missing"]
    assert found.corpus["rows"] == 24
    lock = {"sources": {"gsm8k": {"dataset": "openai/gsm8k", "revision": "0" * 40, "rows": 9,
                                  "files": {"main/train-0.parquet": "00"}}}}  # fmt: skip
    law.with_suffix(".lock.json").write_text(json.dumps(lock))
    found = validate(load_recipe(law), Path("runs/none"))
    assert (found.mistakes, found.missing) == ([], [])
    assert found.not_checked[1] == "source gsm8k: not in the cache of this machine"
    lock["sources"]["gsm8k"]["dataset"] = "openai/other"
    law.with_suffix(".lock.json").write_text(json.dumps(lock))
    found = validate(load_recipe(law), Path("runs/none"))
    assert found.missing == [f"source gsm8k: the lock is for dataset openai/other; run `transfer fetch {law}` again"]
    assert not any("gsm8k" in text for text in found.not_checked)


def test_texts_are_those_of_training_and_evaluation_and_lengths_are_counted(law):
    found = validate(load_recipe(law), Path("runs/none"))
    assert (found.mistakes, found.warnings, found.not_checked) == ([], [], [])
    assert found.groups == {"law": ["rulings"], "general": ["repeat", "fact"]}
    texts = {sample.name: sample.text for sample in found.samples}
    tokenizer = pocket_tokenizer(load_recipe(law).model.pocket)
    assert texts["one question of rulings"] == (
        "<|im_start|>user\nA court follows what a higher court decided in a like case. What does it follow?\n"
        "(A) a precedent\n(B) a petition\n(C) a subpoena\n\n"
        "Put the letter of the right answer into \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert texts["one problem"].startswith("<|im_start|>user\n")
    assert "\n(A) " in texts["one problem"]
    assert texts["one demonstration, after that prompt"].endswith("}<|im_end|>")
    lengths = {row.name: row for row in found.lengths}
    assert (lengths["prompts of problems"].texts, lengths["rulings"].texts, lengths["fact"].texts) == (24, 12, 40)
    assert lengths["rulings"].over == 0
    first = len(tokenizer(texts["one question of rulings"])["input_ids"])
    assert lengths["rulings"].median <= first <= lengths["rulings"].longest
    # The limit of 120 drops some problems and refuses the benchmark, which may not be cut.
    short = ["prompt.max_prompt_tokens=110", "suite.max_prompt_tokens=120", "corpus.train_problems=null"]
    found = validate(load_recipe(law, short), Path("runs/none"))
    over = {row.name: row.over for row in found.lengths}
    assert 0 < over["prompts of problems"] < 24
    assert found.corpus["removed"]["too_long"] == over["prompts of problems"]
    assert any(
        text.startswith(f"benchmark 'rulings': {over['rulings']} of 12 prompts of rulings are longer than "
                        "suite.max_prompt_tokens 120, the longest has") for text in found.mistakes
    )  # fmt: skip


def test_two_ways_to_count_agree():
    spec = PocketModelSpec(documents=500)
    light, whole = counting_tokenizer(spec), pocket_tokenizer(spec)
    recipe = load_recipe(SMOKE)
    for text in ("1+2=?", "tom has 3 cards. <think> how many?", "Ünïcode\n\n\\boxed{3}"):
        prompt = render_prompt(whole, text, recipe.prompt)
        assert render_prompt(light, text, recipe.prompt) == prompt
        assert light(prompt)["input_ids"] == whole(prompt)["input_ids"]
    assert lengths_of("x", [1, 2, 3, 4, 5, 6, 7, 8, 9, 30], "limit", 8) == Lengths("x", 10, 5.5, 30, 30, "limit", 8, 2)
    assert lengths_of("x", list(range(1, 101)), "limit", 100) == Lengths("x", 100, 50.5, 95, 100, "limit", 100, 0)
    check_lengths(recipe)


def test_task_files_are_filled_as_the_harness_does(tmp_path):
    (tmp_path / "_base.yaml").write_text("doc_to_choice: '{{[a ~ 1, b ~ 2]}}'\ndoc_to_text: unused\n")
    (tmp_path / "x.yaml").write_text(
        "include: _base.yaml\ndoc_to_text: '{% if more is defined %}{{more}}{% endif %}{{q}}{{suffix}}'\n"
        "process_results: !function utils.f\n"
    )
    assert wording_mistakes(tmp_path / "x.yaml", {"q": 1, "a": 2, "b": 3}) == []
    (sentence,) = wording_mistakes(tmp_path / "x.yaml", {"q": 1, "a": 2})
    assert sentence == (
        f"task file {tmp_path / 'x.yaml'}, doc_to_choice: 'b' is undefined; a question has a, q, question_id, suffix"
    )
    (sentence,) = unknown_names(tmp_path / "x.yaml", ["q", "a", "more"])
    assert "doc_to_choice: b undefined; a question has a, more, q, question_id, suffix" in sentence
    (tmp_path / "y.yaml").write_text("doc_to_text: '{{q'\n")
    assert "unexpected end of template" in wording_mistakes(tmp_path / "y.yaml", {"q": 1})[0]
    (tmp_path / "z.yaml").write_text("task: z\n")
    assert "has no doc_to_text" in wording_mistakes(tmp_path / "z.yaml", {"q": 1})[0]
    (tmp_path / "z.yaml").write_text("include: z.yaml\n")
    with pytest.raises(UserError, match="includes files without end; take out"):
        wording_mistakes(tmp_path / "z.yaml", {})


def test_shipped_recipes_have_no_mistakes_that_files_here_can_show():
    paths = sorted((RECIPES).rglob("*.yaml"))
    shipped = [path for path in paths if path.parent.name not in ("audit", "ablations")]
    assert len(shipped) > 15
    # Files that a user brings or that a script of the recipe makes, and a base that another recipe trains.
    absent = ("gsm8k_train", "math_train", "smollm2-135m/prepare.py`", "model.path runs/smollm2-135m-warm-start/")
    for path in shipped:
        found = mistakes(load_recipe(path))
        assert [text for text in found if not any(name in text for name in absent)] == [], path


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        ("law/study.yaml", "study", "law"),
        ("own/study.yaml", "study", "own"),
        ("own/corpus.yaml", "corpus", "own-corpus"),
        ("own/benchmark.yaml", "benchmark", "own-benchmark"),
        ("My Tickets (2)/study.yaml", "study", "my-tickets-2"),
        ("法律/study.yaml", "study", "my-study"),  # no letter that a name may have
        ("", "study", "here"),  # the working directory
    ],
)
def test_init_names_the_study_after_its_folder(path, kind, name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["init", kind, *([path] if path else [])]) == 0
    recipe = Path(path or "study.yaml")
    assert yaml.safe_load(recipe.read_text())["study"] == name
    if kind != "benchmark":
        assert load_recipe(recipe).study == name
    (line,) = (line for line in recipe.read_text().splitlines() if line.startswith("study:"))
    assert line.index("#") == 38  # in the column of the comments below it


@pytest.mark.parametrize("kind", ["study", "corpus", "benchmark"])
def test_init_writes_a_commented_recipe_that_is_valid_and_overwrites_nothing(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", kind]) == 0
    recipe = tmp_path / f"{kind}.yaml"
    assert f"next: transfer validate {kind}.yaml" in capsys.readouterr().out
    settings = re.findall(r"^ *(?:- )?[a-z_]+: .*$", recipe.read_text(), re.MULTILINE)
    assert len(settings) > 10
    settings = [line for line in settings if "{{" not in line and not line.endswith("|-")]
    without = [line.split(":")[0].strip() for line in settings if " # " not in line]
    assert set(without) <= {"pocket", "grpo"}  # two long ones have a line above them
    assert main(["validate", f"{kind}.yaml"]) == 0
    name = tmp_path.name if kind == "study" else f"{tmp_path.name}-{kind}"
    assert f"\n{name} is valid" in capsys.readouterr().out
    assert main(["init", kind, str(tmp_path)]) == 2
    taken = f"{tmp_path}/{kind}.yaml already exist; choose another folder, or remove them"
    assert taken in capsys.readouterr().err
    recipe.unlink()
    before = sorted(tmp_path.rglob("*"))
    assert main(["init", kind]) == 2  # the example files are still there
    assert sorted(tmp_path.rglob("*")) == before


def test_the_study_of_init_can_be_planned_and_its_parts_are_used_by_others(law, capsys):
    assert main(["plan", str(law)]) == 0
    assert "arms/sft" in capsys.readouterr().out
    folder = law.parent
    assert main(["init", "corpus", str(folder / "mine.yaml")]) == 0
    assert main(["init", "benchmark", str(folder / "bench.yaml")]) == 0
    written = (folder / "bench.yaml").read_text()
    assert "`suite: bench.yaml`" in written and "transfer validate bench.yaml " in written
    assert "asked as tasks/my_benchmark.yaml says" in written and (folder / "tasks" / "my_benchmark.yaml").is_file()
    edit(law, suite="bench.yaml", analysis__trained_group="mine", corpus="mine.yaml", train__problems_per_step=2, arms={
        "grpo": {"sampling": "current", "credit": "advantage", "negatives": True},
    })  # fmt: skip
    found = validate(load_recipe(law), Path("runs/none"))
    assert found.mistakes == []
    assert found.groups == {"mine": ["my_benchmark"]}
    assert any("every benchmark is in the trained group mine" in text for text in found.warnings)
    assert main(["plan", str(law)]) == 0
    assert "warning: every benchmark is in the trained group mine" in capsys.readouterr().out


def test_questions_and_clusters_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "benchmark", "bench.yaml"]) == 0
    rows = [{"id": str(n), "claim": f"{n} is even.", "answer": "yes", "pair": n // 2} for n in range(20)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["validate", "bench.yaml"]) == 0
    assert "group mine (trained): my_benchmark\n  my_benchmark: 20 questions\n" in capsys.readouterr().out
    edit(tmp_path / "bench.yaml", suite__benchmarks__0__data__cluster_field="pair")
    assert main(["validate", "bench.yaml"]) == 0
    assert "  my_benchmark: 20 questions, 10 clusters\n" in capsys.readouterr().out
    assert main(["validate", "bench.yaml", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["benchmarks"]
    assert counts == {"my_benchmark": {"questions": 20, "clusters": 10}}


def test_json_has_every_text_whole(law, capsys):
    assert main(["validate", str(law), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["valid"] is True
    assert [row["name"] for row in values["lengths"]] == [
        "prompts of problems", "demonstrations", "rulings", "repeat", "fact"
    ]  # fmt: skip
    assert values["corpus"]["teacher_solvable"] == 20
    shutil.rmtree(law.parent / "tasks")
    assert main(["validate", str(law), "--json"]) == 2
    assert "suite.tasks './tasks' is not a folder" in json.loads(capsys.readouterr().out)["mistakes"][0]


def test_a_step_of_more_problems_than_the_corpus_has_is_a_mistake(law, capsys):
    edit(law, corpus__train_problems=None, train__problems_per_step=100)
    sentence = (
        "a step presents train.problems_per_step=100 problems but the set 'teacher_solvable' has only 20; lower it"
    )
    (found,) = validate(load_recipe(law), Path("runs/none")).mistakes
    assert found.startswith(sentence)
    assert main(["plan", str(law)]) == 2
    assert f"transfer: {sentence}" in capsys.readouterr().err
    edit(law, corpus__train_problems=20)
    assert [text[: len(sentence)] for text in validate(load_recipe(law), Path("runs/none")).mistakes] == [sentence]
    edit(law, train__problems_per_step=20)
    assert validate(load_recipe(law), Path("runs/none")).mistakes == []
