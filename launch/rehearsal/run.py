"""Rehearse a recipe: write data and models for the scaled recipe, run its stages, report the outcome."""

import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch.execution.failures import INTERRUPTED, STOPPED
from launch.rehearsal import outcome
from launch.rehearsal.faults import continuation_fault, kill_after_checkpoint
from launch.rehearsal.hardware import Hardware, find_hardware
from launch.rehearsal.rows import Rows, write_rows
from launch.rehearsal.scale import Replacements, scale
from launch.rehearsal.teacher import serving_teacher
from launch.rehearsal.toy_model import write_toy_model
from launch.run import check_tasks, refuse_if_queued, require, run_on_slurm
from launch.site_file import SiteSpec
from launch.stages import Stage, build_stages, select_until
from launch.tasks import tasks_of_study
from recipes.errors import UserError
from recipes.files import is_locked, read_json, write_json
from recipes.loading import STUDY_FILE
from recipes.schema import Recipe
from train.arms import resolve_arm

STUDY, ASSETS, OUTCOME = "study", "assets", "rehearsal.json"
_POLL_SECONDS = 2.0
_CPU_ENGINE = {"TORCH_COMPILE_DISABLE": "1"}


def rehearse(
    recipe: Recipe,
    out: Path,
    ranks: int | None = None,
    site: SiteSpec | None = None,
    generate: bool = False,
    faults: bool = False,
) -> dict[str, Any]:
    """Run every stage of a recipe at toy size; prints what is scaled and the progress.

    Args:
        recipe: at full size, valid and matched.
        out: folder of the rehearsal; an earlier rehearsal in it is replaced.
        ranks: processes that train an arm; None: those of the recipe, at most one per GPU, or two on a CPU.
        site: the cluster to run on; None: this machine.
        generate: generate all rows instead of reading the locked ones.
        faults: kill every training stage once and resume it.

    Returns:
        The outcome as JSON values, which is also in `rehearsal.json`.

    Raises:
        UserError: the recipe cannot be rehearsed; no stage has run.
    """
    begun = time.monotonic()
    out = out.resolve()
    hardware = find_hardware(recipe, ranks, site)
    _clear(out)
    write_json(out / OUTCOME, {"rehearsal": True, "passed": None})  # marks the folder as a rehearsal
    rows = write_rows(recipe, out / ASSETS / "rows", generate)
    models, trained_tokenizers = _write_models(recipe, out / ASSETS / "models", rows, hardware, faults)
    with _teacher(recipe, rows, faults, site is not None) as address, _environment(hardware, out):
        scaled = scale(recipe, hardware, Replacements(models, rows.files, address, rows.settings))
        missing = (*scaled.not_rehearsed, *_replaced(rows, trained_tokenizers, address))
        print("scaled for the rehearsal; everything else is as in the recipe:")
        print(outcome.format_scaled(scaled.changes))
        print("  model                weights are random; width, depth and number of heads are small\n", flush=True)
        stages = build_stages(scaled.recipe)
        require(check_tasks(tasks_of_study(scaled.recipe, out / STUDY, stages), site))
        resumed = _run(scaled.recipe, stages, out / STUDY, site, faults)
    rows_of_stages = outcome.rows_of(out / STUDY, stages, resumed)
    result = outcome.as_json(rows_of_stages, scaled.changes, missing, time.monotonic() - begun)
    write_json(out / OUTCOME, result)
    return result


