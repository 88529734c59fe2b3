"""Recipes that the pages of docs/ show are valid with the files they name."""

import json
import re
import textwrap

import pytest
import yaml

from launch.commands.main import main
from launch.planning.validation import validate
from recipes.loading import load_recipe
from tests.paths import DOCS

STARTERS = DOCS.parent / "launch" / "starters"


def shown(page, key):
    """The YAML blocks of a page that have a key, at any depth, as texts."""
    fences = re.findall(r"^```yaml\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [text for text in map(textwrap.dedent, fences) if f"{key}:" in text]


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(folder, text):
    """The validation of a recipe of this text alone."""
    (folder / "shown.yaml").write_text(yaml.safe_dump({"study": "shown"}) + text)
    return validate(load_recipe(folder / "shown.yaml"), folder / "none")


def test_demonstrations_of_ones_own(folder):
    (text,) = shown("corpus.md", "completion_field")
    write_rows(
        folder / "problems.jsonl",
        {"question": "What is two plus three?", "answer": "5", "solution": "They are \\boxed{5}."},
        {"question": "Which symbol has the element iron?", "answer": "Fe", "solution": "\\boxed{Ir}"},
    )
    found = checked(folder, text)
    assert found.mistakes == []
    assert [found.corpus[key] for key in ("problems", "demonstrations", "usable_demonstrations")] == [2, 2, 1]
    # As in the starter of a study, no warning about a limit that one demonstration a problem does not reach.
    for starter in (text, (STARTERS / "study" / "study.yaml").read_text()):
        assert "samples_per_problem" not in starter


def test_the_starter_of_a_corpus_with_its_demonstrations(folder, capsys):
    assert main(["init", "corpus", "law/corpus.yaml"]) == 0
    recipe = folder / "law" / "corpus.yaml"
    before, _, after = recipe.read_text().partition('remove "# " from these lines.\n')
    recipe.write_text(before + "\n" + re.sub("^  # ", "  ", after, flags=re.MULTILINE))
    found = validate(load_recipe(recipe), folder / "none")
    assert found.mistakes == []
    assert [found.corpus[key] for key in ("problems", "demonstrations", "usable_demonstrations")] == [2, 2, 2]
    assert main(["run", "law/corpus.yaml"]) == 0
    assert capsys.readouterr().out.endswith("\ncorpus card: runs/law-corpus/corpus/README.md\n")
    card = (folder / "runs" / "law-corpus" / "corpus" / "README.md").read_text()
    assert "The teacher solved 2 of 2 problems. Arms are" in card


def test_a_benchmark_of_ones_own(folder):
    wording, choices = shown("evaluation.md", "doc_to_text")
    (text,) = shown("evaluation.md", "cluster_field")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "statutes.yaml").write_text(wording)
    write_rows(
        folder / "law.jsonl",
        {"facts": {"case": "A keeps B's lost purse."}, "ruling": "no", "court": "Ulm"},
        {"facts": {"case": "A returns B's lost purse."}, "ruling": "yes", "court": "Ulm"},
    )
    found = checked(folder, text)
    assert found.mistakes == []
    assert found.benchmarks == {"statutes": {"questions": 2, "clusters": 1}}
    assert found.samples[0].text == "A keeps B's lost purse.\nIs it lawful? Answer yes or no."
    # Multiple choice by likelihood, as a second one.
    (folder / "tasks" / "units.yaml").write_text(choices)
    (folder / "units.csv").write_text("stem,a,b,c,right\nWhat measures length?,litre,gram,metre,C\n")
    (text,) = shown("evaluation.md", "likelihood")
    text = textwrap.indent(text, "    ")
    found = checked(folder, f"analysis: {{trained_group: other}}\nsuite:\n  tasks: ./tasks\n  benchmarks:\n{text}")
    assert found.mistakes == []
    sample = found.samples[0]
    assert (sample.text, sample.reference) == ("What measures length?\nAnswer:", "C")
    assert sample.choices == ["litre", "gram", "metre"]


def test_the_starter_of_a_benchmark_by_likelihood(folder):
    assert main(["init", "benchmark", "bench.yaml"]) == 0
    recipe, task = folder / "bench.yaml", folder / "tasks" / "my_benchmark.yaml"
    task.write_text(re.sub(r"^# (output_type|doc_to_choice)", r"\1", task.read_text(), flags=re.MULTILINE))
    text = recipe.read_text().replace("      scorings: {robust: yes_no}", "      # yes_no")
    recipe.write_text(re.sub(r"^      # (scorings|likelihood): ", r"      \1: ", text, flags=re.MULTILINE))
    found = validate(load_recipe(recipe), folder / "none")
    assert found.mistakes == []
    assert (found.samples[0].reference, found.samples[0].choices) == ("yes", ["no", "yes"])
