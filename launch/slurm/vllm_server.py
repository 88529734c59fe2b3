"""The vLLM server of a cluster job: `vllm serve` with the options TRL needs to send it weights.

    python -m launch.slurm.vllm_server STUDY_DIR STAGE PORT

At a preemption Slurm signals every process of a job. The ranks then need the server for the step in progress, so it
ignores the signal, and ends once the batch script has written the file TRANSFER_SERVER_STOP.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from launch.execution.processes import die_with_parent
from launch.hardware import visible_gpus
from recipes.errors import UserError
from recipes.loading import load_study
from recipes.schema import Recipe
from train.accounting.memory import resolve_vllm, sequences_of_copy
from train.arms import resolve_arm
from train.runtime.sampler import engine_seed


def server_command(recipe: Recipe, study_dir: Path, arm: str, seed: int, port: int, gpus: int) -> list[str]:
    """The command line for a run of an arm.

    The server starts with the base's weights; the trainer sends it new ones at every step.
    All `gpus` of the node serve, as data-parallel copies of the model at the recipe's tensor parallelism.

    Raises:
        UserError: a copy needs more GPUs than there are.
    """
    recipe.resources.require_vllm()
    settings = resolve_arm(recipe, arm)
    vllm = resolve_vllm(recipe, settings)
    if vllm is None:
        raise UserError(f"{arm} trains on the teacher's demonstrations and needs no vLLM server")
    copies = max(1, gpus) // vllm.tensor_parallel
    if not copies:
        raise UserError(
            f"resources.vllm.tensor_parallel is {vllm.tensor_parallel} and the server's node has {gpus} GPU(s); "
            "lower it"
        )
    length = settings.prompt.max_prompt_tokens + settings.prompt.max_completion_tokens
    return [
        "vllm", "serve", str(study_dir / "base"), "--host", "0.0.0.0", "--port", str(port),
        "--tensor-parallel-size", str(vllm.tensor_parallel), "--data-parallel-size", str(copies),
        "--max-model-len", str(length),
        "--gpu-memory-utilization", str(vllm.memory_share),
        "--seed", str(engine_seed(seed, 0, 1)),  # vLLM's own is 0, for every training seed
        "--max-num-seqs", str(sequences_of_copy(recipe, settings, copies * vllm.tensor_parallel)),
        "--dtype", recipe.require_model().dtype,  # by default a float32 checkpoint is served as bfloat16
        # Weights come by NCCL from the first rank. The importance ratio needs the probabilities that were sampled from.
        "--weight-transfer-config", '{"backend":"nccl"}',
        "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1",
    ]  # fmt: skip


def serve_until(stop: Path, command: list[str]) -> int:
    """Run a server, a Python program that never sees SIGTERM, until `stop` exists; its exit status, or 0 if stopped."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = subprocess.Popen(
        [sys.executable, "-m", "launch.slurm.without_sigterm", *command],
        env={**os.environ, "VLLM_SERVER_DEV_MODE": "1"},
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    while (code := server.poll()) is None:
        if stop.exists():
            os.killpg(server.pid, signal.SIGKILL)  # it has nothing to save
            server.wait()
            return 0
        time.sleep(1)
    return code


def main(arguments: list[str]) -> int:
    """Run the server; returns its exit status."""
    study_dir, stage, port = Path(arguments[0]), arguments[1], int(arguments[2])
    try:
        _, arm, run = stage.split("/")
        seed = int(run.removeprefix("seed-"))
        command = server_command(load_study(study_dir), study_dir, arm, seed, port, len(visible_gpus()))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(" ".join(command), flush=True)
    # Beside this interpreter first: the environment it belongs to need not be activated.
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if (program := shutil.which(command[0], path=folders)) is not None:
        return serve_until(Path(os.environ["TRANSFER_SERVER_STOP"]), [program, *command[1:]])
    print("vllm is not installed; run pip install -r requirements-gpu.lock on a GPU machine", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
