"""Who gets which GPUs and what waits: the assignment alone, and through the scheduler with GPUs that are pretended."""

import json
import os

import pytest

from launch.execution import local, worker
from launch.execution.failures import MISTAKE, Failure
from launch.execution.gpus import Pool, Request, request_of
from launch.hardware import gpus_wanted, require_free_memory, teacher_on, visible_gpus
from launch.planning import node
from launch.slurm import step
from launch.stages import Stage, build_stages
from launch.tasks import tasks_of_study
from recipes.errors import UserError
from recipes.loading import load_recipe

BIG = "recipes/qwen3-14b/matched.yaml"
SMOKE = "recipes/pocket/smoke.yaml"
EIGHT = [str(number) for number in range(8)]


def test_stages_of_one_gpu_fill_the_node_and_the_rest_waits():
    pool = Pool(EIGHT, None)
    placed = pool.start([Request(f"eval/{number}", 1) for number in range(10)])
    assert placed == [(f"eval/{number}", (str(number),)) for number in range(8)]
    assert pool.start([Request("eval/8", 1)]) == []
    pool.end("eval/3")
    assert pool.start([Request("eval/8", 1), Request("eval/9", 1)]) == [("eval/8", ("3",))]


def test_a_run_on_all_gpus_is_not_overtaken_by_small_stages():
    pool = Pool(EIGHT, None)
    assert pool.start([Request("eval/base", 1)]) == [("eval/base", ("0",))]
    ready = [Request("arms/grpo", 8), Request("drift/base", 1), Request("report", 0)]
    assert pool.start(ready) == [("report", ())]
    pool.end("eval/base")
    assert pool.start(ready[:2]) == [("arms/grpo", tuple(EIGHT))]
    assert pool.start([Request("drift/base", 1)]) == []
    pool.end("arms/grpo")
    assert pool.start([Request("drift/base", 1)]) == [("drift/base", ("0",))]


def test_runs_of_half_a_node_go_side_by_side_and_tensor_parallel_stages_get_their_gpus():
    pool = Pool(EIGHT, None)
    assert pool.start([Request("a", 4), Request("b", 4), Request("c", 4)]) == [("a", ("0", "1", "2", "3")),
                                                                    ("b", ("4", "5", "6", "7"))]  # fmt: skip
    pool.end("a")
    assert pool.start([Request("eval", 2), Request("eval2", 2)]) == [("eval", ("0", "1")), ("eval2", ("2", "3"))]


def test_workers_of_the_recipe_are_a_limit_and_without_gpus_there_are_two():
    assert Pool(EIGHT, 3).start([Request(str(n), 1) for n in range(9)]) == [(str(n), (str(n),)) for n in range(3)]
    pool = Pool([], None)
    assert (pool.size, Pool([], 5).size, Pool(EIGHT, None).size) == (2, 5, 10)
    assert pool.start([Request(str(n), 0) for n in range(4)]) == [("0", ()), ("1", ())]
    with_gpus = Pool(["0", "1"], None)
    assert with_gpus.start([Request(str(n), 0) for n in range(4)]) == [("0", ()), ("1", ())]
    assert with_gpus.start([Request("eval", 1)]) == [("eval", ("0",))]


def test_arms_that_share_a_server_follow_one_another():
    pool = Pool(EIGHT, None)
    wishes = [Request("grpo/0", 4, "vLLM server"), Request("grpo/1", 4, "vLLM server"), Request("sft", 4)]
    assert [name for name, _ in pool.start(wishes)] == ["grpo/0", "sft"]
    pool.end("grpo/0")
    assert [name for name, _ in pool.start(wishes[1:2])] == ["grpo/1"]


def test_what_each_kind_of_stage_asks_for():
    kinds = ("base", "corpus", "arms", "questions", "drift", "trajectory", "eval", "diagnostics", "report")

    def asked(*overrides):
        recipe = load_recipe(BIG, list(overrides))
        return dict(zip(kinds, (gpus_wanted(recipe, kind) for kind in kinds), strict=True))

    one = {"base": 0, "corpus": 0, "arms": 8, "questions": 0, "drift": 1, "trajectory": 1, "eval": 1,
           "diagnostics": 1, "report": 0}  # fmt: skip
    assert asked("suite.engine={kind: vllm}") == one
    assert asked("suite.engine={kind: vllm, tensor_parallel: 2}") == one | {"trajectory": 2, "eval": 2}
    assert asked("resources.ranks=16", "resources.nodes=4")["arms"] == 4
    served = "suite.engine={kind: endpoint, base_url: 'http://n1:8000/v1/completions', model: m}"
    assert asked(served, "trajectory=null") == one | {"trajectory": 0, "eval": 0}
    assert gpus_wanted(load_recipe(SMOKE), "base") == 1


def test_a_teachers_server_on_this_machine_has_its_gpus():
    recipe = load_recipe(BIG, ["corpus.teacher.base_url=http://127.0.0.1:8000/v1"])
    by_kind = {stage.kind: stage for stage in build_stages(recipe)}
    assert request_of(recipe, by_kind["corpus"], EIGHT) == Request("corpus", 8)
    elsewhere = load_recipe(BIG, ["corpus.teacher.base_url=http://node17:8000/v1"])
    assert teacher_on(elsewhere) is None
    assert request_of(elsewhere, by_kind["corpus"], EIGHT) == Request("corpus", 0)
    assert request_of(recipe, by_kind["arms"], EIGHT[:1]).gpus == 1


