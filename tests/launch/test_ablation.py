"""Ablations: which points there are, what they share, what may be compared, and the curves."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from eval.report.response_curves import PointResult, curve_figure, format_curves, require_comparable, response_curves
from launch.ablation import ABLATION_FILE, load_ablation, read_ablation
from launch.ablation_report import report
from launch.commands.main import main
from launch.planning.plan import build_plan
from launch.planning.units import hours_text
from launch.stages import build_stages, flatten
from recipes.errors import UserError
from recipes.files import locked
from recipes.loading import load_recipe, read_yaml
from tests.paths import RECIPES, SMOKE
from tests.support.reports import arm_values, gain_shown, make_transfer


def ablation(tmp_path, *, grid=(), paired=(), overrides=(), recipe=SMOKE):
    return read_ablation(recipe, overrides, grid, paired, tmp_path / "ablation")


def test_a_grid_is_all_combinations_and_each_point_knows_its_axes(tmp_path):
    made = ablation(tmp_path, grid=["train.learning_rate=5e-4,1e-3", "arms.grpo.beta=0,0.04"])
    assert [(point.values, point.differs) for point in made.points] == [
        ({"train.learning_rate": 5e-4, "arms.grpo.beta": 0.0}, ("train.learning_rate",)),
        ({"train.learning_rate": 5e-4, "arms.grpo.beta": 0.04}, ("train.learning_rate", "arms.grpo.beta")),
        ({"train.learning_rate": 1e-3, "arms.grpo.beta": 0.0}, ()),
        ({"train.learning_rate": 1e-3, "arms.grpo.beta": 0.04}, ("arms.grpo.beta",)),
    ]
    assert [point.recipe.arms["grpo"].beta for point in made.points] == [0.0, 0.04, 0.0, 0.04]


def test_paired_values_go_together(tmp_path):
    made = ablation(tmp_path, paired=["train.steps=2,4", "train.warmup_steps=0,1"])
    assert [(p.recipe.train.steps, p.recipe.train.warmup_steps) for p in made.points] == [(2, 0), (4, 1)]


def test_no_default_folder_of_an_ablation_is_that_of_another_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    axes = ["seeds=[0],[1]"]
    pocket = read_ablation(RECIPES / "pocket" / "study.yaml", [], axes, [], None)
    methods = read_ablation(RECIPES / "pocket" / "ablation.yaml", [], axes, [], None)
    assert (pocket.root, methods.root) == (Path("runs/ablations/pocket"), Path("runs/ablations/pocket-ablation"))
    folders = [Path("runs") / load_recipe(path).study for path in RECIPES.glob("*/*.yaml") if is_recipe(path)]
    folders += [read_ablation(path, [], axes, [], None).root for path in RECIPES.glob("*/*.yaml") if is_recipe(path)]
    folders += [read_ablation(path, [], [], [], None).root for path in RECIPES.glob("ablations/*.yaml")]
    assert len(set(folders)) == len(folders) > 40


def is_recipe(path):
    return "study" in read_yaml(path)


def test_what_points_share_is_run_once(tmp_path):
    made = ablation(tmp_path, grid=["train.learning_rate=5e-4,1e-3", "arms.grpo.beta=0,0.04"])
    tasks = made.tasks()
    where = {}
    for task in tasks:
        where.setdefault(task.study_dir.name, set()).add(task.stage.name)
    assert where["shared"] == {"base", "corpus", "questions", "eval/base"}
    assert len(tasks) == len({task.key for task in tasks})
    sft = "arms/off_policy_sft/seed-0"
    assert [name for name, stages in where.items() if sft in stages] == [
        "learning_rate-0.0005-beta-0", "learning_rate-0.001-beta-0"
    ]  # fmt: skip
    second = next(t for t in tasks if t.study_dir.name.endswith("0.0005-beta-0.04") and t.stage.name == "report")
    assert (str(made.root / "points/learning_rate-0.0005-beta-0"), sft) in second.needs
    assert (str(made.root / "shared"), "eval/base") in second.needs


def test_links_lead_to_what_is_shared_and_the_folder_can_be_read_back(tmp_path):
    made = ablation(tmp_path, grid=["train.learning_rate=5e-4,1e-3"])
    made.write()
    made.write()
    link = made.root / "points" / "learning_rate-0.0005" / "eval" / "base"
    assert link.is_symlink()
    assert (link.parent / link.readlink()).resolve() == made.root.resolve() / "shared" / "eval" / "base"
    again = load_ablation(made.root)
    assert again.dump() == made.dump()
    assert [task.key for task in again.tasks()] == [task.key for task in made.tasks()]
    other = ablation(tmp_path, grid=["train.learning_rate=5e-4,2e-3"])
    with pytest.raises(UserError, match="holds an ablation over other points"):
        other.write()


def test_a_damaged_ablation_is_a_sentence(tmp_path):
    for text, remedy in (
        ("{", r"cannot be read .* restore it, or run `transfer ablate` with another --out"),
        ("[]", r"is not an ablation file .* restore it, or run that with another --out"),
        ('{"axes": {}, "points": 3, "paired": false}', "run `transfer ablate` with the same axes again"),
        ('{"axes": {}, "points": [{}], "paired": false}', "run `transfer ablate` with the same axes again"),
    ):
        (tmp_path / ABLATION_FILE).write_text(text)
        with pytest.raises(UserError, match=f"{ABLATION_FILE} .*{remedy}"):
            load_ablation(tmp_path)


def test_one_rate_for_all_arms_is_one_label(tmp_path):
    axes = [f"arms.{arm}.learning_rate=1e-4,1e-3" for arm in ("grpo", "on_policy_sft")]
    assert [point.name for point in ablation(tmp_path, paired=axes).points] == [
        "learning_rate-0.0001", "learning_rate-0.001"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "paired", "message"),
    [
        ([], [], "an ablation needs axes"),
        (["train.steps=2"], ["train.steps=2,3"], "an ablation needs axes: either"),
        (["train.steps"], [], "is not of the form key=value,value"),
        (["train.stepz=2,3"], [], "did you mean `train.steps`"),
        (["train.steps=2,2"], [], "two points are called steps-2"),
        ([], ["train.steps=2,3", "train.warmup_steps=1"], "train.steps has 2, train.warmup_steps has 1"),
        (["train.steps=0,2"], [], "train.steps"),
    ],
)
def test_axes_that_cannot_be_are_a_sentence(tmp_path, grid, paired, message):
    with pytest.raises(UserError) as error:
        ablation(tmp_path, grid=grid, paired=paired)
    assert message in str(error.value)


def test_an_axis_that_every_arm_overrides_is_refused_with_the_keys_that_count(tmp_path):
    study = SMOKE.with_name("study.yaml")
    with pytest.raises(UserError) as error:
        ablation(tmp_path, grid=["train.learning_rate=1e-4,2e-4"], recipe=study)
    assert str(error.value) == (
        "axis train.learning_rate changes nothing, because every arm has its own value; vary "
        "arms.off_policy_sft.learning_rate, arms.on_policy_sft.learning_rate, arms.grpo.learning_rate, together with "
        "--paired"
    )
    arms = ["arms.off_policy_sft.train={warmup_steps: 1}", "arms.on_policy_sft.train={warmup_steps: 1}"]
    kept = [*arms, "unmatched=stamp", "arms.off_policy_sft.learning_rate=null"]
    for key in ("warmup_steps=2,3", "learning_rate=1e-4,2e-4"):
        assert len(ablation(tmp_path, grid=[f"train.{key}"], overrides=kept, recipe=study).points) == 2
    both = [*kept, "arms.grpo.train={warmup_steps: 1}"]
    with pytest.raises(UserError, match=r"vary arms.off_policy_sft.train.warmup_steps, arms.on_policy_sft.train.w"):
        ablation(tmp_path, grid=["train.warmup_steps=2,3"], overrides=both, recipe=study)


def test_a_point_of_a_choice_of_rates_differs_by_the_rate_in_effect(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = ["arms.on_policy_sft.learning_rate=null", "train.learning_rate=1e-3"]
    study = str(SMOKE.with_name("study.yaml"))
    assert main(["ablate", study, "--learning-rates", "1e-3,4e-4", *values, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert (
        "  learning_rate-0.001: differs from the recipe in arms.off_policy_sft.learning_rate, arms.grpo.learning_rate\n"
        "  learning_rate-0.0004: differs from the recipe in arms.on_policy_sft.learning_rate, arms.grpo.learning_rate\n"
    ) in shown.out
    assert shown.err == ""  # the suite of the choice is its own: no warning that the recipe lacks other benchmarks


def test_ablation_files_of_the_project_can_be_read(tmp_path):
    files = sorted((RECIPES / "ablations").glob("*.yaml"))
    assert files
    for path in files:
        made = read_ablation(path, [], [], [], tmp_path / path.stem)
        assert len(made.points) > 1, path
        assert sum(not point.differs for point in made.points) <= 1


def gain(middle, half=1.0):
    return {"estimate": middle, "low": middle - half, "high": middle + half}


def point(rate, gains, **more):
    """A point with one axis; `gains`: arm -> (math, other)."""
    settings = flatten({"train": {"learning_rate": rate}, "seeds": [0], **more})
    arms = {arm: arm_values({"math": gain(a), "other_reasoning": gain(b)}) for arm, (a, b) in gains.items()}
    transfer = make_transfer(arms=arms, groups={"math": [], "other_reasoning": []})
    return PointResult(f"lr-{rate}", {"train.learning_rate": rate}, settings, {"base": "1"}, transfer)


POINTS = [
    point(1e-4, {"sft": (10.0, -5.0), "grpo": (4.0, 1.0)}),
    point(1e-3, {"sft": (20.0, -20.0), "grpo": (9.5, 2.0)}),
]


def test_matched_points_are_where_the_weaker_arms_best_lies():
    """GRPO reaches 9.5 at most; SFT's nearest point is 10.0 with an interval of 9 to 11, which contains it."""
    curves = response_curves(POINTS, ["train.learning_rate"], paired=False)
    assert curves.matched_gain == 9.5
    assert curves.matched["sft"].point == "lr-0.0001"
    assert curves.matched["grpo"].point == "lr-0.001"
    assert all(chosen.within for chosen in curves.matched.values())
    text = format_curves(curves)
    assert re.search(r"0\.0001 .*\+10\.0 \[\+9\.0, \+11\.0\] .*-5\.0 \[-6\.0, -4\.0\] \*", text)
    far = [POINTS[0], point(1e-3, {"sft": (20.0, -20.0), "grpo": (7.0, 2.0)})]
    curves = response_curves(far, ["train.learning_rate"], paired=False)
    assert not curves.matched["sft"].within
    assert "no point there; the nearest is lr-0.0001" in format_curves(curves)


