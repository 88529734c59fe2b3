"""The vLLM server of a cluster job: `vllm serve` with what TRL needs to send it weights.

python -m launch.slurm.vllm_server STUDY_DIR STAGE PORT
"""

import os
import shutil
import sys
from pathlib import Path

from launch.hardware import visible_gpus
from recipes.errors import UserError
from recipes.loading import load_study
from recipes.schema import Recipe
from train.accounting.memory import sequences_of_copy, settle_vllm
from train.arms import resolve_arm


def server_command(recipe: Recipe, study_dir: Path, arm: str, port: int, gpus: int) -> list[str]:
    """The command line. The weights it starts with are the base's; every update sends it the arm's.

    All `gpus` of the node serve: as many copies of the model as fit at its tensor parallelism, which answer
    independently of each other. Every copy gets the weights; the trainer asks how many workers there are.

    Raises:
        UserError: a copy needs more GPUs than there are.
    """
    settings = resolve_arm(recipe, arm)
    vllm = settle_vllm(recipe, settings)
    assert vllm is not None and recipe.model is not None
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
        "--max-num-seqs", str(sequences_of_copy(recipe, settings, copies * vllm.tensor_parallel)),
        "--dtype", recipe.model.dtype,  # a float32 checkpoint would be served as bfloat16
        # By NCCL from the first rank; probabilities as sampled, which the importance ratio is about.
        "--weight-transfer-config", '{"backend":"nccl"}',
        "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1",
    ]  # fmt: skip


def main(arguments: list[str]) -> int:
    """Become the server; the exit status if that is not possible."""
    study_dir, stage, port = Path(arguments[0]), arguments[1], int(arguments[2])
    try:
        command = server_command(load_study(study_dir), study_dir, stage.split("/")[1], port, len(visible_gpus()))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(" ".join(command), flush=True)
    if shutil.which(command[0]) is not None:
        os.execvpe(command[0], command, {**os.environ, "VLLM_SERVER_DEV_MODE": "1"})
    print("vllm is not installed; run pip install -r requirements-gpu.lock on a GPU machine", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
