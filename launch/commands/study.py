"""The subcommands about a running or finished study: status, logs, cancel, resume; and doctor."""

import argparse
import os
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from launch.commands.arguments import STAGE, STUDY, argument, command, input_file, print_result, study_folder
from launch.execution.processes import read_run
from recipes.errors import UserError
from recipes.layout import stage_lock
from recipes.suggestions import did_you_mean, nearest

if TYPE_CHECKING:
    from launch.tasks import Task


def tasks_of(root: Path, until: str | None = None) -> "list[Task]":
    """All stages of a study or an ablation.

    Raises:
        UserError: the folder is neither.
    """
    from launch.ablation import ABLATION_FILE, load_ablation
    from launch.stages import build_stages, select_until
    from launch.tasks import tasks_of_study
    from recipes.loading import load_study

    if (root / ABLATION_FILE).exists():
        return load_ablation(root).tasks(until)
    recipe = load_study(root)
    return tasks_of_study(recipe, root, select_until(build_stages(recipe), until))


@command("show the state of a study", STUDY)
def status(options: argparse.Namespace) -> int:
    """Show the state, progress, rate and remaining time of every stage. For a failed stage, also show the reason and
    the end of its log. Exit status 1 if a stage failed.
    """
    from launch.status import format_statuses, stage_statuses

    root = study_folder(options.study)
    tasks = tasks_of(root, read_run(root).get("until"))
    stages = stage_statuses(root, tasks)
    if any(task.recipe.rehearsal for task in tasks):
        print("REHEARSAL: the models are tiny and random", file=sys.stderr)
    print_result(options, [asdict(status) for status in stages], format_statuses(stages))
    return 1 if any(status.state == "failed" for status in stages) else 0


