"""The page of an ablation: its values are those of the points, its conclusion follows the rules of decisions."""

import json
import re
import shutil

import pytest

from eval.report import response_curves as response_curves_module
from eval.report.ablation_page import draw_ablation, render_ablation
from eval.report.ablation_verdict import Missing, conclude, value_text
from eval.report.gate import judge
from eval.report.page import page_templates
from eval.report.response_curves import curve_figure, format_curves, response_curves
from eval.report.wording import loss_text, points
from eval.statistics.values import Estimate
from launch.ablation import read_ablation
from launch.ablation_report import missing_points, report
from launch.status import StageStatus, State
from recipes.errors import UserError
from recipes.files import write_json
from recipes.loading import STUDY_FILE
from recipes.manifest import finish_stage, start_stage
from tests.paths import SMOKE
from tests.support.reports import RATES, ablation_page, ablation_point

AXIS = "train.learning_rate"
LATE = Missing(point="lr-0.0008", values={AXIS: 8e-4}, reason="arms/grpo/seed-0 failed (<b>out of memory</b>)")


def concluded(found, missing=()):
    return conclude(response_curves(found, [next(iter(found[0].values))], paired=False), missing)


def test_the_safest_of_the_points_that_cannot_be_told_from_the_best_is_taken():
    """SFT has +20 and +21, ±3 each: they differ by 1 ± 4.2, and the first lost 9 ± 3 elsewhere instead of 30."""
    found = concluded(RATES)
    assert found.answer == "Take learning_rate 0.0002 for off-policy SFT and GRPO. Not identified for rejection."
    choice = found.choices["off_policy_sft"]
    assert (choice.point, choice.equals, choice.worst_group) == ("lr-0.0002", ["lr-0.0004"], "other_reasoning")
    assert choice.worst == Estimate(estimate=-9, low=-12, high=-6)
    assert found.choices["rejection"].point is None
    assert found.arms.keys() == {"off_policy_sft", "grpo"}
    assert "learning_rate 0.0002: +20.0 [+17.0, +23.0] points on math. The worst other group is other reasoning: " \
        "-9.0 [-12.0, -6.0], a loss. The best gain and those that cannot be told from it are at learning_rate 0.0002 " \
        "and learning_rate 0.0004; learning_rate 0.0002 is taken because none of the others is safer." \
        in found.arms["off_policy_sft"]  # fmt: skip


def test_points_that_cannot_be_told_from_the_best_may_differ_from_each_other():
    """27 ± 2.5 and 33.2 ± 5.3 are ties with the best, 30 ± 2, but 6.2 points apart with a half-width of 5.9."""
    made = [
        ablation_point(rate, {"sft": (0.0, 0.0, loss)}) for rate, loss in ((1e-4, 0.0), (2e-4, -20.0), (4e-4, -30.0))
    ]
    for point, (gain, half) in zip(made, ((27, 2.5), (30, 2), (33.2, 5.3)), strict=True):
        groups = point.transfer.arms["sft"].groups
        groups["math"] = Estimate(estimate=gain, low=gain - half, high=gain + half)
    found = concluded(made)
    assert found.choices["sft"].point == "lr-0.0001"
    best = "learning_rate 0.0001, learning_rate 0.0002 and learning_rate 0.0004"
    assert f"The best gain and those that cannot be told from it are at {best}; " in found.arms["sft"]


def test_a_clear_best_is_named_with_its_distance_and_the_end_of_the_range():
    """+30 ± 3 against +20 ± 3: the difference is 10 with the half-width 3 times the root of 2."""
    found = concluded([RATES[1], ablation_point(8e-4, {"off_policy_sft": (30.0, -20.0, 0.0)})])
    assert found.choices["off_policy_sft"].equals == []
    assert "Next comes learning_rate 0.0002; the difference is +10.0 [+5.8, +14.2]." in found.arms["off_policy_sft"]
    assert "0.0008 is the highest learning_rate tried; a higher one may be better." in found.arms["off_policy_sft"]
    assert "lowest" not in found.arms["off_policy_sft"]