def _clear(out: Path) -> None:
    """Remove an earlier rehearsal. Raises UserError if the folder is something else or in use."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if (read_json(out / OUTCOME) or {}).get("rehearsal") is not True:
        raise UserError(f"{out} is not empty and is not a rehearsal; choose another --out")
    if is_locked(out / STUDY):
        raise UserError(f"{out} is being rehearsed by another process; wait for it or choose another --out")
    refuse_if_queued(out / STUDY)
    shutil.rmtree(out)


def _write_models(
    recipe: Recipe, folder: Path, rows: Rows, hardware: Hardware, faults: bool
) -> tuple[dict[str, str], list[str]]:
    """Write a small model for every model of the recipe; their folders by key, and those with a tokenizer made here."""
    texts = list(rows.problems) or [f"What is {n} plus {n + 1}?" for n in range(10)]
    short = sorted({answer for answer in rows.problems.values() if len(answer) < 5})[:10]
    answers = short or [str(digit) for digit in range(10)]
    suite, vllm = recipe.suite, recipe.resources.vllm
    parallel = max([1, *([suite.engine.tensor_parallel] if suite else []), *([vllm.tensor_parallel] if vllm else [])])
    specs: dict[str, Any] = {}
    if recipe.model is not None and recipe.model.path is not None:
        specs["model.path"] = recipe.model
    specs |= {f"arms.{name}.external.path": external for name, external in recipe.external.items()}
    teacher = recipe.corpus.teacher
    if teacher is not None and teacher.kind == "transformers" and teacher.model != "base" and recipe.model is not None:
        specs["corpus.teacher.model"] = recipe.model.model_copy(
            update={"path": teacher.model, "revision": teacher.revision}
        )
    models, trained_tokenizers = {}, []
    for index, (key, spec) in enumerate(specs.items()):
        target = folder / f"{index}-{Path(str(spec.path)).name}"
        print(f"making a small model like {spec.path}", flush=True)
        own = write_toy_model(
            target, recipe, spec, texts, answers, recipe.seeds[0] + index, parallel if hardware.gpus else 1, faults
        )
        models[key] = str(target)
        trained_tokenizers += [] if own else [str(spec.path)]
    return models, trained_tokenizers


def _replaced(rows: Rows, tokenizers: list[str], teacher: str | None) -> list[str]:
    """Data, tokenizers and servers of the recipe that were replaced."""
    replaced = []
    if rows.generated:
        replaced.append(f"the data of {', '.join(rows.generated)}: generated rows in the columns that the recipe reads")
    if tokenizers:
        replaced.append(f"the tokenizer of {', '.join(tokenizers)}: one trained here, with the same template")
    if teacher is not None:
        replaced.append("the teacher's server: a stand-in on this machine wrote the reference answers")
    return replaced


@contextmanager
def _teacher(recipe: Recipe, rows: Rows, faults: bool, cluster: bool) -> Iterator[str | None]:
    if not any(sampler.kind == "endpoint" for sampler in recipe.corpus.samplers.values()):
        yield None
        return
    with serving_teacher(rows.problems, faults, socket.gethostname() if cluster else "127.0.0.1") as address:
        yield address


@contextmanager
def _environment(hardware: Hardware, out: Path) -> Iterator[None]:
    """Keep samples of the stand-in teacher apart from real ones; on a CPU, let vLLM start quickly."""
    added = {} if hardware.gpus else {key: value for key, value in _CPU_ENGINE.items() if key not in os.environ}
    added["TRANSFER_SAMPLES"] = str(out / "samples")
    before = {key: os.environ.get(key) for key in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            os.environ |= {} if value is None else {key: value}


def _run(
    recipe: Recipe, stages: list[Stage], study_dir: Path, site: SiteSpec | None, faults: bool
) -> dict[str, str | None]:
    """Run all stages. Returns stages that were killed -> why they did not resume correctly; None: they did."""
    if site is not None:
        _run_on_slurm(recipe, study_dir, stages, site)
        return {}
    from launch.execution.local import run_tasks

    def run(some: list[Stage]) -> None:
        if run_tasks(tasks_of_study(recipe, study_dir, some), study_dir) in (INTERRUPTED, STOPPED):
            raise KeyboardInterrupt

    resumed: dict[str, str | None] = {}
    if faults and recipe.trained:
        run(select_until(stages, "corpus"))
        for stage in (stage for stage in stages if stage.kind == "arms"):
            print(f"  kill     {stage.name} after its first checkpoint", flush=True)
            before = kill_after_checkpoint(study_dir, stage)
            run(select_until(stages, stage.name))
            steps = resolve_arm(recipe, stage.arm).steps
            resumed[stage.name] = continuation_fault(study_dir, stage, before, steps)
    run(stages)
    return resumed


def _run_on_slurm(recipe: Recipe, study_dir: Path, stages: list[Stage], site: SiteSpec) -> None:
    """Submit all stages and wait until none is queued or running."""
    from launch.execution.local import check_study_dir
    from launch.slurm.submit import cancel
    from launch.status import State, stage_statuses

    check_study_dir(recipe, study_dir)
    tasks = tasks_of_study(recipe, study_dir, stages)
    write_json(study_dir / STUDY_FILE, recipe.dump())
    run_on_slurm(study_dir, tasks, site, None)
    shown = ""
    try:
        while True:
            counts = Counter(status.state for status in stage_statuses(study_dir, tasks))
            text = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
            if text != shown:
                print(f"  …        {text}", flush=True)
            shown = text
            if not counts.keys() & {State.RUNNING, State.QUEUED, State.WAITING}:
                return
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        cancel(study_dir, None)
        raise
