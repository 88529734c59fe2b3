"""Checkpoints of one repository of the hub, told apart by their revisions alone."""

import json
from pathlib import Path

from data.hub import locate_model
from launch import fetch as fetching
from launch.stages import build_stages
from recipes.loading import load_recipe, lock_path
from tests.paths import RECIPES

SUITE = RECIPES / "suites" / "twelve.yaml"
COMMITS = {None: "a" * 40, "step100": "b" * 40, "step200": "c" * 40}


def recipe_of(tmp_path, *arms):
    path = tmp_path / "recipe.yaml"
    externals = "".join(f"  {name}: {{external: {{path: org/m, revision: {name}}}}}\n" for name in arms)
    path.write_text(f"study: revisions\nmodel: {{path: org/m}}\narms:\n{externals}suite: {SUITE}\n")
    return path


def test_every_revision_of_a_repository_is_pinned_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "fetch_model", lambda name, at: {"revision": COMMITS[at], "files": {}})
    monkeypatch.setattr(fetching, "_resolve", lambda *_: None)  # the benchmarks
    monkeypatch.setattr("data.hub._snapshot", lambda kind, name, revision, files: Path(revision))
    path = recipe_of(tmp_path, "step100", "step200")
    fetched = fetching.fetch(load_recipe(path), path)
    assert {key: entry["revision"][0] for key, entry in fetched.lock["models"].items()} == {
        "org/m": "a", "org/m@step100": "b", "org/m@step200": "c",
    }  # fmt: skip
    recipe = load_recipe(path)
    for name, external in recipe.external.items():
        lock = recipe.lock_of_model(external.path, external.revision)
        assert str(locate_model(external.path, lock, external.revision)) == COMMITS[name]
    before = {stage.name: stage.reads for stage in build_stages(recipe)}
    lock = json.loads(lock_path(path).read_text())
    lock["models"]["org/m@step200"]["revision"] = "d" * 40  # the branch has moved
    lock_path(path).write_text(json.dumps(lock))
    after = {stage.name: stage.reads for stage in build_stages(load_recipe(path))}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"external/step200", "report"}


def test_one_revision_keeps_the_name_of_earlier_locks(tmp_path):
    path = recipe_of(tmp_path, "step100")
    path.write_text(path.read_text().replace("model: {path: org/m}", "model: {path: org/base}"))
    assert load_recipe(path).models_read() == [("org/base", None), ("org/m", "step100")]
    assert load_recipe(path).lock_key("org/m", "step100") == "org/m"