def test_curves_hold_the_other_axis_fixed():
    results = []
    for rate in (1e-4, 1e-3):
        for beta in (0.0, 0.1):
            made = point(rate, {"sft": (1.0, 1.0)}, arms={"grpo": {"beta": beta}})
            values = {"train.learning_rate": rate, "arms.grpo.beta": beta}
            results.append(PointResult(f"{rate}-{beta}", values, made.settings, made.made_by, made.transfer))
    curves = response_curves(results, ["train.learning_rate", "arms.grpo.beta"], paired=False).curves
    assert [(c.axis, c.fixed, c.points) for c in curves] == [
        ("train.learning_rate", {"arms.grpo.beta": 0.0}, ["0.0001-0.0", "0.001-0.0"]),
        ("train.learning_rate", {"arms.grpo.beta": 0.1}, ["0.0001-0.1", "0.001-0.1"]),
        ("arms.grpo.beta", {"train.learning_rate": 1e-4}, ["0.0001-0.0", "0.0001-0.1"]),
        ("arms.grpo.beta", {"train.learning_rate": 1e-3}, ["0.001-0.0", "0.001-0.1"]),
    ]


def test_points_that_differ_elsewhere_are_refused_with_the_list():
    other = point(1e-3, {"sft": (1.0, 1.0)}, prompt={"suffix": "x"})
    with pytest.raises(
        UserError, match=r"differ in more than train.learning_rate .*prompt.suffix: None in lr-0.0001, 'x'"
    ):
        require_comparable([POINTS[0], other], ["train.learning_rate"])
    newer = PointResult("new", POINTS[1].values, POINTS[1].settings, {"base": "2"}, POINTS[1].transfer)
    with pytest.raises(UserError, match=r"code or package versions of lr-0\.0001 and new"):
        require_comparable([POINTS[0], newer], ["train.learning_rate"])
    require_comparable(POINTS, ["train.learning_rate"])
    with pytest.raises(UserError, match=r"train\.learning_rate: 0\.0001"):
        require_comparable(POINTS, ["arms.grpo.beta"])


