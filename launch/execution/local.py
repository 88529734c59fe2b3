"""Run the stages of a study on this machine: persistent worker processes, one log per stage, live progress.

Workers are processes that stay alive between stages, so the libraries are imported once. Each stage's output
goes to `logs/<stage>.log`. A failing stage stops nothing that does not depend on it.
"""

import json
import os
import shutil
import signal
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import active_children, get_context
from pathlib import Path
from types import FrameType

from launch.execution.failures import CRASHED, INTERRUPTED, MISTAKE, STOPPED, Failure, explain, record
from launch.execution.gpus import Pool, wish_of
from launch.execution.processes import die_with_parent, last_lines, local_run, log_path, note_run, visible_gpus
from launch.planning.node import require_attention, require_on_this_node
from launch.stages import Stage, flatten, made_by_other_code, run_stage, stage_inputs, stage_states
from recipes.errors import UserError
from recipes.loading import STUDY_FILE, read_study_file, validate_recipe
from recipes.manifest import PROGRESS, describe_changes, locked, stage_state, write_json
from recipes.schema import Recipe
from train.runtime.ranks import listen

_POLL_SECONDS = 0.5
_LINE_EVERY_SECONDS = 15.0  # between progress lines where the output is not a terminal
_MIN_FREE_BYTES = 200 << 20
OTHER_CODE = "by an earlier version of the code; delete the folder or use a new --out to make it again"


def check_study_dir(recipe: Recipe, study_dir: Path) -> None:
    """Refuse a directory that a study must not be written to. Writes nothing.

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
    elif study_dir.is_file() or (
        study_dir.exists() and {path.name for path in study_dir.iterdir()} - {".lock", "slurm"}
    ):
        raise UserError(f"{study_dir} is not empty and is not a study directory; choose another --out")
    parent = next(folder for folder in (study_dir, *study_dir.resolve().parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < _MIN_FREE_BYTES:
        raise UserError(
            f"{parent} has {free >> 20} MB free but a study needs at least {_MIN_FREE_BYTES >> 20} MB; "
            "free some space or choose another --out"
        )


def run_local(recipe: Recipe, study_dir: Path, stages: list[Stage], until: str | None = None) -> int:
    """Write `study.json` and run what is not done yet; returns the process exit status.

    Raises:
        UserError: the directory cannot take this study (see `check_study_dir`), another process writes it, or flash
            attention does not load on this machine.
    """
    check_study_dir(recipe, study_dir)
    if any(state.state != "done" for state in stage_states(stages, study_dir).values()):
        require_attention(recipe)
    with locked(study_dir):
        path = study_dir / STUDY_FILE
        if path.exists():
            for change in describe_changes(flatten(read_study_file(study_dir)), flatten(recipe.dump())):
                print(f"  recipe   {change}")
        write_json(path, recipe.dump())
        note_run(study_dir, local_run(until))
        return _run_local(recipe, study_dir, stages)


def _run_local(recipe: Recipe, study_dir: Path, stages: list[Stage]) -> int:
    waiting: dict[str, Stage] = {}
    for stage in stages:
        state = stage_states(stages, study_dir)[stage.name]
        if state.state == "done":
            old = made_by_other_code(stage, study_dir)
            print(f"  done     {stage.name}" + (f" ({OTHER_CODE})" if old else ""))
            continue
        print(f"  {state.state:<8} {stage.name}" + (f" ({'; '.join(state.reasons)})" if state.reasons else ""))
        waiting[stage.name] = stage
    if not waiting:
        return 0
    started = time.monotonic()
    failed: dict[str, Failure] = {}
    running: dict[Future[Failure | None], tuple[Stage, float]] = {}
    gpus = visible_gpus()
    places = Pool(gpus, recipe.resources.workers)
    display = _Display(study_dir)
    values = recipe.dump()
    with (
        _PassedOnSignals() as signals,
        ProcessPoolExecutor(
            places.size,
            get_context("spawn"),
            _prepare_worker,
            # A process with GPUs sees its own and keeps their memory, so the next stage gets a process of its own.
            max_tasks_per_child=1 if gpus else None,
        ) as pool,
    ):
        try:
            while (waiting and signals.received is None) or running:
                if signals.received is not None and not any(stage.kind == "arms" for stage, _ in running.values()):
                    raise KeyboardInterrupt  # only training has something to save; the rest resumes from what is there
                startable = (
                    [] if signals.received is not None else _ready(list(waiting.values()), waiting, running, failed)
                )
                for stage in startable:
                    if stage_state(study_dir / stage.name, stage_inputs(stage, study_dir)).state == "done":
                        del waiting[stage.name]
                        display.line(f"  done     {stage.name} (made again with the same result)")
                wishes = [wish_of(recipe, stage, gpus) for stage in startable if stage.name in waiting]
                for name, own in places.start(wishes):
                    stage = waiting.pop(name)
                    future = pool.submit(_work, values, str(study_dir), stage, own if gpus else None)
                    running[future] = (stage, time.monotonic())
                    display.line(f"  start    {name}" + (f" (GPU {', '.join(own)})" if own else ""))
                if not running:
                    if not _ready(list(waiting.values()), waiting, running, failed):
                        break
                    continue
                finished, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                signals.repeat()
                for future in finished:
                    failure = future.result()
                    stage, begun = running.pop(future)
                    places.end(stage.name)
                    seconds = time.monotonic() - begun
                    if failure is None:
                        display.line(f"  finished {stage.name} in {seconds:.0f} s")
                    else:
                        failed[stage.name] = failure
                        word = "stopped " if failure.status == STOPPED else "FAILED  "
                        display.line(f"  {word} {stage.name} after {seconds:.0f} s: {failure.message}")
                        log = log_path(study_dir, stage.name)
                        if failure.status == CRASHED:
                            display.line("\n".join(f"           | {text}" for text in last_lines(log, 8)))
                        display.line(f"           log: {log}")
                display.show({stage.name for stage, _ in running.values()}, len(waiting))
        except (KeyboardInterrupt, BrokenProcessPool) as error:
            # Workers ignore the terminal's interrupt and would finish their stage first; a killed stage resumes.
            for worker in active_children():
                worker.kill()
            pool.shutdown(wait=True, cancel_futures=True)
            names = ", ".join(stage.name for stage, _ in running.values())
            if isinstance(error, KeyboardInterrupt):
                print(f"\nstopped while running {names}; the same command continues", file=sys.stderr)
                return INTERRUPTED if signals.received is None else STOPPED
            print(f"a worker process died while running {names}; the same command continues", file=sys.stderr)
            return 1 if signals.received is None else STOPPED
    if failed:
        skipped = f"; not run because of it: {', '.join(waiting)}" if waiting else ""
        print(f"{len(failed)} stage(s) failed{skipped}", file=sys.stderr)
        statuses = {failure.status for failure in failed.values()}
        return next(status for status in (CRASHED, MISTAKE, STOPPED) if status in statuses)
    if signals.received is not None:
        print(f"stopped by {signals.received}; the same command continues", file=sys.stderr)
        return STOPPED
    print(f"all stages done in {time.monotonic() - started:.0f} s")
    return 0


class _PassedOnSignals:
    """While the pool runs: SIGTERM and SIGUSR1 go to the stages, which save and stop; nothing new is started."""

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> "_PassedOnSignals":
        self._before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
        return self

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self.repeat()

    def repeat(self) -> None:
        """Tell the stages what was received, again: one that was only starting forgets what came before."""
        for worker in active_children():
            if self.received is not None and worker.pid is not None:
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(worker.pid, signal.Signals[self.received])

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


def _ready(
    order: list[Stage],
    waiting: dict[str, Stage],
    running: dict[Future[Failure | None], tuple[Stage, float]],
    failed: dict[str, Failure],
) -> list[Stage]:
    """Waiting stages whose needs are neither waiting, running nor failed."""
    blocked = set(waiting) | {stage.name for stage, _ in running.values()} | set(failed)
    return [stage for stage in order if not blocked & set(stage.needs)]


def _prepare_worker() -> None:
    """Settings of a worker process, before anything heavy is imported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listen()
    os.environ.update(worker_environment())
    # The worker must not outlive a killed parent: it would go on writing while a rerun starts.
    die_with_parent()


