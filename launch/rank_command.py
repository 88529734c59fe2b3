"""The launcher command of a training stage's ranks, and its configuration files."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from recipes.resource_schema import ResourceSpec


class Rendezvous(NamedTuple):
    """The node of a launcher and the rendezvous address of all ranks of a stage."""

    node: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    """Address of the first node."""
    port: int = 0
    """Port of the rendezvous on it."""

    @classmethod
    def here(cls) -> "Rendezvous":
        """From the environment of a Slurm job step; a single node outside of one."""
        values = os.environ
        if "TRANSFER_HEAD" not in values:
            return cls()
        return cls(int(values["SLURM_PROCID"]), int(values["SLURM_STEP_NUM_TASKS"]), values["TRANSFER_HEAD"])

    @property
    def step(self) -> str:
        """Identifies this start of a job, so that no node joins the ranks of an earlier one."""
        names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
        return ".".join(os.environ.get(name, "0") for name in names)


def zero_config(resources: ResourceSpec) -> dict[str, Any]:
    """DeepSpeed's configuration. Batch sizes and clipping are "auto": the trainer sets them.

    Gradients of micro-batches accumulate in float32: in bfloat16, DeepSpeed's default, terms below 1/512 of the sum are
    rounded away. Stages 2 and 3 partition gradients and reduce them during the backward pass.
    """
    zero: dict[str, Any] = {
        "stage": resources.zero_stage,
        "overlap_comm": resources.zero_stage >= 2,
        "contiguous_gradients": True,
    }
    if resources.zero_stage == 3:
        # Otherwise a checkpoint holds shards only, which other programs cannot load.
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
        "data_types": {"grad_accum_dtype": "fp32"},
        **dict.fromkeys(automatic, "auto"),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def accelerate_config(resources: ResourceSpec, deepspeed_file: Path, rendezvous: Rendezvous) -> dict[str, Any]:
    """Accelerate's configuration for DeepSpeed. Settings that differ between nodes go on the command line."""
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            "deepspeed_config_file": str(deepspeed_file),
            "zero3_init_flag": True,
            "deepspeed_multinode_launcher": "standard",  # one launcher per node; the default uses ssh
        },
        "num_machines": rendezvous.nodes,
        "machine_rank": 0,
        "num_processes": resources.ranks,
        "main_process_ip": rendezvous.address,
        "main_process_port": rendezvous.port,
        "same_network": True,
        "rdzv_backend": "static",
        "use_cpu": False,
    }


def launch_files(resources: ResourceSpec, directory: Path, rendezvous: Rendezvous) -> dict[Path, dict[str, Any]]:
    """The launcher's configuration files in `directory`, with their contents."""
    if not resources.zero_stage:
        return {}
    deepspeed_file = directory / "deepspeed.json"
    accelerate = accelerate_config(resources, deepspeed_file.resolve(), rendezvous)
    return {deepspeed_file: zero_config(resources), directory / "accelerate.json": accelerate}


def launch_command(
    resources: ResourceSpec, study_dir: Path, name: str, resume: bool, rendezvous: Rendezvous
) -> list[str]:
    """The command that starts the ranks of a stage on one node: accelerate with DeepSpeed, else torchrun.

    Without DeepSpeed, accelerate starts a single process on a CPU, whatever `num_processes` is.
    """
    rank_command = ["-m", "launch.execution.ranks", str(study_dir), name, str(int(resume))]
    if resources.zero_stage:
        configuration = study_dir / name / "ranks" / "accelerate.json"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(configuration)]
        if rendezvous.nodes > 1:
            launcher += ["--machine_rank", str(rendezvous.node)]
        return [*launcher, *rank_command]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={resources.ranks // rendezvous.nodes}"]
    if rendezvous.nodes == 1:
        return [*launcher, "--standalone", *rank_command]
    where = [f"--master_addr={rendezvous.address}", f"--master_port={rendezvous.port}"]
    return [*launcher, f"--nnodes={rendezvous.nodes}", f"--node_rank={rendezvous.node}", *where, *rank_command]
