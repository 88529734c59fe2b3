"""Submit a study to Slurm and query its jobs. A second submission adds only what is neither done nor queued.

`<root>/slurm/` holds the batch scripts, their output and `jobs.json`, which maps jobs to stages. A job is recorded
there before it is submitted, with a token that is also in its Slurm comment. A command killed in between therefore
neither loses a job nor submits one twice.
"""

import hashlib
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from launch.site_file import SiteSpec
from launch.slurm.jobs import Job, make_jobs
from launch.slurm.script import render
from launch.tasks import Task, TaskKey
from recipes.errors import UserError
from recipes.files import locked, write_atomic, write_json
from recipes.layout import flat

_TIMEOUT_SECONDS = 60.0
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


@dataclass
class Submitted:
    """A call of sbatch, as `jobs.json` keeps it."""

    job: str | None
    """Slurm's job id; None while sbatch is being called."""
    token: str
    """Last part of the job's comment."""
    name: str
    script: str
    tasks: list[tuple[str, str]]
    """Study folder (relative to the root) and stage, by array index."""
    at: str
    """When it was submitted."""
    replica: int = 0

    def identifier(self, task: int) -> str:
        """Slurm's id of a task."""
        return f"{self.job}_{task}" if len(self.tasks) > 1 else str(self.job)


@dataclass
class Queue:
    """The user's jobs that wait or run."""

    states: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Task id -> state, reason or node, comment."""

    def active(self, identifier: str) -> tuple[str, str] | None:
        """State, and reason (waiting) or node (running), of a task; None if it is not in the queue."""
        row = self.states.get(identifier)
        return None if row is None else row[:2]


def slurm(*command: str, cwd: Path | None = None) -> str:
    """Output of a Slurm command.

    It does not see the variables of a job in which this process may run: sbatch would pass them on, and srun in the new
    job would take its memory, cores and tasks from them.

    Raises:
        UserError: it is not installed, failed, or did not answer within a minute.
    """
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} is not installed here; run this on a login node of the cluster, or --on local")
    ours = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_KEPT) or not name.startswith(("SLURM_", "SRUN_"))
    }
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False, cwd=cwd, env=ours
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} did not answer within {_TIMEOUT_SECONDS:.0f} s; try again later") from None
    if result.returncode != 0:
        raise UserError(f"{command[0]} failed: {' '.join(result.stderr.split()) or f'status {result.returncode}'}")
    return result.stdout


def ask_queue() -> Queue:
    """The user's jobs that wait or run."""
    text = slurm("squeue", "--me", "--array", "--noheader", "--format=%i|%T|%R|%k")
    rows = [line.split("|") for line in text.splitlines() if line.count("|") >= 3]
    return Queue({row[0]: (row[1], row[2].strip("()"), row[-1]) for row in rows})


def read_jobs(root: Path) -> list[Submitted]:
    """What was submitted for a study or ablation; empty if nothing was.

    Raises:
        UserError: the file is damaged.
    """
    path = root / "slurm" / "jobs.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [Submitted(**(row | {"tasks": [tuple(task) for task in row["tasks"]]})) for row in rows]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it, or cancel the jobs and delete it") from None


def write_jobs(root: Path, jobs: Sequence[Submitted]) -> None:
    """Record what was submitted."""
    write_json(root / "slurm" / "jobs.json", [vars(job) for job in jobs])


def identity(root: Path) -> str:
    """Prefix of the comments of a study's jobs."""
    return f"transfer/{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]}"


def known_jobs(root: Path, queue: Queue) -> list[Submitted]:
    """Submitted jobs, with the ids that an interrupted submission did not record; never submitted ones are dropped."""
    jobs = read_jobs(root)
    by_comment = {comment: identifier.split("_")[0] for identifier, (_, _, comment) in queue.states.items()}
    for job in jobs:  # the queue decides: Slurm reuses ids
        job.job = by_comment.get(f"{identity(root)}/{job.token}", job.job)
    return [job for job in jobs if job.job is not None]


def active_ids(root: Path, jobs: Sequence[Submitted], queue: Queue) -> dict[tuple[str, str], list[str]]:
    """Ids of the tasks that wait or run, by study folder and stage."""
    active: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        for index, (study, stage) in enumerate(job.tasks):
            if queue.active(job.identifier(index)):
                active.setdefault((str(root / study), stage), []).append(job.identifier(index))
    return active


