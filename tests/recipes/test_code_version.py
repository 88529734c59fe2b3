"""The version of the code behind a stage: what changes it and what does not."""

import shutil

import pytest

from eval.scorers.version import rules_version
from launch.stages import build_stages
from recipes import code_version as subject
from recipes.code_version import ROOT
from recipes.loading import load_recipe
from tests.paths import SMOKE


@pytest.fixture
def version_in(tmp_path, monkeypatch):
    """A copy of the packages that can be edited, and the version of a module there."""
    for package in subject.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)
    monkeypatch.setattr(subject, "ROOT", tmp_path)

    def version(module):
        subject._read.cache_clear()
        return subject.code_version(module)

    yield tmp_path, version
    subject._read.cache_clear()


def test_only_what_a_stage_runs_changes_its_version(version_in):
    root, version = version_in
    before = {name: version(name) for name in ("train.sft", "train.grpo", "eval.responses.generate")}
    grading = root / "data" / "grading" / "grader.py"
    text = grading.read_text()
    grading.write_text(text.replace('"""', '"""Other words. ', 1) + "\n# a remark\n")
    assert {name: version(name) for name in before} == before
    grading.write_text(text.replace("TIMEOUT_SECONDS = 5.0", "TIMEOUT_SECONDS = 6.0"))
    # SFT reads graded demonstrations and never grades; the reward and the score do.
    assert {name for name in before if version(name) != before[name]} == {"train.grpo", "eval.responses.generate"}


def test_the_scoring_rules_have_a_version_of_their_own(version_in):
    """It covers the worker, which no module imports, and nothing that decides no score; evaluations leave it out."""
    root, version = version_in
    (evaluation,) = [stage for stage in build_stages(load_recipe(SMOKE)) if stage.name == "eval/base"]

    def both():
        version("data.grading.worker")  # forgets what was read
        return rules_version(), evaluation.code

    scoring = {"eval/scorers/choices.py", "eval/scorers/programs.py", "data/grading/units.py", "data/grading/worker.py"}
    for path in (*scoring, "data/prompts/thinking.py", "eval/responses/harness.py", "recipes/files.py"):
        before = both()
        with (root / path).open("a") as file:
            file.write("\nADDED = 1\n")
        changed = [name for name, old, new in zip(("rules", "code"), before, both(), strict=True) if old != new]
        expected = ["rules"] if path in scoring else ["rules", "code"] if "prompts" in path else ["code"]
        assert changed == expected, path


def test_modules_imported_inside_functions_count():
    assert "launch.run" in subject._read("launch.commands.recipe")[1]
