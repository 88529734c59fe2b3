"""`transfer diff`: settings, versions and gains of two studies."""

import json
import shutil

from eval.report.differences import Change, Results, differences, differences_text
from eval.report.schema import write_transfer
from tests.paths import SMOKE
from tests.support.reports import arm_values, estimate, make_transfer

SETTINGS = {
    "train": {"steps": 4, "seed": 0},
    "suite": {"benchmarks": [{"name": "sum", "group": "math"}]},
    "drift": None,
}


def study(folder, gain, torch):
    groups = {"math": estimate(gain, gain - 1, gain + 1)}
    arms = {"grpo": arm_values(groups)}
    (folder / "report").mkdir(parents=True)
    write_transfer(folder / "report" / "transfer.json", make_transfer(arms=arms, groups={"math": ["sum"]}))
    manifest = {"inputs": {}, "input_hash": "", "completed": "now", "environment": {
        "git_commit": "abc", "git_dirty": False, "python": "3.11", "packages": {"torch": torch}}}  # fmt: skip
    (folder / "report" / "manifest.json").write_text(json.dumps(manifest))
    return Results(folder, folder)


def test_settings_versions_and_gains_that_differ_are_named(tmp_path):
    first, second = study(tmp_path / "a", 3.0, "2.12"), study(tmp_path / "b", 5.0, "2.13")
    other = json.loads(json.dumps(SETTINGS)) | {"drift": {"problems": 8}}
    other["train"]["steps"] = 8
    other["suite"]["benchmarks"] += [{"name": "law", "group": "law"}]
    found = differences(first, second, (SETTINGS, other))
    assert found.settings == [
        Change(name="drift", first=None, second={"problems": 8}),
        Change(name="suite.benchmarks.law", first=None, second={"name": "law", "group": "law"}),
        Change(name="train.steps", first=4, second=8),
    ]
    assert found.versions == [Change(name="torch", first="2.12", second="2.13")]
    assert found.gains is not None
    assert [(pair.arm, pair.group, pair.first.estimate, pair.second.estimate) for pair in found.gains] == [
        ("grpo", "math", 3.0, 5.0)
    ]
    assert "train.steps           4 -> 8" in differences_text(found)


def test_equal_settings_without_reports(tmp_path):
    none = Results(None, None, "a.yaml has not run")
    found = differences(none, none, (SETTINGS, SETTINGS))
    assert (found.settings, found.versions, found.gains) == ([], None, None)
    text = "settings: equal\nversions: no finished stage of both studies\ngains: not compared: a.yaml has not run"
    assert differences_text(found) == text
    found = differences(none, Results(None, None, "b.yaml has not run"), (SETTINGS, SETTINGS))
    assert differences_text(found) == f"{text}; b.yaml has not run"
    ran = study(tmp_path / "ran", 3.0, "2.12")
    assert differences(ran, none, (SETTINGS, SETTINGS)).without_report == ["a.yaml has not run"]
    assert differences(ran, ran, (SETTINGS, SETTINGS)).without_report == []


def test_a_study_and_a_recipe_that_has_not_run_have_no_versions_to_compare(tmp_path):
    found = differences(study(tmp_path / "a", 3.0, "2.12"), Results(None, None), (SETTINGS, SETTINGS))
    assert (found.settings, found.versions, found.gains) == ([], None, None)


def test_diff_of_a_recipe_with_itself_and_with_another(transfer):
    smoke, study = "recipes/pocket/smoke.yaml", "recipes/pocket/study.yaml"
    assert transfer("diff", smoke, smoke).returncode == 0
    result = transfer("diff", smoke, study, "--json")
    assert result.returncode == 1
    changes = {change["name"]: (change["first"], change["second"]) for change in json.loads(result.stdout)["settings"]}
    assert changes["train.steps"] == (4, 150)
    assert transfer("diff", smoke, "absent.yaml").returncode == 2


def test_only_what_ran_with_its_settings_is_a_recipes_result(smoke_study, transfer, tmp_path):
    """The study is in runs/smoke: with the recipe's own settings, with others, and with a report of others."""
    recipe = tmp_path / "smoke.yaml"
    recipe.write_text(SMOKE.read_text())
    run = tmp_path / "runs" / "smoke"
    run.parent.mkdir()
    shutil.copytree(smoke_study, run)

    def diff(*studies):
        result = transfer("diff", *(studies or ("runs/smoke", "smoke.yaml")), "--json", cwd=tmp_path)
        return json.loads(result.stdout), result.stderr

    (tmp_path / "new.yaml").write_text(SMOKE.read_text().replace("study: smoke", "study: new", 1))
    found, _ = diff("runs/smoke", "new.yaml")
    assert found["without_report"] == [
        "new.yaml has not run, there is no runs/new (`transfer run new.yaml` makes its report)"
    ]
    printed = transfer("diff", "new.yaml", "runs/smoke", cwd=tmp_path).stdout
    assert f"gains: not compared: {found['without_report'][0]}\n" in printed

    found, told = diff()
    assert (found["settings"], found["versions"], told) == ([], [], "")
    assert len(found["gains"]) == 9  # three arms on three groups, each with itself
    assert all(pair["first"] == pair["second"] for pair in found["gains"])

    recipe.write_text(SMOKE.read_text().replace("suite:", "suite:\n  seed: 7", 1))
    found, told = diff()
    assert [(one["name"], one["second"]) for one in found["settings"]] == [("suite.seed", 7)]
    assert (found["versions"], found["gains"]) == (None, None)
    assert "runs/smoke ran with other settings than smoke.yaml now has; its results are left out" in told
    assert found["without_report"] == [
        "runs/smoke ran with other settings than smoke.yaml now has (`transfer run smoke.yaml` makes a report of these)"
    ]

    # As after a run with another setting that has not come to the report.
    stored = json.loads((run / "study.json").read_text())
    stored["suite"]["seed"] = 7
    (run / "study.json").write_text(json.dumps(stored))
    found, told = diff()
    assert (found["settings"], found["versions"], found["gains"]) == ([], [], None)
    assert "the report in runs/smoke is stale: its study now has other settings" in told
    assert found["without_report"] == [
        "the report in runs/smoke is of other settings (`transfer run runs/smoke` writes it again)",
        "the report in runs/smoke is of other settings (`transfer run smoke.yaml` writes it again)",
    ]
    (run / "report" / "manifest.json").unlink()
    assert diff("runs/smoke", "runs/smoke")[0]["without_report"] == [
        "runs/smoke has no finished report (`transfer run runs/smoke` makes it)"
    ]