def test_without_a_gain_nothing_is_ranked():
    found = concluded([ablation_point(rate, {"grpo": (2.0, 5.0, 5.0)}) for rate in (1e-4, 2e-4)])
    assert found.answer == "Not identified: at no point has a method a gain on math that can be told from zero."
    assert found.arms == {}


def test_an_arm_that_no_axis_concerns_is_not_chosen_for():
    gains = {"sft": (10.0, 0.0, 0.0)}
    found = concluded([ablation_point(rate, gains | {"grpo": (rate, 0.0, 0.0)}, key="arms.grpo.beta")
                       for rate in (5.0, 20.0)])  # fmt: skip
    assert found.answer == "Take beta 20 for GRPO."
    assert found.arms["sft"].startswith("the same at every point: +10.0 [+7.0, +13.0] points on math.")
    assert concluded([ablation_point(rate, gains) for rate in (5.0, 20.0)]).answer.startswith("Not identified")


def test_a_point_whose_responses_were_all_cut_off_is_not_taken():
    warning = {"code": "all_truncated", "message": "cut", "model": "grpo"}
    best = ablation_point(4e-4, {"grpo": (50.0, 0.0, 0.0)}, warnings=[warning])
    found = concluded([RATES[0], best])
    assert found.choices["grpo"].point == "lr-0.0001"
    assert "At every other point every response to a benchmark was cut off." in found.arms["grpo"]


def test_methods_are_compared_at_points_where_they_have_a_gain():
    """SFT's +20 at 2e-4 is not told from zero and its +90 at 4e-4 was cut off: the most that both reach is +10."""
    warning = {"code": "all_truncated", "message": "cut", "model": "sft"}
    made = [
        ablation_point(1e-4, {"sft": (10.0, 0.0, 0.0), "grpo": (12.0, 0.0, 0.0)}),
        ablation_point(2e-4, {"sft": (20.0, 0.0, 0.0), "grpo": (30.0, 0.0, 0.0)}),
        ablation_point(4e-4, {"sft": (90.0, 0.0, 0.0), "grpo": (60.0, 0.0, 0.0)}, warnings=[warning]),
    ]
    made[1].transfer.arms["sft"].groups["math"] = Estimate(estimate=20, low=-1, high=41)
    curves = response_curves(made, [AXIS], paired=False)
    assert curves.matched_gain == 10
    assert {arm: (one.point, one.within) for arm, one in curves.matched.items()} == {
        "sft": ("lr-0.0001", True),
        "grpo": ("lr-0.0001", True),
    }
    made[0].transfer.arms["sft"].groups["math"] = Estimate(estimate=1, low=-1, high=3)
    text = format_curves(response_curves(made, [AXIS], paired=False))
    assert "no gain on math that can be told from zero at any point of sft" in text


def test_a_curve_is_drawn_in_the_order_of_its_axis(monkeypatch):
    drawn = []
    monkeypatch.setattr(response_curves_module, "ringed_line", lambda axis, places, *_: drawn.append(list(places)))
    curves = response_curves([RATES[2], RATES[0], RATES[1]], [AXIS], paired=False)
    curve_figure(curves, 0)
    assert set(map(tuple, drawn)) == {(1e-4, 2e-4, 4e-4)}


def test_a_rehearsal_concludes_nothing():
    toy = [ablation_point(rate, {"grpo": (50.0, 0.0, 0.0)}, warnings=[], status="REHEARSAL") for rate in (1e-4, 2e-4)]
    assert (concluded(toy).answer, concluded(toy).choices) == (
        "The models are tiny and random, so nothing is concluded.",
        {},
    )


def test_a_difference_of_unequal_intervals_is_wide_on_the_right_side():
    """MOVER: below are 10 - 7 of the first and 8 - 4 of the second, above 11 - 10 and 4 - 1: roots of 25 and 10."""
    first, second = Estimate(estimate=10, low=7, high=11), Estimate(estimate=4, low=1, high=8)
    assert first.minus(second) == Estimate(estimate=6, low=1, high=9.162)


