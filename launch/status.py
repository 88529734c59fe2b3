"""The state of a study: state, progress and rate of every stage; of a failed one the reason and the end of its log."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from eval.scorers.version import JudgedBy, by_other_rules, judged_by
from launch.execution.failures import STOPPED, recorded
from launch.execution.processes import last_lines, log_path
from launch.slurm.submit import Queue, Submitted, ask_queue, ended_state, known_jobs, read_jobs
from launch.tasks import Task, states_of
from recipes.errors import UserError
from recipes.files import is_locked, read_json
from recipes.layout import stage_lock
from recipes.manifest import StageState, finished_manifest, read_manifest, seconds_taken
from recipes.progress import PROGRESS, duration, remaining_seconds
from train.runtime.tracking import why_offline

_ENDED = {
    "CANCELLED": "its job was cancelled",
    "NODE_FAIL": "its node was lost",
    "TIMEOUT": "its job reached the time limit and could not continue itself",
    "OUT_OF_MEMORY": "its job needed more memory than it requested (`memory` in the site file)",
    "PREEMPTED": "its job was preempted and not started again",
    "FAILED": "its job failed before the stage recorded a reason",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its job could not start before its deadline",
}
"""Final state of a job, as Slurm names it -> reason."""
_RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING")
_KILLED = "interrupted without a message (killed, or the machine went down)"


class State(StrEnum):
    """What `transfer status` says of a stage."""

    DONE = "done"
    RUNNING = "running"
    QUEUED = "queued"
    """Its job waits for resources."""
    WAITING = "waiting"
    """Its job waits for other jobs."""
    FAILED = "failed"
    STOPPED = "stopped"
    """Interrupted; it can be resumed."""
    BLOCKED = "blocked"
    """A stage that it needs failed."""
    CHANGED = "changed"
    """What it reads has changed since it was made."""
    OPEN = "open"
    """It has not started."""


@dataclass
class StageStatus:
    """One stage as `transfer status` shows it."""

    study: str
    stage: str
    state: State = State.OPEN
    job: str | None = None
    where: str | None = None
    done: int | None = None
    total: int | None = None
    unit: str | None = None
    note: str | None = None
    rate_per_second: float | None = None
    remaining_seconds: float | None = None
    seconds: float | None = None
    """How long it took, or has been running."""
    reason: str | None = None
    log: str | None = None
    not_on_wandb: str | None = None
    """Why its run is not on the server of Weights & Biases, where the recipe wants it."""
    scoring_rules: JudgedBy | None = None
    """Of an evaluation: by which rules its scores are."""
    log_end: tuple[str, ...] = ()


def stage_statuses(root: Path, tasks: Sequence[Task]) -> list[StageStatus]:
    """The state of every stage; queries Slurm if something was submitted."""
    submitted = read_jobs(root)
    queue, unreachable = Queue(), None
    if submitted:
        try:
            queue = ask_queue()
        except UserError as error:
            unreachable = str(error)
        submitted = known_jobs(root, queue)
    states = states_of(tasks)
    by_task: dict[tuple[str, str], StageStatus] = {}
    for task in tasks:
        own = _jobs_of(task, root, submitted)
        jobs, since = [identifier for identifier, _ in own], max((at for _, at in own), default="")
        status = _status(task, states[task.key], jobs, since, queue, unreachable)
        broken = [key[1] for key in task.needs if key in by_task and by_task[key].state in ("failed", "blocked")]
        if broken and status.state in (State.CHANGED, State.OPEN):
            status.state, status.reason = State.BLOCKED, f"needs {', '.join(broken)}"
        if task.stage.kind in ("arms", "report"):
            status.not_on_wandb = why_offline(task.study_dir / task.stage.name)
        if task.stage.kind == "eval":
            status.scoring_rules = judged_by(task.study_dir / task.stage.name)
        by_task[task.key] = status
    return list(by_task.values())


def _jobs_of(task: Task, root: Path, submitted: Sequence[Submitted]) -> list[tuple[str, str]]:
    """Slurm's ids of a stage, and when each was submitted."""
    name = (str(task.study_dir.resolve().relative_to(root.resolve())), task.stage.name)
    return [(job.identifier(n), job.at) for job in submitted for n, other in enumerate(job.tasks) if other == name]


def _status(
    task: Task, on_disk: StageState, jobs: list[str], since: str, queue: Queue, unreachable: str | None
) -> StageStatus:
    """One stage, from its files, the queue and what Slurm recorded of its jobs, the last one submitted at `since`."""
    study_dir, name = task.study_dir, task.stage.name
    status = StageStatus(str(study_dir), name)
    manifest = read_manifest(study_dir / name) or {}
    log = log_path(study_dir, name)
    if on_disk.state == "done":
        status.state = State.DONE
        status.seconds = seconds_taken(manifest)
        return status
    status.log = str(log) if log.exists() else None
    active = [(job, *row) for job in jobs if (row := queue.active(job))]
    running = [row for row in active if row[1] in _RUNNING]
    locked = is_locked(stage_lock(study_dir, name))
    failure = recorded(study_dir, name) or {}
    if failure.get("at", "") < since:  # of an earlier job; the last one may have ended without a message
        failure = {}
    message, pending = failure.get("message"), active[0][2] if active else None
    # The first row that applies is the state.
    table: tuple[tuple[bool, State, str | None], ...] = (
        (bool(running) or locked, State.RUNNING, None),
        (pending == "Dependency", State.WAITING, None),
        (pending is not None, State.QUEUED, f"Slurm says {pending}"),
        (failure.get("status") == STOPPED, State.STOPPED, message),
        (message is not None, State.FAILED, message),
        (on_disk.state == "resume" and not jobs, State.STOPPED, _KILLED),
        (on_disk.state == "changed" and not jobs, State.CHANGED, _out_of_date(on_disk.reasons)),
        (not jobs, State.OPEN, None),
    )
    rows = [(state, reason) for applies, state, reason in table if applies]
    status.state, status.reason = (
        rows[0] if rows else _after_job(task, jobs[-1], manifest.get("started") is None, unreachable)
    )
    if status.state is State.RUNNING:
        status.job, status.where = (running[0][0], running[0][2]) if running else (None, "this machine or another")
        status.seconds = seconds_taken(manifest)
        _add_progress(status, study_dir / name / PROGRESS)
    elif active:
        status.job = active[0][0]
    elif not rows:
        status.job = jobs[-1]
    if status.state is State.FAILED and status.log:
        status.log_end = tuple(last_lines(log, 6))
    return status


