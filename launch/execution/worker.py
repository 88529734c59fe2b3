"""A worker process of the local scheduler: runs one stage after another, each with its own log."""

import ctypes
import gc
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from launch.execution.failures import Failure, explain, record
from launch.execution.processes import die_with_parent, log_path, write_output_to
from launch.execution.stage_runner import run_stage
from launch.planning.node import require_on_this_node
from launch.stages import Stage
from recipes.errors import UserError
from recipes.loading import validate_recipe
from train.runtime.ranks import listen


def prepare_worker() -> None:
    """Set up a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listen()
    os.environ.update(worker_environment())
    # A worker that outlives its parent would write the same files as a rerun.
    die_with_parent()


def worker_environment() -> dict[str, str]:
    """Environment of a stage: no thread oversubscription, telemetry or progress bars; no proxy to its own machine."""
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if direct != "*":  # it is read only where it stands alone
        direct = ",".join(dict.fromkeys([*filter(None, direct.split(",")), "localhost", "127.0.0.1"]))
    return {
        "no_proxy": direct,  # of a teacher's or vLLM's server on this machine; programs read one name or the other
        "NO_PROXY": direct,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # CUDA cannot be used in a forked process
        # By default every engine of vLLM's CPU build takes the first cores, and two side by side share them.
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        # Threads that wait for each other sleep. By default they spin, several times slower beside other processes.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
    }


def use_threads(count: int) -> None:
    """Arithmetic threads of this process, and of those it starts, such as vLLM's."""
    import torch

    torch.set_num_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)


def run_in_worker(
    values: dict[str, object], study_dir: str, stage: Stage, gpus: tuple[str, ...] | None = None
) -> Failure | None:
    """Run one stage with its output in the stage's log; returns why it failed, None if it finished.

    `values`: the recipe as JSON values. `gpus`: those of the stage; None if the machine has none.
    """
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    listen()  # forget signals of an earlier stage
    write_output_to(log_path(Path(study_dir), stage.name))
    try:
        import torch

        use_threads(stage.threads)
        if gpus and not torch.cuda.is_available():
            raise UserError(
                f"this machine has GPU {', '.join(gpus)} but torch cannot use it; install a torch built for it, or set "
                "CUDA_VISIBLE_DEVICES= to run on the CPU"
            )
        recipe = validate_recipe(values, "study.json")
        require_on_this_node(recipe, stage)
        run_stage(recipe, Path(study_dir), stage)
        return None
    except Exception as error:  # any library may fail; the traceback goes to the log, the message to the user
        failure = explain(error, validate_recipe(values, "study.json"), Path(study_dir), stage)
        with suppress(OSError):  # for example a full disk; the message is printed in any case
            record(Path(study_dir), stage.name, failure)
        return failure
    finally:
        return_memory()
        sys.stdout.flush()
        sys.stderr.flush()


def return_memory() -> None:
    """Give memory that was freed back to the system: the C library keeps it, and the next stage may be a small one."""
    gc.collect()
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
