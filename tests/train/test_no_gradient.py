"""A run in which no step had a gradient: every output that leads to a decision says so, and none proposes its model."""

import json
import shutil

import pytest

from eval.forgetting.pick import choose as choose_checkpoint
from eval.report.ablation_verdict import conclude
from eval.report.checkpoints import format_pick
from eval.report.gate import without_gain
from eval.report.learning_rates import read_accuracy
from eval.report.model_card import PushedModel, model_card
from eval.report.page import render_summary
from eval.report.response_curves import format_curves, response_curves
from eval.report.results import compute_transfer
from eval.report.table import format_report
from eval.report.verdict import verdict
from launch.ablation_report import report_rates
from recipes.files import write_json_lines
from recipes.loading import load_recipe, load_study
from recipes.manifest import finish_stage, start_stage
from tests.eval.test_decisions import law_report
from tests.eval.test_forgetting import made_up  # noqa: F401 (a fixture)
from tests.launch.test_learning_rates import rates_ablation
from tests.support.reports import ablation_point
from tests.train.test_matching import edit_manifest
from train.accounting.arm_facts import ArmFacts
from train.no_gradient import NoGradient, runs_without_gradient

ABLATION = "recipes/pocket/ablation.yaml"
SAID = (
    "grpo, seed 0: none of its 4 steps had a gradient: every group's rewards were equal, so it learned nothing; "
    "`transfer view` shows its responses"
)


def unlearned(*arms):
    return [{"code": "nothing_learned", "message": f"{arm}: nothing", "model": arm} for arm in arms]


def finish_run(folder, contributed, rows=(), *, steps=4, credit="advantage", beta=0.0):
    """Write a finished run by hand."""
    start_stage(folder, "train", {})
    write_json_lines(folder / "metrics.jsonl", rows)
    settings = {"steps": steps, "credit": credit, "beta": beta}
    facts = ArmFacts(
        template_hash="", presented_problems=["a"], contributed_problems=contributed, matched_on=settings, totals={},
        attention="sdpa",
    )  # fmt: skip
    finish_stage(folder, {}, facts.dump())


