"""Checks that only the machine that runs a stage can make, before its models are loaded.

A login node has other GPUs and another driver than the nodes it submits to. So every job with a GPU begins with this,
also an early one such as the evaluation of the base, and `transfer run` on this machine begins with it once.
"""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import assert_never

from data.attention import FLASH
from eval.scorers.sandbox import require_sandbox
from launch.hardware import gpus_wanted, require_free_memory, visible_gpus
from launch.stage_kinds import STAGE_KINDS, StageKind
from launch.stages import Stage
from recipes.errors import UserError
from recipes.schema import Recipe

_LOAD_SECONDS = 300.0  # importing from a cluster's file system


def require_on_this_node(recipe: Recipe, stage: Stage) -> None:
    """Refuse to begin a stage on GPUs that are too few or in use by another process, or without its engine.

    Raises:
        UserError: one of these, or no sandbox for an evaluation that runs code, which is scored after all responses.
    """
    if stage.facts.samples_with == "suite.engine":
        require_sandbox_of(recipe)
    gpus, wanted = visible_gpus(), gpus_wanted(recipe, stage.kind)
    if not gpus or not wanted:
        return  # on a CPU, and of a stage that uses none, there is no GPU to check
    if len(gpus) < wanted:
        raise UserError(f"{stage.name} needs {wanted} GPUs and sees {len(gpus)} here; lower {stage.facts.gpus_set_by}")
    require_free_memory()
    if needs_vllm(recipe, stage.kind) and find_spec("vllm") is None:
        raise UserError(f"{stage.name} uses vLLM, which is not installed; run pip install -r requirements-gpu.lock")


def require_sandbox_of(recipe: Recipe) -> None:
    """Raise UserError if a benchmark runs code of models and there is no working sandbox on this machine."""
    with_code = any(benchmark.runs_code for benchmark in recipe.benchmarks)
    if with_code and not recipe.require_suite().allow_unsandboxed_code:
        require_sandbox()


def require_attention(recipe: Recipe) -> None:
    """Load the recipe's flash attention on a GPU of this machine, in a process of its own, which leaves nothing there.

    Raises:
        UserError: it cannot be loaded, and the recipe names no fallback.
    """
    if recipe.model is None or recipe.model.attention not in FLASH or not recipe.arms or not visible_gpus():
        return
    command = [sys.executable, "-m", "data.attention", recipe.model.model_dump_json()]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_LOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"model.attention={recipe.model.attention} was not loaded within {_LOAD_SECONDS:.0f} s"
        ) from None
    if answer.returncode:
        raise UserError((answer.stderr.strip().splitlines() or ["attention could not be loaded"])[-1])
    print(answer.stdout.strip().splitlines()[-1], flush=True)


def needs_vllm(recipe: Recipe, kind: StageKind) -> bool:
    """Whether a stage of this kind loads vLLM itself."""
    sampler = STAGE_KINDS[kind].samples_with
    match sampler:
        case "suite.engine":
            return recipe.suite is not None and recipe.suite.engine.kind == "vllm"
        case "trainer":
            vllm, samples = recipe.resources.vllm, any(arm.sampling != "teacher" for arm in recipe.trained.values())
            return vllm is not None and samples and (vllm.mode == "colocate" or vllm.server_nodes > 0)
        case "resources.vllm":
            return recipe.resources.vllm is not None
        case "corpus.samplers" | "transformers" | None:
            return False
        case _:
            assert_never(sampler)


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or will be."""
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(there).free
