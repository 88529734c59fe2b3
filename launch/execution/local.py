"""Run the stages of one or several studies on this machine: worker processes, one log per stage, live progress.

On a CPU a worker stays alive between stages, so that it imports the libraries once. Each stage's output goes to
`logs/<stage>.log`. A failing stage stops nothing that does not depend on it.
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from multiprocessing import active_children, get_context, resource_tracker
from pathlib import Path

from launch.execution.display import Display
from launch.execution.failures import CRASHED, INTERRUPTED, MISTAKE, STOPPED, Failure, record
from launch.execution.gpus import Pool, request_of
from launch.execution.processes import local_run, note_run, read_run
from launch.execution.signals import ForwardedSignals
from launch.execution.worker import prepare_worker, run_in_worker
from launch.hardware import visible_gpus
from launch.planning.node import require_attention
from launch.reuse import reuse
from launch.stages import Stage, build_stages, flatten, furthest_until, made_by_other_code, stage_inputs
from launch.tasks import Task, TaskKey, states_of
from recipes.errors import UserError
from recipes.files import locked, write_json
from recipes.loading import STUDY_FILE, read_study_file
from recipes.manifest import describe_changes, read_manifest, seconds_taken, stage_state
from recipes.schema import Recipe

_POLL_SECONDS = 0.5
_MIN_FREE_BYTES = 200 << 20
_DIED = "its process died, perhaps for lack of memory; the same command continues from its last file or checkpoint"
_Result = Future[Failure | None]
_OTHER_CODE = "by an earlier version of the code"


def check_study_dir(recipe: Recipe, study_dir: Path) -> None:
    """Check that a study can be written to a directory. Writes nothing.

    Raises:
        UserError: the directory belongs to another study, holds other files, or the disk is full.
    """
    for folder in study_dir.resolve().parents:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{study_dir} cannot be made: {folder} is a file; choose another --out")
    if (study_dir / STUDY_FILE).exists():
        previous = read_study_file(study_dir)
        if previous.get("study") != recipe.study:
            raise UserError(
                f"{study_dir} holds the study {previous.get('study')!r}, not {recipe.study!r}; choose another --out"
            )
    elif study_dir.is_file() or (study_dir.exists() and not all(map(_left_by_a_start, study_dir.iterdir()))):
        raise UserError(f"{study_dir} is not empty and is not a study directory; choose another --out")
    parent = next(folder for folder in (study_dir, *study_dir.resolve().parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < _MIN_FREE_BYTES:
        raise UserError(
            f"{parent} has {free >> 20} MB free but a study needs at least {_MIN_FREE_BYTES >> 20} MB; "
            "free some space or choose another --out"
        )


def _left_by_a_start(path: Path) -> bool:
    """Whether a run that was killed before its study file was in place may have left `path`."""
    return path.name in (".lock", "slurm") or path.match(f".{STUDY_FILE}.*.tmp")


def run_tasks(tasks: Sequence[Task], root: Path, until: str | None = None, *, with_reuse: bool = False) -> int:
    """Write `study.json` of every study and run what is not done yet; returns the process exit status.

    Tasks that are ready start in the order given, whichever study they are of, so no core waits for the last stage of
    a study. `root`: what `transfer resume` continues. `with_reuse`: take over from studies beside theirs what those
    have made already.

    Raises:
        UserError: a study cannot be written (see `check_study_dir`), another process writes it, or flash attention
            does not load on this machine.
    """
    studies = {task.study_dir: task.recipe for task in tasks}
    for study_dir, recipe in studies.items():
        check_study_dir(recipe, study_dir)
    states = states_of(tasks)
    for recipe in {task.study_dir: task.recipe for task in tasks if states[task.key].state != "done"}.values():
        require_attention(recipe)
    with ExitStack() as locks:
        for study_dir, recipe in studies.items():
            locks.enter_context(locked(study_dir))
            _write_study(recipe, study_dir, until)
            if with_reuse:
                reuse(recipe, study_dir, [task.stage for task in tasks if task.study_dir == study_dir])
        waiting = _unfinished(tasks, root)
        return _Scheduler(waiting, root).run() if waiting else 0


def _write_study(recipe: Recipe, study_dir: Path, until: str | None) -> None:
    if (study_dir / STUDY_FILE).exists():
        for change in describe_changes(flatten(read_study_file(study_dir)), flatten(recipe.dump())):
            print(f"  recipe   {change}")
    write_json(study_dir / STUDY_FILE, recipe.dump())
    until = furthest_until(build_stages(recipe), study_dir, read_run(study_dir).get("until"), until)
    note_run(study_dir, local_run(until))


def _unfinished(tasks: Sequence[Task], root: Path) -> list[Task]:
    """Print the state of every task; those that must run, in order."""
    waiting, by_other_code = [], False
    states = states_of(tasks)
    for study_dir in dict.fromkeys(task.study_dir for task in tasks):
        if study_dir != root:
            print(f"{study_dir}:")
        for task in (task for task in tasks if task.study_dir == study_dir):
            state, name = states[task.key], task.stage.name
            if state.state == "done":
                old = made_by_other_code(task.stage, study_dir)
                by_other_code = by_other_code or old
                print(f"  done     {name}" + (f" ({_OTHER_CODE})" if old else ""))
                continue
            print(f"  {state.state:<8} {name}" + (f" ({'; '.join(state.reasons)})" if state.reasons else ""))
            waiting.append(task)
    if by_other_code:
        print(f"to make again what is {_OTHER_CODE}: delete its folder, or use a new --out")
    return waiting


class _Workers:
    """Worker processes, one for each task that runs: one that dies ends its task alone.

    `once`: a process runs one task. Otherwise it waits for the next, so that the libraries are imported once.
    """

    def __init__(self, once: bool) -> None:
        self.tasks_per_child = 1 if once else None
        self.idle: list[ProcessPoolExecutor] = []
        self.busy: dict[_Result, ProcessPoolExecutor] = {}

    def __enter__(self) -> "_Workers":
        return self

    def submit(self, recipe: Recipe, study_dir: Path, stage: Stage, gpus: tuple[str, ...] | None) -> _Result:
        """Start a stage in a process that is free, or in a new one."""
        executor = self.idle.pop() if self.idle else ProcessPoolExecutor(
            1, get_context("spawn"), prepare_worker, max_tasks_per_child=self.tasks_per_child
        )  # fmt: skip
        future = executor.submit(run_in_worker, recipe.dump(), str(study_dir), stage, gpus)
        self.busy[future] = executor
        return future

    def result(self, future: _Result) -> Failure | None:
        """How a stage ended."""
        executor = self.busy.pop(future)
        try:
            failure = future.result()
        except BrokenProcessPool:
            executor.shutdown()
            return Failure(_DIED, CRASHED)
        self.idle.append(executor)
        return failure

    def kill(self) -> None:
        """End all processes at once; stages that run resume from their files."""
        for worker in active_children():
            worker.kill()

    def __exit__(self, *error: object) -> None:
        for executor in (*self.idle, *self.busy.values()):
            executor.shutdown(wait=True, cancel_futures=True)


def _start_quiet_resource_tracker() -> None:
    """Start Python's process that unlinks what killed workers leave, without its warning about each semaphore."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    resource_tracker.ensure_running()


