"""Scoring rules that have changed: what says so, and how stored responses are judged again."""

import json
import shutil
from contextlib import suppress
from types import SimpleNamespace

import pytest
import zstandard

from eval.report.certificate import evaluation_differences
from eval.responses import generate, rescore
from eval.responses.rescore import judge_all
from eval.scorers import rules, version
from eval.scorers.records import read_scores
from eval.scorers.rules import Rule
from eval.scorers.score import judged
from launch.ablation_report import finished_points
from launch.commands.main import main
from launch.execution.stage_runner import run_stage
from launch.planning.findings import findings
from launch.stages import build_stages, stage_states
from recipes.files import hash_file, locked, write_json
from recipes.loading import load_study
from recipes.manifest import read_manifest

GRPO = "grpo-seed0-final"
LABELS = ["base", "off_policy_sft-seed0-final", "on_policy_sft-seed0-final", GRPO]
UNITS = ["sum-native", "story-native", "sort-native", "logic-native", "copy-native", "fact-native"]


@pytest.fixture
def rules_of(monkeypatch):
    """Set the version of the rules of this process; with `lenient`, `exact` also takes "<answer>, sir"."""

    def use(name, lenient=False):
        monkeypatch.setattr(version, "code_version", lambda *modules, without=(): name)
        if lenient:
            judge = lambda response, reference: judged(response.removesuffix(", sir") == reference, response)  # noqa: E731
            monkeypatch.setitem(rules.RULES, "exact", Rule(judge, whole_text=True))

    return use


@pytest.fixture
def study(smoke_study, tmp_path, rules_of):
    """A finished study judged by the rules `old`. The base answered one question with its reference and ", sir"."""
    copy = tmp_path / "study"
    shutil.copytree(smoke_study, copy)
    recipe = load_study(copy)
    path = next((copy / "eval" / "base" / "fact-native").glob("chunk-*"))
    rows = [json.loads(line) for line in zstandard.decompress(path.read_bytes()).splitlines()]
    (benchmark,) = [item for item in recipe.suite.benchmarks if item.name == "fact"]
    reference = generate.load_questions(recipe, benchmark, copy)[0].reference
    rows[0] |= {"responses": [f"{reference}, sir", "no"], "tokens": [3, 1]}
    path.write_bytes(zstandard.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    rules_of("old")
    judge_all(recipe, copy)
    report(copy)
    return copy


def report(study):
    """Make the report if it must be made; whether it was."""
    recipe = load_study(study)
    stages = build_stages(recipe)
    if stage_states(stages, study)["report"].state == "done":
        return False
    run_stage(recipe, study, stages[-1])
    return True


def transfer_json(study):
    return json.loads((study / "report" / "transfer.json").read_text())


def tree(study):
    """Every file of the evaluations, manifests without the clock."""
    files = {}
    for path in sorted((study / "eval").rglob("*")):
        if path.is_file() and path.name != ".lock":
            files[str(path.relative_to(study))] = path.read_bytes()
            if path.name == "manifest.json":
                made = json.loads(path.read_text())
                files[str(path.relative_to(study))] = [made[key] for key in ("completed", "outputs", "facts")]
    return files


def versions(study):
    return {label: version.unit_versions(read_manifest(study / "eval" / label)) for label in LABELS}


def test_a_changed_rule_is_shown_then_written_and_the_report_made_again(study, rules_of, capsys):
    before, made = tree(study), transfer_json(study)
    assert versions(study) == {label: dict.fromkeys(UNITS, "old") for label in LABELS}
    rules_of("new", lenient=True)
    moved = "1 of 20 responses changed: 1 from wrong to correct"

    assert main(["score", str(study)]) == 0
    assert capsys.readouterr().out.count(moved) == 1
    assert tree(study) == before  # shown only

    assert main(["score", str(study), "--write"]) == 0
    out, said = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines() if moved in line] == [["base", "fact-native"]]
    tables = 2 * len(UNITS) * len(LABELS)
    assert out.startswith(f"as before: {tables - 1} of {tables} tables, ")
    assert said == f"transfer: `transfer run {study}` makes the report of these scores\n"
    assert versions(study) == {label: dict.fromkeys(UNITS, "new") for label in LABELS}
    first = read_scores(study / "eval" / "base" / "fact-native" / "scores-robust.parquet")[0]
    assert (first.value, first.outcome) == (1.0, "correct")
    after = tree(study)
    assert {name: made[0] for name, made in before.items() if name.endswith("manifest.json")} == {
        name: made[0] for name, made in after.items() if name.endswith("manifest.json")
    }  # when it was evaluated
    old, new = before["eval/base/manifest.json"], after["eval/base/manifest.json"]
    assert new[2]["accuracy"]["fact"] == pytest.approx(old[2]["accuracy"]["fact"] + 1 / 20)
    outcomes = [facts[2]["units"]["fact-native"]["outcomes"]["robust"].get("correct", 0) for facts in (old, new)]
    assert outcomes[1] == outcomes[0] + 1

    assert report(study)
    scores = [one["base"]["benchmarks"]["fact"]["score"]["estimate"] for one in (made, transfer_json(study))]
    assert scores[1] == pytest.approx(scores[0] + 5)
    assert main(["score", str(study), "--write"]) == 0  # once more: nothing changes, and the report stays
    out, said = capsys.readouterr()
    assert (out.split(", ")[0], said, report(study)) == (f"as before: {tables} of {tables} tables", "", False)


