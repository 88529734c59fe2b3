"""How many questions a plan counts: of local files by reading them, before anything runs."""

import json

import pytest
import yaml

from eval.questions import suite_size
from eval.questions.suite_size import evaluation_responses, question_count
from launch.commands.main import main
from recipes.loading import load_recipe


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "benchmark", "bench.yaml"]) == 0
    return tmp_path / "bench.yaml"


def counted(bench):
    recipe = load_recipe(bench)
    return question_count(recipe, recipe.benchmarks[0]), evaluation_responses(recipe, 3)


def test_a_local_file_is_counted(bench):
    assert counted(bench) == (2, 6)
    rows = [{"id": str(n), "claim": f"{n} is even.\nReally?", "answer": "yes"} for n in range(7)]
    (bench.parent / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert counted(bench) == (7, 21)
    values = yaml.safe_load(bench.read_text())
    values["suite"]["benchmarks"][0]["data"]["rows"] = 5
    bench.write_text(yaml.safe_dump(values))
    assert counted(bench) == (5, 15)


def test_of_a_large_file_the_lines_are_counted(bench, monkeypatch):
    monkeypatch.setattr(suite_size, "WHOLE_FILE_BYTES", 10)
    suite_size._count.cache_clear()
    assert counted(bench) == (2, 6)
    (bench.parent / "questions.jsonl").rename(bench.parent / "questions.json")
    bench.write_text(bench.read_text().replace("questions.jsonl", "questions.json"))
    assert counted(bench) == (None, None)
    suite_size._count.cache_clear()


def test_a_file_that_cannot_be_read_has_no_count(bench):
    (bench.parent / "questions.jsonl").write_text('{"id": 1}\n')
    assert counted(bench) == (None, None)


def test_a_plan_knows_the_hours_of_a_local_benchmark(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "study", "study.yaml"]) == 0
    capsys.readouterr()
    assert main(["plan", "study.yaml", "--details"]) == 0
    shown = capsys.readouterr().out
    assert "not counted" not in shown
    assert "evaluation: at most 552 responses" in shown  # 3 models x (12 + 40 + 40) questions x 2 samples
