"""Start the ranks of one training stage, with accelerate and DeepSpeed or with torchrun, and wait for them.

    python -m launch.ranks STUDY_DIR STAGE RESUME

is what every rank runs. Accelerate's and DeepSpeed's configuration files are written beside the stage, so that what was
run can be read; a rank that ends badly takes the others with it.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from launch.failures import CRASHED, MISTAKE, STOPPED, explain
from launch.processes import die_with_parent
from launch.stages import Stage, build_stages
from recipes.errors import UserError
from recipes.loading import load_study
from recipes.manifest import write_atomic, write_json
from recipes.resource_schema import ResourceSpec
from train.ranks import PreemptedError, listen, noted_signal

_FAILURE = "failure.json"


def zero_config(resources: ResourceSpec) -> dict[str, Any]:
    """DeepSpeed's configuration. Batch sizes and clipping are the trainer's ("auto"), so they are said in one place."""
    zero: dict[str, Any] = {"stage": resources.zero_stage, "overlap_comm": False, "contiguous_gradients": True}
    if resources.zero_stage == 3:
        # Without the gathering a checkpoint has shards only, and no weights that other programs can load.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if resources.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
        if resources.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    automatic = (
        "train_micro_batch_size_per_gpu",
        "train_batch_size",
        "gradient_accumulation_steps",
        "gradient_clipping",
    )
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        **dict.fromkeys(automatic, "auto"),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def accelerate_config(resources: ResourceSpec, deepspeed_file: Path) -> dict[str, Any]:
    """Accelerate's configuration for DeepSpeed on one machine."""
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"deepspeed_config_file": str(deepspeed_file), "zero3_init_flag": True},
        "num_machines": 1,
        "machine_rank": 0,
        "num_processes": resources.ranks,
        "main_process_port": _free_port(),
        "rdzv_backend": "static",
        "use_cpu": False,
    }


def launch_files(resources: ResourceSpec, directory: Path) -> dict[Path, dict[str, Any]]:
    """The launcher's configuration files in `directory`, and what is in them."""
    if not resources.zero_stage:
        return {}
    deepspeed_file = directory / "deepspeed.json"
    accelerate = accelerate_config(resources, deepspeed_file.resolve())
    return {deepspeed_file: zero_config(resources), directory / "accelerate.json": accelerate}


def launch_command(resources: ResourceSpec, study_dir: Path, name: str, resume: bool) -> list[str]:
    """The command that starts the ranks of a stage: accelerate for DeepSpeed, else torchrun.

    Accelerate alone would start a single process on a CPU, whatever number it is told.
    """
    rank_command = ["-m", "launch.ranks", str(study_dir), name, str(int(resume))]
    if not resources.zero_stage:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={resources.ranks}"]
    else:
        configuration = study_dir / name / "ranks" / "accelerate.json"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(configuration)]
    return [*launcher, *rank_command]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def launch_ranks(resources: ResourceSpec, study_dir: Path, stage: Stage, resume: bool) -> None:
    """Run a stage on all its ranks; their output goes where this process's does.

    Raises:
        UserError: a rank stopped for a mistake the user can put right.
        RuntimeError: a rank ended otherwise.
    """
    from data.language_model import on_cpu

    directory = study_dir / stage.name / "ranks"
    directory.mkdir(exist_ok=True)
    (directory / _FAILURE).unlink(missing_ok=True)
    for path, content in launch_files(resources, directory).items():
        write_json(path, content)
    command = [sys.executable, *launch_command(resources, study_dir, stage.name, resume)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(stage.threads)}
    # Ranks import the code this process runs, wherever it was started.
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parent.parent), *sys.path[1:]])
    if on_cpu():
        environment["DS_ACCELERATOR"] = "cpu"
    for old in directory.glob("*.pid"):
        old.unlink()
    launcher = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)
    told: set[str] = set()
    while (code := launcher.poll()) is None:
        if name := noted_signal():  # ranks are told themselves, once each: their launchers would kill them soon after
            told |= _pass_on(name, directory, told)
        time.sleep(0.2)
    if code == 0:
        return
    try:
        failure = json.loads((directory / _FAILURE).read_text())
    except (OSError, json.JSONDecodeError):
        failure = {"rank": "?", "message": f"it was ended from outside (status {code})", "status": CRASHED}
    if failure["status"] == STOPPED:
        raise PreemptedError(failure["message"])
    if failure["status"] == MISTAKE:
        raise UserError(failure["message"])
    if re.search(r"by peer|gloo|NCCL", failure["message"]):
        failure["message"] = "another rank was lost; its reason is in the log, the same command continues"
    raise RuntimeError(f"rank {failure['rank']} of {resources.ranks} ended: {failure['message']}")


def _pass_on(name: str, directory: Path, told: set[str]) -> set[str]:
    """Send a signal to the ranks that have said who they are and were not told yet; their files."""
    paths = [path for path in directory.glob("*.pid") if path.name not in told]
    for path in paths:
        with suppress(OSError, ValueError):
            os.kill(int(path.read_text()), signal.Signals[name])
    return {path.name for path in paths}


def main(arguments: list[str]) -> int:
    """One rank: do the stage's work; the launching process has written its manifest."""
    die_with_parent()
    study_dir, name, resume = Path(arguments[0]), arguments[1], bool(int(arguments[2]))
    from train.ranks import prepare, rank, world_size

    recipe = load_study(study_dir)
    (stage,) = [stage for stage in build_stages(recipe) if stage.name == name]
    directory = study_dir / stage.name
    listen()
    write_atomic(directory / "ranks" / f"{rank()}.pid", str(os.getpid()))
    try:
        import torch

        if world_size() != recipe.resources.ranks:
            raise RuntimeError(f"{recipe.resources.ranks} ranks were asked for but {world_size()} started")
        torch.set_num_threads(stage.threads)
        prepare()
        import_module(stage.module).run(recipe, study_dir, directory, resume, **stage.arguments)
    except Exception as error:  # any library may fail; the launching process needs the sentence, the log the rest
        failure = explain(error, recipe, study_dir, stage)
        write_json(directory / "ranks" / _FAILURE, {"rank": rank(), **failure._asdict()})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
