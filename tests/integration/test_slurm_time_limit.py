"""What the batch script does about time limits, on a real Slurm, with a program in the place of the training stage."""

import re
import time

import pytest

from launch.site_file import SiteSpec
from launch.slurm.jobs import make_jobs
from launch.slurm.script import render
from launch.stages import build_stages
from launch.tasks import tasks_of_study
from recipes.loading import load_recipe
from tests.paths import SMOKE
from tests.support.slurm_cluster import SlurmCluster, why_not

STEP = """
import os, signal, sys, time
study, stage = sys.argv[1:]
start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
with open(os.path.join(study, "starts"), "a") as file:
    file.write(f"{stage} {start} {os.environ['TRANSFER_SIGNAL_SECONDS']}\\n")
if stage.startswith("arms/") and start == 0:
    for number in (signal.SIGUSR1, signal.SIGTERM):  # an update that does not end before the time limit
        signal.signal(number, lambda number, frame: print("heard", number, flush=True))
    end = time.monotonic() + 600
    while time.monotonic() < end:
        time.sleep(1)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=f"no Slurm cluster can be started: {why_not()}"),
]


ARRAY = """
import json, os, subprocess, sys, time
from pathlib import Path
study, stage = sys.argv[1:]
start, number = int(os.environ.get("SLURM_RESTART_COUNT", "0")), os.environ["SLURM_JOB_ID"]
with open(os.path.join(study, "starts"), "a") as file:
    file.write(f"{stage} {start}\\n")
if number == os.environ["SLURM_ARRAY_JOB_ID"] and start == 0:  # the task with the array's id stops before its limit
    time.sleep(3)
    Path(study, ".failures").mkdir()
    Path(study, ".failures", stage.replace("/", "--") + ".json").write_text(json.dumps({"status": 75}, indent=1))
    subprocess.run(["scancel", "--signal=USR1", "--batch", number], check=True)
    time.sleep(1)
    sys.exit(75)
"""


def test_a_task_that_goes_back_to_the_queue_leaves_its_array_alone(tmp_path, monkeypatch):
    study = tmp_path / "study"
    study.mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "step.py").write_text(ARRAY)
    recipe = load_recipe(SMOKE, ["arms.on_policy_sft=null", "arms.off_policy_sft=null", "seeds=[0,1]"])
    runs = [task for task in tasks_of_study(recipe, study, build_stages(recipe)) if task.stage.kind == "arms"]
    (job,) = make_jobs(runs, {})
    text = render(job, SiteSpec(time_limit="5", signal_seconds=45), "transfer/test", "")
    script = tmp_path / "arms.sh"
    script.write_text(text.replace('"${run[@]}" -m launch.slurm.step', f'"${{run[@]}}" {tmp_path / "step.py"}'))
    cluster = SlurmCluster(tmp_path / "slurm")
    try:
        cluster.start()
        assert cluster.query("sbatch", "--parsable", str(script)).strip()
        begun = time.monotonic()
        while cluster.query("squeue", "--noheader"):
            assert time.monotonic() - begun < 180, cluster.query("squeue")
            time.sleep(1)
    finally:
        cluster.stop()
    starts = (study / "starts").read_text().splitlines()
    assert len(starts) == 3, starts
    assert [line.split()[1] for line in starts].count("1") == 1


@pytest.mark.faults
def test_an_update_longer_than_the_warning_sends_the_job_back_and_cancels_nothing(tmp_path, monkeypatch):
    study = tmp_path / "study"
    study.mkdir()
    monkeypatch.chdir(tmp_path)  # where sbatch is called, its output goes
    (tmp_path / "step.py").write_text(STEP)
    recipe = load_recipe(SMOKE, ["arms.on_policy_sft=null", "arms.off_policy_sft=null"])
    wanted = [task for task in tasks_of_study(recipe, study, build_stages(recipe))
              if task.stage.name in ("arms/grpo/seed-0", "eval/grpo-seed0-final")]  # fmt: skip
    site = SiteSpec(time_limit="2", signal_seconds=45)
    cluster = SlurmCluster(tmp_path / "slurm")
    try:
        cluster.start()
        numbers: list[str] = []
        for job in make_jobs(wanted, {}):
            after = ",".join(f"afterok:{numbers[needed.job]}" for needed in job.after)
            text = render(job, site, "transfer/test", after)
            assert text.count("-m launch.slurm.step") == 1
            script = tmp_path / f"{job.kind}.sh"
            script.write_text(text.replace('"${run[@]}" -m launch.slurm.step', f'"${{run[@]}}" {tmp_path / "step.py"}'))

            numbers.append(cluster.query("sbatch", "--parsable", str(script)).strip())
        assert len(numbers) == 2
        begun = time.monotonic()
        while cluster.query("squeue", "--noheader"):
            assert time.monotonic() - begun < 420, cluster.query("squeue")
            time.sleep(1)
        shown = [cluster.query("scontrol", "show", "job", "--oneliner", number) for number in numbers]
        output = "".join(path.read_text() for path in tmp_path.glob("smoke-arms*.log"))
    finally:
        cluster.stop()
    print(f"back in the queue, done and evaluated after {time.monotonic() - begun:.0f} s")
    assert (study / "starts").read_text().splitlines() == [
        "arms/grpo/seed-0 0 45", "arms/grpo/seed-0 1 45", "eval/grpo-seed0-final 0 45",
    ]  # fmt: skip
    assert [re.search(r"JobState=(\w+)", text)[1] for text in shown] == ["COMPLETED", "COMPLETED"]
    assert re.search(r"Restarts=(\d+)", shown[0])[1] == "1"
    assert "not saved in time before the time limit; requeued, resumes from the last checkpoint" in output
    assert "heard 10" in output