def test_a_report_is_made_again_where_only_the_version_has_changed(study, rules_of):
    rules_of("new")
    judge_all(load_study(study), study)
    assert report(study)


def judge_until(study, monkeypatch, count, outputs_are_new):
    """Judge all again and die in the unit `count`, before or after its tables are written."""
    calls = []

    def killed(recipe, study_dir, unit):
        calls.append(unit)
        if len(calls) < count:
            return generate.score_unit(recipe, study_dir, unit)
        if outputs_are_new:
            patched.setattr(generate, "finish_stage", lambda *ignored: None)
            generate.score_unit(recipe, study_dir, unit)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(rescore, "score_unit", killed)
        judge_all(load_study(study), study)


@pytest.mark.parametrize("by", ["score", "run"])
@pytest.mark.parametrize("outputs_are_new", [False, True])
def test_a_kill_between_two_units_loses_nothing(study, rules_of, tmp_path, monkeypatch, by, outputs_are_new):
    """After the second of four models was killed in its second unit, before or after that unit's tables are written."""
    recipe = load_study(study)
    rules_of("new", lenient=True)
    whole = tmp_path / "whole"
    shutil.copytree(study, whole)
    judge_all(recipe, whole)
    before = tree(study)
    judge_until(study, monkeypatch, len(UNITS) + 2, outputs_are_new)
    assert {path.name for path in study.glob("eval/*/*/*")} == {path.name for path in whole.glob("eval/*/*/*")}
    stages = {stage.name: stage for stage in build_stages(recipe)}
    interrupted = f"eval/{LABELS[1]}"
    states = {name: state.state for name, state in stage_states(list(stages.values()), study).items()}
    assert [states[f"eval/{label}"] for label in LABELS] == ["done", "resume", "done", "done"]
    assert states["report"] == "changed"
    if by == "score":
        judge_all(recipe, study)
        assert tree(study) == tree(whole)
    else:  # finishes the model that was interrupted; the others are named
        run_stage(recipe, study, stages[interrupted])
        after, judged_again = tree(study), tree(whole)
        for label, wanted in zip(LABELS, (judged_again, judged_again, before, before), strict=True):
            for name in {name for name in wanted if name.startswith(f"eval/{label}/")} - {f"{interrupted}/usage.json"}:
                clock = 1 if name.startswith(interrupted) and name.endswith("manifest.json") else 0  # it ran again
                assert after[name][clock:] == wanted[name][clock:], name
        assert version.judged_by(study / interrupted) == "current"
        assert version.judged_by(study / "eval" / GRPO) == "other"


def test_a_kill_within_a_unit_is_mended_by_a_run_of_the_same_version(study, rules_of, monkeypatch):
    """As after an upgrade of a package alone: the unit's tables are new, and its manifest is not."""
    rules_of("old", lenient=True)
    judge_until(study, monkeypatch, len(UNITS), outputs_are_new=True)  # the base's facts
    run_stage(load_study(study), study, *(one for one in build_stages(load_study(study)) if one.name == "eval/base"))
    table = "scores-robust.parquet"
    digest = hash_file(study / "eval" / "base" / "fact-native" / table)
    assert read_manifest(study / "eval" / "base")["outputs"][f"fact-native/{table}"] == digest


def warned(study):
    recipe = load_study(study)
    return [str(one) for one in findings(recipe, build_stages(recipe), study, None, []) if "scoring rules" in str(one)]


