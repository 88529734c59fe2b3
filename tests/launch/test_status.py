"""Where a study stands, from what is on the disk and what a queue says."""

import json

import pytest

from launch import status
from launch.commands.main import main
from launch.execution.failures import CRASHED, STOPPED, Failure, record
from launch.planning.plan import build_plan
from launch.slurm.submit import Queue, Submitted, identity, known_jobs, write_jobs
from launch.stages import build_stages, stage_inputs, stage_states
from launch.status import duration, format_statuses, stage_statuses
from launch.tasks import tasks_of_study
from recipes.errors import UserError
from recipes.files import locked, write_json
from recipes.loading import STUDY_FILE, load_recipe
from recipes.manifest import finish_stage, start_stage
from recipes.progress import PROGRESS, Progress, remaining_seconds
from tests.paths import SMOKE

GRPO = "arms/grpo/seed-0"
SCORED = "eval/grpo-seed0-final"
EARLIER = "2026-01-01T00:00:00+00:00"


@pytest.fixture
def study(tmp_path):
    recipe = load_recipe(SMOKE, ["arms.on_policy_sft=null", "arms.off_policy_sft=null"])
    return tmp_path, tasks_of_study(recipe, tmp_path, build_stages(recipe))


def begin(tasks, name):
    (task,) = [task for task in tasks if task.stage.name == name]
    directory = task.study_dir / name
    start_stage(directory, name, stage_inputs(task.stage, task.study_dir))
    return directory


def finish(tasks, *names):
    for name in names:
        directory = begin(tasks, name)
        (directory / "result").touch()
        finish_stage(directory, {"result": name})


def found(root, tasks):
    return {one.stage: one for one in stage_statuses(root, tasks)}


def planned(root, tasks):
    """The state of each stage as `transfer plan` shows it."""
    plan = build_plan(tasks[0].recipe, [task.stage for task in tasks], root)
    return {stage.name: stage.state for stage in plan.stages}


def test_states_of_a_study_on_one_machine(study):
    root, tasks = study
    assert {one.state for one in found(root, tasks).values()} == {"open"}
    finish(tasks, "base", "corpus")
    begin(tasks, GRPO)
    assert found(root, tasks)[GRPO].state == "stopped"
    assert "interrupted without a message" in found(root, tasks)[GRPO].reason
    with locked(root / ".locks" / GRPO.replace("/", "--")):
        assert found(root, tasks)[GRPO].state == "running"
        assert planned(root, tasks)[GRPO] == "running"
    assert planned(root, tasks)[GRPO] == "resume"
    (root / "logs").mkdir()
    (root / "logs" / "arms--grpo--seed-0.log").write_text("one\n\nthe last line\n")
    record(root, GRPO, Failure("grad_norm is nan", CRASHED))
    stages = found(root, tasks)
    assert (stages[GRPO].state, stages[GRPO].reason) == ("failed", "grad_norm is nan")
    assert stages[GRPO].log_end == ("one", "the last line")
    assert (stages[SCORED].state, stages[SCORED].reason) == (
        "blocked",
        f"needs {GRPO}",
    )
    assert stages["report"].state == "blocked"
    assert stages["eval/base"].state == "open"
    text = format_statuses(list(stages.values()))
    assert "2 done, 1 failed, 2 open, 2 blocked" in text
    assert "           | the last line" in text
    record(root, GRPO, Failure("stopped by SIGTERM after step 3 of 4", STOPPED))
    assert found(root, tasks)[GRPO].state == "stopped"
    record(root, GRPO, None)
    finish(tasks, GRPO)
    assert found(root, tasks)[GRPO].state == "done"


