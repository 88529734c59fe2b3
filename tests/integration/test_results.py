"""transfer.json: both readings, what was decided when, claims, and the warnings a reader must see."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.questions.analysis_lock import write_lock
from eval.report.build import training_curves
from eval.report.page import draw_figures, render_page, render_summary
from eval.report.results import compute_transfer as compute
from eval.report.schema import Transfer
from eval.report.table import format_report
from eval.scorers.records import read_scores, write_scores
from recipes.errors import UserError
from recipes.loading import load_study, validate_recipe

GRPO = "grpo-seed0-final"


@pytest.fixture
def study(smoke_study, tmp_path):
    """A finished study that can be changed; what is large is linked."""
    target = tmp_path / "study"
    target.mkdir()
    for name in ("study.json", "analysis.lock"):
        shutil.copy(smoke_study / name, target / name)
    shutil.copytree(smoke_study / "eval", target / "eval")
    for name in ("base", "corpus", "arms", "questions"):
        (target / name).symlink_to(smoke_study / name)
    return target


def compute_transfer(recipe, study):
    transfer, _ = compute(recipe, study)
    return transfer


def changed(study, **sections):
    """The study's recipe with other values in some sections."""
    values = json.loads((study / "study.json").read_text())
    for name, section in sections.items():
        values[name] |= section
    return validate_recipe(values, "changed")


def test_both_readings_and_every_cell_are_there(smoke_study, smoke_transfer):
    assert list(smoke_transfer["readings"]) == ["robust", "paper"]
    assert smoke_transfer["reading"] == "robust"
    assert smoke_transfer["readings"]["robust"]["arms"]["grpo"]["groups"] == smoke_transfer["arms"]["grpo"]["groups"]
    assert smoke_transfer["readings"]["paper"]["cells"]["copy"] == ["native", "paper"]
    cells = {(cell["benchmark"], cell["scoring"]): cell for cell in smoke_transfer["cells"]}
    assert len(cells) == 6 * 2
    table = pq.read_table(smoke_study / "eval" / GRPO / "copy-native" / "scores-paper.parquet").to_pydict()
    assert cells["copy", "paper"]["scores"]["grpo"] == pytest.approx(100 * np.mean(table["value"]), abs=1e-3)
    assert cells["copy", "paper"]["rule"] == "first_line"
    page = (smoke_study / "report" / "index.html").read_text()
    assert '<h2 id="readings">Two readings</h2>' in page
    assert page.count("<td>robust</td>") >= 1
    assert page.count("<td>paper</td>") >= 1


def test_pass_at_k_of_the_stored_samples(smoke_study, smoke_transfer):
    table = pq.read_table(smoke_study / "eval" / "base" / "logic-native" / "scores-robust.parquet").to_pydict()
    values = np.array(table["value"]).reshape(10, 2)
    assert smoke_transfer["pass_at_k"]["logic"]["base"] == [
        [1, pytest.approx(100 * values.mean(), abs=1e-3)],
        [2, pytest.approx(100 * values.max(axis=1).mean(), abs=1e-3)],
    ]


def test_changes_of_outcomes_sum_to_nothing(smoke_transfer):
    for result in smoke_transfer["arms"].values():
        for name, row in result["benchmarks"].items():
            assert sum(row["change"].values()) == pytest.approx(0, abs=0.01)
            before = smoke_transfer["base"]["benchmarks"][name]["score"]["estimate"]
            assert row["change"].get("correct", 0) == pytest.approx(row["score"]["estimate"] - before, abs=0.01)


def test_what_was_decided_before_and_after(smoke_transfer, study):
    assert smoke_transfer["analysis"]["after"] == []
    assert {"reading", "definition", "claims", "benchmark sum"} <= set(smoke_transfer["analysis"]["before"])
    later = compute_transfer(changed(study, analysis={"reading": "paper", "definition": "relative"}), study)
    # Another reading judges every benchmark by another rule.
    assert {"reading", "definition", "benchmark sum"} <= set(later.analysis.after)
    assert "statistics" in later.analysis.before
    budget = compute_transfer(changed(study, suite={"max_response_tokens": 99}, statistics={"seed": 7}), study)
    assert {"suite max_response_tokens", "statistics"} <= set(budget.analysis.after)
    recipe = load_study(study)
    write_lock(changed(study, analysis={"definition": "relative"}), study)  # there is one: it stays
    assert compute_transfer(recipe, study).analysis.after == []
    (study / "analysis.lock").unlink()
    write_lock(recipe, study)  # written when responses were there already
    assert compute_transfer(recipe, study).analysis.before == []
    lock = json.loads((study / "analysis.lock").read_text())
    lock["declared"]["definition"] = "literal"
    (study / "analysis.lock").write_text(json.dumps(lock))
    with pytest.raises(UserError, match=r"analysis\.lock failed its integrity check"):
        compute_transfer(recipe, study)


