"""Submit a study to Slurm, and ask Slurm about it. A second submission adds what is missing and nothing else.

`<root>/slurm/` holds the batch scripts, their output and `jobs.json`: which job is which stage. A job is noted there
before it is submitted and found again by its comment, so that a command killed in between loses and doubles nothing.
"""

import hashlib
import json
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from launch.site_file import SiteSpec
from launch.slurm.jobs import Job, Task, make_jobs
from launch.slurm.script import render
from recipes.errors import UserError
from recipes.manifest import locked, write_atomic, write_json

_TIMEOUT_SECONDS = 60.0


@dataclass
class Submitted:
    """A call of sbatch, as `jobs.json` keeps it."""

    job: str | None
    """Slurm's number; None while sbatch is being called."""
    token: str
    """Part of the job's comment."""
    name: str
    script: str
    tasks: list[tuple[str, str]]
    """Study folder (relative to the root) and stage, by array index."""
    at: str
    replica: int = 0

    def identifier(self, task: int) -> str:
        """Slurm's name of a task."""
        return f"{self.job}_{task}" if len(self.tasks) > 1 else str(self.job)


@dataclass
class Queue:
    """What Slurm says now."""

    states: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Task id -> state, reason or node, comment."""

    def active(self, identifier: str) -> tuple[str, str] | None:
        """State and reason (waiting) or node (running) of a task that is in the queue."""
        found = self.states.get(identifier)
        return None if found is None else found[:2]


def slurm(*command: str, cwd: Path | None = None) -> str:
    """Output of a Slurm command.

    Raises:
        UserError: it is not installed, failed, or did not answer within a minute.
    """
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} is not installed here; run this on a login node of the cluster, or --on local")
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False, cwd=cwd)
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} did not answer within {_TIMEOUT_SECONDS:.0f} s; try again later") from None
    if result.returncode != 0:
        raise UserError(f"{command[0]} refused: {' '.join(result.stderr.split()) or f'status {result.returncode}'}")
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
        raise UserError(f"{path} cannot be read ({error}); without it jobs cannot be told apart") from None


def write_jobs(root: Path, jobs: Sequence[Submitted]) -> None:
    """Keep what was submitted."""
    write_json(root / "slurm" / "jobs.json", [vars(job) for job in jobs])


def identity(root: Path) -> str:
    """What the comments of a study's jobs begin with."""
    return f"transfer/{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]}"


def known_jobs(root: Path, queue: Queue) -> list[Submitted]:
    """Submitted jobs, with the numbers that an interrupted submission left out; what never was submitted is dropped."""
    jobs = read_jobs(root)
    by_comment = {comment: identifier.split("_")[0] for identifier, (_, _, comment) in queue.states.items()}
    for job in jobs:  # what the queue says counts: numbers are used again
        job.job = by_comment.get(f"{identity(root)}/{job.token}", job.job)
    return [job for job in jobs if job.job is not None]


def active_ids(root: Path, jobs: Sequence[Submitted], queue: Queue) -> dict[tuple[str, str], list[str]]:
    """Ids of the tasks that wait or run, by study folder and stage."""
    found: dict[tuple[str, str], list[str]] = {}
    for job in jobs:
        for number, (study, stage) in enumerate(job.tasks):
            if queue.active(job.identifier(number)):
                found.setdefault((str(root / study), stage), []).append(job.identifier(number))
    return found


def plan_submission(root: Path, tasks: Sequence[Task], site: SiteSpec) -> list[tuple[Job, str]]:
    """The jobs that would be submitted if nothing were done or queued, with their scripts. Asks nobody."""
    jobs = make_jobs(tasks, {})
    return [(job, render(job, site, f"{identity(root)}/TOKEN", _described(job, jobs))) for job in jobs]


def _described(job: Job, jobs: Sequence[Job]) -> str:
    """A dependency by names, for a dry run."""
    names = [f"afterok:<{jobs[needed.job].name}>" for needed in job.after]
    names += [f"aftercorr:<{jobs[place].name}>" for place in job.corresponding]
    return ",".join(dict.fromkeys(names))


def script_name(job: Job) -> str:
    """File of a job's script."""
    return job.name.replace("/", "--") + (f".{job.replica}" if job.replica else "") + ".sh"


def submit(root: Path, tasks: Sequence[Task], site: SiteSpec) -> int:
    """Submit what is neither done nor in the queue; prints what it does. Returns the number of jobs.

    Raises:
        UserError: Slurm refused a job; those submitted by this call are cancelled.
    """
    with locked(root / "slurm"):
        queue = ask_queue()
        known = known_jobs(root, queue)
        active = active_ids(root, known, queue)
        wanted = []
        for task in tasks:
            identifiers = active.get(task.key)
            if identifiers:
                print(f"  queued   {task.stage.name} (job {', '.join(identifiers)})")
            else:
                wanted.append(task)
        jobs = make_jobs(wanted, active)
        made: list[Submitted] = []
        try:
            for job in jobs:
                made.append(_submit_one(root, job, site, known, made))
                print(f"  submit   {job.name}: job {made[-1].job}, {len(job.tasks)} task(s)")
        except UserError:  # anything else, such as Ctrl-C, leaves what is queued to be found by the next submission
            numbers = [entry.job for entry in made if entry.job]
            if numbers:
                slurm("scancel", *numbers)
            # The refused call stays noted: if Slurm was only slow, its job is found by its comment.
            write_jobs(root, [*known, *(entry for entry in read_jobs(root) if entry.job is None)])
            raise
        return len(made)


def _submit_one(
    root: Path, job: Job, site: SiteSpec, known: Sequence[Submitted], made: Sequence[Submitted]
) -> Submitted:
    token = secrets.token_hex(6)
    parts = [f"afterok:{made[needed.job].identifier(needed.task)}" for needed in job.after]
    parts += [f"afterok:{identifier}" for identifier in job.running]
    parts += [f"aftercorr:{made[place].job}" for place in job.corresponding]
    text = render(job, site, f"{identity(root)}/{token}", ",".join(dict.fromkeys(parts)))
    script = script_name(job)
    write_atomic(root / "slurm" / script, text)
    folders = [(_relative(task.study_dir, root), task.stage.name) for task in job.tasks]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry = Submitted(None, token, job.name, script, folders, now, job.replica)
    write_jobs(root, [*known, *made, entry])
    answer = slurm("sbatch", "--parsable", script, cwd=root / "slurm")
    entry.job = answer.strip().split(";")[0]
    write_jobs(root, [*known, *made, entry])
    return entry


def _relative(study_dir: Path, root: Path) -> str:
    return str(study_dir.resolve().relative_to(root.resolve()))


def ended_state(identifier: str) -> str | None:
    """How Slurm says a task ended that is no longer in the queue; None where it has forgotten."""
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

    Only ids whose comment is this study's are touched: Slurm uses numbers again.
    """
    queue = ask_queue()
    mine = [
        job.identifier(number)
        for job in known_jobs(root, queue)
        for number, (_, name) in enumerate(job.tasks)
        if stage in (None, name)
        and job.identifier(number) in queue.states
        and queue.states[job.identifier(number)][2].startswith(f"{identity(root)}/")
    ]
    if mine:
        slurm("scancel", *mine)
    return mine