def worker_environment() -> dict[str, str]:
    """Environment of a stage: no thread oversubscription, no telemetry, no progress bars in logs."""
    return {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a forked process cannot use a GPU that this one has initialised
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def _work(
    values: dict[str, object], study_dir: str, stage: Stage, gpus: tuple[str, ...] | None = None
) -> Failure | None:
    """Run one stage in a worker, with its output in the stage's log, on its GPUs. None: the machine has none."""
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    listen()  # what came for an earlier stage is not meant for this one
    log = log_path(Path(study_dir), stage.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        import torch

        torch.set_num_threads(stage.threads)
        if gpus and not torch.cuda.is_available():
            raise UserError(
                f"this machine has GPU {', '.join(gpus)} but torch cannot use it; install a torch built for it, or set "
                "CUDA_VISIBLE_DEVICES= to run on the CPU"
            )
        recipe = validate_recipe(values, "study.json")
        require_on_this_node(recipe, stage)
        run_stage(recipe, Path(study_dir), stage)
        return None
    except Exception as error:  # a stage may fail in any library; the log has the traceback, the user the sentence
        failure = explain(error, validate_recipe(values, "study.json"), Path(study_dir), stage)
        with suppress(OSError):  # a full disk, perhaps; the sentence is shown in any case
            record(Path(study_dir), stage.name, failure)
        return failure
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class _Display:
    """Progress of the running stages: one rewritten line on a terminal, an occasional line elsewhere."""

    def __init__(self, study_dir: Path) -> None:
        self.study_dir = study_dir
        self.terminal = sys.stdout.isatty()
        self._shown = time.monotonic()

    def line(self, text: str) -> None:
        print(("\r\033[K" if self.terminal else "") + text, flush=True)

    def show(self, names: set[str], waiting: int) -> None:
        """Say how far each running stage is."""
        if not self.terminal and time.monotonic() - self._shown < _LINE_EVERY_SECONDS:
            return
        self._shown = time.monotonic()
        parts = []
        for name in sorted(names):
            try:
                progress = json.loads((self.study_dir / name / PROGRESS).read_text())
            except (OSError, json.JSONDecodeError):
                parts.append(f"{name} starting")
                continue
            note = f", {progress['note']}" if progress["note"] else ""
            parts.append(f"{name} {progress['done']}/{progress['total']} {progress['unit']}{note}")
        text = " | ".join(parts) + (f" | {waiting} waiting" if waiting else "")
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r\033[K" + text[:width], end="", flush=True)
        elif parts:
            print(f"  …        {text}", flush=True)
