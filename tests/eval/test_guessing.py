"""What guessing scores, and what a report says of an arm that is not above it."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from eval.questions.guessing import guess_levels, letter_level
from eval.questions.records import Question
from eval.report import results
from eval.report.gate import without_gain
from eval.report.results import Reading
from eval.report.verdict import cards, flops_from_base, headline, hours_text, method_of, verdict
from eval.report.wording import axis_value
from eval.statistics.bootstrap import BenchmarkScores, draw_scores
from eval.statistics.inference import Interval, beyond_guessing
from recipes.loading import load_recipe
from tests.paths import ROOT
from tests.support.reports import RUN, arm_values, estimate, make_transfer


def asked(reference, **fields):
    return Question(f"{reference}{fields}", fields, reference)


def test_the_level_of_letters_is_that_of_the_options():
    four, two = ["a", "b", "c", "d"], ["a", "b"]
    assert letter_level([asked("A", options=four), asked("B", options=two)]) == 37.5
    # Other lists are not options; without a list the highest letter that is right somewhere counts.
    assert letter_level([asked("A", options=four, shots=[{"question": "?"}])]) == 25
    assert letter_level([asked("A", text="x"), asked("C", text="y")]) == pytest.approx(100 / 3)
    assert letter_level([asked("A"), asked("A")]) is None
    assert letter_level([asked("A", options=four), asked("seven", options=four)]) is None


def test_the_levels_of_a_suite(monkeypatch, tmp_path):
    """Of the twelve: GPQA has four options, HaluEval is yes or no; what is judged together has no level."""
    questions = {"acpbench": [asked("A", options=["x"] * 4)], "headqa": [asked("B", options=["x"] * 5)],
                 "mctaco": [asked("no", sentence="s", question="q", answer="a")]}  # fmt: skip
    monkeypatch.setattr("eval.questions.guessing.load_questions", lambda recipe, item, _: questions[item.name])
    recipe = load_recipe(ROOT / "recipes" / "qwen3-1.7b" / "matched.yaml")
    expected = {"gpqa": 25, "acpbench": 25, "headqa": 20, "halueval": 50}
    assert guess_levels(recipe, tmp_path, "robust") == expected
    assert guess_levels(recipe, tmp_path, "paper")["headqa"] == 20  # by likelihoods of the answers its task file lists


def arms_on_law(*columns):
    """Scores of the base and arms on 200 questions of law, all right or all wrong in blocks."""
    score_QM = np.stack([100.0 * (np.arange(200) < right) for right in columns], axis=1)
    scores = [BenchmarkScores("bar", "law", score_QM)]
    return scores, draw_scores(scores, {who: [k] for k, who in enumerate(("base", "a", "b"))}, 2000, 0)


def test_a_score_is_above_guessing_only_if_its_interval_is():
    _, drawn = arms_on_law(0, 50, 80)  # 25 and 40 points with four options
    level = {0: 25.0}
    assert beyond_guessing(drawn["a"], [0], level).estimate == 0
    assert beyond_guessing(drawn["a"], [0], level).low < 0
    better = beyond_guessing(drawn["b"], [0], level)
    assert better.estimate == pytest.approx(15)
    # The standard error of 40 % of 200 is 3.46 points.
    assert (better.low, better.high) == pytest.approx((15 - 1.96 * 3.46, 15 + 1.96 * 3.46), abs=0.8)
    assert beyond_guessing(drawn["b"], [0], {}).estimate == pytest.approx(40)  # without a level the gain


def test_the_warning_names_the_arm_and_the_level():
    reading = object.__new__(Reading)
    reading.benchmarks, reading.drawn = arms_on_law(0, 50, 80)
    reading.groups, reading.trained = {"law": [0]}, "law"
    reading.models = {"base": ["base"], "a": ["a"], "b": ["b"]}
    (warning,) = reading.guessing({"bar": 25.0})
    assert (warning.code, warning.model) == ("not_above_guessing", "a")
    assert reading.guessing({"another": 25.0}) == []


@pytest.mark.parametrize(
    ("right", "low", "high", "said"),
    [
        (
            20,
            -20.0,
            -10.0,
            "a is not above guessing on law (guessing gets: bar 25.0): 15.0 [10.0, 20.0] points below it",
        ),
        (
            48,
            -7.0,
            5.0,
            "a cannot be told from guessing on law (guessing gets: bar 25.0): 1.0 [-5.0, 7.0] points below",
        ),
        (
            52,
            -5.0,
            7.0,
            "a cannot be told from guessing on law (guessing gets: bar 25.0): 1.0 [-5.0, 7.0] points above",
        ),
    ],
)
def test_the_warning_says_on_which_side_of_guessing_the_score_is(monkeypatch, right, low, high, said):
    """Guessing gets 50 of 200; below it, and near it on either side. The interval is given."""
    reading = object.__new__(Reading)
    reading.benchmarks, reading.drawn = arms_on_law(0, right, right)
    monkeypatch.setattr(results, "beyond_guessing", lambda scores, *_: Interval(right / 2 - 25, low, high))
    reading.groups, reading.trained, reading.models = {"law": [0]}, "law", {"base": ["base"], "a": ["a"]}
    (warning,) = reading.guessing({"bar": 25.0})
    assert warning.message.startswith(said)
    assert warning.message.endswith(" it, so a gain may be the form of the answers alone")


def test_the_warning_says_what_its_mean_is_of(monkeypatch):
    """Guessing is known of one benchmark of two: 18.3 points below it and a gain of 0.2 are -9.05 on average."""
    reading = object.__new__(Reading)
    reading.benchmarks = [SimpleNamespace(name="exam"), SimpleNamespace(name="parts")]
    reading.drawn, reading.groups, reading.trained = {"a": None}, {"bikes": [0, 1]}, "bikes"
    reading.models = {"base": ["base"], "a": ["a"]}
    monkeypatch.setattr(results, "beyond_guessing", lambda scores, *_: Interval(-9.05, -12.5, -5.6))
    (warning,) = reading.guessing({"exam": 100 / 3})
    assert warning.message == (
        "a is not above guessing on bikes (guessing gets: exam 33.3; parts counts with the gain over the base): "
        "9.1 [5.6, 12.5] points below it on average, so a gain may be the form of the answers alone"
    )


def law(arms, **more):
    """`arms`: arm -> gain on law and on facts."""
    names = list(arms)
    values = {arm: arm_values({"law": estimate(*own), "facts": estimate(*facts)}) for arm, (own, facts) in arms.items()}
    pairs = [
        {"first": first, "second": second, "benchmarks": {}, "index": {},
         "groups": {"law": estimate(0, -29.3, 30.8), "facts": estimate(0, -9, 9)}}
        for first, second in combinations(names, 2)
    ]  # fmt: skip
    parts = {"trained_group": "law", "groups": {"law": ["bar"], "facts": ["facts"]}, "arms": values}
    return make_transfer(**parts, contrasts=pairs, **more)


GUESSED = {"grpo": ((25, 0.4, 48), (-31, -38.04, -20)), "sft": ((25, -0.2, 48), (-30, -40, -20))}


def guessing(*arms):
    return [{"code": "not_above_guessing", "message": f"{arm} guesses", "model": arm} for arm in arms]


def test_no_recommendation_rests_on_guessing():
    transfer = law(GUESSED, guess_level={"bar": 25.0}, warnings=guessing("grpo", "sft"))
    assert headline(transfer) == [
        "Keep the base: no method scores above guessing on law.",
        "Without a gain above guessing there is nothing to weigh a loss elsewhere against.",
        "Not above guessing on law (guessing gets: bar 25.0), so a gain may be the form of the answers alone: GRPO, "
        "SFT.",
    ]
    assert without_gain(transfer, "grpo") == (
        "grpo has a gain on law, but its score is not above guessing; gate judges losses only"
    )
    # An arm without a gain may score above guessing all the same, as the base then does.
    other = law(
        GUESSED | {"other": ((1, -9, 11), (0, -1, 1))}, guess_level={"bar": 25.0}, warnings=guessing("grpo", "sft")
    )
    assert headline(other)[0] == "Keep the base: no method has both a gain on law and a score above guessing."
    above = law(GUESSED | {"better": ((40, 30, 50), (0, -1, 1))}, guess_level={"bar": 25.0}, warnings=guessing("grpo"))
    assert verdict(above).arm == "better"


def test_an_arm_without_a_gain_is_not_said_to_be_worse_than_the_one_that_is_named():
    sentences = headline(law(GUESSED))
    assert sentences[0] == (
        "Ship GRPO if a loss of 38.1 points (rounded up) in a group of benchmarks is acceptable; otherwise keep the "
        "base."
    )
    said = (
        "SFT has +25.0 [-0.2, +48.0] on law: it cannot be told from zero, and not from GRPO either (0.0 [-30.8, 29.3]"
    )
    assert any(text.startswith(said) for text in sentences)


def test_what_an_arm_started_from_is_part_of_its_cost():
    grpo = {"sampling": "current", "credit": "advantage", "negatives": True, "start_from": "sft"}
    settings = {"sft": {"sampling": "teacher", "credit": "uniform"}, "grpo": grpo}
    budget = {"sft": [RUN | {"train_flops": 5e12, "generate_flops": 0, "generated_tokens": 0}], "grpo": [RUN]}
    transfer = law(GUESSED, settings=settings, budget=budget)
    assert method_of(settings["grpo"]) == ("its own samples of every step, weighted by advantage, started from SFT")
    costs = {card.arm: card.cost for card in cards(transfer)}
    assert costs["grpo"] == "8 TFLOPs a run, 5 TFLOPs of it for SFT; 12,000 tokens generated"
    assert costs["sft"] == "5 TFLOPs a run; a teacher's tokens, not counted here"
    assert (flops_from_base(transfer, "grpo"), flops_from_base(transfer, "sft")) == (8e12, 5e12)
    assert "GRPO started from SFT: its gains, losses and cost here include those of SFT." in headline(transfer)


@pytest.mark.parametrize(("hours", "shown"), [(0.0012, "0.0012"), (0.0449, "0.045"), (0.1, "0.10"), (12.345, "12.35")])
def test_short_hours_are_not_shown_as_zero(hours, shown):
    assert hours_text(hours) == shown


def test_values_of_an_axis_have_one_form():
    shown = [axis_value(6119, "trained_tokens"), axis_value(14410, "generated_tokens"), axis_value(2.5e9, "flops")]
    assert [*shown, axis_value(0.01234567, "kl_to_base")] == ["6,119", "14,410", "2.500e+09", "0.01235"]
