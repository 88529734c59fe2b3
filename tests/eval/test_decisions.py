"""The rules of every decision by hand, and over simulated studies: what `pick` ships, `gate` does not refuse."""

import re
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
import pytest
from scipy import stats

from eval.report.model_card import PushedModel, model_card
from eval.report.page import render_summary
from eval.report.schema import write_transfer
from eval.report.table import format_report
from eval.report.verdict import verdict
from eval.statistics.decisions import (
    agreement,
    comparable,
    may_lose,
    preferred,
    refused_groups,
    safe_limit,
    smallest_limit,
)
from eval.statistics.inference import Interval
from launch.commands.main import main
from recipes.loading import load_recipe
from tests.bench.shipping import Study, simulate
from tests.paths import SMOKE
from tests.support.reports import arm_values, base_values, estimate, make_transfer, reading


def around(middle, half=1.0):
    return Interval(middle, middle - half, middle + half)


def test_bounds_decide_and_not_estimates():
    gains = {"law": around(20), "logic": around(-4.5), "facts": around(-3, 3)}
    assert refused_groups(gains, 6.0) == []
    assert refused_groups(gains, 5.4) == ["logic", "facts"]
    assert refused_groups(gains, 5.8) == ["facts"]
    assert [may_lose(gain) for gain in gains.values()] == [0, 5.5, 6]
    assert not comparable([around(20), around(0.5)])
    assert not comparable([])
    assert comparable([around(20), around(1.5)])


@pytest.mark.parametrize(
    ("apart", "chosen"),
    [(around(0.3), "safe"), (around(3.0), "bold")],  # 40.4 against 40.1 is a tie; 3 points more are not
)
def test_ties_go_to_the_safer_model(apart, chosen):
    gain = {"bold": around(40.4), "safe": around(40.1), "flat": around(0.9)}
    risk = {"bold": 9.5, "safe": 0.0, "flat": 0.0}
    assert preferred(gain, risk, lambda first, second: apart if first == "bold" else -apart) == chosen
    assert preferred({"flat": around(0.9)}, risk, lambda *_: apart) is None


def test_without_a_limit_the_smallest_one_that_a_gain_passes_decides():
    gain = {"A": around(30), "B": around(5), "flat": around(0.9)}
    risk = {"A": 3.0, "B": 1.0, "flat": 0.0}
    assert smallest_limit(gain, risk) == 1.0
    assert smallest_limit({"A": around(30)}, risk) == 3.0
    assert smallest_limit({"flat": around(0.9)}, risk) is None
    # Rule 3 alone takes A, which gained more; the first screen takes B and says what A would need.
    assert preferred(gain, risk, lambda *_: around(25)) == "A"
    values = {"grpo": (5, 4, 6), "sft": (30, 29, 31), "facts": (0, -1, 1), "apart": (-25, -27, -23)}
    found = verdict(law_report(**values, sft_facts=(-2, -3, -1)))
    assert found.arm == "grpo"
    assert found.answer.startswith("Ship GRPO if a loss of 1.0 points in a group of benchmarks is acceptable")
    (other,) = (text for text in found.sentences if text.startswith("Off-policy SFT"))
    assert other == (
        "Off-policy SFT may have lost 3.0 points: it lost 2.0 [1.0, 3.0] on facts, 9.7 [6.0, 13.0] more than GRPO. "
        "On law it gained 25.0 [23.0, 27.0] more than GRPO."
    )
    *_, other = verdict(law_report(**values, sft_facts=(-2, -3, 0.5))).sentences
    assert other.startswith(
        "Off-policy SFT may have lost 3.0 points: its change on facts is -2.0 [-3.0, +0.5], 9.7 [6.0, 13.0] below that "
        "of GRPO. On law"
    )
    # Of two arms that pass the same limit, rule 3 takes the one with more gain.
    assert verdict(law_report(**values, sft_facts=(0, -1, 1))).arm == "off_policy_sft"


def test_a_difference_that_is_not_decided_is_not_stated_as_one():
    values = {"grpo": (5, 4, 6), "sft": (30, 29, 31), "facts": (0, -1, 1)}
    *_, other = verdict(law_report(**values, sft_facts=(-2, -3, -1), facts_apart=(0.6, -5.6, 6.2))).sentences
    assert other == (
        "Off-policy SFT may have lost 3.0 points: it lost 2.0 [1.0, 3.0] on facts, which cannot be told from what GRPO "
        "lost (0.6 [-5.6, 6.2] more)."
    )
    *_, other = verdict(law_report(**values, sft_facts=(-2, -3, 0.5), facts_apart=(-0.6, -6.2, 5.6))).sentences
    assert other == (
        "Off-policy SFT may have lost 3.0 points: its change on facts is -2.0 [-3.0, +0.5], which cannot be told from "
        "that of GRPO (0.6 [-5.6, 6.2] above)."
    )


