"""The choice of learning rates: which is taken, when it cannot be told from others, its page, and unfinished ones."""

import argparse
import json
import re

import pytest

from eval.report.learning_rates import (
    Accuracy,
    binomial_error,
    choose,
    choose_rates,
    common_rate,
    rates_figure,
    rates_text,
    read_accuracy,
)
from launch.ablation import Ablation, load_ablation
from launch.ablation_report import report_rates
from launch.commands.ablate import conclude, run_and_conclude
from launch.execution.processes import note_run
from recipes.errors import UserError
from recipes.files import write_json_lines
from recipes.manifest import finish_stage, start_stage
from tests.launch.test_ablation import ablation
from tests.paths import SMOKE

SFT = {1e-5: (0.2,), 3e-5: (0.8,), 1e-4: (0.64,)}
GRPO = {1e-5: (0.36,), 3e-5: (0.52,), 1e-4: (0.6,)}
"""On 100 problems the standard errors are 4.0, 4.0 and 4.8 for SFT, 4.8, 5.0 and 4.9 for GRPO."""
JSON = argparse.Namespace(json=True)


def rates_ablation(tmp_path, accuracies, base=None, seeds=(100,), problems=100):
    """A choice of learning rates for off-policy SFT and GRPO as the command declares it, evaluated by hand.

    `accuracies`: arm -> rate -> fraction of each seed; a rate that an arm lacks has not been evaluated.
    """
    heldout = "{name: heldout, group: math, scorings: {robust: boxed}}"
    overrides = ["arms.on_policy_sft=null", f"corpus.heldout_problems={problems}", f"seeds={json.dumps(list(seeds))}"]
    overrides.append(f"suite={{benchmarks: [{heldout}], questions: {problems}}}")
    axes = [f"arms.{arm}.learning_rate=1e-4,1e-5,3e-5" for arm in ("off_policy_sft", "grpo")]
    made = ablation(tmp_path, paired=axes, overrides=overrides)
    made.write()
    note_run(made.root, {"on": "local", "until": "eval"})
    for point in made.points:
        for arm, row in accuracies.items():
            for seed, accuracy in zip(seeds, row.get(point.recipe.arms[arm].learning_rate, ()), strict=False):
                finish_evaluation(made.folder(point) / "eval" / f"{arm}-seed{seed}-final", accuracy)
    if base is not None:
        finish_evaluation(made.root / "shared" / "eval" / "base", base)
    return made


def finish_evaluation(folder, accuracy):
    """Write the finished evaluation of a checkpoint by hand."""
    start_stage(folder, "eval", {})
    finish_stage(folder, {}, {"accuracy": {"heldout": accuracy}})


def record_run(folder, seconds):
    """Write the ledger and the clock of a run of 12 steps by hand."""
    folder.mkdir(parents=True)
    write_json_lines(folder / "ledger.jsonl", [{"step": step, "completions": 32 * step} for step in (11, 12)])
    write_json_lines(folder / "clock.jsonl", [{"step": 12, "process_seconds": seconds}])


def test_the_rate_with_the_highest_accuracy_is_chosen_of_equals_the_lower():
    def row(*values):
        rates = ("1e-05", "3e-05", "0.0001")
        return {rate: Accuracy(accuracy=value, error=1) for rate, value in zip(rates, values, strict=False)}

    assert choose({"grpo": row(50, 60, 60), "sft": {}}) == {"grpo": 3e-5}
    assert common_rate({"grpo": row(50, 60, 60), "sft": row(70, 55, 10)}) == 1e-5  # 120, 115 and 70
    assert common_rate({"grpo": row(50, 60, 60), "sft": row(10, 20)}) == 3e-5  # the third rate has one arm
    assert common_rate({"grpo": row(50, 60, 60), "sft": {}}) is None


def test_accuracies_are_percent_with_the_larger_of_two_errors_and_costs_the_mean_of_seeds(tmp_path):
    """40 problems, answered by 2 seeds. 60 and 70 % have an error of 5 over seeds; over problems it is the root of
    65 * 35 / 40. 10 and 90 % have 40 and the root of 50 * 50 / 40; 50 and 50 % have 0 and the same root."""
    rows = {1e-5: (0.6, 0.7), 3e-5: (0.1, 0.9), 1e-4: (0.5, 0.5)}
    made = rates_ablation(tmp_path, {"grpo": rows}, seeds=(100, 101), problems=40)
    for seed in (100, 101):
        record_run(made.folder(made.points[0]) / "arms" / "grpo" / f"seed-{seed}", 10.0 * seed)
    found = [read_accuracy(point.recipe, made.folder(point), "grpo") for point in made.points]
    assert [(one.accuracy, one.error) for one in found] == [(50.0, 7.906), (65.0, 7.542), (50.0, 40.0)]
    assert (found[0].seconds, found[0].steps, found[0].completions) == (1005.0, 12.0, 384.0)
    assert (found[1].seconds, found[1].steps) == (None, None)
    assert read_accuracy(made.points[0].recipe, made.folder(made.points[0]), "off_policy_sft") is None


