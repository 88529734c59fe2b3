"""From stages to cluster jobs: what is one array, what waits for what, how many nodes and GPUs. Starts nothing.

Stages that differ only in their seed, or in the point of an ablation, are tasks of one array. Dependencies are as fine
as Slurm can say them, so that a failed run takes down only what really needs it: a task waits for the task of the same
number where two arrays run in step (`aftercorr`), else for single tasks (`afterok`); an array whose tasks would wait
for different ones is split into jobs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from launch.hardware import gpus_wanted
from launch.stages import Stage, build_stages, stage_states
from recipes.manifest import StageState
from recipes.schema import Recipe


class Task(NamedTuple):
    """One stage of one study."""

    study_dir: Path
    recipe: Recipe
    stage: Stage
    needs: tuple[tuple[str, str], ...]
    """Keys of the tasks it waits for."""

    @property
    def key(self) -> tuple[str, str]:
        """What tells tasks apart."""
        return str(self.study_dir), self.stage.name


def tasks_of_study(recipe: Recipe, study_dir: Path, stages: Sequence[Stage]) -> list[Task]:
    """The stages of one study as tasks."""
    return [Task(study_dir, recipe, stage, tuple((str(study_dir), name) for name in stage.needs)) for stage in stages]


class Needed(NamedTuple):
    """A task of an earlier job that must have succeeded."""

    job: int
    """Place of the job in the list of jobs."""
    task: int


@dataclass(frozen=True)
class Job:
    """One call of sbatch."""

    name: str
    kind: str
    tasks: tuple[Task, ...]
    corresponding: tuple[int, ...] = ()
    """Jobs (their places) whose task of the same number each task waits for."""
    after: tuple[Needed, ...] = ()
    """Tasks that all of this job waits for."""
    running: tuple[str, ...] = ()
    """The same for tasks submitted earlier, by Slurm's id."""
    replica: int = 0
    """Copies of a job share its work: evaluations are answered by all of them."""

    @property
    def recipe(self) -> Recipe:
        """Recipe of its tasks, as far as their resources go."""
        return self.tasks[0].recipe

    @property
    def nodes(self) -> int:
        """Nodes that train or evaluate, without a server's."""
        resources = self.recipe.resources
        return resources.nodes if self.kind == "arms" and resources.launched else 1

    @property
    def server_nodes(self) -> int:
        """Nodes that only serve completions."""
        vllm = self.recipe.resources.vllm
        samples = any(task.stage.module == "train.grpo" for task in self.tasks)
        return vllm.server_nodes if vllm is not None and self.kind == "arms" and samples else 0

    @property
    def gpus_per_node(self) -> int:
        """GPUs of a node, where nodes have any."""
        return gpus_wanted(self.recipe, self.kind)

    @property
    def ranks_per_node(self) -> int:
        """Training processes of a node."""
        resources = self.recipe.resources
        return resources.ranks // resources.nodes if self.kind == "arms" and resources.launched else 1


def states_of(tasks: Sequence[Task]) -> dict[tuple[str, str], StageState]:
    """What would happen to each task now; stages of other folders are seen through their links."""
    found: dict[tuple[str, str], StageState] = {}
    for task in tasks:
        if task.key not in found:
            states = stage_states(build_stages(task.recipe), task.study_dir)
            found |= {(str(task.study_dir), name): state for name, state in states.items()}
    return found


def group_of(stage: Stage) -> str:
    """Name of the array a stage belongs to: its own without the seed."""
    return re.sub(r"/seed-\d+$|-seed\d+-final$", "", stage.name)


def make_jobs(tasks: Sequence[Task], submitted: Mapping[tuple[str, str], Sequence[str]]) -> list[Job]:
    """Jobs for tasks that are to be submitted, each after those it waits for.

    Args:
        tasks: what is not done, in an order in which each comes after those it needs.
        submitted: Slurm's ids of tasks that are waiting or running already.
    """
    groups: dict[tuple[str, str], list[Task]] = {}
    for task in tasks:
        alike = (group_of(task.stage), task.recipe.resources.model_dump_json())
        groups.setdefault(alike, []).append(task)
    jobs: list[Job] = []
    places: dict[tuple[str, str], list[Needed]] = {}
    for (name, _), members in groups.items():
        needs = [_needs(task, places, submitted) for task in members]
        shared = [sorted(set.intersection(*(set(part) for part in parts))) for parts in zip(*needs, strict=True)]
        own = [[item for item in before if item not in shared[0]] for before, _ in needs]
        aligned = _aligned(own, jobs, len(members))
        uniform = all(set(ids) == set(shared[1]) for _, ids in needs)
        if len(members) > 1 and (aligned is None or not uniform):
            parts = [(f"{name}/{number}", [task], before, ids) for number, (task, (before, ids)) in
                     enumerate(zip(members, needs, strict=True))]  # fmt: skip
            made = [Job(label, task[0].stage.kind, tuple(task), (), tuple(before), tuple(ids))
                    for label, task, before, ids in parts]  # fmt: skip
        else:
            after = shared[0] if len(members) > 1 else needs[0][0]
            corresponding = tuple(aligned or ()) if len(members) > 1 else ()
            ids = tuple(shared[1])
            made = [Job(name, members[0].stage.kind, tuple(members), corresponding, tuple(after), ids)]
        for job in made:
            copies = job.recipe.resources.evaluation_replicas if job.kind == "eval" else 1
            for replica in range(copies):
                for number, task in enumerate(job.tasks):
                    places.setdefault(task.key, []).append(Needed(len(jobs), number))
                jobs.append(Job(job.name, job.kind, job.tasks, job.corresponding, job.after, job.running, replica))
    return jobs


def _needs(
    task: Task, places: Mapping[tuple[str, str], list[Needed]], submitted: Mapping[tuple[str, str], Sequence[str]]
) -> tuple[list[Needed], list[str]]:
    """Tasks of new jobs, and ids of old ones, that a task waits for."""
    before = sorted(needed for key in task.needs for needed in places.get(key, ()))
    return before, [identifier for key in task.needs for identifier in submitted.get(key, ())]


def _aligned(own: list[list[Needed]], jobs: list[Job], size: int) -> list[int] | None:
    """Jobs that run in step with an array whose task i needs `own[i]` besides what all need; None: there is no such."""
    wanted = [sorted({needed.job for needed in before}) for before in own]
    if any(row != wanted[0] for row in wanted):
        return None
    for number, before in enumerate(own):
        if any(needed.task != number or len(jobs[needed.job].tasks) != size for needed in before):
            return None
    return wanted[0]
