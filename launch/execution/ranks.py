"""Start the ranks of one training stage, with accelerate and DeepSpeed or with torchrun, and wait for them.

    python -m launch.execution.ranks STUDY_DIR STAGE RESUME

is the command of a rank. The configuration files of accelerate and DeepSpeed are kept beside the stage. A rank that
fails writes `ranks/failure-<rank>.json`, and its launcher then ends the others. On several nodes every node has its own
launcher (`launch/slurm/step.py` runs on each); the first node starts the ranks, the others join them.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from launch.execution.failures import CRASHED, MISTAKE, STOPPED, RanksEndedError, explain, lost_connection
from launch.execution.processes import die_with_parent, rank_log_path, write_output_to
from launch.execution.watch import Watch
from launch.rank_command import Rendezvous, launch_command, launch_files
from launch.stages import Stage, build_stages
from recipes.errors import UserError
from recipes.files import read_json, write_atomic, write_json
from recipes.loading import load_study
from recipes.manifest import finished_manifest
from recipes.resource_schema import ResourceSpec
from train.runtime.pace import cut_short, read_pace
from train.runtime.ranks import SIGNALS, PreemptedError, listen, noted_signal, signalled_at

_FAILURES = "failure-*.json"  # one written by each rank that fails
_START = "start.json"  # written by the first node for the others
_JOIN_SECONDS = 3600.0  # the first node may wait half an hour for a vLLM server and load attention before it starts
_FIRST_NODE_RECORDS_SECONDS = 20.0
_ATTEMPTS = 3
_SIGNAL_SPREAD_SECONDS = 5.0  # between the nodes of a job, which Slurm signals one after another


def _free_port() -> int:
    """A free port below the range that the kernel uses for outgoing connections."""
    for _ in range(100):
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as server, suppress(OSError):
            server.bind(("", port))
            return port
    raise RuntimeError("no free port between 20000 and 32000")


def launch_ranks(resources: ResourceSpec, study_dir: Path, stage: Stage, resume: bool) -> None:
    """Run a stage on all its ranks, with their output in that of this process.

    Raises:
        UserError: a rank failed because of a mistake of the user.
        PreemptedError: the ranks were stopped by a signal.
        RanksEndedError: a rank failed otherwise, sent no heartbeat, or lost its vLLM server.
    """
    directory = study_dir / stage.name / "ranks"
    directory.mkdir(exist_ok=True)
    rendezvous = Rendezvous.here()
    for attempt in range(1, _ATTEMPTS + 1):
        for old in (*directory.glob("*.pid"), *directory.glob(_FAILURES)):
            old.unlink()
        rendezvous = rendezvous._replace(port=_free_port())
        for path, content in launch_files(resources, directory, rendezvous).items():
            write_json(path, content)
        if rendezvous.nodes > 1:
            write_json(directory / _START, {"step": rendezvous.step, "resume": resume, "port": rendezvous.port})
        command = launch_command(resources, study_dir, stage.name, resume, rendezvous)
        code, reason = _run_launcher(command, study_dir, stage, Watch(resources, directory))
        if code == 0 or rendezvous.nodes > 1 or reason or any(directory.glob("*.pid")) or attempt == _ATTEMPTS:
            break
        print(f"the launcher ended with status {code} before a rank had started; starting it again", flush=True)
    if reason and (name := noted_signal()):  # the server, or another node, was signalled too
        raise PreemptedError(f"stopped by {name} before the ranks could save: {reason}")
    if reason:
        raise RanksEndedError(reason)
    if code == 0 or finished_manifest(study_dir / stage.name) is not None:
        if code:
            print(f"all work was done and recorded; the launcher ended with status {code} after that", flush=True)
        return
    failure = _first_failure(directory)
    if (name := noted_signal()) and (failure is None or failure["lost_connection"]):
        # A rank that was still loading its libraries ends by the signal itself, and the others lose it.
        raise PreemptedError(
            f"stopped by {name} before all ranks could save; the same command continues from the last checkpoint"
        )
    signalled = signalled_at()
    if failure and failure["status"] == CRASHED and signalled and failure["at"] > signalled - _SIGNAL_SPREAD_SECONDS:
        # Such as a request to a server that the signal has ended. An error of the run's own comes again.
        raise PreemptedError(
            f"stopped by {name}, and rank {failure['rank']} could not save: {failure['message']}; the same command "
            "continues from the last checkpoint"
        )
    if failure is None:
        raise RanksEndedError(f"one of {resources.ranks} ranks was killed (status {code})")
    if failure["status"] == STOPPED:
        raise PreemptedError(failure["message"])
    if failure["status"] == MISTAKE:
        raise UserError(failure["message"])
    if failure["lost_connection"]:
        failure["message"] = "another rank was lost, see the log; the same command continues"
    raise RanksEndedError(f"rank {failure['rank']} of {resources.ranks} ended: {failure['message']}")


def _first_failure(directory: Path) -> dict[str, Any] | None:
    """The earliest failure that is no consequence of another; the earliest of all if each is one."""

    def order(failure: dict[str, Any]) -> tuple[bool, float]:
        # After a failure the other ranks lose their connection, or the launcher sends them SIGTERM.
        stopped_by_launcher = failure["status"] == STOPPED and noted_signal() is None
        return failure["lost_connection"] or stopped_by_launcher, failure["at"]

    failures = [failure for path in directory.glob(_FAILURES) if (failure := read_json(path)) is not None]
    return min(failures, key=order, default=None)


def join_ranks(resources: ResourceSpec, study_dir: Path, stage: Stage) -> int:
    """Run this node's ranks of a stage that the first node starts; returns the exit status, 0 after a signal."""
    directory, rendezvous = study_dir / stage.name / "ranks", Rendezvous.here()
    deadline = time.monotonic() + _JOIN_SECONDS
    while True:
        start = read_json(directory / _START)
        if start is not None and start["step"] == rendezvous.step:
            break
        if noted_signal() or time.monotonic() > deadline:
            print(f"node {rendezvous.node}: the first node did not start the ranks", flush=True)
            return 0 if noted_signal() else CRASHED
        time.sleep(0.2)
    rendezvous = rendezvous._replace(port=start["port"])
    command = launch_command(resources, study_dir, stage.name, bool(start["resume"]), rendezvous)
    try:
        code, _ = _run_launcher(command, study_dir, stage, None)
    except PreemptedError as error:
        print(f"node {rendezvous.node}: {error}", flush=True)
        return 0
    if code and not noted_signal():
        # A non-zero status ends the job step; the first node needs time to record the reason.
        time.sleep(_FIRST_NODE_RECORDS_SECONDS)
        return code
    return 0


