"""The program of a cluster job, on each of its nodes: one stage of a study.

    python -m launch.slurm.step STUDY_DIR STAGE

The first node takes the stage's lock and does the work, or starts the ranks; the others join them. If another job
holds the lock of an evaluation, this one generates responses beside it.
"""

import json
import os
import signal
import socket
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import FrameType

from launch.execution.failures import CRASHED, MISTAKE, STOPPED, Failure, RanksEndedError, explain, record
from launch.execution.processes import log_path, write_output_to
from launch.execution.ranks import join_ranks
from launch.execution.stage_runner import run_stage
from launch.hardware import gpus_wanted
from launch.planning.node import require_attention, require_on_this_node
from launch.rank_command import Rendezvous
from launch.stages import Stage, build_stages, stage_states
from recipes.errors import UserError
from recipes.files import LockedError, write_json
from recipes.loading import load_study
from recipes.schema import Recipe
from train.runtime.ranks import PreemptedError, listen, noted_signal

_SERVER_START_SECONDS = 1800.0
_LOST_LOCK_SECONDS = 600.0
_ASK_LOCK_SECONDS = 5.0


def main(arguments: list[str]) -> int:
    """Run the stage; the exit status is that of `transfer run`."""
    from launch.execution.worker import worker_environment

    study_dir, name = Path(arguments[0]), arguments[1]
    rendezvous = Rendezvous.here()
    os.environ.update(worker_environment())
    _write_to_log(study_dir, name, rendezvous.node)
    try:
        recipe = load_study(study_dir)
        stages = build_stages(recipe)
        stage = next((stage for stage in stages if stage.name == name), None)
        if stage is None:
            raise UserError(f"the recipe in {study_dir} has no stage {name} any more")
        if not rendezvous.node:
            record(study_dir, name, None)
        listen()
        if stage.kind != "arms":  # only training has a state to save; other stages resume from their files
            _exit_on_signal(study_dir, name)
        if rendezvous.node:
            if stage_states(stages, study_dir)[name].state == "done":  # then the first node starts no ranks either
                return 0
            return join_ranks(recipe.resources, study_dir, stage)
        failure = _first_node(recipe, study_dir, stages, stage)
    except UserError as error:
        failure = Failure(str(error), MISTAKE)
    except OSError as error:
        failure = Failure(
            f"{study_dir} cannot be read or written: {error.strerror}; fix that and run `transfer resume`", MISTAKE
        )
    if failure is None:
        return 0
    lost = None
    try:
        record(study_dir, name, failure)
    except OSError as error:
        lost = error
    with suppress(OSError):  # the log may be on a full disk
        print(f"{name}: {failure.message}", file=sys.stderr, flush=True)
        if lost is not None:
            print(f"and that could not be recorded: {lost}", file=sys.stderr, flush=True)
    return failure.status


def _first_node(recipe: Recipe, study_dir: Path, stages: list[Stage], stage: Stage) -> Failure | None:
    states = stage_states(stages, study_dir)
    if states[stage.name].state == "done":
        print(f"{stage.name} is done", flush=True)
        return None
    missing = [name for name in stage.needs if states[name].state != "done"]
    if missing:
        return Failure(f"not run, because {', '.join(missing)} is not done", MISTAKE)
    if message := _no_progress(study_dir, stage):
        return Failure(message, MISTAKE)
    try:
        from launch.execution.worker import use_threads

        use_threads(stage.threads)
        require_on_this_node(recipe, stage)
        if gpus_wanted(recipe, stage.kind):
            require_attention(recipe)
        _wait_for_server()
        _name_trainer()
        _run(recipe, study_dir, stage)
    except LockedError:
        return _share(recipe, study_dir, stage)
    except Exception as error:  # any library may fail; the log has the traceback, the record the message
        failure = explain(error, recipe, study_dir, stage)
        if failure.status == CRASHED and not isinstance(error, RanksEndedError) and (name := noted_signal()):
            # Such as a request to a server that the signal has ended too.
            return Failure(f"stopped by {name}, and could not save: {failure.message}", STOPPED)
        return failure
    return None


