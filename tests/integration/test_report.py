"""The report page: its numbers are those of transfer.json, its sentences follow from them, and wandb has it too."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval.report.build import training_curves
from eval.report.examples import _response as shown_response
from eval.report.page import draw_figures, render_page, render_summary
from eval.report.schema import Transfer
from eval.report.verdict import cards, certainty, headline, method_of
from eval.scorers.records import Response as StoredResponse
from recipes.files import hash_json
from recipes.loading import load_study
from tests.conftest import ANALYSED
from tests.paths import SMOKE
from tests.support.reports import arm_values, gain_shown, make_transfer


class Tables(HTMLParser):
    """Every table of a page as rows of cell texts, under the heading before it."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.heading, self.found, self.rows, self.cell, self.inside = "", {}, None, None, None

    def handle_starttag(self, tag, attributes):
        if tag in ("h2", "h3", "summary"):
            self.inside, self.heading = tag, ""
        elif tag == "table":
            self.rows = []
            self.found.setdefault(self.heading.strip(), []).append(self.rows)
        elif tag == "tr" and self.rows is not None:
            self.rows.append([])
        elif tag in ("td", "th") and self.rows is not None:
            self.cell = ""

    def handle_data(self, data):
        if self.inside:
            self.heading += data
        elif self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag == self.inside:
            self.inside = None
        elif tag in ("td", "th") and self.cell is not None:
            self.rows[-1].append(self.cell.strip())
            self.cell = None
        elif tag == "table":
            self.rows = None


@pytest.fixture(scope="module")
def page(analysed_study):
    return (analysed_study / "report" / "index.html").read_text()


@pytest.fixture(scope="module")
def tables(page):
    parser = Tables()
    parser.feed(page)
    return parser.found


def nats(value):
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def words(name):
    """Names as the page writes them: the recipe's, with the field's own spelling."""
    spelling = {
        "non_reasoning": "non-reasoning",
        "off_policy_sft": "off-policy SFT",
        "on_policy_sft": "on-policy SFT",
        "grpo": "GRPO",
    }
    return spelling.get(name, name.replace("_", " "))


def test_gains_scores_and_differences_are_those_of_transfer_json(tables, analysed_transfer):
    t = analysed_transfer
    (gains, *_) = tables["What each method gained and lost"]
    assert gains[1:] == [[words(a), *(gain_shown(r["groups"][g]) for g in t["groups"])] for a, r in t["arms"].items()]
    (pairs,) = tables["Differences between the methods"]
    assert [row[1:] for row in pairs[1:]] == [[gain_shown(p["groups"][g]) for g in t["groups"]] for p in t["contrasts"]]
    (scores,) = tables["Scores"]
    shown = [row for row in scores[1:] if len(row) > 1]
    for row, name in zip(shown, [name for names in t["groups"].values() for name in names], strict=True):
        found = [r["benchmarks"][name]["score"] for r in t["arms"].values()]
        base = t["base"]["benchmarks"][name]["score"]["estimate"]
        expected = [f"{s['estimate']:.1f} [{s['low']:.1f}, {s['high']:.1f}]" for s in found]
        assert row == [words(name), str(t["questions"][name]), f"{base:.1f}", *expected]


def test_trajectories_are_those_of_transfer_json(tables, analysed_transfer):
    t = analysed_transfer["trajectory"]
    (rows,) = tables["All checkpoints in numbers"]
    expected = [
        [words(arm) if place == 0 else "", str(step)]
        + [gain_shown(found["gains"][group][place]) for group in ("heldout", *t["groups"])]
        + [_shown(name, found["axes"][name][place]) for name in AXES]
        for arm, found in t["arms"].items()
        for place, step in enumerate(found["steps"])
    ]
    assert rows[1:] == expected
    assert len(expected) == 3 * 4


AXES = ("kl_from_base", "kl_to_base", "generated_tokens", "trained_tokens", "flops")


def _shown(axis, value):
    """Tokens whole, FLOPs with an exponent, nats with four digits."""
    return f"{value:,.0f}" if "tokens" in axis else f"{value:.3e}" if axis == "flops" else f"{value:.4g}"


