"""The points of an ablation on one machine: what runs beside what, and what a failure stops."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.ablation import read_ablation
from launch.commands.ablate import describe
from launch.execution import local
from launch.execution.failures import CRASHED, MISTAKE, Failure
from launch.planning import findings
from launch.run import check_tasks, require
from launch.site_file import SiteSpec
from launch.stages import stage_inputs
from recipes.errors import UserError
from recipes.manifest import finish_stage, start_stage
from tests.paths import SMOKE


def ablation(tmp_path, *grid):
    made = read_ablation(SMOKE, [], grid, [], tmp_path / "ablation")
    made.write()
    return made


class _AtOnce:
    """An executor that runs a task when it is given."""

    def __init__(self, *_arguments, **_settings):
        pass

    def shutdown(self, **_settings):
        pass

    def submit(self, task, *arguments):
        future = Future()
        future.set_result(task(*arguments))
        return future


@pytest.fixture
def pretended(monkeypatch):
    """Runs of stages that only write their manifest; by name, those that fail, and all in the order they ran."""
    fails, ran = {}, []

    def run(values, study_dir, stage, gpus):
        name = f"{Path(study_dir).name}/{stage.name}"
        ran.append(name)
        folder = Path(study_dir) / stage.name
        start_stage(folder, stage.name, stage_inputs(stage, Path(study_dir)))
        if name in fails:
            return Failure("no reason", fails[name])
        finish_stage(folder, {"values.json": "x"})
        return None

    monkeypatch.setattr(local, "visible_gpus", list)
    monkeypatch.setattr(local, "run_in_worker", run)
    monkeypatch.setattr(local, "ProcessPoolExecutor", _AtOnce)
    return SimpleNamespace(fails=fails, ran=ran)


def test_points_run_side_by_side_once_what_they_share_is_there(tmp_path, pretended, capsys):
    made = ablation(tmp_path, "train.learning_rate=5e-4,1e-3")
    assert made.run(None) == 0
    first, second = "learning_rate-0.0005", "learning_rate-0.001"
    arms = ("arms/off_policy_sft/seed-0", "arms/on_policy_sft/seed-0", "arms/grpo/seed-0")
    evals = [f"eval/{arm}-seed0-final" for arm in ("off_policy_sft", "on_policy_sft", "grpo")]
    assert pretended.ran == [
        *(f"shared/{name}" for name in ("base", "questions", "corpus", "eval/base")),
        *(f"{first}/{name}" for name in (*arms, *evals, "report")),
        *(f"{second}/{name}" for name in (*arms, *evals, "report")),
    ]
    shown = capsys.readouterr().out
    # Two at a time: the first report leaves one place free.
    start, end = f"  start    {second}/{arms[0]}\n", f"  finished {first}/report in "
    assert 0 < shown.index(start) < shown.index(end)
    assert shown.index("  finished shared/eval/base") < shown.index(f"  start    {first}")
    assert made.run(None) == 0
    assert len(pretended.ran) == 18  # everything is done


def test_a_failed_point_does_not_stop_the_others(tmp_path, pretended, capsys):
    made = ablation(tmp_path, "train.learning_rate=5e-4,1e-3")
    pretended.fails["learning_rate-0.0005/arms/grpo/seed-0"] = CRASHED
    assert made.run(None) == CRASHED
    assert "learning_rate-0.001/report" in pretended.ran
    skipped = "learning_rate-0.0005/eval/grpo-seed0-final, learning_rate-0.0005/report"
    assert capsys.readouterr().err == f"1 stage(s) failed; not run because of it: {skipped}\n"
    pretended.fails.clear()
    assert made.run(None) == 0
    assert pretended.ran[-3:] == [
        f"learning_rate-0.0005/{stage}" for stage in ("arms/grpo/seed-0", "eval/grpo-seed0-final", "report")
    ]


def test_a_point_waits_for_a_stage_of_another_and_fails_with_it(tmp_path, pretended):
    """Beta is an axis of GRPO alone: at either value the SFT arms are those of the first point."""
    made = ablation(tmp_path, "train.learning_rate=5e-4,1e-3", "arms.grpo.beta=0,0.04")
    pretended.fails["learning_rate-0.0005-beta-0/arms/on_policy_sft/seed-0"] = MISTAKE
    assert made.run(None) == MISTAKE
    reports = {name.split("/")[0] for name in pretended.ran if name.endswith("/report")}
    assert reports == {"learning_rate-0.001-beta-0", "learning_rate-0.001-beta-0.04"}
    assert sum(name.endswith("arms/on_policy_sft/seed-0") for name in pretended.ran) == 2


def test_a_failure_in_what_all_share_stops_what_needs_it_alone(tmp_path, pretended, capsys):
    """Arms do not need the scores of the base; reports do. Nothing needs no corpus but the base and the questions."""
    made = ablation(tmp_path, "train.learning_rate=5e-4,1e-3")
    pretended.fails["shared/eval/base"] = MISTAKE
    assert made.run(None) == MISTAKE
    assert len(pretended.ran) == 16  # all but the two reports
    assert capsys.readouterr().err == (
        "1 stage(s) failed; not run because of it: learning_rate-0.0005/report, learning_rate-0.001/report\n"
    )
    other = ablation(tmp_path / "other", "train.learning_rate=5e-4,1e-3")
    pretended.ran.clear()
    pretended.fails["shared/corpus"] = MISTAKE
    pretended.fails.pop("shared/eval/base")
    assert other.run(None) == MISTAKE
    assert sorted(pretended.ran) == ["shared/base", "shared/corpus", "shared/eval/base", "shared/questions"]


def test_a_point_that_cannot_run_here_is_refused_before_any_starts(tmp_path):
    axes = ["resources.nodes=1,2", "train.learning_rate=5e-4,1e-3"]
    made = read_ablation(SMOKE, ["resources.ranks=2"], [], axes, tmp_path / "ablation")
    with pytest.raises(UserError, match=r"resources\.nodes is 2; several machines need --on slurm"):
        require(check_tasks(made.tasks(None)))


def test_the_disk_is_compared_with_what_all_points_need(tmp_path, monkeypatch):
    """7,787 GB of what the points share and 2,584 GB of each of four: each fits alone in 10 TB, all together do not."""
    made = read_ablation(Path("recipes/ablations/qwen3_14b_kl.yaml"), [], [], [], tmp_path)
    for free, said in ((10e12, ["10,000 GB"]), (18.2e12, [])):
        monkeypatch.setattr(findings, "free_bytes", lambda folder, free=free: free)
        found = [str(one) for one in check_tasks(made.tasks(), SiteSpec(gpus_per_node=8)) if "of disk" in one.sentence]
        assert found == [
            "cannot work: all points together need up to 18,124 GB of disk (shared 7,787 GB, beta-0 2,584 GB, "
            f"beta-0.001 2,584 GB, beta-0.01 2,584 GB, beta-0.04 2,584 GB) and {tmp_path} has {text} free; free some, "
            "choose another --out, or lower train.snapshots, seeds, arms or points, or max_running in the site file"
            for text in said
        ]


def test_a_dry_run_counts_the_stages_of_each_kind_that_will_run(tmp_path):
    made = read_ablation(SMOKE, [], ["arms.grpo.learning_rate=1e-4,1e-3"], [], tmp_path / "a")
    # three arms; the two SFT arms, their scores and what they read are the same at both points
    assert describe(made).splitlines()[-4:] == [
        "14 stages to run, 8 fewer than the points would need each alone:",
        "  shared: 1 base, 1 corpus, 1 questions, 2 arms, 3 eval",
        "  points/learning_rate-0.0001: 1 arms, 1 eval, 1 report",
        "  points/learning_rate-0.001: 1 arms, 1 eval, 1 report",
    ]
    assert describe(made, "eval").splitlines()[-1] == "  points/learning_rate-0.001: 1 arms, 1 eval"