def test_the_error_at_a_floor_or_ceiling_is_not_zero():
    """2 of 104: the root of 2 * 102 / 104**2 / 100 is 0.013734."""
    assert binomial_error(50, 100) == 5
    assert binomial_error(4, 100) == pytest.approx(100 * (0.04 * 0.96 / 100) ** 0.5)
    assert [binomial_error(0, 100), binomial_error(100, 100)] == pytest.approx([1.3734, 1.3734], abs=1e-4)


def test_two_standard_errors_of_the_difference_decide():
    """Errors of 3 and 4 make one of 5."""
    first = Accuracy(accuracy=50, error=3)
    assert not first.told_from(Accuracy(accuracy=60, error=4))
    assert first.told_from(Accuracy(accuracy=60.1, error=4))
    assert first.minus(Accuracy(accuracy=60, error=4)) == "-10.0 ± 5.0"


def test_the_choice_names_what_it_cannot_be_told_from_and_the_end_of_the_range(transfer, tmp_path):
    """SFT: 80 against 64 is 16 ± 6.2, more than twice. GRPO: 60 against 52 is 8 ± 7.0, and 10 ± 7.0 over the base."""
    made = rates_ablation(tmp_path, {"off_policy_sft": SFT, "grpo": GRPO}, base=0.5)
    record_run(made.folder(made.points[0]) / "arms" / "grpo" / "seed-100", 1234.4)
    result = transfer("ablate", made.root)
    assert result.returncode == 0, result.stderr
    answer = "Take learning rate 3e-05 for off-policy SFT; 0.0001 for GRPO; 3e-05 for a comparison at one rate."
    sft = "80.0 ± 4.0 % at 3e-05. Next comes 0.0001; the difference is +16.0 ± 6.2."
    grpo = (
        "60.0 ± 4.9 % at 0.0001. It cannot be told from 3e-05 (difference +8.0 ± 7.0). 0.0001 is the highest learning "
        "rate tried; a higher one may be better. No gain over the base can be told from zero: +10.0 ± 7.0."
    )
    assert f"{answer}\n  Off-policy SFT: {sft}\n  GRPO: {grpo}\n" in result.stdout
    assert re.search(r"off_policy_sft +20\.0 ± 4\.0 +80\.0 ± 4\.0\* +64\.0 ± 4\.8 \n", result.stdout)
    assert "arms.off_policy_sft.learning_rate=3e-05 arms.grpo.learning_rate=0.0001" in result.stdout
    stored = json.loads((made.root / "learning_rates.json").read_text())
    assert (stored["chosen"], stored["common"]) == ({"off_policy_sft": 3e-5, "grpo": 1e-4}, 3e-5)
    assert stored["rates"] == [1e-5, 3e-5, 1e-4]
    assert stored["base"] == {"accuracy": 50.0, "error": 5.0}
    page = (made.root / "report" / "index.html").read_text()
    for text in (answer, sft, grpo, "One training seed: another may differ by more."):
        assert text in page
    assert "<pre>arms.off_policy_sft.learning_rate=3e-05\narms.grpo.learning_rate=0.0001</pre>" in page
    row = "<td>0.0001 <strong>(taken)</strong></td><td>60.0 ± 4.9</td><td>1,234</td><td>12</td><td>384</td>"
    assert row in page
    assert "<tr><td>base</td><td>50.0 ± 5.0</td><td>–</td><td>–</td><td>–</td></tr>" in page
    assert page.count("(taken)") == 2
    assert "unfinished" not in page
    assert not re.search(r"<(script|img|link)", page)
    assert (made.root / "report" / "learning_rates.png").exists()


def test_an_accuracy_below_the_base_is_no_gain_and_the_lowest_rate_is_an_end(tmp_path):
    rows = {1e-5: (0.2,), 3e-5: (0.1,), 1e-4: (0.0,)}
    made = rates_ablation(tmp_path, {"off_policy_sft": rows, "grpo": rows}, base=0.5)
    values, text, missing = report_rates(made)
    assert missing == []
    assert "Take learning rate 1e-05 for off-policy SFT and GRPO; 1e-05 for" in text
    assert values["conclusion"]["arms"]["grpo"] == (
        "20.0 ± 4.0 % at 1e-05. It cannot be told from 3e-05 (difference +10.0 ± 5.0). 1e-05 is the lowest learning "
        "rate tried; a lower one may be better. No gain over the base can be told from zero: -30.0 ± 6.4."
    )


