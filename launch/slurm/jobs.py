"""From stages to cluster jobs: which stages are one array, which job waits for which, how many nodes and GPUs.

Stages that differ only in their seed, or in the point of an ablation, are tasks of one array. A failed run should take
down only what needs it, so dependencies are as fine as Slurm allows: where task i of an array needs task i of another
array, the whole array waits task by task (`aftercorr`); otherwise it waits for single tasks (`afterok`). An array whose
tasks need different things is split into one job per task.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from launch.hardware import gpus_wanted
from launch.stage_kinds import StageKind
from launch.stages import Stage
from launch.tasks import Task, TaskKey
from recipes.schema import Recipe


class Needed(NamedTuple):
    """A task of an earlier job that must have succeeded."""

    job: int
    """Index in the list of jobs."""
    task: int
    """Index in the job's array."""


@dataclass(frozen=True)
class Job:
    """One call of sbatch."""

    name: str
    kind: StageKind
    tasks: tuple[Task, ...]
    corresponding: tuple[int, ...] = ()
    """Indices of jobs whose task i must have succeeded before task i of this one (`aftercorr`)."""
    after: tuple[Needed, ...] = ()
    """Tasks of new jobs that every task of this one waits for (`afterok`)."""
    running: tuple[str, ...] = ()
    """The same for tasks that are already in the queue, by Slurm's ids."""
    replica: int = 0
    """Index among the copies of a job. The copies of an evaluation share its questions."""

    @property
    def recipe(self) -> Recipe:
        """Recipe of its tasks; their resources are equal."""
        return self.tasks[0].recipe

    @property
    def nodes(self) -> int:
        """Nodes that train or evaluate, without those of the vLLM server."""
        resources = self.recipe.resources
        return resources.nodes if self.kind == "arms" and resources.launched else 1

    @property
    def server_nodes(self) -> int:
        """Nodes that only serve completions."""
        vllm = self.recipe.resources.vllm
        samples = any(task.stage.trainer == "grpo" for task in self.tasks)
        return vllm.server_nodes if vllm is not None and self.kind == "arms" and samples else 0

    @property
    def gpus_per_node(self) -> int:
        """GPUs that the job uses on each node, where nodes have any."""
        return gpus_wanted(self.recipe, self.kind)


def array_name(stage: Stage) -> str:
    """Name of the array a stage belongs to: its own without the seed."""
    return re.sub(r"/seed-\d+$|-seed\d+-final$", "", stage.name)


def make_jobs(tasks: Sequence[Task], submitted: Mapping[TaskKey, Sequence[str]]) -> list[Job]:
    """Jobs for tasks that are to be submitted, each after those it waits for.

    `tasks` are in an order in which each comes after those it needs. `submitted`: Slurm's ids of tasks that are waiting
    or running already.
    """
    arrays: dict[tuple[str, str], list[Task]] = {}
    for task in tasks:
        array = (array_name(task.stage), task.recipe.resources.model_dump_json())
        arrays.setdefault(array, []).append(task)
    jobs: list[Job] = []
    new: dict[TaskKey, list[Needed]] = {}
    for (name, _), members in arrays.items():
        after = [{needed for key in task.needs for needed in new.get(key, ())} for task in members]
        running = [{slurm_id for key in task.needs for slurm_id in submitted.get(key, ())} for task in members]
        for job in _jobs_of_array(name, members, after, running, jobs):
            copies = job.recipe.resources.evaluation_replicas if job.kind == "eval" else 1
            for replica in range(copies):
                for index, task in enumerate(job.tasks):
                    new.setdefault(task.key, []).append(Needed(len(jobs), index))
                jobs.append(replace(job, replica=replica))
    return jobs


def _jobs_of_array(
    name: str, members: list[Task], after: list[set[Needed]], running: list[set[str]], jobs: Sequence[Job]
) -> list[Job]:
    """One job, if its dependencies can be expressed for the whole array; else a job for each member.

    `after` and `running` are what each member needs: tasks of `jobs`, and Slurm's ids of queued tasks.
    """
    kind = members[0].stage.kind
    common = set.intersection(*after)
    corresponding = _corresponding_jobs([needed - common for needed in after], jobs)
    if corresponding is not None and all(ids == running[0] for ids in running):
        return [Job(name, kind, tuple(members), corresponding, tuple(sorted(common)), tuple(sorted(running[0])))]
    return [
        Job(f"{name}/{index}", kind, (task,), (), tuple(sorted(after[index])), tuple(sorted(running[index])))
        for index, task in enumerate(members)
    ]


def _corresponding_jobs(needs: list[set[Needed]], jobs: Sequence[Job]) -> tuple[int, ...] | None:
    """The jobs whose task i is what member i of an array needs, `needs[i]`; None if the needs do not pair up so."""
    arrays = {needed.job for needed in needs[0]}
    for index, needed_by_member in enumerate(needs):
        paired = all(needed.task == index and len(jobs[needed.job].tasks) == len(needs) for needed in needed_by_member)
        if not paired or {needed.job for needed in needed_by_member} != arrays:
            return None
    return tuple(sorted(arrays))
