"""A rank of `tests/integration/test_gradient_accumulation.py`: one update of many micro-batches under DeepSpeed.

    python -m torch.distributed.run ... -m tests.support.accumulated STAGE OFFLOAD MICRO_BATCHES [DTYPE_OF_THE_SUM]

The first micro-batch has a gradient of 1 in every entry, each further one 2^-10. Prints what one step of gradient
descent made of them, and the bytes of gradients that are held between micro-batches.
"""

import gc
import json
import os
import sys

import torch

from launch.rank_command import zero_config
from recipes.resource_schema import ResourceSpec
from train.runtime.ranks import prepare

SIZE = 4096
KINDS = (torch.Tensor, torch.nn.Parameter)


class Sum(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.bfloat16))
        self.second = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.bfloat16))

    def forward(self, scale):
        return (self.first.float().sum() + self.second.float().sum()) * scale


def main(stage, offload, micro_batches, dtype=None):
    os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}
    prepare()
    import deepspeed

    deepspeed.init_distributed("gloo")
    config = zero_config(ResourceSpec(zero_stage=stage, offload=offload))
    del config["train_batch_size"]
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    config |= {"gradient_clipping": 0.0, "bf16": {"enabled": True}}
    config |= {} if dtype is None else {"data_types": {"grad_accum_dtype": dtype}}
    model = Sum()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    held = 0
    for number in range(micro_batches):
        # As accelerate does for `train/token_budget.py`: which micro-batch ends an update is told, not configured.
        last = number == micro_batches - 1
        engine.set_gradient_accumulation_boundary(is_boundary=last)
        engine.backward(engine(torch.tensor(1.0 if number == 0 else 2**-10)), scale_wrt_gas=False)
        if number == micro_batches - 2:
            held = gradient_bytes(model)
    engine.step()
    from deepspeed.utils import safe_get_full_fp32_param

    steps = {float(value) for p in model.parameters() for value in safe_get_full_fp32_param(p)}
    found = {"steps": sorted(steps), "norm": float(engine.get_global_grad_norm()), "held_bytes": held}
    if engine.global_rank == 0:
        print("FOUND " + json.dumps(found), flush=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def gradient_bytes(model):
    """Bytes held of gradients: those of parameters, and whatever else is not zero, as weights are before the step."""
    gc.collect()
    storages = {}
    for tensor in [item for item in gc.get_objects() if type(item) in KINDS and item.device.type == "cpu"]:
        storage = tensor.untyped_storage()
        # Buckets of DeepSpeed's communication are of a fixed size, a gigabyte here.
        if SIZE <= storage.nbytes() <= 64 * SIZE and bool(tensor.any()):
            storages[storage.data_ptr()] = storage.nbytes()
    for parameter in model.parameters():
        if parameter.grad is not None:
            storages[parameter.grad.untyped_storage().data_ptr()] = parameter.grad.untyped_storage().nbytes()
    return sum(storages.values())


if __name__ == "__main__":
    main(int(sys.argv[1]), bool(int(sys.argv[2])), int(sys.argv[3]), *sys.argv[4:])