def test_the_picture_has_a_line_for_each_arm_a_ring_for_each_choice_and_the_base():
    frontier = {
        arm: {rate: Accuracy(accuracy=value, error=2) for rate, value in (("1e-05", 40), ("0.0001", 50))}
        for arm in ("off_policy_sft", "grpo", "other")
    }
    rates = [1e-5, 3e-5, 1e-4]
    bare = rates_figure(choose_rates(frontier, rates, None, [], 1)).svg
    at = [float(x) for x in re.findall(r'<use [^>]* x="([0-9.]+)"[^>]*stroke-width: 1.6', bare)]
    assert len(at) == 3
    assert 400 < at[0] < at[1] < at[2]  # beside each other at the highest of three rates
    assert bare.count("stroke-dasharray") == 0
    assert all(f">{text}<" in bare for text in ("1e-05", "3e-05", "0.0001", "off-policy SFT", "GRPO", "learning rate"))
    choice = choose_rates(frontier | {"late": {}}, rates, Accuracy(accuracy=45, error=2), [], 2)
    svg = rates_figure(choice).svg
    assert svg.count("stroke-dasharray") == 2  # the line and its sign in the legend
    assert "Not finished for late." in choice.conclusion.answer
    assert "One training seed" not in rates_text(choice)


def test_an_unfinished_choice_is_made_from_what_is_finished(transfer, tmp_path):
    made = rates_ablation(tmp_path, {"off_policy_sft": SFT, "grpo": {3e-5: (0.52,)}})
    result = transfer("ablate", made.root)
    assert result.returncode == 1
    assert "point learning_rate-0.0001 is not finished: base has not started" in result.stderr
    assert "transfer resume" in result.stderr
    text = "2 of 3 points are not finished (learning_rate 0.0001 and learning_rate 1e-05), so the answer may still"
    assert text in result.stdout
    assert "52.0 ± 5.0 % at 3e-05.\n" in result.stdout  # alone, and no end of the range tried
    assert re.search(r"grpo +– +52\.0 ± 5\.0\* +– \n", result.stdout)
    stored = json.loads((made.root / "learning_rates.json").read_text())
    assert [one["point"] for one in stored["missing"]] == ["learning_rate-0.0001", "learning_rate-1e-05"]
    assert (stored["base"], stored["common"]) == (None, 3e-5)
    page = (made.root / "report" / "index.html").read_text()
    assert '<span class="status">unfinished</span>' in page
    assert page.count('<span class="status">not finished</span>') == 2
    assert "(<code>learning_rate-1e-05</code>): base has not started" in page
    assert "Dashed" not in page


def test_a_failed_point_does_not_keep_the_page_from_being_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Ablation, "run", lambda self, until: 1)
    nothing = rates_ablation(tmp_path / "a", {})
    assert run_and_conclude(nothing, "eval", JSON) == 1
    with pytest.raises(UserError, match=r"no point has a finished evaluation \(learning_rate-0.0001: base has not"):
        conclude(load_ablation(nothing.root), JSON)
    assert not (nothing.root / "report").exists()
    some = rates_ablation(tmp_path / "b", {"grpo": GRPO})
    assert run_and_conclude(some, "eval", JSON) == 1
    assert json.loads(capsys.readouterr().out)["chosen"] == {"grpo": 1e-4}
    assert (some.root / "report" / "index.html").exists()


def test_an_ablation_that_stops_before_its_reports_has_no_conclusion(tmp_path, capsys):
    made = ablation(tmp_path, grid=["train.learning_rate=5e-4,1e-3"])
    made.write()
    note_run(made.root, {"on": "local", "until": "eval"})
    assert conclude(made, JSON) == 0
    assert capsys.readouterr().out == ""


def test_learning_rates_are_chosen_on_heldout_problems_and_other_seeds(transfer, tmp_path):
    refused = transfer("ablate", SMOKE, "--learning-rates", "1e-4,1e-3", "--seeds", "0,1", "--out", tmp_path / "r")
    assert refused.returncode == 2
    assert "seed 0 is one that the study reports" in refused.stderr
    shown = transfer("ablate", SMOKE, "--learning-rates", "1e-4,1e-3", "--out", tmp_path / "r", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "\ntraining seeds: 100, 101\n" in shown.stdout
    assert "points/learning_rate-0.001: 6 arms, 6 eval\n" in shown.stdout  # three arms, two seeds
    assert not (tmp_path / "r").exists()
    named = transfer("ablate", SMOKE, "--learning-rates", "1e-4,1e-3", "--dry-run", cwd=tmp_path)
    assert named.stdout.startswith("smoke-rates-ablation -> runs/rates/smoke\n")