def _run_launcher(command: list[str], study_dir: Path, stage: Stage, watch: Watch | None) -> tuple[int, str | None]:
    """Run a launcher on this node; its exit status, and why the watchdog killed it, if it did.

    Raises:
        PreemptedError: it was killed after a signal, because the ranks could not save in time.
    """
    from data.language_model import on_cpu

    directory = study_dir / stage.name / "ranks"
    environment = {**os.environ, "OMP_NUM_THREADS": str(stage.threads)}
    # Ranks must import the same code as this process, whatever the working directory.
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *sys.path[1:]])
    environment["TRANSFER_LOG"] = str(rank_log_path(study_dir, stage.name, 0))
    if on_cpu():
        environment["DS_ACCELERATOR"] = "cpu"
    # Slurm signals every process of a job step. The launcher ignores the signal, so that ranks can save and end.
    environment["PET_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP,SIGQUIT"
    launcher = subprocess.Popen([sys.executable, *command], env=environment, preexec_fn=_ignore_signals)
    signalled: set[str] = set()
    while (code := launcher.poll()) is None:
        if name := noted_signal():  # once to each rank; the launcher would kill ranks soon after forwarding it
            signalled |= _signal_ranks(name, directory, signalled)
            if why := cut_short(read_pace(directory)):
                launcher.kill()
                launcher.wait()
                raise PreemptedError(why)
        if watch is not None and (reason := watch.reason_to_end()):
            launcher.kill()  # its ranks die with it
            return launcher.wait(), reason
        time.sleep(0.2)
    return code, None


def _ignore_signals() -> None:
    """In the launcher, before it starts: ignore the signals meant for ranks, and end with this process."""
    die_with_parent()
    for signal_number in SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)


def _signal_ranks(name: str, directory: Path, signalled: set[str]) -> set[str]:
    """Send a signal to the ranks that have written their process id and were not signalled yet; returns their files."""
    paths = [path for path in directory.glob("*.pid") if path.name not in signalled]
    for path in paths:
        with suppress(OSError, ValueError):
            host, pid = path.read_text().split()
            if host == socket.gethostname():  # ranks of other nodes stop after the same step
                os.kill(int(pid), signal.Signals[name])
    return {path.name for path in paths}


def main(arguments: list[str]) -> int:
    """Run a stage in one rank. The launching process has written the manifest."""
    die_with_parent()
    study_dir, name, resume = Path(arguments[0]), arguments[1], bool(int(arguments[2]))
    from train.runtime.ranks import leave, prepare, rank, world_size

    recipe = load_study(study_dir)
    (stage,) = [stage for stage in build_stages(recipe) if stage.name == name]
    directory = study_dir / stage.name
    listen()
    if rank() > 0 and (log := os.environ.get("TRANSFER_LOG")):
        write_output_to(Path(log.removesuffix("0.log") + f"{rank()}.log"))
    write_atomic(directory / "ranks" / f"{rank()}.pid", f"{socket.gethostname()} {os.getpid()}")
    try:
        import torch

        if world_size() != recipe.resources.ranks:
            raise RuntimeError(f"{recipe.resources.ranks} ranks were requested but {world_size()} started")
        torch.set_num_threads(stage.threads)
        prepare()
        import_module(stage.module).run(recipe, study_dir, directory, resume, **stage.arguments)
        leave()
    except Exception as error:  # any library may fail; the launcher reads the message, the log has the traceback
        failure = explain(error, recipe, study_dir, stage)
        values = {"rank": rank(), **failure._asdict(), "lost_connection": lost_connection(error), "at": time.time()}
        write_json(directory / "ranks" / _FAILURES.replace("*", str(rank())), values)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