def test_points_are_named_by_their_values():
    both = {"arms.a.learning_rate": 1e-4, "arms.b.learning_rate": 1e-4}
    assert value_text(both, list(both)) == "learning_rate 0.0001"
    assert value_text(both | {"arms.b.learning_rate": 2e-4}, list(both)) == (
        "arms.a.learning_rate 0.0001, arms.b.learning_rate 0.0002"
    )
    assert value_text({"train.pick": None, "x.y": True}, ["train.pick", "x.y"]) == "pick null, y true"


def test_the_lines_of_a_sentence_do_not_end_inside_of_an_interval():
    whole = page_templates().filters["whole_intervals"]
    assert whole("sum: -69.2 [-72.7, -65.0], a loss; <b> +1.0 [0.5, 1.5].") == (
        'sum: -69.2 <span class="interval">[-72.7, -65.0]</span>, a loss; '
        '&lt;b&gt; +1.0 <span class="interval">[0.5, 1.5]</span>.'
    )


def test_the_page_has_every_value_and_names_the_missing_point(tmp_path):
    page = ablation_page(tmp_path / "index.html", RATES, [LATE]).read_text()
    for point in RATES:
        assert f'href="../points/{point.name}/report/index.html"' in page
        for result in point.transfer.arms.values():
            for gain in result.groups.values():
                estimate, _, interval = points(gain).partition(" ")
                assert f'<td>{estimate} <span class="interval">{interval}</span></td>' in page
    assert "<td>12.0</td>" in page  # what off-policy SFT may have lost at 2e-4
    # 12,000 and 14,000 tokens of two seeds, and the hours of the one arm with a clock
    assert "<td>13,000</td><td>9,000</td><td>3 TFLOPs</td><td>0.250</td>" in page
    assert page.count("<td>13,000</td><td>9,000</td><td>3 TFLOPs</td><td>–</td>") == 8
    assert "3 of 4 points over train.learning_rate" in page
    assert "(<code>lr-0.0008</code>): arms/grpo/seed-0 failed" in page
    assert "0.0001, 0.0002, 0.0004, 0.0008" in page
    assert page.count("<strong>(taken)</strong>") == 2
    assert "a method has no gain on math that can be told from zero" in page


def test_losses_are_rounded_up_as_gate_does(tmp_path):
    """-14.32 is shown as -14.3 in its interval, and passes from 14.4."""
    point = ablation_point(1e-4, {"grpo": (20.0, 0.0, 0.0)})
    lost = Estimate(estimate=0.0, low=-14.32, high=14.3)
    point.transfer.arms["grpo"].groups["non_reasoning"] = lost
    _, (sentence,) = judge(point.transfer, "grpo", 5)
    assert sentence.startswith("grpo may have lost up to 14.4 points on non_reasoning (0.0 [-14.3, +14.3], 95 %)")
    assert sentence.endswith(" (losses are rounded up)")
    assert judge(point.transfer, "grpo", 14.4)[0]
    page = ablation_page(tmp_path / "index.html", [point, ablation_point(2e-4, {"grpo": (21.0, 3.0, 3.0)})]).read_text()
    assert "<td>14.4</td>" in page
    assert "<td>14.3</td>" not in page
    assert loss_text(Estimate(estimate=3, low=0.04, high=6)) == "0.0"  # -0.04 is no loss


def test_equal_gain_is_shown_where_every_method_has_one(tmp_path):
    """GRPO reaches 14 at 2e-4 and 15 at 4e-4; of SFT's gains of 8, 20 and 21 none has 15 in its interval."""
    gains = {1e-4: (8.0, 5.0), 2e-4: (20.0, 14.0), 4e-4: (21.0, 15.0)}
    made = [ablation_point(rate, {"sft": (sft, 0, 0), "grpo": (grpo, 0, 0)}) for rate, (sft, grpo) in gains.items()]
    page = ablation_page(tmp_path / "index.html", made).read_text()
    assert "reaches on math is +15.0 points" in page
    assert "does not reach it" in page