def test_shifts_are_those_of_transfer_json(tables, analysed_transfer):
    t = analysed_transfer["diagnostics"]
    (layers,) = tables["Every level, measure and pooling in numbers"]
    expected = [
        [words(arm), words(group), words(pooling), words(measure)]
        + ["–" if v is None else nats(v) if isinstance(v, dict) else f"{v:.3f}" for v in levels]
        for arm, found in t["arms"].items()
        for group, poolings in found["layers"].items()
        for pooling, measures in poolings.items()
        for measure, levels in measures.items()
    ]
    assert layers[1:] == expected
    (every,) = tables["Every kind of text and both averages in numbers"]
    names = ("kl_to_base", "kl_from_base", "rank_shift", "log_ratio", "entropy_tuned", "entropy_base")
    assert [row[4:] for row in every[1:]] == [
        [nats(measures[name][way]) for name in names]
        for found in t["arms"].values()
        for groups in found["tokens"].values()
        for measures in groups.values()
        for way in ("per_token", "per_response")
    ]
    shifted, *_ = tables["Which tokens are shifted"]
    for row, found in zip(shifted[1:], t["arms"].values(), strict=True):
        s = found["shifted"]
        numbers = [
            found["own_tokens"],
            s["tokens"],
            s["different"],
            *(s["by_kind"][k] for k in ("connective", "content", "format")),
        ]
        assert row[1:7] == [f"{number:,}" for number in numbers]


def test_the_budget_is_that_of_transfer_json(tables, analysed_transfer, analysed_study):
    hours = json.loads((analysed_study / "report" / "hours.json").read_text())
    (rows,) = tables["Budget"]
    budget = analysed_transfer["budget"]
    assert rows[0][1:] == [words(arm) for arm in budget]
    keys = ("presented_problems", "contributed_problems", "exposures", "completions", "correct_completions",
            "generated_tokens", "trained_tokens")  # fmt: skip
    assert [row[1:] for row in rows[1:8]] == [[f"{b[key]:,}" for b, *_ in budget.values()] for key in keys]
    assert rows[-1][1:] == [f"{hours[arm]['hours']:.2g}" for arm in budget]


def test_the_certificate_says_what_was_shared(tables, analysed_transfer, analysed_study):
    c = analysed_transfer["certificate"]
    assert c["presented"]["equal"] is True
    assert c["shared"]["steps"] == 4
    manifest = json.loads((analysed_study / "arms" / "grpo" / "seed-0" / "manifest.json").read_text())
    # Not of the weights: models of equal weights differ in their other files.
    assert c["shared"]["base, all files (sha256)"] == manifest["inputs"]["output of base"][:16]
    base = json.loads((analysed_study / "base" / "manifest.json").read_text())
    assert hash_json(base["outputs"]) == manifest["inputs"]["output of base"]
    assert {"model.safetensors", "config.json", "tokenizer.json"} < base["outputs"].keys()
    (hashes,) = tables["Models and responses behind every score (sha256)"]
    assert hashes[0] == ["model", "model, all files", "responses"]
    assert hashes[1][:2] == ["base", manifest["inputs"]["output of base"][:16]]
    assert c["shared"]["corpus (sha256)"] == manifest["inputs"]["output of corpus"][:16]
    assert c["differs"]["sampling"] == {"off_policy_sft": "teacher", "on_policy_sft": "current", "grpo": "current"}
    rows = {row[0]: row[1:] for row in tables["Matched-arms certificate"][0][1:]}
    assert rows["sampling"] == ["teacher", "current", "current"]
    assert rows["steps"] == ["4 (all)"]


def test_examples_are_stored_responses(analysed_study, analysed_transfer):
    from eval.responses.units import open_units

    recipe = load_study(analysed_study)
    stage = analysed_study / "eval" / "grpo-seed0-final"
    stored = {u.benchmark.name: u.rows() for u in open_units(recipe, analysed_study, stage, "arms/grpo/seed-0/final")}
    assert {e["benchmark"] for e in analysed_transfer["examples"]} == set(stored)
    for example in analysed_transfer["examples"]:
        (row,) = (r for r in stored[example["benchmark"]] if r.question_id == example["question_id"])
        assert example["responses"]["grpo"]["text"] == row.responses[0]
        assert example["prompt"] == row.prompt
    first = [e["question_id"] for e in analysed_transfer["examples"] if e["why"] == "the first by its hash"]
    assert first == [min(r.question_id for r in rows) for rows in stored.values()]


def test_thinking_that_the_prompt_opened_is_not_shown_as_the_answer():
    row = StoredResponse("q", opens_thinking=True, responses=("It never",), tokens=(2,))
    assert shown_response(row, "truncated").dump() == {"thinking": "It never", "text": "", "outcome": "truncated"}