def test_the_safe_limit_of_a_normal_gain_is_known():
    """Fresh lower ends lie around -2 - 1.96 s with a deviation of sqrt(2) s; 5 % are 1.645 of those below."""
    rng = np.random.default_rng(1)
    drawn = rng.normal(-2, 3, (200_000, 1))
    expected = 2 + 3 * (stats.norm.ppf(0.975) + stats.norm.ppf(0.95) * np.sqrt(2))
    assert safe_limit(np.array([-2.0]), drawn, 0.95, rng) == pytest.approx(expected, abs=0.1)
    assert safe_limit(np.array([50.0]), drawn + 52, 0.95, rng) == 0


def test_agreement_is_two_one_sided_tests():
    assert agreement(3.0, 1.9, 5.0) == "differs"
    assert agreement(1.0, 3.9, 5.0) == "agrees"
    assert agreement(1.0, 4.1, 5.0) == "too uncertain"


@pytest.mark.parametrize(
    "study",
    [
        Study("losses up to the limit", questions=200, losses=(-0.02, 0.4), max_drop=40.0),
        Study("base near the floor", questions=200, base=0.08, losses=(0.0, 0.08), max_drop=15.0),
    ],
    ids=lambda study: study.name,
)
def test_gate_passes_what_pick_ships(study):
    """On the same questions always, on fresh ones with an error of 5 %; docs/statistics.md has longer simulations."""
    shipped = [found for found in simulate(study, 25, 200, 3) if found.shipped]
    assert len(shipped) >= 5
    assert not any(found.refused_same for found in shipped)
    refused = sum(found.refused_fresh for found in shipped)
    assert stats.binom.sf(refused - 1, len(shipped), 0.05) > 0.01


def law_report(
    grpo=(20, 15, 25),
    sft=(24, 19, 29),
    facts=(0.2, -0.4, 0.8),
    sft_facts=(-9.5, -12.6, -6.7),
    apart=(-4, -9, 1),
    facts_apart=(9.7, 6, 13),
    warnings=(),
):
    """A report on a model that was trained on law."""
    cell = {"estimate": None, "interval": None, "method": None, "status": "not identified",
            "reason": "the interval of the gain on law contains zero"}  # fmt: skip
    scores = {"bar": estimate(70, 65, 75), "facts": estimate(40, 35, 45)}
    arms = {
        "grpo": arm_values({"law": estimate(*grpo), "facts": estimate(*facts)}, scores, {"facts": cell}),
        "off_policy_sft": arm_values({"law": estimate(*sft), "facts": estimate(*sft_facts)}, scores, {"facts": cell}),
    }
    pair = {
        "first": "grpo",
        "second": "off_policy_sft",
        "groups": {"law": estimate(*apart), "facts": estimate(*facts_apart)},
        "benchmarks": {},
        "index": {},
    }
    base = base_values(dict.fromkeys(scores, estimate(50, 45, 55)))
    settings = {"grpo": {"external": "a"}, "off_policy_sft": {"external": "b"}}
    return make_transfer(
        trained_group="law",
        groups={"law": ["bar"], "facts": ["facts"]},
        base=base,
        arms=arms,
        contrasts=[pair],
        settings=settings,
        warnings=list(warnings),
        readings={"robust": reading(base, arms), "paper": reading(base, arms)},
    )


def test_the_first_screen_names_the_safe_arm_and_what_it_may_cost():
    found = verdict(law_report())
    assert found.arm == "grpo"
    assert found.answer == (
        "Ship GRPO if a loss of 0.4 points in a group of benchmarks is acceptable; otherwise keep the base."
    )
    assert [number.value for number in found.numbers] == ["+20.0", "+0.2", "0.4"]
    (other,) = (text for text in found.sentences if text.startswith("Off-policy SFT"))
    assert other.startswith(
        "Off-policy SFT may have lost 12.6 points: it lost 9.5 [6.7, 12.6] on facts, 9.7 [6.0, 13.0] more than GRPO."
    )
    nothing = verdict(law_report(grpo=(1, -3, 5), sft=(2, -1, 5)))
    assert nothing.arm is None
    assert nothing.answer == "Keep the base: no method has a gain on law that can be told from zero."
    alone = law_report().model_copy(update={"arms": {}, "contrasts": []})
    assert verdict(alone).answer == "Scores of the base alone: there is no other model to compare it with."


