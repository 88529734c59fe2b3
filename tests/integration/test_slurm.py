"""A real Slurm of two nodes on the loopback: a study through sbatch, and what happens when things go wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recipes.files import read_json_lines
from recipes.manifest import read_manifest
from tests.integration.test_deepspeed import final, study_of
from tests.paths import ROOT, SMOKE
from tests.support.slurm_cluster import SlurmCluster, why_not

TWO_NODES = ["resources.ranks=2", "resources.nodes=2", "resources.zero_stage=3"]
ONE_ARM = ["arms.on_policy_sft=null", "arms.grpo=null"]
TWO_ARMS = ["arms.on_policy_sft=null"]
SFT = "arms/off_policy_sft/seed-0"
SITE = "environment: {OMP_NUM_THREADS: '1'}\nsignal_seconds: 60\n"

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no Slurm cluster can be started: {why_not()}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture
def on_slurm(cluster, tmp_path):
    """Runs `transfer` with the cluster; the first argument is the subcommand."""
    site = tmp_path / "site.yaml"
    cluster.query("scancel", "--user=root")  # whatever a failed test has left

    def call(*arguments, check=True, more=""):
        site.write_text(SITE + more)
        packages = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("EXTRA_PACKAGES"))))
        environment = {**os.environ, **cluster.environment, "PYTHONPATH": packages, "TRANSFER_SITE": str(site)}
        command = [sys.executable, "-m", "launch", *map(str, arguments)]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert "Traceback" not in result.stderr, result.stderr
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    return call


def standings(on_slurm, study):
    return {row["stage"]: row for row in json.loads(on_slurm("status", study, "--json", check=False).stdout)}


def wait_for(condition, seconds, what):
    """The first true value of a condition, and how long it took."""
    begun = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() - begun < seconds, what()
        time.sleep(0.3)
    return found, time.monotonic() - begun


def drained(cluster, on_slurm, study, seconds=400):
    """Wait until nothing is in the queue any more; the standings then."""
    wait_for(lambda: not cluster.query("squeue", "--noheader"), seconds, lambda: on_slurm("status", study).stdout)
    return standings(on_slurm, study)


def wait_for_checkpoint(study, step=3):
    run_dir = study / SFT
    complete = lambda: any(  # noqa: E731
        int(path.parent.name.rpartition("-")[2]) >= step for path in run_dir.glob("checkpoint-*/COMPLETE")
    )
    wait_for(complete, 120, lambda: [path.read_text()[-2000:] for path in (study / "logs").glob("arms*")])


def pids_of(study):
    """Ranks of a study, by their number."""
    return {int(p.stem): int(p.read_text().split()[1]) for p in (study / SFT / "ranks").glob("*.pid")}


@pytest.mark.slow
def test_a_study_on_two_nodes_is_the_study_on_one_machine(cluster, on_slurm, smoke_study, transfer, tmp_path):
    study = tmp_path / "a study's folder"  # a space and a quote: nothing of it may reach a shell unquoted
    submitted = on_slurm("run", SMOKE, "--on", "slurm", "--out", study, *TWO_NODES, *TWO_ARMS)
    assert "9 job(s) submitted" in submitted.stdout
    again = on_slurm("run", SMOKE, "--on", "slurm", "--out", study, *TWO_NODES, *TWO_ARMS)
    assert "0 job(s) submitted" in again.stdout
    changed = on_slurm("run", SMOKE, "--on", "slurm", "--out", study, *TWO_NODES, check=False)
    assert changed.returncode == 2
    assert "would run with the changed recipe" in changed.stderr
    local = study_of(smoke_study, tmp_path / "local")
    ranks = ["resources.ranks=2", "resources.zero_stage=3", "resources.workers=1"]
    reference = transfer("run", SMOKE, "--out", local, "--no-reuse", *ranks, *TWO_ARMS)
    assert reference.returncode == 0, reference.stdout + reference.stderr
    found = drained(cluster, on_slurm, study)
    assert {row["state"] for row in found.values()} == {"done"}, found
    for arm in ("off_policy_sft", "grpo"):
        topology = read_manifest(study / "arms" / arm / "seed-0")["facts"]["topology"]
        assert topology == {"ranks": 2, "engine": "DeepSpeedEngine", "zero_stage": 3}
        assert torch.equal(final(study, arm), final(local, arm))
    assert json.loads((study / "arms/grpo/seed-0/ranks/accelerate.json").read_text())["num_machines"] == 2
    reports = [(place / "report" / "transfer.json").read_text() for place in (study, local)]
    assert reports[0] == reports[1]
    assert "0 job(s) submitted" in on_slurm("resume", study).stdout
    log = on_slurm("logs", study, SFT, "--rank", "1", "--lines", "5")
    assert log.stdout.strip()


# Longer: make test-slow


@pytest.mark.slow
@pytest.mark.faults
def test_a_failed_arm_takes_down_what_needs_it_and_nothing_else(cluster, on_slurm, smoke_study, tmp_path):
    study = study_of(smoke_study, tmp_path / "study")
    rates = ["arms.off_policy_sft.learning_rate=1e30", "varies=[sampling,credit,negatives,learning_rate]"]
    on_slurm("run", SMOKE, "--on", "slurm", "--out", study, *rates, *TWO_ARMS)
    found = drained(cluster, on_slurm, study)
    assert found[SFT]["state"] == "failed"
    assert re.search(r"grad_norm is (nan|inf) at step", found[SFT]["reason"])
    assert found["arms/grpo/seed-0"]["state"] == "done"
    assert found["eval/grpo-seed0-final"]["state"] == "done"
    for stage, needs in (("eval/off_policy_sft-seed0-final", SFT), ("report", SFT)):
        assert found[stage]["state"] == "blocked"
        assert needs in found[stage]["reason"]
    shown = on_slurm("status", study, check=False)
    assert shown.returncode == 1
    assert "grad_norm is" in shown.stdout


def uninterrupted(smoke_study, transfer, tmp_path, *settings):
    study = study_of(smoke_study, tmp_path / "reference")
    ranks = ["resources.ranks=2", "resources.zero_stage=3", "resources.workers=1"]
    result = transfer("run", SMOKE, "--out", study, *ranks, *ONE_ARM, *settings, "--until", "arms")
    assert result.returncode == 0, result.stdout + result.stderr
    return study


def check_equal(study, reference):
    assert torch.equal(final(study, "off_policy_sft"), final(reference, "off_policy_sft"))
    assert read_json_lines(study / SFT / "ledger.jsonl") == read_json_lines(reference / SFT / "ledger.jsonl")


@pytest.mark.slow
@pytest.mark.faults
def test_preempted_for_an_urgent_job_it_saves_and_starts_again(cluster, on_slurm, smoke_study, transfer, tmp_path):
    steps, saves = "train.steps=900", "train.save_every_steps=100"
    reference = uninterrupted(smoke_study, transfer, tmp_path, steps, saves)
    study = study_of(smoke_study, tmp_path / "study")
    on_slurm("run", SMOKE, "--on", "slurm", "--out", study, *TWO_NODES, *ONE_ARM, steps, saves, "--until", SFT)
    wait_for_checkpoint(study)
    job = standings(on_slurm, study)[SFT]["job"]
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    number = cluster.query(*urgent, "--wrap=sleep 3").strip()
    assert number
    drained(cluster, on_slurm, study)
    shown = cluster.query("scontrol", "show", "job", "--oneliner", job)
    assert "Restarts=1" in shown
    log = (study / "logs" / "arms--off_policy_sft--seed-0.log").read_text()
    assert re.search(r"stopped by SIGTERM after step \d+ of 900, which is saved", log)
    check_equal(study, reference)


@pytest.mark.slow
@pytest.mark.faults
def test_a_run_longer_than_the_time_limit_continues_itself(cluster, on_slurm, smoke_study, transfer, tmp_path):
    steps, saves = "train.steps=500", "train.save_every_steps=100"
    reference = uninterrupted(smoke_study, transfer, tmp_path, steps, saves)
    study = study_of(smoke_study, tmp_path / "study")
    limit = "time_limit: '2'\n"
    on_slurm(
        "run", SMOKE, "--on", "slurm", "--out", study, *TWO_NODES, *ONE_ARM, steps, saves, "--until", SFT, more=limit
    )
    wait_for_checkpoint(study)
    job = standings(on_slurm, study)[SFT]["job"]
    found = drained(cluster, on_slurm, study, 900)
    assert found[SFT]["state"] == "done"
    restarts = int(re.search(r"Restarts=(\d+)", cluster.query("scontrol", "show", "job", "--oneliner", job))[1])
    assert restarts >= 1
    assert "stopped by SIGUSR1 after step" in (study / "logs" / "arms--off_policy_sft--seed-0.log").read_text()
    check_equal(study, reference)


@pytest.mark.slow
@pytest.mark.faults
def test_an_update_longer_than_the_warning_costs_that_update_and_not_the_study(
    cluster, on_slurm, smoke_study, transfer, tmp_path
):
    """A rank that stands still cannot end its update between the warning and the time limit."""
    steps, saves = "train.steps=200", "train.save_every_steps=20"
    reference = uninterrupted(smoke_study, transfer, tmp_path, steps, saves)
    study = study_of(smoke_study, tmp_path / "study")
    scored = "eval/off_policy_sft-seed0-final"
    on_slurm("run", SMOKE, "--on", "slurm", "--out", study, *TWO_NODES, *ONE_ARM, steps, saves, "--until", scored,
             more="time_limit: '3'\n")  # fmt: skip
    wait_for_checkpoint(study, 20)
    os.kill(pids_of(study)[1], signal.SIGSTOP)
    job = standings(on_slurm, study)[SFT]["job"]
    found = drained(cluster, on_slurm, study, 900)
    said = "".join(path.read_text() for path in (study / "slurm").glob("*.log"))
    assert "not saved in time before the time limit; requeued, resumes from the last checkpoint" in said
    restarts = int(re.search(r"Restarts=(\d+)", cluster.query("scontrol", "show", "job", "--oneliner", job))[1])
    assert restarts >= 1
    assert (found[SFT]["state"], found[scored]["state"]) == ("done", "done"), found
    check_equal(study, reference)


@pytest.mark.slow
@pytest.mark.faults
def test_a_killed_rank_a_hand_cancel_and_a_resubmission(cluster, on_slurm, smoke_study, transfer, tmp_path):
    steps = "train.steps=60"
    reference = uninterrupted(smoke_study, transfer, tmp_path, steps)
    study = study_of(smoke_study, tmp_path / "study")
    on_slurm("run", SMOKE, "--on", "slurm", "--out", study, *TWO_NODES, *ONE_ARM, steps)
    wait_for_checkpoint(study)
    os.kill(pids_of(study)[1], signal.SIGKILL)
    ended = lambda: standings(on_slurm, study)[SFT]["state"] == "failed"  # noqa: E731
    _, seconds = wait_for(ended, 60, lambda: standings(on_slurm, study))
    assert seconds < 30
    print(f"killed rank: failed {seconds:.1f} s after")
    found = drained(cluster, on_slurm, study)
    assert re.search("another rank was lost|ranks was killed", found[SFT]["reason"])
    assert found["eval/off_policy_sft-seed0-final"]["state"] == "blocked"
    assert found["eval/base"]["state"] == "done"

    assert "3 job(s) submitted" in on_slurm("resume", study).stdout
    wait_for(lambda: len(pids_of(study)) == 2, 60, lambda: standings(on_slurm, study))
    cluster.query("scancel", standings(on_slurm, study)[SFT]["job"])
    found = drained(cluster, on_slurm, study)
    assert found[SFT]["state"] in ("stopped", "failed")
    assert re.search("stopped by SIGTERM|its job was cancelled", found[SFT]["reason"]), found[SFT]
    assert found["report"]["state"] == "blocked"

    on_slurm("resume", study)
    found = drained(cluster, on_slurm, study)
    assert {row["state"] for row in found.values()} == {"done"}
    check_equal(study, reference)


@pytest.mark.slow
@pytest.mark.faults
def test_cancel_touches_only_its_own_jobs(cluster, on_slurm, smoke_study, tmp_path):
    study = study_of(smoke_study, tmp_path / "study")
    other = cluster.query("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 300").strip()
    on_slurm("run", SMOKE, "--on", "slurm", "--out", study, *ONE_ARM, "train.steps=4000")
    wait_for_checkpoint(study)
    listed = json.loads((study / "slurm" / "jobs.json").read_text())
    # As if an old job of this study had had a number that Slurm has given to somebody else since.
    (study / "slurm" / "jobs.json").write_text(json.dumps([*listed, listed[-1] | {"job": other, "token": "0" * 12}]))
    said = on_slurm("cancel", study).stdout
    assert f"job {other}" not in said
    wait_for(
        lambda: cluster.query("squeue", "--noheader", "--format=%i").split() == [other], 60,
        lambda: cluster.query("squeue"),
    )  # fmt: skip
    cluster.query("scancel", other)
    assert "nothing of" in on_slurm("cancel", study).stdout


@pytest.mark.slow
@pytest.mark.faults
def test_a_lost_node_sends_the_job_back_to_the_queue(cluster, on_slurm, smoke_study, transfer, tmp_path):
    steps = "train.steps=60"
    reference = uninterrupted(smoke_study, transfer, tmp_path, steps)
    study = study_of(smoke_study, tmp_path / "study")
    on_slurm("run", SMOKE, "--on", "slurm", "--out", study, *TWO_NODES, *ONE_ARM, steps, "--until", SFT)
    wait_for_checkpoint(study)
    cluster.stop_node("n2")
    begun = time.monotonic()
    cluster.query("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    wait_for(lambda: standings(on_slurm, study)[SFT]["state"] == "queued", 90, lambda: standings(on_slurm, study))
    print(f"lost node: back in the queue after {time.monotonic() - begun:.1f} s")
    cluster.start_node("n2")
    cluster.query("scontrol", "update", "nodename=n2", "state=resume")
    found = drained(cluster, on_slurm, study)
    assert found[SFT]["state"] == "done"
    check_equal(study, reference)


@pytest.mark.slow
@pytest.mark.faults
def test_a_hung_rank_is_ended_with_a_sentence(cluster, on_slurm, smoke_study, tmp_path):
    study = study_of(smoke_study, tmp_path / "study")
    settings = ["train.steps=4000", "resources.silence_minutes=0.6"]
    on_slurm("run", SMOKE, "--on", "slurm", "--out", study, *TWO_NODES, *ONE_ARM, *settings, "--until", SFT)
    wait_for_checkpoint(study)
    os.kill(pids_of(study)[1], signal.SIGSTOP)
    ended = lambda: standings(on_slurm, study)[SFT]["state"] == "failed"  # noqa: E731
    _, seconds = wait_for(ended, 90, lambda: standings(on_slurm, study))
    print(f"hung rank: ended {seconds:.1f} s after, with a limit of 36 s")
    found = drained(cluster, on_slurm, study)
    assert "no rank has sent a heartbeat for 0.6 minutes" in found[SFT]["reason"]
    assert not subprocess.run(
        ["pgrep", "-f", f"launch.execution.ranks {study}"], capture_output=True, check=False
    ).stdout


@pytest.mark.slow
@pytest.mark.faults
def test_a_full_disk_is_a_sentence_and_loses_nothing(cluster, on_slurm, smoke_study, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=260m", "tmpfs", disk], check=False)
    if mounted.returncode:
        # Containers often withhold this right from root; only filling a disk midway needs a real small one.
        pytest.skip("this process may not mount a small disk")
    try:
        study = study_of(smoke_study, disk / "study")
        on_slurm("run", SMOKE, "--on", "slurm", "--out", study, *ONE_ARM, "train.steps=4000", "--until", SFT)
        wait_for_checkpoint(study)
        (disk / "filler").write_bytes(b"\0" * (shutil.disk_usage(disk).free - 4096))
        found = drained(cluster, on_slurm, study)
        assert found[SFT]["state"] == "failed"
        assert re.search("no space left on the disk", found[SFT]["reason"]), found[SFT]
        (disk / "filler").unlink()
        before = max(int(p.parent.name.rpartition("-")[2]) for p in (study / SFT).glob("checkpoint-*/COMPLETE"))
        on_slurm("resume", study)
        wait_for_checkpoint(study, before + 1)
        on_slurm("cancel", study)
        drained(cluster, on_slurm, study)
    finally:
        cluster.query("scancel", "--user=root")
        time.sleep(3)
        subprocess.run(["umount", "--lazy", disk], check=False)


@pytest.mark.slow
@pytest.mark.parametrize("lives", [0, 20])
@pytest.mark.faults
def test_a_dead_vllm_server_is_named(cluster, on_slurm, smoke_study, tmp_path, monkeypatch, lives):
    """A program called vllm that serves /health for some seconds and then ends, on the second node of the job."""
    programs = tmp_path / "bin"
    programs.mkdir()
    fake = programs / "vllm"
    fake.write_text(
        f"#!{sys.executable}\n"
        "import http.server, sys, threading, time, os\n"
        f"if {lives} == 0: sys.exit('no weights')\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        f"        open({str(tmp_path / 'asked')!r}, 'w').close()\n"
        "        self.send_response(200); self.end_headers()\n"
        "port = int(sys.argv[sys.argv.index('--port') + 1])\n"
        f"threading.Timer({lives}, lambda: os._exit(1)).start()\n"
        "http.server.HTTPServer(('0.0.0.0', port), Handler).serve_forever()\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    # The submission asks whether vLLM is installed; an empty package is enough for that.
    (tmp_path / "packages" / "vllm").mkdir(parents=True)
    (tmp_path / "packages" / "vllm" / "__init__.py").touch()
    monkeypatch.setenv("EXTRA_PACKAGES", str(tmp_path / "packages"))
    study = study_of(smoke_study, tmp_path / "study")
    settings = ["arms.off_policy_sft=null", "arms.on_policy_sft=null", "resources.zero_stage=3"]
    settings += ["resources.vllm={mode: server, server_nodes: 1}"]
    on_slurm("run", SMOKE, "--on", "slurm", "--out", study, *settings, "--until", "arms/grpo/seed-0")
    found = drained(cluster, on_slurm, study, 200)["arms/grpo/seed-0"]
    assert found["state"] == "failed"
    if lives == 0:
        assert "the vLLM server of this job ended during its start" in found["reason"]
    else:  # it served; what is missing on this machine is the package the trainer talks to it with
        assert (tmp_path / "asked").exists()
        assert re.search("vllm is not (available|installed)", found["reason"].lower()), found["reason"]


@pytest.mark.slow
@pytest.mark.faults
def test_a_submission_that_is_killed_doubles_nothing(cluster, on_slurm, smoke_study, tmp_path):
    study = study_of(smoke_study, tmp_path / "study")
    arguments = ["run", SMOKE, "--on", "slurm", "--out", study, *TWO_ARMS]
    site = tmp_path / "site.yaml"
    site.write_text(SITE)
    environment = {**os.environ, **cluster.environment, "PYTHONPATH": str(ROOT), "TRANSFER_SITE": str(site)}
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", *map(str, arguments)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    jobs = study / "slurm" / "jobs.json"
    wait_for(lambda: jobs.exists() and len(json.loads(jobs.read_text())) >= 3, 20, lambda: jobs)
    process.kill()
    process.wait()
    on_slurm(*arguments)
    names = cluster.query("squeue", "--noheader", "--format=%j").split()
    assert len(names) == len(set(names)), names
    found = drained(cluster, on_slurm, study)
    assert {row["state"] for row in found.values()} == {"done"}
    assert not Path(study / "replaced").exists()
