"""The subcommands about a running or finished study: status, logs, cancel, resume; and `run --on slurm`."""

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.execution.processes import read_run
from recipes.errors import UserError

if TYPE_CHECKING:
    from launch.slurm.jobs import Task
    from launch.slurm.site_file import SiteSpec
    from recipes.schema import Recipe

NAMES = ("status", "logs", "cancel", "resume", "doctor")


def add_commands(commands: Any) -> None:
    """Add the subcommands."""
    for name, short, text in (
        (
            "status",
            "where a study stands",
            "Every stage with its state, progress, rate and remaining time, and of a failed one the reason and the end "
            "of its log. Exit status 1 if a stage failed.",
        ),
        ("logs", "show the log of a stage", "The end of a stage's log; without STAGE the list of logs."),
        (
            "cancel",
            "stop a study",
            "Stop what this study has running or queued, and nothing else: jobs of a cluster, or the `transfer run` on "
            "this machine, which saves first. `transfer resume` continues.",
        ),
        (
            "resume",
            "continue a study",
            "Run again what is not done, where and how it was started, with the recipe kept in the study.",
        ),
    ):
        parser = commands.add_parser(name, help=short, description=text)
        parser.add_argument("study_dir", metavar="RUN", type=Path, help="study or ablation, for instance runs/pocket")
        if name in ("logs", "cancel"):
            parser.add_argument("stage", metavar="STAGE", nargs="?", help="for instance arms/grpo/seed-0")
        if name == "logs":
            parser.add_argument("--rank", type=int, default=0, help="rank of a training stage (default 0)")
            parser.add_argument("--lines", type=int, default=40, help="lines from the end (default 40)")
            parser.add_argument("--follow", action="store_true", help="go on until the stage ends")
        if name in ("status", "resume"):
            parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    doctor = commands.add_parser(
        "doctor",
        help="check a machine or cluster",
        description="Check what a study needs of this machine, in at most ten minutes: packages, disk, locks, hub, "
        "Slurm, GPUs, ranks, a ZeRO-3 update, vLLM. Each line is a verdict with a remedy. Exit status 1 if one failed.",
    )
    doctor.add_argument("--gpu", action="store_true", help="a machine without a GPU or vLLM fails")
    doctor.add_argument("--folder", metavar="DIR", type=Path, default=Path("runs"), help="where studies will be kept")
    doctor.add_argument("--recipe", metavar="RECIPE", help="a recipe: also check what it would lack here")
    doctor.add_argument("--site", metavar="FILE", type=Path, help="with --recipe: on the cluster of this site file")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of text")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where stages run."""
    parser.add_argument(
        "--on", choices=("local", "slurm"), default="local", help="this machine (default), or a Slurm cluster"
    )
    parser.add_argument(
        "--site",
        metavar="FILE",
        type=Path,
        help="what the cluster wants to be told (default: $TRANSFER_SITE, or ~/.config/transfer/site.yaml)",
    )


def run_command(options: argparse.Namespace) -> int:
    """Run one of the subcommands; returns the exit status."""
    commands = {"status": _status, "logs": _logs, "cancel": _cancel, "resume": _resume, "doctor": _doctor}
    return commands[options.command](options)


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


def run_on_slurm(root: Path, tasks: "Sequence[Task]", site: "SiteSpec", until: str | None) -> int:
    """Submit what is not done; returns the exit status."""
    from launch.execution.processes import note_run
    from launch.slurm.jobs import states_of
    from launch.slurm.submit import submit
    from recipes.manifest import write_json

    waiting, states = [], states_of(tasks)
    for task in tasks:
        if states[task.key].state == "done":
            print(f"  done     {task.stage.name}")
        else:
            waiting.append(task)
    write_json(root / "slurm" / "site.json", site.model_dump(mode="json"))
    note_run(root, {"on": "slurm", "until": until})
    made = submit(root, waiting, site)
    print(f"{made} job(s) submitted; transfer status {root} says how they stand")
    return 0


def check_site(tasks: "Sequence[Task]", site: "SiteSpec") -> None:
    """Refuse stages that cannot run on this cluster; say what is worth knowing. Raises UserError."""
    from launch.commands.main import require_ready

    for study_dir in dict.fromkeys(task.study_dir for task in tasks):
        members = [task for task in tasks if task.study_dir == study_dir]
        require_ready(members[0].recipe, [task.stage for task in members], study_dir, site)