def test_rate_and_remaining_time(study, monkeypatch):
    """Ten steps of 40 were there when it started; 20 more in 100 seconds: 12 a minute, and 10 steps take 50 s."""
    root, tasks = study
    finish(tasks, "base", "corpus")
    directory = begin(tasks, GRPO)
    now = [1000.0]
    monkeypatch.setattr("recipes.progress.time.time", lambda: now[0])
    monkeypatch.setattr("recipes.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("launch.status.time.time", lambda: now[0])
    progress = Progress(directory, 40, "steps")
    progress.update(10)
    now[0] = 1100.0
    progress.update(30, "reward 0.5")
    with locked(root / ".locks" / GRPO.replace("/", "--")):
        one = found(root, tasks)[GRPO]
        assert one.rate_per_second == pytest.approx(0.2)
        assert one.remaining_seconds == pytest.approx(50.0)
        assert "30/40 steps, reward 0.5 · 12 steps a minute · 50 s left" in format_statuses([one])
        now[0] = 1100.0 + 900
        assert "no progress for 15 minutes" in found(root, tasks)[GRPO].note


def test_no_remaining_time_from_a_few_units_or_seconds(study):
    assert remaining_seconds(60.0, 1, 79) is None
    assert remaining_seconds(60.0, 3, 77) == pytest.approx(1540.0)
    assert remaining_seconds(4.0, 40, 40) is None
    assert remaining_seconds(5.0, 40, 40) == pytest.approx(5.0)
    root, tasks = study
    finish(tasks, "base", "corpus")
    directory = begin(tasks, GRPO)
    values = {"done": 1, "total": 80, "unit": "steps", "note": "", "at": 160.0, "first": 0, "first_at": 100.0}
    (directory / PROGRESS).write_text(json.dumps(values))
    with locked(root / ".locks" / GRPO.replace("/", "--")):
        one = found(root, tasks)[GRPO]
    assert one.remaining_seconds is None
    assert one.rate_per_second == pytest.approx(1 / 60)


def submitted(root, queue, monkeypatch, ended=None, at=EARLIER):
    """Jobs 10 (base, corpus as two tasks would never be, so one each) to 12; the queue and the fate of the others."""
    jobs = [
        Submitted("10", "aa", "arms/grpo", "x.sh", [(".", GRPO)], at),
        Submitted("11", "bb", "eval/grpo", "y.sh", [(".", "eval/grpo-seed0-final")], at),
    ]
    write_jobs(root, jobs)
    monkeypatch.setattr(status, "ask_queue", lambda: queue)
    monkeypatch.setattr(status, "ended_state", lambda identifier: (ended or {}).get(identifier))


def test_states_of_jobs(study, monkeypatch):
    root, tasks = study
    finish(tasks, "base", "corpus", "questions", "eval/base")
    submitted(root, Queue({"10": ("PENDING", "Resources", ""), "11": ("PENDING", "Dependency", "")}), monkeypatch)
    stages = found(root, tasks)
    assert (stages[GRPO].state, stages[GRPO].reason, stages[GRPO].job) == ("queued", "Slurm says Resources", "10")
    assert stages[SCORED].state == "waiting"
    submitted(root, Queue({"10": ("RUNNING", "n[1-2]", ""), "11": ("PENDING", "Dependency", "")}), monkeypatch)
    assert (found(root, tasks)[GRPO].state, found(root, tasks)[GRPO].where) == ("running", "n[1-2]")


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        ("NODE_FAIL", "its node was lost"),
        ("OUT_OF_MEMORY", "its job needed more memory"),
        ("CANCELLED", "its job was cancelled"),
        (None, "its job left the queue without a message"),
    ],
)
def test_a_job_that_is_gone_says_why_as_far_as_slurm_knows(study, monkeypatch, ended, reason):
    root, tasks = study
    finish(tasks, "base", "corpus", "questions", "eval/base")
    begin(tasks, GRPO)
    submitted(root, Queue(), monkeypatch, {"10": ended, "11": "CANCELLED"})
    stages = found(root, tasks)
    assert stages[GRPO].state == "failed"
    assert reason in stages[GRPO].reason
    assert (stages[SCORED].state, stages[SCORED].reason) == (
        "blocked",
        f"needs {GRPO}",
    )


@pytest.mark.parametrize(("at", "reason"), [(EARLIER, "grad_norm is nan"), ("2999", "its job was cancelled")])
def test_a_failure_from_before_the_last_submission_is_not_that_of_its_job(study, monkeypatch, at, reason):
    root, tasks = study
    finish(tasks, "base", "corpus", "questions", "eval/base")
    begin(tasks, GRPO)
    record(root, GRPO, Failure("grad_norm is nan", CRASHED))
    submitted(root, Queue(), monkeypatch, {"10": "CANCELLED"}, at)
    stages = found(root, tasks)
    assert (stages[GRPO].state, stages[GRPO].reason) == ("failed", reason)