def test_the_figure_has_a_panel_for_each_group_and_rings():
    curves = response_curves(POINTS, ["train.learning_rate"], paired=False)
    svg = curve_figure(curves, 0).svg
    ringed = svg.count("stroke-width: 1.6")
    nowhere = {arm: replace(chosen, within=False) for arm, chosen in curves.matched.items()}
    assert ringed > curve_figure(replace(curves, matched=nowhere), 0).svg.count("stroke-width: 1.6")
    assert svg.count("mean gain over the base") == 1
    assert "other reasoning" in svg
    assert "train.learning_rate" in svg


@pytest.mark.slow
def test_a_smoke_ablation_shares_its_base_and_draws_its_curve(smoke_study, transfer, tmp_path):
    """Two rates of one arm from the base and corpus of the smoke study; the second run finds everything done."""
    settings = ["arms.on_policy_sft=null", "arms.off_policy_sft=null"]
    arguments = ["ablate", SMOKE, *settings, "--grid", "arms.grpo.learning_rate=1e-4,1e-3", "--out", tmp_path / "a"]
    first = transfer(*arguments, "--dry-run")
    # base, corpus, questions and the base's scores once; an arm, its scores and a report at each of two points
    assert "10 stages to run, 4 fewer" in first.stdout
    assert not (tmp_path / "a").exists()
    made = read_ablation(SMOKE, settings, ["arms.grpo.learning_rate=1e-4,1e-3"], [], tmp_path / "a")
    made.write()
    for name in ("base", "corpus"):
        shutil.copytree(smoke_study / name, made.root / "shared" / name, symlinks=True)
    result = transfer(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((made.root / ABLATION_FILE).read_text())["points"][0]["values"] == {
        "arms.grpo.learning_rate": 1e-4
    }
    for point_ in made.points:
        assert (made.folder(point_) / "base").is_symlink()
        assert not (made.folder(point_) / "arms" / "grpo" / "seed-0").is_symlink()
    curves = json.loads((made.root / "report" / "ablation.json").read_text())
    for row, point_ in zip(curves["points"], made.points, strict=True):
        transfer_ = json.loads((made.folder(point_) / "report" / "transfer.json").read_text())
        assert row["arms"]["grpo"] == transfer_["arms"]["grpo"]["groups"]
        assert math.isfinite(row["arms"]["grpo"]["math"]["estimate"])
    assert "gains along arms.grpo.learning_rate" in result.stdout
    assert (made.root / "report" / "arms-grpo-learning_rate.svg").exists()
    page = re.sub("<[^>]*>", "", (made.root / "report" / "index.html").read_text())
    for row in curves["points"]:
        gain = row["arms"]["grpo"]["math"]
        assert gain_shown(gain) in page
    again = transfer(*arguments)
    assert "start " not in again.stdout
    assert transfer("status", made.root).returncode == 0
    # Somebody changes a point by hand: it is no longer the same experiment.
    study = made.folder(made.points[1]) / "study.json"
    values = json.loads(study.read_text())
    values["prompt"]["suffix"] = " else"
    study.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"prompt\.suffix"):
        report(made)