def result(math, other, non):
    def gain(value):
        return {"estimate": value, "low": value - 1, "high": value + 1}

    return arm_values({"math": gain(math), "other_reasoning": gain(other), "non_reasoning": gain(non)})


def study_of(arms, **more):
    def difference(first, second, group):
        middle = arms[first]["groups"][group]["estimate"] - arms[second]["groups"][group]["estimate"]
        return {"estimate": middle, "low": middle - 1, "high": middle + 2}

    names = list(arms)
    contrasts = [
        {
            "first": first,
            "second": second,
            "groups": {g: difference(first, second, g) for g in arms[first]["groups"]},
            "benchmarks": {},
            "index": {},
        }
        for place, first in enumerate(names)
        for second in names[place + 1 :]
    ]
    return make_transfer(**{"arms": arms, "contrasts": contrasts, "seeds": [0]} | more)


def test_the_headline_by_hand():
    arms = {"sft": result(36, -48, -81), "grpo": result(39, 8, -3), "random": result(0.5, -1, -1)}
    assert headline(study_of(arms)) == [
        # The limit is what the worst group may have lost, by the lower bound.
        "Ship GRPO if a loss of 4.0 points in a group of benchmarks is acceptable; otherwise keep the base.",
        "GRPO gained +39.0 [+38.0, +40.0] points on math.",
        "Of the other groups non-reasoning may have lost most: its change is -3.0 [-4.0, -2.0], a loss.",
        "SFT may have lost 82.0 points: it lost 81.0 [80.0, 82.0] on non-reasoning, 78.0 [76.0, 79.0] more than GRPO.",
        "No gain that can be told from zero: random.",
    ]
    assert headline(study_of({"random": result(0.5, 0, 0)}))[0] == (
        "Keep the base: no method has a gain on math that can be told from zero."
    )
    assert headline(study_of({"grpo": result(39, 8, 3)}))[0] == (
        "Ship GRPO: it gained on math and no group lost anything."
    )


def test_certainty_names_what_the_intervals_do_not_know():
    arms = {"grpo": result(39, 8, -3)}
    assert certainty(study_of(arms)) == [
        "95 % intervals over questions. One training seed: another, or another kind of CPU or GPU, may differ by more "
        "than they say."
    ]
    assert certainty(study_of(arms, seeds=[0, 1, 2]))[0] == "95 % intervals over questions and 3 training seeds."
    unmatched = certainty(study_of(arms, status="UNMATCHED", differences=["a", "b"]))
    assert unmatched[0] == "UNMATCHED: the arms differ in 2 further settings, listed below."


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampling": "teacher", "credit": "uniform"}, "a teacher's text, weight 1 if correct"),
        ({"sampling": "current", "credit": "advantage", "negatives": True, "beta": 0.04},
         "its own samples of every step, weighted by advantage, KL 0.04"),
        ({"sampling": "round", "credit": "advantage", "negatives": False},
         "its own samples, drawn in rounds, weighted by advantage, positive ones only"),
        ({"external": {"path": "x"}}, "trained elsewhere"),
    ],
)  # fmt: skip
def test_methods_in_words(settings, said):
    assert method_of(settings) == said


def test_the_cards_and_the_summary_say_the_same_numbers(analysed_transfer, analysed_study, page):
    summary = (analysed_study / "report" / "summary.md").read_text()
    for card in cards(Transfer.model_validate(analysed_transfer)):
        assert card.gain in page
        assert card.gain in summary
    assert analysed_transfer["versions"]["torch"] in summary
    arms = analysed_transfer["diagnostics"]["arms"]
    assert nats(arms["grpo"]["tokens"]["own_samples"]["math"]["kl_to_base"]["per_token"]) in summary
    hostile = render_summary(Transfer.model_validate(analysed_transfer | {"title": "a | b"}))
    assert hostile.startswith("# a | b")


def test_every_figure_is_written_in_both_formats(analysed_study, page):
    figures = {path.name for path in (analysed_study / "report" / "figures").iterdir()}
    names = {"tradeoff", "gains", "index", "scores", "curves", "layers", "kl", "histograms", "words"}
    names |= {
        f"forgetting-{axis}"
        for axis in (
            "trained_gain",
            "kl_from_base",
            "kl_to_base",
            "generated_tokens",
            "trained_tokens",
            "flops",
            "gpu_hours",
        )
    }
    assert figures == {f"{name}.{end}" for name in names for end in ("svg", "png")}
    # Nothing is fitted on the KL of this study, whose losses are noise.
    assert "no checkpoint has a loss that can be told from zero" in page
    assert page.count("<svg") == len(names)
    assert not re.search(r"<(script|link|img|iframe)|@import|url\((?!#)|(src|href)=\"(?!#)|\son\w+=", page)