def test_devices_that_are_none_hide_the_rest_as_for_cuda(monkeypatch):
    for hidden in ("-1", "", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 1,-1,2")
    assert visible_gpus() == ["0", "1"]


def test_memory_that_somebody_else_uses_is_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with pytest.raises(UserError, match=r"^GPU 3 has 120 of its 141 GB in use by another process, perhaps the teacher"):
        require_free_memory(lambda: [(140_000_000_000, 141_000_000_000), (21_000_000_000, 141_000_000_000)], 0.0)
    answers = iter([[(10, 100)], [(10, 100)], [(90, 100)]])  # a stage that has just ended gives its memory back
    require_free_memory(lambda: next(answers), 1.0)
    require_free_memory(list, 0.0)


def _report(values, study_dir, stage, gpus):
    """Stands in for a stage: says which GPUs it was given, and is done."""
    from pathlib import Path

    from launch.stages import stage_inputs
    from recipes.manifest import finish_stage, start_stage

    folder = Path(study_dir) / stage.name
    start_stage(folder, stage.name, stage_inputs(stage, Path(study_dir)))
    (folder / "gpus.json").write_text(json.dumps(gpus))
    finish_stage(folder, {"gpus.json": "x"})


def test_the_scheduler_hands_out_pretended_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "1", "GPU-c", "3"])
    monkeypatch.setattr(local, "run_in_worker", _report)
    monkeypatch.setattr(local, "ProcessPoolExecutor", _Here)
    recipe, study = load_recipe(SMOKE, ["resources.ranks=4", "resources.zero_stage=3"]), tmp_path / "study"
    assert local.run_tasks(tasks_of_study(recipe, study, build_stages(recipe)), study) == 0
    got = {stage.name: json.loads((study / stage.name / "gpus.json").read_text())
           for stage in build_stages(recipe)}  # fmt: skip
    assert got["base"] == ["0"]
    assert got["corpus"] == got["questions"] == got["report"] == []
    assert got["arms/grpo/seed-0"] == got["arms/off_policy_sft/seed-0"] == ["0", "1", "GPU-c", "3"]
    scored = [got[name] for name in got if name.startswith("eval/")]
    assert all(len(gpus) == 1 for gpus in scored)
    assert len({gpu for gpus in scored for gpu in gpus}) > 1, "evaluations did not run side by side"


class _Here:
    """An executor that runs a task a moment later, in this process."""

    def __init__(self, size, context, initializer, max_tasks_per_child):
        assert (size, max_tasks_per_child) == (1, 1)

    def shutdown(self, **_settings):
        return None

    def submit(self, task, *arguments):
        from concurrent.futures import Future
        from threading import Timer

        future = Future()
        future.set_running_or_notify_cancel()
        Timer(0.2, lambda: future.set_result(task(*arguments))).start()
        return future


def test_a_worker_sees_its_own_gpus_alone(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        worker, "run_stage", lambda recipe, study_dir, stage: seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    )
    monkeypatch.setattr(worker, "require_on_this_node", lambda recipe, stage: None)
    monkeypatch.setattr(os, "dup2", lambda *numbers: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    values = load_recipe(SMOKE).dump()
    for gpus in (("4", "5"), (), None):
        assert worker.run_in_worker(values, str(tmp_path), Stage("eval/base", {}), gpus) is None
    assert seen == ["4,5", "", ""]


def test_a_stage_begins_with_what_only_its_node_can_tell(monkeypatch):
    recipe = load_recipe(BIG)
    stages = {stage.name: stage for stage in build_stages(recipe)}
    asked = []
    monkeypatch.setattr(node, "require_free_memory", lambda: asked.append("memory"))
    monkeypatch.setattr(node, "find_spec", lambda name: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with pytest.raises(UserError, match=r"arms/grpo/seed-0 needs 8 GPUs and sees 4 here; lower resources.ranks"):
        node.require_on_this_node(recipe, stages["arms/grpo/seed-0"])
    assert asked == []
    with pytest.raises(
        UserError, match=r"eval/base uses vLLM, which is not installed; run pip install -r requirements-gpu.lock"
    ):
        node.require_on_this_node(recipe, stages["eval/base"])
    node.require_on_this_node(recipe, stages["diagnostics/base"])
    assert asked == ["memory", "memory"]
    node.require_on_this_node(recipe, stages["report"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    node.require_on_this_node(recipe, stages["arms/grpo/seed-0"])
    assert len(asked) == 2


def test_attention_is_loaded_in_a_process_of_its_own(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match=r"^model.attention=flash_attention_2 cannot be used: "):
        node.require_attention(load_recipe(BIG))
    node.require_attention(load_recipe(BIG, ["model.attention_fallback=sdpa"]))
    assert capsys.readouterr().out == "attention: sdpa\n"
    monkeypatch.setattr(node.subprocess, "run", None)  # not asked where nothing depends on it
    node.require_attention(load_recipe(SMOKE))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    node.require_attention(load_recipe(BIG))


def test_a_job_says_what_its_node_lacks_before_it_does_anything(tmp_path, monkeypatch):
    recipe = load_recipe(SMOKE)
    stages = build_stages(recipe)

    def lacking(recipe, stage):
        raise UserError("GPU 0 is in use")

    monkeypatch.setattr(step, "require_on_this_node", lacking)
    monkeypatch.setattr(step, "run_stage", None)
    assert step._first_node(recipe, tmp_path, stages, stages[0]) == Failure("GPU 0 is in use", MISTAKE)
