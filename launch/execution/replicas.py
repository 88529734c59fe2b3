"""`transfer work`: further processes for the evaluations of a study, on machines that share its folder."""

import os
import time
from pathlib import Path

from eval.responses.units import open_units
from launch.execution.worker import use_threads, worker_environment
from launch.stages import Stage, build_stages, stage_inputs
from recipes.errors import UserError
from recipes.manifest import environment, read_manifest, stage_state
from recipes.schema import Recipe

_POLL_SECONDS = 5.0


def work(recipe: Recipe, study_dir: Path, wait: bool, only: str | None = None) -> int:
    """Generate missing responses of every evaluation that has started; returns the exit status.

    When every response of one model is stored or claimed it continues with the next model, without waiting for other
    workers.

    `wait`: also for evaluations that have not started, until all are done. `only`: the one stage to work on; None: all.

    Raises:
        UserError: the recipe evaluates nothing, or there is no such study.
    """
    recipe.require_suite()
    if not study_dir.is_dir() and not wait:
        raise UserError(f"{study_dir} does not exist; start `transfer run` first, or use --wait")
    os.environ.update(worker_environment())
    made = 0
    while True:
        stages = [stage for stage in build_stages(recipe) if stage.kind == "eval" and only in (None, stage.name)]
        states = {stage.name: stage_state(study_dir / stage.name, stage_inputs(stage, study_dir)) for stage in stages}
        generated = sum(_generate(recipe, study_dir, stage) for stage in stages if states[stage.name].state == "resume")
        made += generated
        finished = all(state.state == "done" for state in states.values())
        if finished or (not wait and generated == 0):
            left = "all evaluations are done" if finished else "other workers are generating the rest, if any"
            print(f"{made} response(s) generated; {left}")
            return 0
        if generated == 0:
            time.sleep(_POLL_SECONDS)


def _generate(recipe: Recipe, study_dir: Path, stage: Stage) -> int:
    """Generate missing responses of one evaluation; returns their number."""
    manifest = read_manifest(study_dir / stage.name) or {}
    if manifest.get("code") != stage.code or manifest["environment"]["packages"] != environment()["packages"]:
        raise UserError(f"{stage.name} was started with another version of the code or packages; use the same ones")
    model_dir = str(stage.arguments["model_dir"])
    units = open_units(recipe, study_dir, study_dir / stage.name, model_dir)
    # Only units that the stage has started: its own process makes the folders and discards outdated chunks.
    ready = [unit for unit in units if stage_state(unit.directory, unit.inputs).state == "resume" and unit.missing()]
    if not ready:
        return 0
    use_threads(stage.threads)
    from eval.responses.scheduling import ResponseScheduler

    with ResponseScheduler(recipe, study_dir, study_dir / model_dir, ready) as scheduler:
        missing = sum(unit.questions * unit.samples for unit in ready) - scheduler.stored()
        print(f"{stage.name}: {missing} response(s) missing", flush=True)
        scheduler.run()
        return scheduler.generated
