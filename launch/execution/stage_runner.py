"""Run one stage: lock, manifest, usage, and its function or its ranks."""

from importlib import import_module
from pathlib import Path

from launch.execution.failures import record
from launch.execution.ranks import launch_ranks
from launch.execution.usage import measured
from launch.stages import Stage, stage_inputs
from recipes.files import locked
from recipes.layout import stage_lock
from recipes.manifest import start_stage
from recipes.schema import Recipe
from train.runtime.ranks import forget_ranks


def run_stage(recipe: Recipe, study_dir: Path, stage: Stage) -> None:
    """Run one stage in this process, or in ranks that it launches.

    Raises:
        LockedError: another process runs the stage.
    """
    forget_ranks()
    with locked(stage_lock(study_dir, stage.name)):
        stage_dir = study_dir / stage.name
        resume = start_stage(stage_dir, stage.name, stage_inputs(stage, study_dir), stage.code, stage.facts.in_place)
        record(study_dir, stage.name, None)
        with measured(stage_dir):
            if stage.kind == "arms" and recipe.resources.launched:
                launch_ranks(recipe.resources, study_dir, stage, resume)
            else:
                import_module(stage.module).run(recipe, study_dir, stage_dir, resume, **stage.arguments)