@pytest.fixture
def idle_study(smoke_study, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(smoke_study, study)
    edit_manifest(study, "grpo", lambda m: m["facts"].update(contributed_problems=[]))
    return study


def test_a_study_says_so_wherever_a_decision_is_read(idle_study, smoke_study):
    recipe = load_study(idle_study)
    assert runs_without_gradient(recipe, smoke_study) == []
    steps = recipe.train.steps
    said = SAID.replace("4 steps", f"{steps} steps")
    assert [str(run) for run in runs_without_gradient(recipe, idle_study)] == [said]
    transfer, _ = compute_transfer(recipe, idle_study)
    (warning,) = (one for one in transfer.warnings if one.code == "nothing_learned")
    assert (warning.message, warning.model) == (said, "grpo")
    assert transfer.learned_nothing("grpo")
    assert not transfer.learned_nothing("off_policy_sft")
    assert f"warning    {said}" in format_report(transfer)
    assert f"- {said}" in render_summary(transfer)
    assert f"- {said}" in model_card(recipe, transfer, PushedModel("grpo", 0, None), None)
    assert said not in model_card(recipe, transfer, PushedModel("off_policy_sft", 0, None), None)


@pytest.mark.parametrize(
    ("settings", "rows", "reason"),
    [
        ({"contributed": []}, [], "every group's rewards were equal"),
        ({"contributed": [], "credit": "uniform"}, [], "no completion had a reward above zero"),
        ({"contributed": ["a"]}, [], None),
        # The KL term counts in the ledger; the rewards are in the metrics.
        ({"contributed": ["a"], "beta": 0.1}, [1, 1], "every group's rewards were equal"),
        ({"contributed": ["a"], "beta": 0.1}, [1, 0.5], None),
        ({"contributed": ["a"], "beta": 0.1, "credit": "uniform"}, [0, 0], "no completion had a reward above zero"),
        ({"contributed": ["a"], "beta": 0.1, "credit": "uniform"}, [0, 1], None),
        ({"contributed": ["a"], "beta": 0.1}, [], None),
    ],
)
def test_what_counts_as_no_gradient(idle_study, tmp_path, settings, rows, reason):
    folder = tmp_path / "other" / "arms" / "grpo" / "seed-0"
    finish_run(folder, rows=[{"frac_reward_zero_std": row, "reward": row} for row in rows], **settings)
    found = runs_without_gradient(load_study(idle_study), tmp_path / "other")
    expected = [] if reason is None else [f"none of its 4 steps had a gradient: {reason}"]
    assert [run.reason for run in found] == expected


def test_a_run_that_started_from_another_arm_says_whose_model_it_is(tmp_path):
    recipe = load_recipe(ABLATION)
    run = tmp_path / "arms" / "sft_then_grpo" / f"seed-{recipe.seeds[0]}"
    finish_run(run, [])
    (found,) = runs_without_gradient(recipe, tmp_path, ["sft_then_grpo"])
    assert str(found).endswith("so it learned nothing and its model is still that of off_policy_sft; `transfer "
                               "view` shows its responses")  # fmt: skip


def test_the_first_screen_ships_no_arm_that_learned_nothing():
    def report(*arms):
        return law_report(warnings=unlearned(*arms)).model_copy(update={"seeds": [0]})

    assert verdict(report()).arm == "grpo"
    found = verdict(report("grpo"))
    assert found.arm == "off_policy_sft"
    assert found.sentences[-1] == "Learned nothing, because no step had a gradient: GRPO."
    nothing = verdict(report("grpo", "off_policy_sft"))
    assert nothing.answer == "Keep the base: no method has a gain on law that can be told from zero."
    assert nothing.sentences[-1] == "Learned nothing, because no step had a gradient: GRPO, off-policy SFT."
    # Its gains are those of the arm it started from.
    started = report("grpo").model_copy(update={"settings": {"grpo": {"start_from": "off_policy_sft"}}})
    still = "GRPO (still the model of off-policy SFT; gains differ by sampling alone)."
    assert verdict(started).sentences[-1] == f"Learned nothing, because no step had a gradient: {still}"
    assert without_gain(started, "grpo") == (
        "grpo learned nothing: none of its steps had a gradient, and its model is still that of off_policy_sft; gate "
        "judges losses only"
    )
    # One idle seed of two is a warning; the mean gain is still of a trained model.
    assert verdict(law_report(warnings=unlearned("grpo")).model_copy(update={"seeds": [0, 1]})).arm == "grpo"


def test_pick_proposes_no_checkpoint_of_such_a_run(made_up, tmp_path, monkeypatch):  # noqa: F811
    from eval.forgetting import pick as picking

    recipe, _ = made_up
    settings = recipe.statistics.model_copy(update={"draws": 200})
    scores = picking.read_slice()
    assert choose_checkpoint(scores, "math", 10, settings).choice.arm == "grpo"
    idle = [NoGradient("grpo", 0, "none of its 4 steps had a gradient: every group's rewards were equal")]
    found = choose_checkpoint(scores, "math", 10, settings, idle)
    assert (found.choice.arm, found.proposed) == (None, None)
    assert "of the 2 checkpoints that gained on math" in found.refused[0]
    assert f"no candidate: {SAID}" in format_pick(found, tmp_path)
    assert choose_checkpoint(scores, "math", 25, settings, idle).choice.arm == "off_policy_sft"
    idle.append(NoGradient("off_policy_sft", 0, "none of its 4 steps had a gradient"))
    (refused,) = choose_checkpoint(scores, "math", 25, settings, idle).refused
    assert refused == "no checkpoint has a gain on math that can be told from zero"
    # `pick` asks the manifests itself.
    finish_run(tmp_path / "arms" / "grpo" / "seed-0", [])
    assert picking.pick(recipe, tmp_path, 10).choice.arm is None


def test_an_ablation_takes_no_point_where_an_arm_learned_nothing():
    gains = {"grpo": (20.0, 0.0, 0.0), "sft": (10.0, 0.0, 0.0)}
    rates = (1e-4, 2e-4)
    points = [ablation_point(rate, gains, warnings=unlearned("grpo", "grpo")) for rate in rates]  # both of its seeds
    points[1] = ablation_point(2e-4, gains | {"grpo": (8.0, 0.0, 0.0)})
    curves = response_curves(points, ["train.learning_rate"], paired=False)
    found = conclude(curves, [])
    assert found.choices["grpo"].point == "lr-0.0002"
    assert "No other point can be judged." in found.arms["grpo"]
    assert found.arms["grpo"].endswith("No step had a gradient at learning_rate 0.0001, so nothing was learned.")
    assert curves.matched_gain == 8
    points[1] = ablation_point(2e-4, gains, warnings=unlearned("grpo", "grpo"))
    curves = response_curves(points, ["train.learning_rate"], paired=False)
    found = conclude(curves, [])
    assert found.choices["grpo"].point is None
    assert found.arms["grpo"] == (
        "No step had a gradient at learning_rate 0.0001 and learning_rate 0.0002, so nothing was learned."
    )
    assert "no gain on math that can be told from zero at any point of grpo" in format_curves(curves)


def test_a_rate_at_which_an_arm_learned_nothing_is_not_taken(tmp_path):
    row = {1e-5: (0.9,), 3e-5: (0.5,), 1e-4: (0.6,)}
    made = rates_ablation(tmp_path, {"off_policy_sft": row, "grpo": row})
    rates = {}
    for point in made.points:
        rates[point.recipe.arms["grpo"].learning_rate] = made.folder(point)
    finish_run(rates[1e-5] / "arms" / "grpo" / "seed-100", [])
    assert not read_accuracy(made.points[1].recipe, rates[1e-5], "grpo").learned
    values, text, _ = report_rates(made)
    assert (values["chosen"], values["common"]) == ({"off_policy_sft": 1e-5, "grpo": 1e-4}, 1e-4)
    said = SAID.replace("seed 0", "seed 100")
    assert values["conclusion"]["arms"]["grpo"].endswith(f" At 1e-05: {said}.")
    for rate in (3e-5, 1e-4):
        finish_run(rates[rate] / "arms" / "grpo" / "seed-100", [])
    values, text, _ = report_rates(made)
    assert "Take learning rate 1e-05 for off-policy SFT. Not identified for GRPO." in text
    assert json.loads((made.root / "learning_rates.json").read_text())["chosen"] == {"off_policy_sft": 1e-5}
    for rate, folder in rates.items():
        finish_run(folder / "arms" / "off_policy_sft" / "seed-100", [], credit="uniform")
        assert not read_accuracy(made.points[0].recipe, folder, "off_policy_sft").learned, rate
    values, text, _ = report_rates(made)
    assert "Not identified: at no rate did a method learn anything." in text
    assert "chosen" not in text
    assert "<pre></pre>" not in (made.root / "report" / "index.html").read_text()
