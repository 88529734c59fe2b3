"""Tasks: the stages of one or several studies with what each waits for. Local runs, Slurm jobs and status use them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch.stages import Stage, build_stages, stage_states
from recipes.manifest import StageState
from recipes.schema import Recipe

TaskKey = tuple[str, str]
"""Study folder and stage name."""


class Task(NamedTuple):
    """One stage of one study."""

    study_dir: Path
    recipe: Recipe
    stage: Stage
    needs: tuple[TaskKey, ...]
    """The tasks it waits for."""

    @property
    def key(self) -> TaskKey:
        """Identifies the task among those of all studies."""
        return str(self.study_dir), self.stage.name


def tasks_of_study(recipe: Recipe, study_dir: Path, stages: Sequence[Stage]) -> list[Task]:
    """The stages of one study as tasks."""
    return [Task(study_dir, recipe, stage, tuple((str(study_dir), name) for name in stage.needs)) for stage in stages]


def states_of(tasks: Sequence[Task]) -> dict[TaskKey, StageState]:
    """Whether each task is done, to be resumed, changed or new. Stages shared with another study are seen as links."""
    states: dict[TaskKey, StageState] = {}
    for task in tasks:
        if task.key not in states:
            of_study = stage_states(build_stages(task.recipe), task.study_dir)
            states |= {(str(task.study_dir), name): state for name, state in of_study.items()}
    return states