def status_of(study, capsys):
    assert main(["status", str(study)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "scoring rules" in line]
    assert main(["status", str(study), "--json"]) == 0
    rows = {row["stage"]: row["scoring_rules"] for row in json.loads(capsys.readouterr().out)}
    assert rows["report"] is None
    return lines, [rows[f"eval/{label}"] for label in LABELS]


def judge_alone(study, label):
    """As an evaluation that was made again with the rules of today."""
    recipe = load_study(study)
    model_dir = read_manifest(study / "eval" / label)["facts"]["model"]
    units = generate.open_units(recipe, study, study / "eval" / label, model_dir)
    for unit in units:
        generate.score_unit(recipe, study, unit)
    generate.finish(recipe, study / "eval" / label, model_dir, units)


def test_a_study_of_one_older_version_is_consistent_and_a_mixed_one_is_named(study, rules_of, capsys):
    again = f"`transfer score {study} --write` judges them again"
    assert status_of(study, capsys) == ([], ["current"] * 4)
    assert warned(study) == []

    rules_of("new")
    all_old = f"scores of {', '.join(LABELS)} are by other scoring rules than this version's; {again}"
    assert status_of(study, capsys) == ([all_old], ["other"] * 4)
    assert warned(study) == [all_old]
    assert evaluation_differences(study, LABELS) == []

    judge_alone(study, GRPO)
    three = f"scores of {', '.join(LABELS[:3])} are by other scoring rules than this version's; {again}"
    assert status_of(study, capsys) == ([three], ["other"] * 3 + ["current"])
    assert warned(study) == [three]
    assert report(study)
    made = transfer_json(study)
    assert (made["status"], made["differences"]) == (
        "UNMATCHED",
        [
            f"scoring rules: {GRPO} judged by another version than base; `transfer score RUN --write` judges all "
            "models again"
        ],
    )
    point = SimpleNamespace(name="one", values={}, recipe=load_study(study))
    (found,) = finished_points(SimpleNamespace(points=[point], folder=lambda point: study))
    assert [found.made_by[f"eval/{label}"][2] for label in ("base", GRPO)] == [["old"], ["new"]]

    judge_all(load_study(study), study)
    assert status_of(study, capsys) == ([], ["current"] * 4)
    assert report(study)
    assert (transfer_json(study)["status"], transfer_json(study)["differences"]) == ("matched", [])


def test_scores_from_before_the_version_was_recorded_raise_no_alarm(study, rules_of, capsys):
    for label in LABELS[1:3]:
        path = study / "eval" / label / "manifest.json"
        manifest = json.loads(path.read_text())
        for facts in manifest["facts"]["units"].values():
            del facts["rules_version"]
        write_json(path, manifest)
    said = (
        f"which version of the scoring rules judged {', '.join(LABELS[1:3])} is not recorded; "
        f"`transfer score {study}` shows what today's would change"
    )
    assert status_of(study, capsys) == ([said], ["current", "not recorded", "not recorded", "current"])
    assert warned(study) == evaluation_differences(study, LABELS) == []


def test_packages_and_sandboxes_are_named_apart_from_the_rules(study):
    path = study / "eval" / GRPO / "manifest.json"
    manifest = json.loads(path.read_text())
    today = manifest["environment"]["packages"]["math-verify"]
    manifest["environment"]["packages"]["math-verify"] = "0.0.1"
    write_json(path, manifest)
    assert evaluation_differences(study, LABELS) == [f"evaluation: {GRPO} by other code or packages than base"]
    judge_all(load_study(study), study)
    assert read_manifest(study / "eval" / GRPO)["environment"]["packages"]["math-verify"] == today
    assert evaluation_differences(study, LABELS) == []


def test_nothing_is_written_where_it_must_not_be(study, capsys):
    def refused(*words):
        assert main(["score", str(study), "--write", *words]) == 2
        return capsys.readouterr().err

    assert "--write is for the rules of the study; a further rule is kept without it" in refused("sum.loose=plain")
    with locked(study / ".locks" / f"eval--{GRPO}"):
        assert "is being written by another process" in refused()
    before = tree(study)
    (study / "eval" / GRPO / "fact-native" / "scores-robust.parquet").unlink()
    assert f"the evaluation of {GRPO} is not finished; `transfer run` continues it" in refused()
    assert {name: content for name, content in before.items() if "scores-robust" not in name} == {
        name: content for name, content in tree(study).items() if "scores-robust" not in name
    }
