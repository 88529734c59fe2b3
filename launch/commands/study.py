"""The subcommands about a running or finished study: status, logs, cancel, resume; and doctor."""

import argparse
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands.arguments import add_command, add_study_dir
from launch.execution.processes import read_run
from recipes.errors import UserError

if TYPE_CHECKING:
    from launch.slurm.jobs import Task


def tasks_of(root: Path, until: str | None = None) -> "list[Task]":
    """All stages of a study or an ablation.

    Raises:
        UserError: the folder is neither.
    """
    from launch.ablation import ABLATION_FILE, load_ablation
    from launch.slurm.jobs import tasks_of_study
    from launch.stages import build_stages, select_until
    from recipes.loading import load_study

    if (root / ABLATION_FILE).exists():
        return load_ablation(root).tasks(until)
    recipe = load_study(root)
    return tasks_of_study(recipe, root, select_until(build_stages(recipe), until))


_STUDY_HELP = "study or ablation, for instance runs/pocket"
_STAGE_HELP = "for instance arms/grpo/seed-0"


def add_status(commands: Any) -> None:
    """Add `transfer status`."""
    parser = add_command(
        commands,
        "status",
        "show the state of a study",
        "Every stage with its state, progress, rate and remaining time, and of a failed one the reason and the end "
        "of its log. Exit status 1 if a stage failed.",
        _status,
    )
    add_study_dir(parser, _STUDY_HELP)


def _status(options: argparse.Namespace) -> int:
    from launch.status import as_json, format_standings, standings

    tasks = tasks_of(options.study_dir, read_run(options.study_dir).get("until"))
    stages = standings(options.study_dir, tasks)
    if any(task.recipe.rehearsal for task in tasks):
        print("REHEARSAL: the models are tiny and random", file=sys.stderr)
    print(json.dumps(as_json(stages), indent=1) if options.json else format_standings(stages))
    return 1 if any(standing.state == "failed" for standing in stages) else 0


def add_doctor(commands: Any) -> None:
    """Add `transfer doctor`."""
    parser = add_command(
        commands,
        "doctor",
        "check a machine or cluster",
        "Check this machine for everything a study needs, in at most ten minutes: packages, disk, locks, hub, Slurm, "
        "GPUs, ranks, a ZeRO-3 update, vLLM. Each line is a verdict with a remedy. Exit status 1 if one failed.",
        _doctor,
    )
    parser.add_argument("--gpu", action="store_true", help="fail on a machine without a GPU or vLLM")
    parser.add_argument("--folder", metavar="DIR", type=Path, default=Path("runs"), help="where studies will be kept")
    parser.add_argument("--recipe", metavar="RECIPE", help="a recipe: also check what it would lack here")
    parser.add_argument("--site", metavar="FILE", type=Path, help="with --recipe: on the cluster of this site file")