@command(
    "check a machine or cluster",
    argument("--gpu", action="store_true", help="fail on a machine without a GPU or vLLM"),
    argument("--folder", metavar="DIR", type=Path, default=Path("runs"), help="where studies are kept (default: runs)"),
    argument("--recipe", metavar="RECIPE|RUN", type=input_file, help="also check what this recipe lacks here"),
    argument(
        "--site",
        metavar="FILE",
        type=Path,
        help="check this site file (default: $TRANSFER_SITE, or ~/.config/transfer/site.yaml); with --recipe, check "
        "the recipe for its cluster",
    ),
)
def doctor(options: argparse.Namespace) -> int:
    """Check that this machine can run a study, in at most ten minutes: packages, disk, locks, hub, site file, Slurm,
    GPUs, ranks, a ZeRO-3 step, vLLM. Each line has a verdict and, if needed, a remedy. Exit status 1 if a check failed.
    """
    from launch.doctor.checks import examine

    def show(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    verdicts = examine(options.folder, options.gpu, show, options.recipe, options.site)
    failed = [*dict.fromkeys(row["check"] for row in verdicts if row["state"] == "fail")]
    print_result(options, verdicts, f"\n{', '.join(failed) or 'nothing'} failed")
    return 1 if failed else 0


@command(
    "show the log of a stage",
    STUDY,
    STAGE,
    argument("--rank", type=int, default=0, help="rank of a training stage (default 0)"),
    argument("--lines", type=int, default=40, help="lines from the end (default 40)"),
    argument("--follow", action="store_true", help="print new lines until the stage ends"),
)
def logs(options: argparse.Namespace) -> int:
    """Print the end of a stage's log. Without STAGE, list the logs."""
    from launch.execution.processes import log_path, rank_log_path

    root = study_folder(options.study)
    tasks = tasks_of(root)
    if options.stage is None:
        for path in sorted(path for study in {task.study_dir for task in tasks} for path in study.glob("logs/*.log")):
            print(f"{path}  {path.stat().st_size:,} bytes")
        return 0
    task = _one_task(root, tasks, options.stage)
    name = task.stage.name
    path = rank_log_path(task.study_dir, name, options.rank) if options.rank else log_path(task.study_dir, name)
    if not path.exists():
        raise UserError(f"{path} does not exist; the stage has not started, or has no such rank")
    _show_end(path, options.lines)
    if options.follow:
        _follow(path, task)
    return 0


def _one_task(root: Path, tasks: "list[Task]", stage: str) -> "Task":
    """The task of a stage. Raises UserError if there is none, or one in several points of an ablation."""
    matching = [task for task in tasks if stage in (task.stage.name, f"{task.study_dir.name}/{task.stage.name}")]
    if not matching:
        raise UserError(f"{root} has no stage {stage!r}; {did_you_mean(stage, (task.stage.name for task in tasks))}")
    if len(matching) > 1:
        names = ", ".join(f"{task.study_dir.name}/{task.stage.name}" for task in matching)
        raise UserError(f"{stage} is a stage of several points; name one of {names}")
    return matching[0]


def _show_end(path: Path, count: int) -> None:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in deque(file, maxlen=max(count, 0)):
            print(line.rstrip("\n"))


def _follow(path: Path, task: "Task") -> None:
    from recipes.files import is_locked

    lock = stage_lock(task.study_dir, task.stage.name)
    with path.open("rb") as file, suppress(KeyboardInterrupt):
        file.seek(0, os.SEEK_END)
        while True:
            running = is_locked(lock)
            text = file.read().decode(errors="replace")
            print(text, end="", flush=True)
            if not running and not text:
                return
            time.sleep(1.0)


@command("stop a study", STUDY, STAGE)
def cancel(options: argparse.Namespace) -> int:
    """Stop what this study is running or has queued, and nothing else: its jobs on a cluster, or the `transfer run` on
    this machine, which saves first. Continue with `transfer resume`.
    """
    from launch.execution.processes import process_start
    from launch.slurm.submit import cancel, read_jobs

    root, stage = study_folder(options.study), options.stage
    tasks = tasks_of(root)
    if stage is not None and stage not in {task.stage.name for task in tasks}:
        near = nearest(stage, [task.stage.name for task in tasks])
        hint = f"did you mean {near}?" if near else f"`transfer status {root}` lists them"
        raise UserError(f"{root} has no stage {stage!r}; {hint}")
    stopped = []
    if read_jobs(root):
        stopped = cancel(root, stage)
        for identifier in stopped:
            print(f"cancelled job {identifier}")
    how = read_run(root)
    if how["on"] == "local" and "pid" in how:
        if stage is not None:
            raise UserError("on one machine the whole run is stopped, not a single stage; leave the stage out")
        if how["host"] != socket.gethostname():
            raise UserError(f"{root} was started on {how['host']}; run this command there")
        if how["began"] is not None and process_start(how["pid"]) == how["began"]:
            os.kill(how["pid"], signal.SIGTERM)
            stopped.append(str(how["pid"]))
            print(f"told process {how['pid']} to save and stop")
    if not stopped:
        print(f"nothing of {root} is running or queued")
    return 0


@command("continue a study", STUDY)
def resume(options: argparse.Namespace) -> int:
    """Run the unfinished stages again, where and how they were started, with the recipe stored in the study."""
    from launch.ablation import ABLATION_FILE, load_ablation
    from launch.commands.ablate import run_and_conclude
    from launch.commands.recipe import run_and_report
    from launch.run import check_tasks, require, run_on_slurm
    from launch.site_file import load_site_copy

    root = study_folder(options.study)
    how = read_run(root)
    until = how.get("until")
    tasks = tasks_of(root, until)
    if how["on"] == "slurm":
        site = load_site_copy(root / "slurm" / "site.json")
        require(check_tasks(tasks, site))
        return run_on_slurm(root, tasks, site, until)
    if (root / ABLATION_FILE).exists():
        require(check_tasks(tasks))
        return run_and_conclude(load_ablation(root), until, options)
    return run_and_report(tasks[0].recipe, root, [task.stage for task in tasks], options.json, until)