def test_what_users_wrote_is_text(tmp_path):
    evil = "</style><script>window.hacked = 1</script> $x^2$"
    found = [ablation_point(text, {"grpo": (9.0, 0.0, 0.0)}, key="prompt.suffix",
                            warnings=[{"code": "few_questions", "message": evil}]) for text in (evil, "b")]  # fmt: skip
    lack = Missing(point=evil, values={"prompt.suffix": evil}, reason=evil)
    page = ablation_page(tmp_path / "index.html", found, [lack], title=evil).read_text()
    assert "&lt;script&gt;window.hacked" in page
    assert not re.search(r"<(script|img)", page)
    assert page.count("</style>") == len(re.findall(r"<style", page))


def test_figures_draw_any_kind_of_axis():
    """Two axes, paired ones, text, and more methods than fit one below the other."""
    arms = {f"arm_{n}": (float(n + 5), -1.0, 0.0) for n in range(5)}
    made = [ablation_point(value, arms, key="prompt.suffix") for value in ("", "a $ and a $", "x" * 90)]
    curves = response_curves(made, ["prompt.suffix"], paired=False)
    figures = draw_ablation(curves, conclude(curves, []))
    assert figures.keys() == {"conclusion", "prompt-suffix"}
    assert "a $ and a $" in figures["conclusion"].svg
    assert all("x" * 24 not in drawing.svg for drawing in figures.values())
    page = render_ablation(curves, conclude(curves, []), [], figures, name="n", title="", clock_unit="GPU-hours")
    assert "<h1>n</h1>" in page


def finish_point(made, number, transfer):
    """Write the finished report of a point by hand."""
    folder = made.folder(made.points[number]) / "report"
    start_stage(folder, "report", {})
    write_json(folder / "transfer.json", transfer.dump())
    write_json(folder / "hours.json", {"grpo": {"hours": 0.5, "at_checkpoints": []}})
    finish_stage(folder, {})


def test_a_point_with_a_stage_that_is_out_of_date_is_missing_with_that_reason(monkeypatch, tmp_path):
    made = read_ablation(SMOKE, [], ["train.learning_rate=5e-4,1e-3"], [], tmp_path / "a")
    changed = StageStatus("a", "report", State.CHANGED, reason="out of date")
    monkeypatch.setattr("launch.ablation_report.stage_statuses", lambda *_: [changed])
    (missing,) = missing_points(made, [made.points[1].name], None)
    assert (missing.point, missing.reason) == ("learning_rate-0.0005", "report changed (out of date)")


def test_the_page_of_an_unfinished_ablation_is_written_from_its_finished_points(transfer, tmp_path):
    made = read_ablation(SMOKE, [], ["train.learning_rate=5e-4,1e-3"], [], tmp_path / "a")
    made.write()
    with pytest.raises(UserError, match=r"no point has a finished report \(learning_rate-0.0005: base has not started"):
        report(made)
    assert not (made.root / "report").exists()
    finish_point(made, 1, RATES[1].transfer)
    result = transfer("ablate", made.root)
    assert result.returncode == 1
    assert "point learning_rate-0.0005 is not finished: base has not started" in result.stderr
    assert "transfer resume" in result.stderr
    assert "Take learning_rate 0.001 for off-policy SFT and GRPO" in result.stdout
    stored = json.loads((made.root / "report" / "ablation.json").read_text())
    assert [one["point"] for one in stored["missing"]] == ["learning_rate-0.0005"]
    assert stored["points"][0]["arms"]["grpo"]["math"] == {"estimate": 14, "low": 11, "high": 17}
    assert stored["points"][0]["costs"]["grpo"]["hours"] == 0.5
    page = (made.root / "report" / "index.html").read_text()
    assert "1 of 2 points over train.learning_rate" in page
    assert '"../points/learning_rate-0.001/report/index.html"' in page
    # The other one too: now nothing is missing.
    for number, point in enumerate(made.points):
        shutil.rmtree(made.folder(point) / "report", ignore_errors=True)
        finish_point(made, number, RATES[number].transfer)
        assert (made.folder(point) / STUDY_FILE).exists()
    assert transfer("ablate", made.root).returncode == 0
    assert "unfinished" not in (made.root / "report" / "index.html").read_text()
