"""The worker processes of the local scheduler: how long they live, and what surrounds a stage in them."""

import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.execution import local, stage_runner
from launch.execution.failures import CRASHED, recorded
from launch.execution.worker import worker_environment
from launch.stages import build_stages, stage_inputs
from launch.tasks import tasks_of_study
from recipes.loading import load_recipe
from recipes.manifest import finish_stage, start_stage
from tests.paths import ROOT
from train.runtime.ranks import rank, rows_per_rank, world_size

RECIPE = load_recipe("recipes/pocket/smoke.yaml")
STAGES = [stage for stage in build_stages(RECIPE) if stage.name in ("base", "corpus")]


def _note_process(values, study_dir, stage, gpus):
    """Stands in for a stage: writes the id of the process it runs in."""
    folder = Path(study_dir) / stage.name
    start_stage(folder, stage.name, stage_inputs(stage, Path(study_dir)))
    (folder / "pid").write_text(str(os.getpid()))
    finish_stage(folder, {"pid": "x"})


def _die_in_base(values, study_dir, stage, gpus):
    if stage.name == "base":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)  # longer than the death of the other takes to be seen
    _note_process(values, study_dir, stage, gpus)


def processes(study: Path) -> set[int]:
    return {int((study / stage.name / "pid").read_text()) for stage in STAGES}


def run(recipe, study, stages):
    return local.run_tasks(tasks_of_study(recipe, study, stages), study)


@pytest.fixture
def scheduler(monkeypatch):
    monkeypatch.setattr(local, "visible_gpus", list)
    monkeypatch.setattr(local, "run_in_worker", _note_process)
    return local


def test_a_worker_stays_for_the_next_stage_and_no_longer_than_the_run(scheduler, tmp_path):
    """base and corpus, one after the other, in one process; the next run has another one."""
    assert run(RECIPE, tmp_path / "first", STAGES) == 0
    assert len(processes(tmp_path / "first")) == 1
    assert active_children() == []
    assert run(RECIPE, tmp_path / "second", STAGES) == 0
    assert not processes(tmp_path / "second") & processes(tmp_path / "first")


def test_a_worker_that_died_ends_its_stage_alone(scheduler, tmp_path, monkeypatch, capsys):
    """Killed, as the kernel does for lack of memory. The stage beside it goes on, what needs it is not run."""
    stages = [stage for stage in build_stages(RECIPE) if stage.name in ("base", "corpus", "questions")]
    monkeypatch.setattr(local, "run_in_worker", _die_in_base)
    study = tmp_path / "study"
    assert run(RECIPE, study, stages) == CRASHED
    shown = capsys.readouterr()
    died = "its process died, perhaps for lack of memory; the same command continues from its last file or checkpoint"
    assert re.search(rf"  FAILED   base after \d+ s: {died}\n", shown.out)
    assert "finished questions" in shown.out
    assert shown.err == "1 stage(s) failed; not run because of it: corpus\n"
    assert recorded(study, "base")["message"] == died
    assert active_children() == []
    monkeypatch.setattr(local, "run_in_worker", _note_process)
    assert run(RECIPE, study, stages) == 0


@pytest.mark.parametrize(("own", "spins"), [({}, "0"), ({"OMP_WAIT_POLICY": "active"}, "30000000000")])
def test_waiting_threads_of_a_stage_sleep_unless_the_user_says_otherwise(own, spins):
    """What OpenMP itself says: it reads the setting when torch is imported, so a worker imports torch after it."""
    result = subprocess.run(
        [sys.executable, "-c", "from launch.execution.worker import prepare_worker; prepare_worker(); import torch"],
        env={key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        | {"OMP_DISPLAY_ENV": "verbose"}
        | own,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in result.stderr  # 300000 without a setting


def test_freed_memory_goes_back_to_the_system():
    """300 MB of small objects below one that stays: the C library keeps their pages until it is asked for them."""
    code = (
        "from pathlib import Path; from launch.execution.worker import return_memory\n"
        "def resident(): return int(Path('/proc/self/statm').read_text().split()[1]) * 4096 >> 20\n"
        "parts = [b'x' * (60_000 + n % 2) for n in range(5_000)]; top = b'y' * 60_000; del parts; before = resident()\n"
        "return_memory(); print(before - resident())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 250 < int(result.stdout) < 350


@pytest.mark.parametrize(("own", "bound"), [({}, "nobind"), ({"VLLM_CPU_OMP_THREADS_BIND": "0-7"}, "0-7")])
def test_engines_side_by_side_are_not_bound_to_the_same_cores(own, bound, monkeypatch):
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert worker_environment()["VLLM_CPU_OMP_THREADS_BIND"] == bound


def test_a_stage_is_no_rank_of_a_surrounding_job(tmp_path, monkeypatch):
    """With WORLD_SIZE=2 from a container, one process would train on half of the rows of every update."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    seen = []
    stage = SimpleNamespace(run=lambda *_: seen.append((rank(), world_size(), rows_per_rank(8))))
    monkeypatch.setattr(stage_runner, "import_module", lambda name: stage)
    stage_runner.run_stage(RECIPE, tmp_path, STAGES[0])
    assert seen == [(0, 1, 8)]


def test_processes_of_a_stage_get_its_threads(tmp_path):
    """vLLM's workers read the variable: unbound, they would otherwise use one thread whatever the recipe says."""
    code = (
        "import os, sys; from launch.execution import worker; from launch.stages import Stage\n"
        "from recipes.loading import load_recipe\n"
        "def note(recipe, study, stage): (study / 'threads').write_text(os.environ['OMP_NUM_THREADS'])\n"
        "worker.run_stage = note; recipe = load_recipe('recipes/pocket/smoke.yaml')\n"
        "stage = Stage('base', {}, threads=3)\n"
        "worker.run_in_worker(recipe.model_dump(mode='json'), sys.argv[1], stage)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "threads").read_text() == "3"


@pytest.mark.parametrize("quiet", [True, False])
def test_what_killed_workers_leave_is_unlinked_without_a_warning(quiet):
    """A semaphore that nobody unlinked, as a killed worker leaves it; the second case shows that Python would warn."""
    start = "from launch.execution.local import _start_quiet_resource_tracker as start; start(); " if quiet else ""
    left = "from multiprocessing import resource_tracker as t; t.register('/left-by-a-worker', 'semaphore')"
    ended = subprocess.run([sys.executable, "-c", start + left], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ("leaked semaphore" in ended.stderr) is not quiet