def _doctor(options: argparse.Namespace) -> int:
    from launch.doctor.checks import examine

    def show(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    verdicts = examine(options.folder, options.gpu, show, options.recipe, options.site)
    failed = [row["check"] for row in verdicts if row["state"] == "fail"]
    if options.json:
        print(json.dumps(verdicts, indent=1))
    else:
        print(f"\n{', '.join(failed)} failed" if failed else "\nnothing failed")
    return 1 if failed else 0


def add_logs(commands: Any) -> None:
    """Add `transfer logs`."""
    parser = add_command(
        commands, "logs", "show the log of a stage", "The end of a stage's log; without STAGE the list of logs.", _logs
    )
    add_study_dir(parser, _STUDY_HELP)
    parser.add_argument("stage", metavar="STAGE", nargs="?", help=_STAGE_HELP)
    parser.add_argument("--rank", type=int, default=0, help="rank of a training stage (default 0)")
    parser.add_argument("--lines", type=int, default=40, help="lines from the end (default 40)")
    parser.add_argument("--follow", action="store_true", help="print new lines until the stage ends")


def _logs(options: argparse.Namespace) -> int:
    from launch.execution.processes import log_path, rank_log_path

    root = options.study_dir
    tasks = tasks_of(root)
    if options.stage is None:
        logs = sorted(path for study in {task.study_dir for task in tasks} for path in (study / "logs").glob("*.log"))
        for path in logs:
            print(f"{path}  {path.stat().st_size:,} bytes")
        return 0
    matching = [
        task for task in tasks if options.stage in (task.stage.name, f"{task.study_dir.name}/{task.stage.name}")
    ]
    if not matching:
        names = ", ".join(dict.fromkeys(task.stage.name for task in tasks))
        raise UserError(f"{root} has no stage {options.stage!r}; there are {names}")
    if len(matching) > 1:
        names = ", ".join(f"{task.study_dir.name}/{task.stage.name}" for task in matching)
        raise UserError(f"{options.stage} is a stage of several points; name one of {names}")
    (task,) = matching
    name = task.stage.name
    path = rank_log_path(task.study_dir, name, options.rank) if options.rank else log_path(task.study_dir, name)
    if not path.exists():
        raise UserError(f"{path} does not exist; the stage has not started, or has no such rank")
    _show_end(path, options.lines)
    if options.follow:
        _follow(path, task)
    return 0


def _show_end(path: Path, count: int) -> None:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 400 * max(count, 1)))
        lines = file.read().decode(errors="replace").splitlines()
    print("\n".join(lines[-count:]) if count > 0 else "")


def _follow(path: Path, task: "Task") -> None:
    from recipes.manifest import is_locked

    lock = task.study_dir / ".locks" / task.stage.name.replace("/", "--")
    with path.open("rb") as file, suppress(KeyboardInterrupt):
        file.seek(0, os.SEEK_END)
        while True:
            running = is_locked(lock)
            text = file.read().decode(errors="replace")
            print(text, end="", flush=True)
            if not running and not text:
                return
            time.sleep(1.0)


def add_cancel(commands: Any) -> None:
    """Add `transfer cancel`."""
    parser = add_command(
        commands,
        "cancel",
        "stop a study",
        "Stop what this study has running or queued, and nothing else: jobs of a cluster, or the `transfer run` on "
        "this machine, which saves first. `transfer resume` continues.",
        _cancel,
    )
    add_study_dir(parser, _STUDY_HELP)
    parser.add_argument("stage", metavar="STAGE", nargs="?", help=_STAGE_HELP)


def _cancel(options: argparse.Namespace) -> int:
    from launch.execution.processes import process_start
    from launch.slurm.submit import cancel, read_jobs

    root, stage = options.study_dir, options.stage
    tasks = tasks_of(root)
    if stage is not None and stage not in {task.stage.name for task in tasks}:
        raise UserError(f"{root} has no stage {stage!r}; transfer status {root} lists them")
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


def add_resume(commands: Any) -> None:
    """Add `transfer resume`."""
    parser = add_command(
        commands,
        "resume",
        "continue a study",
        "Run again what is not done, where and how it was started, with the recipe kept in the study.",
        _resume,
    )
    add_study_dir(parser, _STUDY_HELP)


def _resume(options: argparse.Namespace) -> int:
    from launch.ablation import ABLATION_FILE, load_ablation
    from launch.commands.ablate import conclude
    from launch.commands.recipe import show_report
    from launch.run import check_site, run_on_slurm, run_stages
    from launch.site_file import load_site_copy

    root = options.study_dir
    how = read_run(root)
    until = how.get("until")
    tasks = tasks_of(root, until)
    if how["on"] == "slurm":
        site = load_site_copy(root / "slurm" / "site.json")
        check_site(tasks, site)
        return run_on_slurm(root, tasks, site, until)
    if (root / ABLATION_FILE).exists():
        ablation = load_ablation(root)
        return ablation.run(until) or conclude(ablation, options.json)
    recipe = tasks[0].recipe
    stages = [task.stage for task in tasks]
    status = run_stages(recipe, root, stages, options.json, until)
    if status == 0 and stages[-1].kind == "report":
        return show_report(recipe, root, options.json)
    return status
