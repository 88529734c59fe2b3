"""What a cluster job does on each of its nodes, without a cluster."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
import requests
import torch

from launch.execution import ranks
from launch.execution.failures import recorded
from launch.execution.worker import worker_environment
from launch.planning import node
from launch.run import check_tasks, require
from launch.site_file import SiteSpec
from launch.slurm import step, vllm_server
from launch.slurm.jobs import make_jobs
from launch.slurm.script import render
from launch.stages import build_stages, stage_inputs
from launch.tasks import tasks_of_study
from recipes.errors import UserError
from recipes.files import LockedError, write_json
from recipes.loading import load_recipe
from recipes.manifest import finish_stage, start_stage
from tests.paths import ROOT, SMOKE
from tests.support.servers import serving

GRPO = "arms/grpo/seed-0"
OVERRIDES = ["arms.on_policy_sft=null", "arms.off_policy_sft=null", "resources.ranks=2", "resources.nodes=2",
             "resources.threads=3"]  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of two nodes whose base and corpus are done; this process is a step of a job."""
    recipe = load_recipe(SMOKE, OVERRIDES)
    write_json(tmp_path / "study.json", recipe.dump())
    for stage in build_stages(recipe)[:2]:
        finish(tmp_path, stage)
    monkeypatch.setattr(step, "_write_to_log", lambda *_: None)
    monkeypatch.setattr(step, "listen", lambda: None)
    for name, value in {"TRANSFER_HEAD": "n1", "SLURM_STEP_NUM_TASKS": "2", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    yield tmp_path, {stage.name: stage for stage in build_stages(recipe)}
    torch.set_num_threads(threads)


def finish(study_dir, stage):
    start_stage(study_dir / stage.name, stage.name, stage_inputs(stage, study_dir))
    finish_stage(study_dir / stage.name, {"result": stage.name})


def test_a_second_node_of_a_finished_stage_ends_well(study, monkeypatch):
    """A job that is requeued when its work is done: the first node starts no ranks, so there are none to join."""
    root, stages = study
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setattr(ranks, "_JOIN_SECONDS", 0.0)
    assert step.main([str(root), GRPO]) == 1
    finish(root, stages[GRPO])
    assert step.main([str(root), GRPO]) == 0


def test_a_second_node_waits_longer_than_the_first_may_prepare():
    assert ranks._JOIN_SECONDS > step._SERVER_START_SECONDS + node._LOAD_SECONDS + step._LOST_LOCK_SECONDS


def test_processes_of_a_job_get_the_threads_of_its_stage(study, monkeypatch):
    root, _ = study
    monkeypatch.setenv("SLURM_PROCID", "0")
    seen = []
    monkeypatch.setattr(step, "run_stage", lambda *_: seen.append(os.environ["OMP_NUM_THREADS"]))
    assert step.main([str(root), GRPO]) == 0
    assert seen == ["3"]


def test_a_run_that_loses_its_server_to_a_signal_is_stopped_and_not_failed(study, monkeypatch):
    """In the process of the step; only a job with the record of a stop is requeued."""
    root, _ = study
    monkeypatch.setenv("SLURM_PROCID", "0")

    def lost(*_):
        raise ConnectionError("connection refused")

    monkeypatch.setattr(step, "run_stage", lost)
    monkeypatch.setattr(step, "noted_signal", lambda: "SIGTERM")
    assert step.main([str(root), GRPO]) == 75
    assert recorded(root, GRPO)["message"] == (
        "stopped by SIGTERM, and could not save: ConnectionError: connection refused"
    )
    monkeypatch.setattr(step, "noted_signal", lambda: None)
    assert step.main([str(root), GRPO]) == 1
    assert recorded(root, GRPO)["message"] == "ConnectionError: connection refused"


SERVER = """
import asyncio, multiprocessing, os, signal, sys, time

folder = sys.argv[1]

def engine(folder):  # a process of its own, as vLLM's engine, with a handler that would end it
    signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
    with open(f"{folder}/engine", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)

async def serve():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 3)
    with open(f"{folder}/server", "w") as file:
        file.write(str(os.getpid()))
    await asyncio.sleep(600)

if __name__ == "__main__":
    from engine_of_the_test import engine
    multiprocessing.get_context("spawn").Process(target=engine, args=(folder,)).start()
    asyncio.run(serve())
"""


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen within a minute")


def test_the_server_of_a_job_outlives_a_preemption_until_the_ranks_have_ended(tmp_path):
    """Slurm signals every process of every step: the server's, those that it starts, and the one that watches it."""
    (tmp_path / "server.py").write_text(SERVER)
    (tmp_path / "engine_of_the_test.py").write_text(SERVER.replace("folder = sys.argv[1]", ""))
    command = [str(tmp_path / "server.py"), str(tmp_path)]
    program = (
        "import sys; from pathlib import Path; from launch.slurm.vllm_server import serve_until; "
        f"sys.exit(serve_until(Path({str(tmp_path / 'stop')!r}), {command!r}))"
    )
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    watching = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path})
    files = [tmp_path / "server", tmp_path / "engine"]
    until(lambda: all(path.exists() and path.read_text() for path in files))
    pids = [watching.pid, *(int(path.read_text()) for path in files)]
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    time.sleep(2)
    assert [running(pid) for pid in pids] == [True, True, True]
    (tmp_path / "stop").touch()
    assert watching.wait(timeout=60) == 0
    until(lambda: not any(running(pid) for pid in pids[1:]))