def plan_submission(
    root: Path, tasks: Sequence[Task], site: SiteSpec, active: Mapping[TaskKey, Sequence[str]]
) -> list[tuple[Job, str]]:
    """The jobs that would be submitted for tasks, with their scripts. `active`: ids of tasks that are queued."""
    jobs = make_jobs(tasks, active)
    return [(job, render(job, site, f"{identity(root)}/TOKEN", _described(job, jobs))) for job in jobs]


def _described(job: Job, jobs: Sequence[Job]) -> str:
    """A dependency with names of jobs instead of ids, for a dry run."""
    names = [f"afterok:<{jobs[needed.job].name}>" for needed in job.after]
    names += [f"afterok:{identifier}" for identifier in job.running]
    names += [f"aftercorr:<{jobs[index].name}>" for index in job.corresponding]
    return ",".join(dict.fromkeys(names))


def script_name(job: Job) -> str:
    """File name of a job's script."""
    return flat(job.name) + (f".{job.replica}" if job.replica else "") + ".sh"


def submit(root: Path, tasks: Sequence[Task], site: SiteSpec) -> int:
    """Submit what is neither done nor in the queue; prints a line per job. Returns the number of jobs.

    Raises:
        UserError: sbatch failed; the jobs submitted by this call are cancelled.
    """
    with locked(root / "slurm"):
        queue = ask_queue()
        known = known_jobs(root, queue)
        active = active_ids(root, known, queue)
        missing = []
        for task in tasks:
            identifiers = active.get(task.key)
            if identifiers:
                print(f"  queued   {task.stage.name} (job {', '.join(identifiers)})")
            else:
                missing.append(task)
        jobs = make_jobs(missing, active)
        made: list[Submitted] = []
        try:
            for job in jobs:
                made.append(_submit_one(root, job, site, known, made))
                print(f"  submit   {job.name}: job {made[-1].job}, {len(job.tasks)} task(s)")
        except UserError:  # after anything else, such as Ctrl-C, the next submission continues with what is queued
            ids = [entry.job for entry in made if entry.job]
            if ids:
                slurm("scancel", *ids)
            # The failed call stays recorded: if sbatch only timed out, its job is recognised by its comment later.
            write_jobs(root, [*known, *(entry for entry in read_jobs(root) if entry.job is None)])
            raise
        return len(made)


def _submit_one(
    root: Path, job: Job, site: SiteSpec, known: Sequence[Submitted], made: Sequence[Submitted]
) -> Submitted:
    token = secrets.token_hex(6)
    dependencies = [f"afterok:{made[needed.job].identifier(needed.task)}" for needed in job.after]
    dependencies += [f"afterok:{identifier}" for identifier in job.running]
    dependencies += [f"aftercorr:{made[index].job}" for index in job.corresponding]
    text = render(job, site, f"{identity(root)}/{token}", ",".join(dict.fromkeys(dependencies)))
    script = script_name(job)
    write_atomic(root / "slurm" / script, text)
    top = root.resolve()
    folders = [(str(task.study_dir.resolve().relative_to(top)), task.stage.name) for task in job.tasks]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry = Submitted(None, token, job.name, script, folders, now, job.replica)
    write_jobs(root, [*known, *made, entry])
    answer = slurm("sbatch", "--parsable", script, cwd=root / "slurm")
    entry.job = answer.strip().split(";")[0]
    write_jobs(root, [*known, *made, entry])
    return entry


def ended_state(identifier: str) -> str | None:
    """Final state of a task that has left the queue; None if Slurm no longer knows it."""
    try:
        text = slurm("scontrol", "show", "job", "--oneliner", identifier)
    except UserError:
        return _accounted_state(identifier)
    for word in text.split():
        if word.startswith("JobState="):
            return word.removeprefix("JobState=")
    return None


def _accounted_state(identifier: str) -> str | None:
    """The same from Slurm's accounting, where a site keeps it."""
    try:
        text = slurm("sacct", "--jobs", identifier, "--noheader", "--allocations", "--parsable2", "--format=State")
    except UserError:
        return None
    return text.split()[0] if text.split() else None


def cancel(root: Path, stage: str | None) -> list[str]:
    """Cancel the jobs of a study that are in the queue, or those of one stage; returns their ids.

    Only jobs with this study's comment are cancelled, because Slurm reuses ids.
    """
    queue = ask_queue()
    mine = [
        job.identifier(index)
        for job in known_jobs(root, queue)
        for index, (_, name) in enumerate(job.tasks)
        if stage in (None, name)
        and job.identifier(index) in queue.states
        and queue.states[job.identifier(index)][2].startswith(f"{identity(root)}/")
    ]
    if mine:
        slurm("scancel", *mine)
    return mine