def _status(options: argparse.Namespace) -> int:
    from launch.status import as_json, format_standings, standings

    tasks = tasks_of(options.study_dir, read_run(options.study_dir).get("until"))
    found = standings(options.study_dir, tasks)
    if any(task.recipe.rehearsal for task in tasks):
        print("REHEARSAL: the models are tiny and random", file=sys.stderr)
    print(json.dumps(as_json(found), indent=1) if options.json else format_standings(found))
    return 1 if any(standing.state == "failed" for standing in found) else 0


def _doctor(options: argparse.Namespace) -> int:
    from launch.doctor.checks import examine

    def show(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    found = examine(options.folder, options.gpu, show, options.recipe, options.site)
    failed = [row["check"] for row in found if row["state"] == "fail"]
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print(f"\n{', '.join(failed)} failed" if failed else "\nnothing failed")
    return 1 if failed else 0


def _logs(options: argparse.Namespace) -> int:
    from launch.execution.processes import log_path, rank_log_path

    root = options.study_dir
    tasks = tasks_of(root)
    if options.stage is None:
        found = sorted(path for study in {task.study_dir for task in tasks} for path in (study / "logs").glob("*.log"))
        for path in found:
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
        raise UserError(f"{options.stage} is a stage of several points; say which: {names}")
    (task,) = matching
    name = task.stage.name
    path = rank_log_path(task.study_dir, name, options.rank) if options.rank else log_path(task.study_dir, name)
    if not path.exists():
        raise UserError(f"there is no {path}; the stage has not begun, or has no such rank")
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


def _resume(options: argparse.Namespace) -> int:
    from launch.ablation import ABLATION_FILE, load_ablation
    from launch.commands.ablate import conclude
    from launch.slurm.site_file import load_site_copy

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
    from launch.commands.main import report, run_stages

    recipe = tasks[0].recipe
    stages = [task.stage for task in tasks]
    status = run_stages(recipe, root, stages, options.json, until)
    if status == 0 and stages[-1].kind == "report":
        return report(recipe, root, options.json)
    return status


def submit_study(recipe: "Recipe", study_dir: Path, until: str | None, site_file: Path | None, dry_run: bool) -> int:
    """`transfer run --on slurm` for one study."""
    from launch.execution.local import check_study_dir
    from launch.slurm.jobs import tasks_of_study
    from launch.slurm.site_file import find_site, load_site
    from launch.slurm.submit import ask_queue
    from launch.stages import build_stages, select_until
    from recipes.loading import STUDY_FILE, read_study_file
    from recipes.manifest import write_json

    site = load_site(find_site(site_file))
    tasks = tasks_of_study(recipe, study_dir, select_until(build_stages(recipe), until))
    check_study_dir(recipe, study_dir)
    if dry_run:
        return show_jobs(study_dir, tasks, site)
    check_site(tasks, site)
    ask_queue()  # before anything is written
    if (study_dir / STUDY_FILE).exists() and read_study_file(study_dir) != recipe.dump():
        refuse_if_queued(study_dir)
    write_json(study_dir / STUDY_FILE, recipe.dump())
    return run_on_slurm(study_dir, tasks, site, until)


def refuse_if_queued(root: Path) -> None:
    """Raise UserError if jobs of a study wait or run: they read its recipe when they start."""
    from launch.slurm.submit import active_ids, ask_queue, known_jobs, read_jobs

    if not read_jobs(root) or shutil.which("squeue") is None:  # a study that was copied from a cluster has no jobs here
        return
    queue = ask_queue()
    if active_ids(root, known_jobs(root, queue), queue):
        raise UserError(
            f"jobs of {root} are in the queue and would run with the changed recipe; `transfer cancel {root}` first, "
            "or choose another --out"
        )


def show_jobs(root: Path, tasks: "Sequence[Task]", site: "SiteSpec") -> int:
    """Write the scripts of all jobs and print the graph; submits nothing."""
    from launch.slurm.submit import plan_submission, script_name
    from recipes.manifest import write_atomic

    folder = root / "slurm" / "dry-run"
    for job, text in plan_submission(root, tasks, site):
        path = folder / script_name(job)
        write_atomic(path, text)
        after = next(
            (line.partition("=")[2] for line in text.splitlines() if line.startswith("#SBATCH --dependency")), ""
        )
        size = f"{len(job.tasks)} task(s) x {job.nodes + job.server_nodes} node(s)"
        gpus = f" x {job.gpus_per_node} GPU(s)" if site.gpus_per_node and job.gpus_per_node else ""
        print(f"  {job.name}: {size}{gpus}" + (f"  after {after}" if after else ""))
        print(f"      {path}")
    return 0