def test_a_server_that_ends_itself_is_not_waited_for(tmp_path):
    (tmp_path / "server.py").write_text("import sys\nsys.exit(7)\n")
    program = (
        "import sys; from pathlib import Path; from launch.slurm.vllm_server import serve_until; "
        f"sys.exit(serve_until(Path('/nowhere/stop'), [{str(tmp_path / 'server.py')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60, cwd=ROOT)
    assert done.returncode == 7


SRUN = """#!/bin/bash
# A stand-in for srun: the server's step ends at the stop file or by TERM, the other one a second after TERM.
case "$*" in
  *vllm_server*)
    echo "server starts" >> events
    trap 'echo "server is terminated" >> events; exit 1' TERM
    while [ ! -e "$TRANSFER_SERVER_STOP" ]; do sleep 0.1; done
    echo "server is stopped" >> events ;;
  *)
    trap 'sleep 1; echo "ranks have saved" >> events; exit 0' TERM
    echo "ranks start" >> events
    while true; do sleep 0.1; done ;;
esac
"""

SCONTROL = """#!/bin/bash
case "$2" in hostnames) printf 'n1\\nn2\\n' ;; node) echo "NodeName=n NodeAddr=127.0.0.1" ;; esac
"""


def test_the_batch_script_stops_the_server_after_the_ranks(tmp_path):
    """All processes of a job get the signal of a preemption, those of the batch script too."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text(SRUN.replace("events", str(tmp_path / "events")))
    (programs / "scontrol").write_text(SCONTROL)
    for program in programs.iterdir():
        program.chmod(0o755)
    recipe = load_recipe(SMOKE, ["resources.vllm={mode: server, server_nodes: 1}"])
    tasks = tasks_of_study(recipe, tmp_path / "study", build_stages(recipe))
    (job,) = [job for job in make_jobs(tasks, {}) if job.name == "arms/grpo"]
    (tmp_path / "job.sh").write_text(render(job, SiteSpec(), "c", ""))
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "j"}
    environment |= {"SLURM_JOB_NODELIST": "n[1-2]"}
    batch = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment, start_new_session=True)
    events = tmp_path / "events"
    until(lambda: events.exists() and len(events.read_text().splitlines()) == 2)
    os.killpg(batch.pid, signal.SIGTERM)
    assert batch.wait(timeout=60) == 0
    until(lambda: (tmp_path / "server-7.ended").exists())
    assert events.read_text().splitlines()[2:] == ["ranks have saved", "server is stopped"]


def test_a_proxy_is_not_asked_for_the_nodes_of_a_job(tmp_path):
    """`setup` sets one, as the example of a site file does; what it excludes already stays."""
    recipe = load_recipe(SMOKE)
    tasks = tasks_of_study(recipe, tmp_path, build_stages(recipe))
    (job,) = [job for job in make_jobs(tasks, {}) if job.name == "arms/grpo"]
    (tmp_path / "scontrol").write_text(SCONTROL.replace("NodeAddr=127.0.0.1", "NodeAddr=10.0.0.$4"))
    (tmp_path / "srun").write_text('#!/bin/bash\necho "$no_proxy $NO_PROXY"\n')
    for name in ("scontrol", "srun"):
        (tmp_path / name).chmod(0o755)

    def excluded(*setup, **variables):
        (tmp_path / "job.sh").write_text(render(job, SiteSpec(setup=setup), "c", ""))
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
        return subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment | variables, check=True, text=True,
                              capture_output=True).stdout.split()  # fmt: skip

    nodes = "localhost,127.0.0.1,n1,10.0.0.n1,n2,10.0.0.n2"
    assert excluded() == [nodes, nodes]
    assert excluded("export http_proxy=http://proxy:3128 no_proxy=.site") == [f".site,{nodes}"] * 2
    assert excluded(NO_PROXY=".site") == [f".site,{nodes}"] * 2
    assert excluded(no_proxy="*") == ["*", "*"]


def test_a_stage_asks_servers_on_its_machine_without_the_proxy(monkeypatch):
    """With the clients that stages use, of which each reads the variables in its own way."""
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nothing listens there
    monkeypatch.setenv("NO_PROXY", ".site,127.0.0.1")
    environment = worker_environment()
    assert (environment["no_proxy"], environment["NO_PROXY"]) == (".site,127.0.0.1,localhost",) * 2
    monkeypatch.delenv("NO_PROXY")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, worker_environment()[name])
    with serving(Server) as url:
        urllib.request.urlopen(f"{url}/urllib", timeout=20).close()
        requests.get(f"{url}/requests", timeout=20)
        httpx.get(f"{url}/httpx", timeout=20)
    assert asked == ["/urllib", "/requests", "/httpx"]
    monkeypatch.setenv("no_proxy", "*")
    assert worker_environment()["NO_PROXY"] == "*"


def test_the_server_of_this_environment_is_used_where_it_is_not_activated(study, monkeypatch, tmp_path):
    """Called as .venv/bin/transfer; another vllm on the PATH is not the one that was tested."""
    root, _ = study
    recipe = load_recipe(SMOKE, [*OVERRIDES, "resources.vllm={mode: server, server_nodes: 1}"])
    write_json(root / "study.json", recipe.dump())
    mine, other = tmp_path / "venv" / "bin", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir(parents=True)
        (folder / "vllm").write_text("#!/bin/sh\n")
        (folder / "vllm").chmod(0o755)
    served = []
    monkeypatch.setattr(vllm_server, "serve_until", lambda stop, command: served.append((stop, command[:3])) or 0)
    monkeypatch.setattr(vllm_server.sys, "executable", str(mine / "python"))
    monkeypatch.setenv("PATH", str(other))
    monkeypatch.setenv("TRANSFER_SERVER_STOP", str(tmp_path / "stop"))
    assert vllm_server.main([str(root), GRPO, "8000"]) == 0
    (mine / "vllm").unlink()
    assert vllm_server.main([str(root), GRPO, "8000"]) == 0
    (other / "vllm").unlink()
    assert vllm_server.main([str(root), GRPO, "8000"]) == 2
    assert served == [
        (tmp_path / "stop", [str(folder / "vllm"), "serve", str(root / "base")]) for folder in (mine, other)
    ]


@pytest.mark.parametrize(
    ("url", "address", "chosen", "expected"),
    [
        ("http://n2:8000", "10.1.2.3", None, "10.1.2.3"),
        ("http://n2:8000", "10.1.2.3", "10.9.9.9", "10.9.9.9"),
        ("http://n2:8000", "127.0.1.1", None, None),
        (None, "10.1.2.3", None, None),
    ],
)
def test_the_trainer_has_the_address_of_its_node(study, monkeypatch, url, address, chosen, expected):
    """TRL sends the server what vLLM takes for this machine's address: 0.0.0.0 without a default route."""
    root, _ = study
    monkeypatch.setenv("SLURM_PROCID", "0")
    for name, value in {"VLLM_HOST_IP": chosen, "TRANSFER_VLLM_URL": url}.items():
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    monkeypatch.setattr(step.socket, "gethostbyname", {"n1": address}.__getitem__)
    monkeypatch.setattr(step, "_wait_for_server", lambda: None)
    seen = []
    monkeypatch.setattr(step, "run_stage", lambda *_: seen.append(os.environ.get("VLLM_HOST_IP")))
    assert step.main([str(root), GRPO]) == 0
    os.environ.pop("VLLM_HOST_IP", None)
    assert seen == [expected]


def test_a_restarted_job_waits_for_the_lock_of_its_lost_node(study, monkeypatch, capfd):
    """A server of NFSv3 keeps the lock of a node that was lost; the first start of a job takes it for another job."""
    root, stages = study
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setattr(step, "_ASK_LOCK_SECONDS", 0.0)
    monkeypatch.setattr(step, "_no_progress", lambda *_: None)  # these starts make none
    attempts = []

    def locked_twice(*_):
        attempts.append(1)
        if len(attempts) < 3:
            raise LockedError("locked")

    monkeypatch.setattr(step, "run_stage", locked_twice)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert step.main([str(root), GRPO]) == 2
    assert recorded(root, GRPO)["message"] == f"another job is writing {GRPO}"
    attempts.clear()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert step.main([str(root), GRPO]) == 0
    assert len(attempts) == 3
    said = capfd.readouterr().out
    assert said.count(f"{GRPO} is locked, perhaps by the node that this job ran on before; waiting up to 10 min") == 1
    attempts.clear()
    monkeypatch.setattr(step, "noted_signal", lambda: "SIGTERM")
    assert step.main([str(root), GRPO]) == 75
    monkeypatch.setattr(step, "noted_signal", lambda: None)
    attempts.clear()
    monkeypatch.setattr(step, "_LOST_LOCK_SECONDS", 0.0)
    assert step.main([str(root), GRPO]) == 2
    # Replicas share an evaluation: the lock is that of one at work.
    recipe = load_recipe(SMOKE, ["resources.evaluation_replicas=2"])
    monkeypatch.setattr(step, "_LOST_LOCK_SECONDS", 600.0)
    attempts.clear()
    with pytest.raises(LockedError):
        step._run(recipe, root, stages["eval/base"])
    step._run(load_recipe(SMOKE), root, stages["eval/base"])
    assert len(attempts) == 3


def no_bubblewrap():
    raise UserError("bubblewrap (bwrap) is not installed")


def test_the_sandbox_is_looked_for_where_the_code_runs(study, monkeypatch):
    """On a login node bubblewrap says nothing about an image; in the job it is needed before the first response."""
    root, stages = study
    monkeypatch.setattr(node, "require_sandbox", no_bubblewrap)
    recipe = load_recipe(SMOKE)
    tasks = tasks_of_study(recipe, root, list(stages.values()))
    require(check_tasks(tasks))
    node.require_on_this_node(recipe, stages["eval/base"])
    monkeypatch.setattr(type(recipe.benchmarks[0]), "runs_code", True)
    with pytest.raises(UserError, match="bubblewrap"):
        require(check_tasks(tasks))
    with pytest.raises(UserError, match="bubblewrap"):
        require(check_tasks(tasks, SiteSpec()))
    require(check_tasks(tasks, SiteSpec(container={"image": "lab.sif"})))
    for name in ("eval/base", "eval/grpo-seed0-final"):
        with pytest.raises(UserError, match="bubblewrap"):
            node.require_on_this_node(recipe, stages[name])
    for name in (GRPO, "report"):
        node.require_on_this_node(recipe, stages[name])
    node.require_on_this_node(load_recipe(SMOKE, ["suite.allow_unsandboxed_code=true"]), stages["eval/base"])