def _out_of_date(reasons: Sequence[str]) -> str:
    more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return f"out of date: {reasons[0]}{more}; `transfer plan` lists why" if reasons else "out of date"


def _after_job(task: Task, job: str, never_started: bool, unreachable: str | None) -> tuple[State, str]:
    """State and reason of a stage whose last job has left the queue without recording a failure."""
    if unreachable:
        return State.OPEN, f"unknown: {unreachable}"
    ended = ended_state(job)
    if ended in ("COMPLETED", "PENDING"):
        return State.OPEN, "its job has just ended"
    unmet = [need for need in task.stage.needs if finished_manifest(task.study_dir / need) is None]
    if never_started and ended == "CANCELLED" and unmet:
        return State.BLOCKED, f"needs {', '.join(unmet)}"
    return State.FAILED, _ENDED.get(
        str(ended), "its job left the queue without a message: cancelled, killed, or its node was lost"
    )


def _add_progress(status: StageStatus, path: Path) -> None:
    if (progress := read_json(path)) is None:
        return
    status.done, status.total, status.unit = progress["done"], progress["total"], progress["unit"]
    status.note = progress["note"] or None
    elapsed, made = progress.get("at", 0) - progress.get("first_at", 0), progress["done"] - progress.get("first", 0)
    if elapsed > 0 and made > 0:
        status.rate_per_second = made / elapsed
        status.remaining_seconds = remaining_seconds(elapsed, made, progress["total"] - progress["done"])
    silent = time.time() - progress.get("at", time.time())
    if silent > 600:
        status.note = f"{status.note or ''} (no progress for {silent / 60:.0f} minutes)".strip()


def format_statuses(statuses: Sequence[StageStatus]) -> str:
    """The statuses of stages as text: a line for each stage, and the end of the log under a failed one."""
    lines = []
    for study in dict.fromkeys(status.study for status in statuses):
        members = [status for status in statuses if status.study == study]
        counts = Counter(status.state for status in members)
        lines.append(f"{study}: {', '.join(f'{count} {state}' for state, count in counts.items())}")
        width = max(len(status.stage) for status in members)
        for status in members:
            lines.append(f"  {status.state:<8} {status.stage:<{width}}  {_details(status)}".rstrip())
            lines += [f"           | {text}" for text in status.log_end]
            if status.log_end:
                lines.append(f"           log: {status.log}")
        if text := wandb_text(study, [status.not_on_wandb for status in members]):
            lines.append(f"  {text}")
        lines += [f"  {text}" for text in _rules_texts(study, members)]
    return "\n".join(lines)


def wandb_text(study: str | Path, reasons: Sequence[str | None]) -> str | None:
    """That runs are not on the server of Weights & Biases, with the last reason; None: all that should are."""
    there = [reason for reason in reasons if reason is not None]
    if not there:
        return None
    runs = "a run" if len(there) == 1 else f"{len(there)} runs"
    return f"Weights & Biases lacks {runs} of this study ({there[-1]}); `transfer sync {study}` sends all"


def _rules_texts(study: str, statuses: Sequence[StageStatus]) -> Iterator[str]:
    """That scores are by other rules than those of today, or that it is not known."""
    models: dict[JudgedBy | None, list[str]] = {}
    for status in statuses:
        models.setdefault(status.scoring_rules, []).append(status.stage.removeprefix("eval/"))
    if other := models.get("other"):
        yield "; ".join(by_other_rules(other, study))
    if unknown := models.get("not recorded"):
        what = f"which version of the scoring rules judged {', '.join(unknown)} is not recorded"
        yield f"{what}; `transfer score {study}` shows what today's would change"


def _details(status: StageStatus) -> str:
    details = []
    if status.state == "done" and status.seconds is not None:
        details.append(f"in {duration(status.seconds)}")
    if status.total:
        details.append(f"{status.done}/{status.total} {status.unit}" + (f", {status.note}" if status.note else ""))
    if status.rate_per_second:
        per_minute = status.rate_per_second * 60
        details.append(f"{per_minute:.3g} {status.unit} a minute")
    if status.remaining_seconds is not None:
        details.append(f"{duration(status.remaining_seconds)} left")
    elif status.state == "running" and status.seconds is not None:
        details.append(f"for {duration(status.seconds)}")
    if status.job:
        details.append(f"job {status.job}" + (f" on {status.where}" if status.where else ""))
    if status.reason:
        details.append(status.reason)
    return " · ".join(details)
