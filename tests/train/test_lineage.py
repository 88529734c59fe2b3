"""Lineage from the ledgers: equal, or the ids that differ with both counts."""

import json
import shutil

import pytest

from recipes.errors import UserError
from recipes.files import read_json_lines
from recipes.loading import load_study
from train.accounting.lineage import format_lineage, study_lineage


def test_smoke_arms_were_presented_the_same(smoke_study, transfer):
    lineage = study_lineage(load_study(smoke_study), smoke_study)
    assert lineage["equal"]
    arms = lineage["seeds"]["0"]["arms"]
    assert {entry["exposures"] for entry in arms.values()} == {32}
    assert arms["off_policy_sft"]["problems_contributed"] == arms["off_policy_sft"]["problems_presented"]
    rows = read_json_lines(smoke_study / "arms" / "grpo" / "seed-0" / "ledger.jsonl")
    contributed = {identity for row in rows for identity in row["contributed"]}
    presented = {identity for row in rows for identity in row["presented"]}
    assert arms["grpo"]["without_gradient"] == sorted(presented - contributed)
    result = transfer("lineage", smoke_study)
    assert result.returncode == 0
    assert "every arm was presented the same problems the same number of times" in result.stdout
    assert json.loads(transfer("lineage", smoke_study, "--json").stdout) == lineage


def test_difference_is_printed_with_both_counts(smoke_study, transfer, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(smoke_study, study)
    ledger = study / "arms" / "grpo" / "seed-0" / "ledger.jsonl"
    rows = read_json_lines(ledger)
    lost, twice = rows[0]["presented"][0], rows[0]["presented"][1]
    rows[0]["presented"][0] = twice
    ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lineage = study_lineage(load_study(study), study)
    assert not lineage["equal"]
    times = lineage["seeds"]["0"]["differences"]["grpo"]["times"]
    assert {identity: after - before for identity, (before, after) in times.items()} == {lost: -1, twice: 1}
    result = transfer("lineage", study)
    assert result.returncode == 2
    assert f"{lost}: {times[lost][0]} times, {times[lost][1]} times" in result.stdout
    assert "NOT presented the same problems" in format_lineage(lineage)


def test_one_arm_proves_nothing(smoke_study, transfer, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(smoke_study, study)
    for arm in ("grpo", "on_policy_sft"):
        shutil.rmtree(study / "arms" / arm)
    result = transfer("lineage", study)
    assert result.returncode == 2
    assert "not proven" in result.stdout
    (study / "arms" / "off_policy_sft" / "seed-0" / "ledger.jsonl").unlink()
    assert not study_lineage(load_study(study), study)["equal"]


def test_study_without_finished_arms(tmp_path, smoke_study, transfer):
    (tmp_path / "study.json").write_text((smoke_study / "study.json").read_text())
    result = transfer("lineage", tmp_path)
    assert result.returncode == 2
    assert "has no finished arm" in result.stderr
    assert "does not exist; `transfer run` makes it" in transfer("lineage", tmp_path / "nowhere").stderr


def test_rows_end_at_a_line_feed_a_cut_line_is_none_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_json_lines(path) == []
    path.write_text('{"text": "one\u2028row\u0085"}\n{"step": 2}\n{"ste', encoding="utf-8")
    assert read_json_lines(path) == [{"text": "one\u2028row\u0085"}, {"step": 2}]
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl is damaged"):
        read_json_lines(path)