class _Scheduler:
    """Runs tasks in worker processes, each as soon as its needs are met and its GPUs are free.

    `tasks`: those that must run; what else they need is done. `root`: what `transfer resume` continues.
    """

    def __init__(self, tasks: Sequence[Task], root: Path) -> None:
        self.root = root
        self.names = {
            task.key: task.stage.name if task.study_dir == root else f"{task.study_dir.name}/{task.stage.name}"
            for task in tasks
        }
        self.waiting = {task.key: task for task in tasks}
        self.running: dict[_Result, tuple[Task, float]] = {}
        """Tasks by their futures, with the start by the monotonic clock."""
        self.failed: dict[TaskKey, Failure] = {}
        self.gpus = visible_gpus()
        workers = [task.recipe.resources.workers for task in tasks if task.recipe.resources.workers is not None]
        self.gpu_pool = Pool(self.gpus, min(workers, default=None))
        self.display = Display()
        self.signals = ForwardedSignals()
        # A process holds the memory of its GPUs until it ends, so with GPUs every stage gets a new one.
        self.workers = _Workers(once=bool(self.gpus))

    def run(self) -> int:
        """Run all tasks; returns the exit status."""
        started = time.monotonic()
        _start_quiet_resource_tracker()
        with self.signals, self.workers:
            try:
                self._loop()
            except KeyboardInterrupt:
                self.workers.kill()  # they ignore Ctrl-C and would finish their stages first
                return self._interrupted()
        return self._ended(time.monotonic() - started)

    def _loop(self) -> None:
        """Start and collect tasks until none is left or a signal arrives."""
        while (self.waiting and self.signals.received is None) or self.running:
            if self.signals.received is None:
                self._start()
            elif not any(task.stage.kind == "arms" for task, _ in self.running.values()):
                raise KeyboardInterrupt  # only training has a state to save; other stages resume from their files
            if self.running:
                self._collect()
                running = {self.names[task.key]: task.study_dir / task.stage.name for task, _ in self.running.values()}
                self.display.progress(running, len(self.waiting))
            elif not self._ready():
                return

    def _ready(self) -> list[Task]:
        """Waiting tasks whose needs are neither waiting, running nor failed."""
        unmet = {*self.waiting, *self.failed, *(task.key for task, _ in self.running.values())}
        return [task for task in self.waiting.values() if not unmet & set(task.needs)]

    def _start(self) -> None:
        ready = {self.names[task.key]: task for task in self._ready()}
        for name, task in list(ready.items()):
            directory = task.study_dir / task.stage.name
            if stage_state(directory, stage_inputs(task.stage, task.study_dir)).state == "done":
                del self.waiting[task.key], ready[name]
                self.display.line(f"  done     {name} (ran again with the same result)")
        requests = [request_of(t.recipe, t.stage, self.gpus)._replace(name=name) for name, t in ready.items()]
        for name, gpus in self.gpu_pool.start(requests):
            task = self.waiting.pop(ready[name].key)
            future = self.workers.submit(task.recipe, task.study_dir, task.stage, gpus if self.gpus else None)
            self.running[future] = (task, time.monotonic())
            self.display.line(f"  start    {name}" + (f" (GPU {', '.join(gpus)})" if gpus else ""))

    def _collect(self) -> None:
        """Wait a moment for tasks to end, and record how they ended."""
        ended, _ = wait(self.running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        self.signals.forward()
        for future in ended:
            failure = self.workers.result(future)
            task, begun = self.running.pop(future)
            name, seconds = self.names[task.key], time.monotonic() - begun
            self.gpu_pool.end(name)
            if failure is not None:
                self.failed[task.key] = failure
                if failure.message == _DIED:  # it could not record it itself
                    with suppress(OSError):  # a full disk; the message is printed in any case
                        record(task.study_dir, task.stage.name, failure)
            elif (manifest := read_manifest(task.study_dir / task.stage.name)) is not None:
                seconds = seconds_taken(manifest) or 0.0  # as `transfer status`: without starting and libraries
            self.display.ended(name, task.study_dir, task.stage.name, failure, seconds)

    def _interrupted(self) -> int:
        """Print what was interrupted and how to continue; returns the exit status."""
        tasks = [task for task, _ in self.running.values()]
        names = ", ".join(self.names[task.key] for task in tasks) or "no stage"
        reason = Failure(f"stopped by {self.signals.received or 'Ctrl-C'}", STOPPED)
        for task in tasks:  # which have been killed
            with suppress(OSError):
                record(task.study_dir, task.stage.name, reason)
        kept = "Finished stages are kept, training resumes from its last checkpoint, other stages from their last file"
        advice = f"{kept}. To continue: the same command, or `transfer resume {self.root}`"
        print(f"\nstopped while running {names}. {advice}", file=sys.stderr)
        return INTERRUPTED if self.signals.received is None else STOPPED

    def _ended(self, seconds: float) -> int:
        """Print how the run ended; returns the exit status."""
        if self.failed:
            skipped = ", ".join(self.names[key] for key in self.waiting)
            because = f"; not run because of it: {skipped}" if skipped else ""
            print(f"{len(self.failed)} stage(s) failed{because}", file=sys.stderr)
            statuses = {failure.status for failure in self.failed.values()}
            return next(status for status in (CRASHED, MISTAKE, STOPPED) if status in statuses)
        if self.signals.received is not None:
            print(f"stopped by {self.signals.received}; the same command continues", file=sys.stderr)
            return STOPPED
        print(f"all stages done in {seconds:.0f} s")
        return 0
