"""Where a study stands: state, progress and rate of every stage, and of a failed one the reason and its log's end."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.execution.failures import STOPPED, recorded
from launch.execution.processes import last_lines, log_path
from launch.slurm.jobs import Task, states_of
from launch.slurm.submit import Queue, Submitted, ask_queue, ended_state, known_jobs, read_jobs
from recipes.errors import UserError
from recipes.manifest import PROGRESS, is_locked, read_manifest

_ENDED = {
    "CANCELLED": "its job was cancelled",
    "NODE_FAIL": "its node was lost",
    "TIMEOUT": "its job reached the time limit and could not continue itself",
    "OUT_OF_MEMORY": "its job needed more memory than it asked for (`memory` in the site file)",
    "PREEMPTED": "its job was preempted and not started again",
    "FAILED": "its job failed before the stage could say why",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its job could not start before its deadline",
}


@dataclass
class Standing:
    """One stage as `transfer status` shows it."""

    study: str
    stage: str
    state: str
    """done, running, queued, waiting, failed, stopped, blocked or open."""
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
    log_end: tuple[str, ...] = ()


def standings(root: Path, tasks: Sequence[Task]) -> list[Standing]:
    """Where every stage stands; asks Slurm if something was submitted."""
    submitted = read_jobs(root)
    queue, unreachable = Queue(), None
    if submitted:
        try:
            queue = ask_queue()
        except UserError as error:
            unreachable = str(error)
        submitted = known_jobs(root, queue)
    states = states_of(tasks)
    found: dict[tuple[str, str], Standing] = {}
    for task in tasks:
        jobs = _jobs_of(task, root, submitted)
        standing = _standing(task, root, states[task.key].state, jobs, queue, unreachable)
        broken = [key[1] for key in task.needs if key in found and found[key].state in ("failed", "blocked")]
        if broken and standing.state == "open":
            standing.state, standing.reason = "blocked", f"needs {', '.join(broken)}"
        found[task.key] = standing
    return list(found.values())


def _jobs_of(task: Task, root: Path, submitted: Sequence[Submitted]) -> list[str]:
    name = (str(task.study_dir.resolve().relative_to(root.resolve())), task.stage.name)
    return [job.identifier(number) for job in submitted for number, other in enumerate(job.tasks) if other == name]


def _standing(task: Task, root: Path, state: str, jobs: list[str], queue: Queue, unreachable: str | None) -> Standing:
    study_dir, name = task.study_dir, task.stage.name
    found = Standing(str(study_dir), name, "open")
    manifest = read_manifest(study_dir / name) or {}
    if state == "done":
        found.state = "done"
        found.seconds = _seconds_between(manifest.get("started"), manifest.get("completed"))
        return found
    active = [(identifier, *row) for identifier in jobs if (row := queue.active(identifier))]
    running = [row for row in active if row[1] in ("RUNNING", "COMPLETING", "CONFIGURING")]
    held = is_locked(study_dir / ".locks" / name.replace("/", "--"))
    log = log_path(study_dir, name)
    if log.exists():
        found.log = str(log)
    if running or held:
        found.state = "running"
        found.job, found.where = (running[0][0], running[0][2]) if running else (None, "this machine's or another's")
        found.seconds = _seconds_between(manifest.get("started"), None)
        _add_progress(found, study_dir / name / PROGRESS)
    elif active:
        found.job = active[0][0]
        waits = active[0][2] == "Dependency"
        found.state = "waiting" if waits else "queued"
        found.reason = None if waits else f"Slurm says {active[0][2]}"
    elif failure := recorded(study_dir, name):
        found.state = "stopped" if failure["status"] == STOPPED else "failed"
        found.reason = failure["message"]
    elif jobs:
        found.job = jobs[-1]
        ended = None if unreachable else ended_state(jobs[-1])
        if unreachable:
            found.reason = f"unknown: {unreachable}"
        elif ended in ("COMPLETED", "PENDING"):
            found.reason = "its job has just ended"
        else:
            never = not manifest or state == "new"
            found.state = "blocked" if never and ended == "CANCELLED" and _needs_failed(task) else "failed"
            found.reason = _ENDED.get(
                str(ended),
                "its job is no longer in the queue and left no word: cancelled, killed, or its node was lost",
            )
            if found.state == "blocked":
                found.reason = f"needs {', '.join(_needs_failed(task))}"
    elif state == "resume":
        found.state = "stopped"
        found.reason = "interrupted without a word (killed, or the machine went down)"
    if found.state == "failed" and found.log:
        found.log_end = tuple(last_lines(Path(found.log), 6))
    return found


def _needs_failed(task: Task) -> list[str]:
    """Stages it needs that are not done."""
    manifests = {need: read_manifest(task.study_dir / need) for need in task.stage.needs}
    return [need for need, manifest in manifests.items() if manifest is None or not manifest["completed"]]


def _add_progress(found: Standing, path: Path) -> None:
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    found.done, found.total, found.unit = progress["done"], progress["total"], progress["unit"]
    found.note = progress["note"] or None
    elapsed, made = progress.get("at", 0) - progress.get("first_at", 0), progress["done"] - progress.get("first", 0)
    if elapsed > 0 and made > 0:
        found.rate_per_second = made / elapsed
        found.remaining_seconds = (progress["total"] - progress["done"]) / found.rate_per_second
    silent = time.time() - progress.get("at", time.time())
    if silent > 600:
        found.note = f"{found.note or ''} (no progress for {silent / 60:.0f} minutes)".strip()


def _seconds_between(start: str | None, end: str | None) -> float | None:
    if start is None:
        return None
    finish = datetime.fromisoformat(end) if end else datetime.now(UTC)
    return (finish - datetime.fromisoformat(start)).total_seconds()


def as_json(found: Sequence[Standing]) -> list[dict[str, Any]]:
    """The standings as JSON values."""
    return [asdict(standing) for standing in found]


def format_standings(found: Sequence[Standing]) -> str:
    """The standings as text: one line a stage, and under a failed one why."""
    studies = list(dict.fromkeys(standing.study for standing in found))
    lines = []
    for study in studies:
        members = [standing for standing in found if standing.study == study]
        counts = {
            state: sum(one.state == state for one in members) for state in dict.fromkeys(m.state for m in members)
        }
        lines.append(f"{study}: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
        width = max(len(one.stage) for one in members)
        for one in members:
            lines.append(f"  {one.state:<8} {one.stage:<{width}}  {_details(one)}".rstrip())
            lines += [f"           | {text}" for text in one.log_end]
            if one.log_end:
                lines.append(f"           log: {one.log}")
    return "\n".join(lines)


def _details(one: Standing) -> str:
    parts = []
    if one.state == "done" and one.seconds is not None:
        parts.append(f"in {duration(one.seconds)}")
    if one.total:
        parts.append(f"{one.done}/{one.total} {one.unit}" + (f", {one.note}" if one.note else ""))
    if one.rate_per_second:
        per_minute = one.rate_per_second * 60
        parts.append(f"{per_minute:.3g} {one.unit} a minute")
    if one.remaining_seconds is not None:
        parts.append(f"{duration(one.remaining_seconds)} left")
    elif one.state == "running" and one.seconds is not None:
        parts.append(f"for {duration(one.seconds)}")
    if one.job:
        parts.append(f"job {one.job}" + (f" on {one.where}" if one.where else ""))
    if one.reason:
        parts.append(one.reason)
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole / 60:.0f} min"
    return f"{whole / 3600:.1f} h" if whole < 48 * 3600 else f"{whole / 86400:.1f} days"