def test_an_arm_gained_more_only_where_the_difference_says_so():
    """27 ± 5 is a tie with the best, 30 ± 2, and cannot be told from the safe arm's 24 ± 3 either."""
    gains = {"safe": (24, 3, -1), "middle": (27, 5, -5), "best": (30, 2, -10)}
    apart = {("safe", "middle"): (-3, 6), ("safe", "best"): (-6, 4), ("middle", "best"): (-3, 5)}
    contrasts = [
        {"first": first, "second": second, "benchmarks": {}, "index": {},
         "groups": {"law": estimate(middle, middle - half, middle + half), "facts": estimate(4)}}
        for (first, second), (middle, half) in apart.items()
    ]  # fmt: skip
    arms = {
        name: arm_values({"law": estimate(gain, gain - half, gain + half), "facts": estimate(loss)})
        for name, (gain, half, loss) in gains.items()
    }
    found = verdict(make_transfer(trained_group="law", arms=arms, contrasts=contrasts))
    assert found.arm == "safe"
    more = {text.split()[0]: text.partition(" On law it gained ")[2] for text in found.sentences[2:]}
    assert more == {"Middle": "", "Best": "6.0 [2.0, 10.0] more than safe."}


def test_an_arm_that_no_limit_passes_is_not_shipped():
    """`transfer gate` refuses it, because all its responses to a benchmark were cut off."""

    def cut(model):
        return [{"code": "all_truncated", "message": "facts: all cut off", "model": model}]

    found = verdict(law_report(warnings=cut("grpo")))
    assert found.arm == "off_policy_sft"
    why = (
        "cannot be judged: on a benchmark or more, every response of the method or of the base was cut off at "
        "suite.max_response_tokens."
    )
    assert found.sentences[-1] == f"GRPO {why}"
    nothing = verdict(law_report(warnings=cut("base")))
    assert nothing.answer == "Keep the base: no method can be judged."
    assert nothing.sentences == [f"GRPO, off-policy SFT {why}"]
    no_gain = estimate(1, -1, 3)
    arms = {name: arm_values({"law": no_gain, "facts": estimate(0)}) for name in ("grpo", "off_policy_sft")}
    partly = verdict(make_transfer(trained_group="law", arms=arms, warnings=cut("off_policy_sft")))
    assert partly.answer == (
        "Keep the base: off-policy SFT cannot be judged, and no other method has a gain on law to rely on."
    )
    assert partly.sentences == ["No gain that can be told from zero: GRPO.", f"Off-policy SFT {why}"]


def test_gate_answers_before_it_warns(tmp_path):
    """Standard output and errors in one stream, as a terminal shows them."""
    warning = {"code": "few_questions", "message": "few independent questions: bar (30)"}
    (tmp_path / "report").mkdir()
    (tmp_path / "study.json").write_text(load_recipe(SMOKE).model_dump_json())
    write_transfer(tmp_path / "report" / "transfer.json", law_report(warnings=[warning]))
    with redirect_stdout(StringIO()) as shown, redirect_stderr(shown):
        assert main(["gate", str(tmp_path), "grpo", "--max-drop", "5"]) == 0
    lines = shown.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "PASS", f"report: {tmp_path}/report/index.html", "transfer: warning: few independent questions: bar (30)"
    ]  # fmt: skip


def test_the_model_card_says_what_may_have_been_lost_and_sets_no_limit():
    """`facts` of SFT may have fallen by 12.6 points, of GRPO by 0.31: rounded up, so that the gate passes with it."""

    def card(arm, **parts):
        return model_card(load_recipe(SMOKE), law_report(**parts), PushedModel(arm, 0, None), None)

    said = "By the lower ends of these intervals no group lost more than {}; the least certain is facts.\n"
    assert said.format("12.6 points") in card("off_policy_sft")
    assert said.format("0.4 points (rounded up)") in card("grpo", facts=(0.2, -0.31, 0.8))
    assert "No interval of a group contains a loss.\n" in card("grpo", facts=(1, 0, 2))
    cut = card("grpo", warnings=[{"code": "all_truncated", "message": "facts: all cut off", "model": "base"}])
    assert "What it may have lost cannot be said: every response to a benchmark was cut off.\n" in cut
    assert "lost more than" not in cut


def test_a_report_on_another_domain_says_no_word_about_math():
    transfer = law_report()
    for text in (format_report(transfer), render_summary(transfer)):
        assert not re.search("math", text, re.IGNORECASE)
        assert "law" in text
