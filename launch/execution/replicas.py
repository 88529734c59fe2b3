"""`transfer work`: more processes for the evaluations of a study, on this machine or another that shares its folder."""

import os
import time
from pathlib import Path

from eval.responses.units import open_units
from launch.execution.worker import worker_environment
from launch.stages import Stage, build_stages, stage_inputs
from recipes.errors import UserError
from recipes.manifest import environment, read_manifest, stage_state
from recipes.schema import Recipe

_POLL_SECONDS = 5.0


def work(recipe: Recipe, study_dir: Path, wait: bool, only: str | None = None) -> int:
    """Answer questions of every evaluation that has begun and is not complete; returns the exit status.

    When all questions of one model are claimed it goes on with the next, whoever is still answering the last ones.

    `wait`: also for evaluations that have not begun, until all of the recipe's are done. `only`: for the one stage.

    Raises:
        UserError: the recipe evaluates nothing, or there is no such study.
    """
    if recipe.suite is None:
        raise UserError(f"{recipe.study} has no suite, so there is nothing to evaluate")
    if not study_dir.is_dir() and not wait:
        raise UserError(f"{study_dir} does not exist; start `transfer run` first, or say --wait")
    os.environ.update(worker_environment())
    made = 0
    while True:
        stages = [stage for stage in build_stages(recipe) if stage.kind == "eval" and only in (None, stage.name)]
        states = {stage.name: stage_state(study_dir / stage.name, stage_inputs(stage, study_dir)) for stage in stages}
        here = 0
        for stage in stages:
            if states[stage.name].state == "resume":
                here += _help(recipe, study_dir, stage)
        made += here
        finished = all(state.state == "done" for state in states.values())
        if finished or (not wait and here == 0):
            print(f"{made} response(s) stored here; " + ("all evaluations are done" if finished else "nothing is open"))
            return 0
        if here == 0:
            time.sleep(_POLL_SECONDS)


def _help(recipe: Recipe, study_dir: Path, stage: Stage) -> int:
    manifest = read_manifest(study_dir / stage.name) or {}
    if manifest.get("code") != stage.code or manifest["environment"]["packages"] != environment()["packages"]:
        raise UserError(f"{stage.name} was begun by other code or packages than are installed here; use the same ones")
    model_dir = str(stage.arguments["model_dir"])
    units = open_units(recipe, study_dir, study_dir / stage.name, model_dir)
    # Only what the stage has opened: its own process makes the folders and decides what is asked again.
    ready = [unit for unit in units if stage_state(unit.directory, unit.inputs).state == "resume" and unit.missing()]
    if not ready:
        return 0
    from eval.responses.asking import Asking

    with Asking(recipe, study_dir, study_dir / model_dir, ready) as asking:
        open_here = sum(unit.questions * unit.samples for unit in ready) - asking.done()
        print(f"{stage.name}: {open_here} response(s) open", flush=True)
        asking.work()
        return asking.answered