def _run(recipe: Recipe, study_dir: Path, stage: Stage) -> None:
    """Run the stage; after a restart wait for its lock.

    Where a file server keeps locks (NFSv3), those of a lost node stay until it notices that the node is gone.
    """
    restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    shared = stage.kind == "eval" and recipe.resources.evaluation_replicas > 1  # the holder is at work then
    deadline = time.monotonic() + (_LOST_LOCK_SECONDS if restarted and not shared else 0.0)
    said = False
    while True:
        try:
            return run_stage(recipe, study_dir, stage)
        except LockedError:
            if time.monotonic() >= deadline:
                raise
        if noted_signal():
            raise PreemptedError("stopped while waiting for the lock of an earlier start; the job is requeued")
        if not said:
            print(
                f"{stage.name} is locked, perhaps by the node that this job ran on before; waiting up to "
                f"{_LOST_LOCK_SECONDS / 60:.0f} minutes for it",
                flush=True,
            )
        said = True
        time.sleep(_ASK_LOCK_SECONDS)


def _share(recipe: Recipe, study_dir: Path, stage: Stage) -> Failure | None:
    """Take part in an evaluation that another job runs; no other stage can be shared."""
    from launch.execution.replicas import work

    if stage.kind != "eval":
        return Failure(f"another job is writing {stage.name}", MISTAKE)
    work(recipe, study_dir, wait=False, only=stage.name)
    return None


def _name_trainer() -> None:
    """Set the address at which the job's vLLM server fetches weights; vLLM finds 0.0.0.0 without a default route."""
    if not os.environ.get("TRANSFER_VLLM_URL"):
        return
    with suppress(OSError):
        address = socket.gethostbyname(os.environ["TRANSFER_HEAD"])
        if not address.startswith("127."):  # as some systems call themselves; no other node reaches that
            os.environ.setdefault("VLLM_HOST_IP", address)


def _wait_for_server() -> None:
    """Wait until the vLLM server of this job answers, if it has one."""
    url, ended = os.environ.get("TRANSFER_VLLM_URL"), os.environ.get("TRANSFER_SERVER_ENDED", "")
    begun = time.monotonic()
    while url:
        if ended and Path(ended).exists():
            raise UserError(f"the vLLM server of this job ended during its start; its log is beside {ended}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError as error:
            if time.monotonic() - begun > _SERVER_START_SECONDS:
                raise UserError(f"the vLLM server at {url} does not answer after half an hour ({error})") from None
        if noted_signal():
            raise PreemptedError("stopped while the vLLM server was starting; the job is requeued")
        time.sleep(2)


def _no_progress(study_dir: Path, stage: Stage) -> str | None:
    """Why a requeued job must not run again: its last two starts completed nothing. None: it may.

    Every start records the checkpoints and responses that exist; equal records of two starts and now mean no progress.
    """
    unit = stage.facts.progress
    job = os.environ.get("SLURM_JOB_ID", "0")  # the same at every start of a job; each replica has its own
    path = study_dir / ".starts" / f"{stage.name.replace('/', '--')}.{job}.json"
    directory = study_dir / stage.name
    patterns = ("checkpoint-*/COMPLETE", "**/chunk-*", "**/answers-*")
    completed = sorted(str(done.relative_to(directory)) for pattern in patterns for done in directory.glob(pattern))
    earlier: list[list[str]] = []
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        with suppress(OSError, ValueError):
            earlier = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, [*earlier[-2:], completed])
    if unit is None or len(earlier) < 2 or any(start != completed for start in earlier[-2:]):
        return None
    return (
        f"no {unit} was completed in the last two starts of this job, so it would never end; set a longer time_limit "
        "in the site file, or a lower train.save_every_steps"
    )


def _exit_on_signal(study_dir: Path, name: str) -> None:
    def end(signal_number: int, frame: FrameType | None) -> None:
        message = f"stopped by {signal.Signals(signal_number).name}; finished parts are kept"
        print(message, flush=True)
        with suppress(OSError):
            record(study_dir, name, Failure(message, STOPPED))
        os._exit(STOPPED)

    for signal_number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signal_number, end)


def _write_to_log(study_dir: Path, name: str, node: int) -> None:
    """Send output to the stage's log; that of further nodes to logs of their own."""
    log = log_path(study_dir, name)
    write_output_to(log.with_suffix(f".node-{node}.log") if node else log)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