def test_slurm_that_does_not_answer_hides_nothing_that_is_on_the_disk(study, monkeypatch):
    root, tasks = study
    finish(tasks, "base")
    submitted(root, Queue(), monkeypatch)

    def silent():
        raise UserError("squeue did not answer within 60 s; try again later")

    monkeypatch.setattr(status, "ask_queue", silent)
    stages = found(root, tasks)
    assert stages["base"].state == "done"
    assert stages[GRPO].reason == "unknown: squeue did not answer within 60 s; try again later"


def test_numbers_come_from_the_queue_where_it_knows_the_job(tmp_path):
    """A job whose number was never noted is found by its comment; somebody else's number is not."""
    jobs = [Submitted(None, "aa", "x", "x.sh", [(".", "base")], "t"), Submitted("5", "bb", "y", "y.sh", [], "t"),
            Submitted(None, "cc", "z", "z.sh", [], "t")]  # fmt: skip
    write_jobs(tmp_path, jobs)
    mine = identity(tmp_path)
    queue = Queue({"77": ("RUNNING", "n1", f"{mine}/aa"), "5": ("RUNNING", "n1", "somebody/else"),
                   "78_3": ("RUNNING", "n1", f"{mine}/bb")})  # fmt: skip
    assert [(job.token, job.job) for job in known_jobs(tmp_path, queue)] == [("aa", "77"), ("bb", "78")]


def test_a_damaged_list_of_jobs_is_a_sentence(study):
    root, tasks = study
    (root / "slurm").mkdir()
    (root / "slurm" / "jobs.json").write_text(json.dumps([{"job": "1"}]))
    with pytest.raises(UserError, match=r"jobs.json cannot be read"):
        stage_statuses(root, tasks)


def test_durations():
    texts = ["0 s", "5 s", "8.9 s", "10 s", "90 s", "10 min", "1.1 h", "3.5 days"]
    assert [duration(s) for s in (0, 5, 8.91, 9.96, 89.6, 600, 4000, 300000)] == texts


def test_a_stage_whose_inputs_changed_is_out_of_date(study):
    root, tasks = study
    finish(tasks, *(task.stage.name for task in tasks))
    recipe = tasks[0].recipe
    spec = load_recipe(SMOKE, ["trajectory={questions: 4}"]).trajectory
    more = recipe.model_copy(update={"trajectory": spec})
    found_now = found(root, tasks_of_study(more, root, build_stages(more)))
    assert {one.stage: one.state for one in found_now.values() if one.state != "done"} == {
        "trajectory/base": "open",
        "trajectory/grpo/seed-0": "open",
        "report": "changed",
    }
    change = 'trajectory: null -> {"questions": 4, "samples": 1, "heldout_problems": 100, "dra…'
    assert found_now["report"].reason == f"out of date: {change} and 1 more; `transfer plan` lists why"
    reasons = stage_states(build_stages(more), root)["report"].reasons
    (section,) = [text for text in reasons if text.startswith("trajectory")]
    assert section == change
    finish(tasks_of_study(more, root, build_stages(more)), "trajectory/base", "trajectory/grpo/seed-0")
    assert format_statuses(list(found(root, tasks_of_study(more, root, build_stages(more))).values())).endswith(
        "`transfer plan` lists why"
    )


def test_logs_end_with_as_many_lines_as_asked_for_however_long(tmp_path, capsys):
    study = tmp_path / "study"
    write_json(study / STUDY_FILE, load_recipe("recipes/pocket/smoke.yaml").dump())
    (study / "logs").mkdir()
    lines = [f"{number} {'x' * 2000}" for number in range(9)]
    (study / "logs" / "base.log").write_text("\n".join(lines) + "\n")
    assert main(["logs", str(study), "base", "--lines", "5"]) == 0
    assert capsys.readouterr().out.splitlines() == lines[-5:]


def test_status_says_once_that_runs_are_not_on_wandb(study):
    root, tasks = study
    assert "Weights & Biases" not in format_statuses(stage_statuses(root, tasks))
    for name, why in ((GRPO, "there is no key"), ("report", "connection refused")):
        (root / name).mkdir(parents=True)
        (root / name / "wandb-offline").write_text(why)
    statuses = stage_statuses(root, tasks)
    assert format_statuses(statuses).splitlines()[-1] == (
        f"  Weights & Biases lacks 2 runs of this study (connection refused); `transfer sync {root}` sends all"
    )
    assert {one.stage: one.not_on_wandb for one in statuses if one.not_on_wandb} == {
        GRPO: "there is no key", "report": "connection refused"
    }  # fmt: skip
