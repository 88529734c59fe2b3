"""Sections that a recipe takes from another one, and the lock that comes with them."""

import json
import os

import pytest

from recipes.errors import UserError
from recipes.loading import load_recipe
from tests.paths import RECIPES


def test_corpus_of_another_recipe(tmp_path):
    (tmp_path / "corpus.yaml").write_text("study: c\ncorpus:\n  sources: [{kind: file, name: x, path: a.jsonl}]\n")
    (tmp_path / "study.yaml").write_text("study: s\ncorpus: corpus.yaml\n")
    assert load_recipe(tmp_path / "study.yaml", ["corpus.seed=4"]).corpus.seed == 4
    (tmp_path / "study.yaml").write_text("study: s\ncorpus: other.yaml\n")
    for named, hint in (
        ("other.yaml", "name one, relative to this recipe"),
        ("corpsu.yaml", "did you mean corpus.yaml?"),
        # A shipped recipe that was copied to another folder.
        ("../suites/twelve.yaml", f"did you mean {os.path.relpath(RECIPES / 'suites' / 'twelve.yaml', tmp_path)}?"),
    ):
        (tmp_path / "study.yaml").write_text(f"study: s\ncorpus: {named}\n")
        with pytest.raises(UserError) as refused:
            load_recipe(tmp_path / "study.yaml")
        assert str(refused.value) == (
            f"{tmp_path / 'study.yaml'}: `corpus` is {named}, and there is no such recipe; {hint}"
        )


def test_lock_of_the_corpus_recipe_comes_with_it(tmp_path):
    (tmp_path / "corpus.yaml").write_text("study: c\ncorpus:\n  sources: [{kind: file, name: x, path: a.jsonl}]\n")
    (tmp_path / "study.yaml").write_text("study: s\ncorpus: corpus.yaml\n")
    entry = {"revision": None, "files": {"a.jsonl": "0" * 64}, "rows": 1}
    (tmp_path / "corpus.lock.json").write_text(json.dumps({"sources": {"x": entry}}))
    assert load_recipe(tmp_path / "study.yaml").lock["sources"] == {"x": entry}
    own = entry | {"rows": 2}
    (tmp_path / "study.lock.json").write_text(json.dumps({"sources": {"x": own}, "models": {}}))
    assert load_recipe(tmp_path / "study.yaml").lock["sources"] == {"x": own}
    for damaged in (
        {"sources": {"x": {}}},
        {"sources": []},
        {"models": {"m": "abc"}},
        {"sources": {"x": {"files": 1}}},
    ):
        (tmp_path / "study.lock.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match="holds no lock as `transfer fetch` writes it"):
            load_recipe(tmp_path / "study.yaml")


def test_a_section_may_come_from_a_recipe_that_takes_it_from_a_third(tmp_path):
    """Paths are those of the file that has the section; the nearest lock wins."""
    (tmp_path / "shared").mkdir()
    source = "[{kind: file, name: x, path: a.jsonl}, {kind: file, name: y, path: b.jsonl}]"
    (tmp_path / "shared" / "corpus.yaml").write_text(f"study: c\ncorpus:\n  sources: {source}\n")
    (tmp_path / "shared" / "a.jsonl").write_text("")
    (tmp_path / "first.yaml").write_text("study: f\ncorpus: shared/corpus.yaml\n")
    (tmp_path / "second.yaml").write_text("study: s\ncorpus: first.yaml\n")
    entries = [{"revision": None, "files": {"a.jsonl": digit * 64}, "rows": 1} for digit in "012"]
    (tmp_path / "shared" / "corpus.lock.json").write_text(json.dumps({"sources": {"x": entries[0], "y": entries[1]}}))
    (tmp_path / "first.lock.json").write_text(json.dumps({"sources": {"x": entries[2]}}))
    recipe = load_recipe(tmp_path / "second.yaml")
    assert [source.path for source in recipe.corpus.sources] == [str(tmp_path / "shared" / "a.jsonl"), "b.jsonl"]
    assert recipe.lock["sources"] == {"x": entries[2], "y": entries[1]}


def test_a_section_that_leads_back_to_itself_is_refused(tmp_path):
    (tmp_path / "first.yaml").write_text("study: f\ncorpus: second.yaml\n")
    (tmp_path / "second.yaml").write_text("study: s\ncorpus: ./first.yaml\n")
    with pytest.raises(UserError, match=r"first\.yaml takes its section corpus from itself: corpus is second\.yaml"):
        load_recipe(tmp_path / "first.yaml")


@pytest.mark.parametrize(
    ("benchmark", "sentences"),
    [
        (
            "{name: a, group: math, scorings: {paper: boxd, robust: boxed}}",
            ["`suite.benchmarks.0.scorings.paper` is 'boxd'; did you mean boxed?"],
        ),
        (
            "{name: a, group: math, bla: 2}",
            [
                "`suite.benchmarks.0.scorings` is missing",
                "`suite.benchmarks.0.bla` is not a setting; allowed are data, group, likelihood, name, promptings, "
                "samples, scorings, temperature",
            ],
        ),
        ("", ["`suite.benchmarks` is [], but tuple should have at least 1 item after validation, not 0"]),
    ],
)
def test_a_mistake_in_the_only_item_of_a_list_is_told_alone(benchmark, sentences):
    """pydantic counts no item with a mistake; only a list that has too few is called too short."""
    with pytest.raises(UserError) as caught:
        load_recipe("recipes/pocket/smoke.yaml", [f"suite.benchmarks=[{benchmark}]"])
    assert str(caught.value).splitlines() == [f"recipes/pocket/smoke.yaml: {text}" for text in sentences]