def test_claims_are_tested_together_and_get_a_verdict(study):
    for label, value in (("base", 0.0), (GRPO, 1.0)):  # a gain that nobody could doubt
        for name in ("copy", "fact"):
            path = study / "eval" / label / f"{name}-native" / "scores-robust.parquet"
            rows = read_scores(path)
            outcome = "correct" if value else "wrong"
            write_scores(path, [replace(row, value=value, outcome=outcome) for row in rows])
    claims = [
        {"group": "non_reasoning", "first": "grpo"},
        {"group": "non_reasoning", "first": "off_policy_sft", "second": "grpo"},
        {"group": "math", "first": "grpo", "second": "grpo"},
    ]
    found = compute_transfer(changed(study, analysis={"claims": claims}), study).analysis.claims
    assert [claim.verdict for claim in found] == ["supported", "contradicted", "undecided"]
    assert found[0].difference.estimate == 100
    assert found[2].difference.dump() == {"estimate": 0, "low": 0, "high": 0}
    for claim, message in (
        ({"group": "law", "first": "grpo"}, "analysis.claims names the group 'law'"),
        ({"group": "math", "first": "ppo"}, "analysis.claims names 'ppo', which is neither base nor an arm"),
    ):
        with pytest.raises(UserError, match=message):
            changed(study, analysis={"claims": [claim]})
    with pytest.raises(UserError, match=r"`analysis.reading` is 'robst'; there are native, paper, robust"):
        changed(study, analysis={"reading": "robst"})


def test_everything_truncated_and_a_base_of_zero_are_said(study):
    path = study / "eval" / GRPO / "fact-native" / "scores-robust.parquet"
    rows = read_scores(path)
    write_scores(path, [replace(row, value=0.0, outcome="truncated") for row in rows])
    path = study / "eval" / "base" / "story-native" / "scores-robust.parquet"
    rows = read_scores(path)
    write_scores(path, [replace(row, value=0.0, outcome="wrong") for row in rows])
    recipe = load_study(study)
    transfer = compute_transfer(recipe, study)
    said = "\n".join(found.message for found in transfer.warnings)
    assert "fact: every response of grpo was cut off at suite.max_response_tokens; its score says nothing" in said
    assert "story: the base scores zero, so gains relative to it are undefined" in said
    (cut,) = transfer.warnings_of("all_truncated", "grpo")
    assert cut.model == "grpo"
    assert cut.message.startswith("fact: every")
    assert transfer.warnings_of("all_truncated", "off_policy_sft") == []
    zero = [found for found in transfer.warnings if "the base scores zero" in found.message]
    assert transfer.warnings_of("base_scores_zero", "grpo") == zero
    page = render_page(transfer, recipe, draw_figures(transfer, training_curves(recipe, study), {}), {})
    assert "every response of grpo was cut off" in page


def test_without_a_gain_the_index_is_one_sentence(smoke_study, smoke_transfer):
    recipe = load_study(smoke_study)

    def page(low):
        transfer = Transfer.model_validate(smoke_transfer)
        for result in transfer.arms.values():
            gain = result.groups["math"]
            result.groups["math"] = gain.model_copy(update={"low": low})
        drawn = draw_figures(transfer, training_curves(recipe, smoke_study), {})
        text = render_page(transfer, recipe, drawn, {})
        return text[text.index('<h2 id="index">') : text.index('<h2 id="scores">')]

    said = "<p>Not identified for any method: none has a gain on math that can be told from zero.</p>"
    assert page(-1.0).replace('<h2 id="index">Transfer index</h2>', "").strip() == said
    assert said not in page(1.0) and "<th>literal</th>" in page(1.0)


def test_a_report_on_one_model_has_its_scores_and_no_empty_tables(smoke_study, smoke_transfer):
    alone = {"arms": {}, "contrasts": [], "settings": {}, "budget": {}, "warnings": [], "certificate": None}
    transfer = Transfer.model_validate(smoke_transfer | alone)
    for reading in transfer.readings.values():
        reading.arms.clear()
    transfer = transfer.model_copy(update={"guess_level": {"logic": 50.0}})
    scores = {}
    for name, result in transfer.base.benchmarks.items():
        interval = f"{result.score.estimate:.1f} [{result.score.low:.1f}, {result.score.high:.1f}]"
        scores[name] = interval
    assert format_report(transfer).split("\n\n") == [
        "smoke: one model\nScores of the base alone: there is no other model to compare it with.",
        "\n".join(
            [
                "scores in percent, 95 % intervals",
                "benchmark                       base",
                *(f"{name:<14}{interval:>22}" for name, interval in scores.items()),
                "guessing scores 50.0 on logic",
            ]
        ),
    ]
    recipe = load_study(smoke_study)
    summary = render_summary(transfer)
    assert f"| logic | {scores['logic']} |" in summary and "Guessing scores 50.0 on logic." in summary
    assert "## Arms" not in summary and "Transfer index" not in summary and "matched" not in summary
    page = render_page(transfer, recipe, draw_figures(transfer, {}, {}), {})
    assert "Scores of the base alone" in page and f"<td>{scores['logic']}</td>" in page
    for left_out in ("The methods, one by one", 'id="index"', "Gains by benchmark", 'href="#gains"', "Gain of every"):
        assert left_out not in page
