"""What a cluster job does on each of its nodes, without a cluster."""

import os
from pathlib import Path

import pytest
import torch

from launch.execution import ranks
from launch.planning import node
from launch.slurm import step
from launch.stages import build_stages, stage_inputs
from recipes.files import write_json
from recipes.loading import load_recipe
from recipes.manifest import finish_stage, start_stage

SMOKE = Path(__file__).resolve().parent.parent / "recipes" / "pocket" / "smoke.yaml"
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
    assert ranks._JOIN_SECONDS > step._SERVER_START_SECONDS + node._LOAD_SECONDS


def test_processes_of_a_job_get_the_threads_of_its_stage(study, monkeypatch):
    root, _ = study
    monkeypatch.setenv("SLURM_PROCID", "0")
    seen = []
    monkeypatch.setattr(step, "run_stage", lambda *_: seen.append(os.environ["OMP_NUM_THREADS"]))
    assert step.main([str(root), GRPO]) == 0
    assert seen == ["3"]