def test_an_unmatched_study_says_so_first(analysed_study, analysed_transfer):
    changes = {"status": "UNMATCHED", "differences": ["train.steps: 4 and 5"]}
    transfer = Transfer.model_validate(analysed_transfer | changes)
    recipe = load_study(analysed_study)
    page = render_page(transfer, recipe, draw_figures(transfer, training_curves(recipe, analysed_study), {}), {})
    head = page[: page.index('id="gains"')]
    assert '<span class="status UNMATCHED">UNMATCHED</span>' in head
    assert "train.steps: 4 and 5" in head
    assert "They differ in more:" in page


def test_a_study_without_analysis_has_the_same_page_without_it(smoke_study, smoke_transfer):
    assert smoke_transfer["trajectory"] is None
    assert smoke_transfer["diagnostics"] is None
    page = (smoke_study / "report" / "index.html").read_text()
    assert 'id="forgetting"' not in page
    assert 'id="layers"' not in page
    assert 'id="certificate"' in page


def test_wandb_has_the_study_as_a_run_and_sync_makes_all_runs_again(
    analysed_study, analysed_transfer, transfer, tmp_path
):
    from tests.integration.test_tracking import history_of, records_of

    (offline,) = (analysed_study / "report" / "wandb").glob("offline-run-*")
    summary = {}
    for record in records_of(next(offline.glob("*.wandb"))):
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    gain = analysed_transfer["arms"]["grpo"]["groups"]["math"]
    assert summary["grpo/gain/math"] == gain["estimate"]
    assert summary["grpo/gain/math/low"] == gain["low"]
    assert summary["status"] == "matched"
    media = {path.name.rpartition("_")[0].rpartition("_")[0] for path in offline.rglob("*.png")}
    assert {"gains", "layers", "words"} <= media

    study = tmp_path / "study"
    shutil.copytree(analysed_study, study, ignore=shutil.ignore_patterns("wandb"))
    result = transfer("sync", study, "--offline", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout) == ["off_policy_sft-seed0", "on_policy_sft-seed0", "grpo-seed0", "report"], (
        result.stderr
    )
    (run,) = (study / "arms" / "grpo" / "seed-0" / "wandb").glob("offline-run-*")
    shown = history_of(next(run.glob("*.wandb")))
    rows = [
        json.loads(line) for line in (study / "arms" / "grpo" / "seed-0" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [json.loads(row["reward"]) for row in shown if "reward" in row] == [
        row["reward"] for row in rows if "reward" in row
    ]


def test_sync_without_a_key_says_what_is_missing(analysed_study, transfer, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    result = transfer("sync", analysed_study)
    assert result.returncode == 2
    assert result.stderr == (
        "transfer: there is no key for Weights & Biases; set WANDB_API_KEY or run `wandb login`, or say --offline\n"
    )
    assert "does not exist; `transfer run` makes it" in transfer("sync", Path("/nonexistent")).stderr


MATH_ALONE = "suite.benchmarks=[{name: sum, group: math, scorings: {paper: last_box_text, robust: boxed}}]"


@pytest.mark.slow
@pytest.mark.faults
def test_a_suite_with_no_group_but_math_has_a_report_too(analysed_study, transfer, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(analysed_study, study, ignore=shutil.ignore_patterns("report", "analysis.lock", "wandb"))
    result = transfer("run", SMOKE, "--out", study, *ANALYSED[:-1], MATH_ALONE)
    assert result.returncode == 0, result.stdout + result.stderr
    page = (study / "report" / "index.html").read_text()
    assert "no other group" in page
    assert 'id="axis-1"' in page
    assert "forgetting-math" not in {path.stem for path in (study / "report" / "figures").iterdir()}
    picked = transfer("pick", study)
    assert picked.returncode == 2
    assert "the suite has no group but math" in picked.stderr


def test_names_of_arms_that_are_words_of_the_template(analysed_study, analysed_transfer):
    """An arm may be called as a method of dictionaries is."""
    text = json.dumps(analysed_transfer).replace("on_policy_sft", "copy").replace("off_policy_sft", "items")
    t = Transfer.model_validate_json(text)
    recipe = load_study(analysed_study)
    page = render_page(t, recipe, draw_figures(t, training_curves(recipe, analysed_study), {}), {})
    assert "<td>copy</td>" in page
    assert "<td>items</td>" in page
