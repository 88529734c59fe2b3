"""Tests, corrections, pass@k, power and the published audit: by hand and against other computations."""

import json
from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy import stats

from eval.published.audit import published_models, recompute
from eval.published.compare import compare_with_published, format_comparison, match_models
from eval.report.gate import judge
from eval.report.power import Spread, detectable
from eval.report.results import outcome_change
from eval.responses.readings import pass_at_k
from eval.statistics.bootstrap import ArmScores, BenchmarkScores, draw_scores
from eval.statistics.inference import contrast_interval, gain_p_value, holm, linear_interval, weights_of
from eval.statistics.transfer_index import MATH
from launch.commands.main import main
from recipes.errors import UserError
from tests.support.reports import arm_values, base_values, estimate, make_transfer, reading


def test_holm_by_hand():
    # Sorted .01 .02 .04 .5 times 4 3 2 1 is .04 .06 .08 .5, never falling.
    assert holm([0.04, 0.01, 0.5, 0.02]) == pytest.approx([0.08, 0.04, 0.5, 0.06])
    assert holm([0.03, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def paired(questions=400, gain=0.1, seed=0, loss=0.0):
    rng = np.random.default_rng(seed)
    base = (rng.random(questions) < 0.5).astype(float)
    arm = np.where((base == 0) & (rng.random(questions) < 2 * gain), 1.0, base)
    arm = np.where((base == 1) & (rng.random(questions) < 2 * loss), 0.0, arm)
    return BenchmarkScores("a", MATH, 100 * np.stack([base, arm], axis=1))


def test_interval_of_a_gain_is_that_of_the_paired_differences():
    scores = paired()
    found = linear_interval(draw_scores([scores], {"arm": [1]}, 20000, 0)["arm"], weights_of([0], 1))
    differences = scores.score_QM[:, 1] - scores.score_QM[:, 0]
    half = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    assert [found.low, found.high] == pytest.approx([differences.mean() - half, differences.mean() + half], abs=0.3)
    same = draw_scores([paired(gain=0.0)], {"base": [0], "arm": [1]}, 10000, 0)
    assert linear_interval(same["base"], weights_of([0], 1)) == (0, 0, 0)  # the base itself
    interval = linear_interval(same["arm"], weights_of([0], 1))  # another model that answers alike
    assert (interval.low, interval.high) == pytest.approx((-0.49, 0.49), abs=0.1)


def test_p_value_of_a_difference_has_the_seeds_of_both_arms_by_hand():
    def arm(score, drawn, seed_variance, seeds):
        columns = np.array([[value] for value in drawn])
        base = np.full((2, 1), 40.0)
        return ArmScores(
            np.array([40.0]), np.array([score]), base, columns, columns, np.array([[seed_variance]]), seeds,
            np.array([1001]),
        )  # fmt: skip

    first, second = arm(60.0, (61.0, 59.0), 2.0, 2), arm(50.0, (50.0, 50.0), 4.0, 3)
    # Differences of 11 and 9 vary by 2, which is widened for Student's tails; the seeds' means vary by 2 and 4.
    questions = 2 / (stats.t.ppf(0.975, 1000) / stats.norm.ppf(0.975)) ** 2
    variance = questions + 2 + 4
    freedom = variance**2 / (questions**2 / 1000 + 2**2 / 1 + 4**2 / 2)
    expected = 2 * stats.t.sf(10 / variance**0.5, freedom)
    assert gain_p_value(first, second, weights_of([0], 1)) == pytest.approx(expected, rel=1e-6)


def test_p_value_of_a_single_model_is_the_paired_t_test():
    for gain, loss, seed in ((0.07, 0.05, 1), (0.05, 0.06, 2), (0.0, 0.0, 3)):
        scores = paired(gain=gain, seed=seed, loss=loss)
        drawn = draw_scores([scores], {"base": [0], "arm": [1]}, 40000, 0)
        expected = stats.ttest_rel(scores.score_QM[:, 1], scores.score_QM[:, 0]).pvalue
        found = gain_p_value(drawn["arm"], drawn["base"], weights_of([0], 1))
        if gain == 0:
            assert found == 1.0  # nothing differs anywhere
        else:
            assert found == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_p_value_of_few_questions_does_not_depend_on_the_confidence(confidence):
    rng = np.random.default_rng(12)
    base = rng.integers(0, 5, 20) / 4
    scores = BenchmarkScores(
        "a", MATH, 100 * np.stack([base, np.clip(base + rng.integers(-2, 3, 20) / 4, 0, 1)], axis=1)
    )
    drawn = draw_scores([scores], {"base": [0], "arm": [1]}, 40000, 0, confidence)
    expected = stats.ttest_rel(scores.score_QM[:, 1], scores.score_QM[:, 0]).pvalue
    assert gain_p_value(drawn["arm"], drawn["base"], weights_of([0], 1)) == pytest.approx(expected, rel=0.1)


def test_p_value_over_seeds_has_the_degrees_of_freedom_of_the_seeds():
    """Seeds that differ by far more than questions explain: a one-sample t test of three numbers."""
    rng = np.random.default_rng(4)
    questions = 4000
    base = (rng.random(questions) < 0.5).astype(float)
    seeds = [np.where(rng.random(questions) < share, 1.0, base) for share in (0.1, 0.3, 0.5)]
    scores = BenchmarkScores("a", MATH, 100 * np.stack([base, *seeds], axis=1))
    drawn = draw_scores([scores], {"base": [0], "arm": [1, 2, 3]}, 4000, 0)
    gains = scores.means()[1:] - scores.means()[0]
    expected = stats.ttest_1samp(gains, 0).pvalue
    assert gain_p_value(drawn["arm"], drawn["base"], weights_of([0], 1)) == pytest.approx(expected, rel=0.1)


def test_contrast_of_arms_is_the_difference_of_their_gains():
    rng = np.random.default_rng(5)
    accuracy = 100 * rng.integers(0, 2, (300, 3)).astype(float)
    drawn = draw_scores([BenchmarkScores("a", MATH, accuracy)], {"x": [1], "y": [2]}, 3000, 0)
    weight = weights_of([0], 1)
    difference = contrast_interval(drawn["x"], drawn["y"], weight)
    gains = [linear_interval(drawn[arm], weight).estimate for arm in ("x", "y")]
    assert difference.estimate == pytest.approx(gains[0] - gains[1])
    paired_t = stats.ttest_rel(accuracy[:, 1], accuracy[:, 2]).confidence_interval(0.95)
    assert [difference.low, difference.high] == pytest.approx([paired_t.low, paired_t.high], abs=0.5)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 2, 2), (5, 1, 3), (6, 6, 2), (6, 0, 4), (3, 2, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_response(samples, correct, k):
    outcomes = [True] * correct + [False] * (samples - correct)
    share = np.mean([any(subset) for subset in combinations(outcomes, k)])
    found = pass_at_k(np.array([correct]), np.array([samples]), k)
    assert found == pytest.approx(100 * share)
    assert found == pytest.approx(100 * (1 - comb(samples - correct, k) / comb(samples, k)))


def test_pass_at_k_averages_questions_and_pass_at_1_is_the_mean():
    correct, samples = np.array([0, 3, 8]), np.array([8, 8, 8])
    assert pass_at_k(correct, samples, 1) == pytest.approx(100 * 11 / 24)
    assert pass_at_k(correct, samples, 8) == pytest.approx(100 * 2 / 3)
    with pytest.raises(ValueError, match="pass@9 needs 9 responses"):
        pass_at_k(correct, samples, 9)


def test_change_of_outcomes_is_in_points_of_all_responses():
    before, after = {"correct": 6, "wrong": 4}, {"correct": 5, "truncated": 10, "wrong": 5}
    assert outcome_change(before, after) == {"correct": -35.0, "truncated": 50.0, "wrong": -15.0}


def test_detectable_difference_by_hand():
    spread = Spread(100, 0.09, 0.12, False)
    # One response, one seed: (0.09 + 0.24) / 100 is a standard error of 5.745 points.
    error = np.sqrt(0.33 / 100)
    expected = 100 * error * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
    assert detectable([spread], 1, 1, 0.0, 0.8) == pytest.approx(expected)
    # Greedy decoding draws nothing: more samples are the same sample.
    greedy = Spread(100, 0.09, 0.12, False, True)
    assert detectable([greedy], 16, 1, 0.0, 0.8) == detectable([spread], 1, 1, 0.0, 0.8)
    # Two such benchmarks: the mean of both has half the variance.
    assert detectable([spread, spread], 1, 1, 0.0, 0.8) == pytest.approx(expected / np.sqrt(2))
    # Seeds that spread by 3 points around endless questions: sqrt(9 / 3) with two degrees of freedom.
    endless = Spread(10**9, 0.09, 0.12, False)
    expected = np.sqrt(3) * (stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2))
    assert detectable([endless], 1, 3, 3.0, 0.8) == pytest.approx(expected, rel=1e-3)


def test_detectable_difference_is_detected_as_often_as_promised():
    """Simulated studies with a true gain of that size."""
    rng = np.random.default_rng(6)
    questions, samples = 300, 4
    chance = rng.beta(2, 2, questions)
    spread = Spread(questions, 0.0, float((chance * (1 - chance)).mean()), False)
    wanted = detectable([spread], samples, 1, 0.0, 0.8) / 100
    found = 0
    for _ in range(2000):
        base = rng.binomial(samples, chance) / samples
        tuned = rng.binomial(samples, np.clip(chance + wanted, 0, 1)) / samples
        found += stats.ttest_rel(tuned, base).pvalue < 0.05
    assert found / 2000 == pytest.approx(0.8, abs=0.05)


def test_published_indices():
    rows = {row["model"]: row for row in recompute()}
    assert len(rows) == 18
    for name, other, non in (
        ("UniReason SFT-think", 52.2, -104.1),
        ("UniReason SFT-no-think", 165.4, -278.9),
        ("UniReason RL", 82.3, 52.2),
    ):
        assert rows[name]["recomputed"]["paper"] == {"other_reasoning": other, "non_reasoning": non}
        assert rows[name]["published"] == {"other_reasoning": other, "non_reasoning": non}
    off = {name for name, row in rows.items() if not row["reproduces"]}
    assert off == {
        "OpenThinker3-7B",
        "General-Reasoner-Qwen3-14B (SFT)",
        "General-Reasoner-Qwen3-14B (RL)",
        "DAPO-Qwen-32B",
        "Llama3.1-8B-SimpleRL",
    }
    assert rows["General-Reasoner-Qwen3-14B (RL)"]["off"] == ["other_reasoning", "non_reasoning"]
    # The printed formula gives other values: for the RL model +71.0 and +84.1.
    assert rows["UniReason RL"]["recomputed"]["literal"] == {"other_reasoning": 71.0, "non_reasoning": 84.1}


def test_published_scores_average_to_the_printed_group_means():
    """Table 1 prints group means beside the scores; a typing error in our copy would show here."""
    printed = {
        "UniReason SFT-think": (49.8, 45.3, 21.1),
        "UniReason SFT-no-think": (32.3, 44.1, 29.0),
        "UniReason RL": (53.8, 51.0, 53.2),
    }
    models = {model.name: model for model in published_models()}
    groups = (
        ("math500", "aime24", "aime25", "olympiadbench"),
        ("livecodebench", "gpqa", "acpbench", "headqa"),
        ("coqa", "ifeval", "halueval", "mctaco"),
    )
    for name, means in printed.items():
        for members, mean in zip(groups, means, strict=True):
            assert np.mean([models[name].scores[b] for b in members]) == pytest.approx(
                mean, abs=0.1
            )  # both are rounded
    base = models["UniReason RL"].base_scores
    assert [np.mean([base[b] for b in m]) for m in groups] == pytest.approx([27.7, 30.2, 45.7], abs=0.1)


def report(score, low, high, questions=30):
    base = base_values({"aime24": estimate(13.0, 10.0, 16.0)})
    arm = arm_values({}, {"aime24": estimate(score, low, high)})
    return make_transfer(
        clusters={"aime24": questions}, arms={"sft_think": arm}, readings={"paper": reading(base, {"sft_think": arm})}
    )


@pytest.mark.parametrize(("score", "verdict"), [(22.0, "differs"), (45.0, "too uncertain")])
def test_comparison_with_the_published_score(score, verdict):
    """52.0 on 30 questions has a standard error of 9.1 points: ± 18 at least."""
    cells = compare_with_published(report(score, score - 3, score + 3), {"sft_think": "UniReason SFT-think"})
    (cell,) = [cell for cell in cells if cell.model == "sft_think"]
    assert cell.verdict == verdict
    assert cell.published == 52.0
    expected = stats.norm.ppf(0.975) * np.sqrt((6 / 2 / 1.959964) ** 2 + 52 * 48 / 30)
    assert cell.half_width == pytest.approx(expected, abs=0.01)
    assert cell.replications == [22, 24]


def test_comparison_agrees_within_the_margin():
    transfer = report(52.3, 52.0, 52.6, questions=10**5)
    cells = compare_with_published(transfer, {"sft_think": "UniReason SFT-think"})
    assert [cell.verdict for cell in cells] == ["agrees", "agrees"]
    first, unit, empty, head, *rows = format_comparison(cells).splitlines()
    agree = "2 of 2 scores agree with the published ones within 5 points"
    assert first == f"{agree}, 0 differ, 0 have too wide intervals to say"
    assert (unit.startswith("scores in points"), empty, head.split()[:2]) == (True, "", ["model", "benchmark"])
    assert [row.split()[:2] for row in rows] == [["base", "aime24"], ["sft_think", "aime24"]]


def test_arms_are_matched_to_published_models_by_name_or_as_given():
    assert match_models(["grpo", "sft_think"], {}) == {"sft_think": "UniReason SFT-think"}
    for name in ("rl", "UniReason RL"):
        assert match_models(["grpo"], {"grpo": name}) == {"grpo": "UniReason RL"}
    nothing = (
        "no arm is named like a published model (sft_think, sft_no_think or rl); say which one an arm is with "
        "--as ARM=rl, where ARM is one of grpo"
    )
    for given, expected in (
        ({}, nothing),
        ({"gpro": "rl"}, "'gpro' is not an arm of this study; did you mean grpo?"),
        ({"grpo": "UniReason RLL"}, "'UniReason RLL' is not a published model; did you mean UniReason RL?"),
    ):
        with pytest.raises(UserError) as refused:
            match_models(["grpo"], given)
        assert str(refused.value) == expected


def test_one_cluster_says_nothing_about_significance():
    """All questions share one context, or there is one question: a gain of 67 or 100 points and no p-value of zero."""
    shared = BenchmarkScores("a", MATH, np.array([[0.0, 100.0], [0.0, 0.0], [0.0, 100.0]]), np.array(["c"] * 3))
    single = BenchmarkScores("b", MATH, np.array([[0.0, 100.0]]))
    clear = BenchmarkScores("c", MATH, np.tile([0.0, 100.0], (50, 1)))
    drawn = draw_scores([shared, single, clear], {"base": [0], "arm": [1]}, 500, 0)
    p_values = [
        gain_p_value(drawn["arm"], drawn["base"], weights_of(members, 3)) for members in ([0], [1], [0, 2], [2])
    ]
    assert p_values[:3] == [1.0, 1.0, 1.0]
    assert p_values[3] < 1e-6


def test_gate_names_a_loss_that_is_more_than_the_limit():
    arm = arm_values({"math": estimate(5, 3, 7), "other": estimate(-0.5, -2.04, 1.0)})
    passed, (sentence,) = judge(make_transfer(arms={"m": arm}), "m", 2.0)
    assert not passed
    assert "may have lost up to 2.1 points on other" in sentence


def test_gate_says_where_there_is_no_gain_and_warns_about_the_arms_it_judges(tmp_path, capsys):
    quiet = estimate(0, -2, 2)
    arms = {
        "good": arm_values({"math": estimate(5, 3, 7), "other": quiet}),
        "none": arm_values({"math": estimate(1, -1, 3), "other": quiet}),
        "idle": arm_values({"math": estimate(5, 3, 7), "other": quiet}),  # where it started
    }
    warnings = [
        {"code": "nothing_learned", "message": "idle: seed 0", "model": "idle"},
        {"code": "few_questions", "message": "none: few", "model": "none"},
        {"code": "few_questions", "message": "all: few"},
        {"code": "few_questions", "message": "all: few"},
    ]
    (tmp_path / "report").mkdir()
    values = make_transfer(arms=arms, warnings=warnings, seeds=[0]).model_dump_json()
    (tmp_path / "report" / "transfer.json").write_text(values)
    none = "none has no gain on math that can be told from zero (+1.0 [-1.0, +3.0]); gate judges losses only"
    idle = "idle learned nothing: none of its steps had a gradient; gate judges losses only"
    for arm, note, warned in (("good", None, []), ("none", none, ["none: few"]), ("idle", idle, ["idle: seed 0"])):
        for limit, status in (("2", 0), ("1.9", 1)):  # the note changes no verdict
            assert main(["gate", str(tmp_path), arm, "--max-drop", limit]) == status
            printed = capsys.readouterr()
            assert [line[6:] for line in printed.out.splitlines() if line.startswith("note")] == [note][: bool(note)]
            assert printed.err.splitlines() == [f"transfer: warning: {text}" for text in [*warned, "all: few"]]
    assert main(["gate", str(tmp_path), "--max-drop", "2", "--json"]) == 0
    assert {arm: said["note"] for arm, said in json.loads(capsys.readouterr().out).items()} == {
        "good": None, "none": none, "idle": idle,
    }  # fmt: skip


def test_gate_as_json_has_the_numbers_it_decides_by(tmp_path, capsys):
    """Each group passes alone where its lower end is no further below zero than the limit."""
    gains = {"math": estimate(5, 3, 7), "other": estimate(0, -2.06, 2), "facts": estimate(-1, -2, 0)}
    (tmp_path / "report").mkdir()
    values = make_transfer(arms={"grpo": arm_values(gains)}).model_dump_json()
    (tmp_path / "report" / "transfer.json").write_text(values)
    assert main(["gate", str(tmp_path), "--max-drop", "2", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "grpo": {
            "passed": False,
            "groups": {
                "math": {"estimate": 5, "low": 3, "high": 7, "limit": 2, "verdict": "pass"},
                "other": {"estimate": 0, "low": -2.06, "high": 2, "limit": 2, "verdict": "fail"},
                "facts": {"estimate": -1, "low": -2, "high": 0, "limit": 2, "verdict": "pass"},
            },
            "reasons": [
                "grpo may have lost up to 2.1 points on other (0.0 [-2.1, +2.0], 95 %); allowed are 2 "
                "(losses are rounded up)"
            ],
            "note": None,
        }
    }


def test_gate_looks_at_the_lower_end():
    arm = arm_values({"math": estimate(5, 3, 7), "other": estimate(-0.5, -1.9, 0.9)})
    # A warning of another kind does not decide, whatever its words.
    other = {"warnings": [{"code": "few_questions", "message": "b: its score says nothing"}]}
    transfer = make_transfer(arms={"m": arm}, **other)
    passed, (sentence,) = judge(transfer, "m", 2.0)
    assert passed
    assert "the least certain is other with -0.5 [-1.9, +0.9]" in sentence
    passed, (sentence,) = judge(transfer, "m", 1.8)
    assert not passed
    assert "may have lost up to 1.9 points on other" in sentence
    for model, passes in (("m", False), ("base", False), ("another arm", True)):
        silent = {"code": "all_truncated", "message": "b: no response is complete", "model": model}
        passed, sentences = judge(make_transfer(arms={"m": arm}, warnings=[silent]), "m", 100.0)
        assert passed == passes
        assert (sentences == [silent["message"]]) == (not passes)