def test_a_point_that_runs_keeps_its_recipe(tmp_path):
    axes = ["arms.grpo.beta=0,0.1"]
    read_ablation(SMOKE, [], axes, [], tmp_path).write()
    point = next((tmp_path / "points").iterdir())
    before = (point / "study.json").read_text()
    again = read_ablation(SMOKE, ["train.steps=7"], axes, [], tmp_path)
    with locked(point), pytest.raises(UserError, match=f"{point.name} is being written by another process"):
        again.write()
    assert (point / "study.json").read_text() == before
    again.write()
    assert (point / "study.json").read_text() != before


def test_the_dry_run_refuses_a_point_that_the_run_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["ablate", str(SMOKE), "--grid", "arms.grpo.learning_rate=1e-3,2e-3"]
    said = []
    for mode in (["--dry-run"], []):
        assert main([*arguments, *mode]) == 2
        said.append(capsys.readouterr())
    assert "learning_rate-0.001: the recipe as written" in said[0].out and said[1].out == ""
    assert said[0].err == said[1].err
    assert said[0].err.startswith("transfer: point learning_rate-0.002: the arms of smoke are unmatched:\n  learn")
    assert not Path("runs").exists()
    assert main([*arguments, "varies=[sampling, credit, negatives, learning_rate]", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "learning_rate-0.001: the recipe with the overrides\n" in shown
    assert "learning_rate-0.002: differs from the recipe with the overrides in arms.grpo.learning_rate\n" in shown


def test_the_dry_run_says_which_points_have_only_what_a_file_sets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    axes = "grid: {train.steps: [2, 3]}\n"
    for settings, overrides, same in (
        ("", [], "the recipe as written"),
        ("set: {train.steps: 3}\n", [], "the recipe with `set`"),
        ("set: {train.steps: 3}\n", ["seeds=[7]"], "the recipe with `set` and the overrides"),
    ):
        Path("steps.yaml").write_text(f"recipe: {SMOKE}\n{settings}{axes}")
        assert main(["ablate", "steps.yaml", *overrides, "--dry-run"]) == 0
        shown = capsys.readouterr().out.splitlines()
        differs = f"differs from {same.removesuffix(' as written')} in train.steps"
        steps = load_recipe(SMOKE).train.steps if not settings else 3
        assert [line for line in shown if "steps-" in line][:2] == [
            f"  steps-{count}: {same if count == steps else differs}" for count in (2, 3)
        ]


def test_an_axis_without_its_section_gets_a_suggestion(capsys):
    assert main(["ablate", str(SMOKE), "--grid", "learning_rate=1e-4,2e-4", "--dry-run"]) == 2
    assert capsys.readouterr().err == (
        f"transfer: {SMOKE}: `learning_rate` is not a setting; did you mean `train.learning_rate`, "
        "`model.pocket.learning_rate` or `arms.<name>.learning_rate`?\n"
    )


def test_commands_about_one_study_name_the_points_of_an_ablation(tmp_path, capsys):
    made = ablation(tmp_path, grid=["train.steps=2,3,4,5"])
    made.write()
    points = [made.root / "points" / f"steps-{count}" for count in (2, 3, 4)]
    for command in (["compare"], ["gate", "--max-drop", "5"], ["lineage"]):
        assert main([*command, str(made.root)]) == 2
        assert capsys.readouterr().err == (
            f"transfer: {made.root} is not a study directory: it has no study.json; it is an ablation: see `transfer "
            f"ablate {made.root}`, or name a point, {points[0]} or {points[1]} or {points[2]} or another one\n"
        )
    assert main(["compare", str(points[0])]) == 2
    said = f"transfer: {points[0]} has no finished report; `transfer run {points[0]}` makes it\n"
    assert capsys.readouterr().err == said


def test_a_warning_about_all_points_is_printed_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.run.warnings", lambda recipe: ["of all", f"of {recipe.train.steps}"])
    assert main(["ablate", str(SMOKE), "--grid", "train.steps=2,3", "--dry-run"]) == 0
    assert capsys.readouterr().err.splitlines() == [f"transfer: warning: {text}" for text in ("of all", "of 2", "of 3")]


def test_the_dry_run_ends_with_the_hours_of_all_points(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study = SMOKE.with_name("study.yaml")
    assert main(["ablate", str(study), "--grid", "train.steps=1000,3000", "--dry-run"]) == 0
    shown = capsys.readouterr().out.splitlines()[-1]
    plans = []
    for steps in (1000, 3000):
        recipe = load_recipe(study, [f"train.steps={steps}"])
        plans.append(build_plan(recipe, build_stages(recipe), tmp_path / "none"))
    apart = sum(plan.totals.hours for plan in plans)
    shared = ("base", "corpus", "questions", "drift/base", "trajectory/base", "eval/base", "diagnostics/base")
    once = sum(stage.planned_hours for stage in plans[0].stages if stage.name in shared)
    assert shown == f"in all about {hours_text(apart - once)} of stage time"
    assert apart - once > 1.2 * plans[1].totals.hours
    unknown = SMOKE.parent.parent / "qwen3-14b" / "matched.yaml"
    assert main(["ablate", str(unknown), "--grid", "train.learning_rate=1e-6,3e-6", "--dry-run"]) == 0
    assert re.match(r"in all about [\d,.]+ GPU-hours", capsys.readouterr().out.splitlines()[-1])
