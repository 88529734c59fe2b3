"""Started by `transfer doctor` with torchrun: whether the ranks of this machine can communicate, and how fast."""

import json
import os
import time

import torch
import torch.distributed as dist

_ELEMENTS = 1 << 24  # 64 MB of float32


def main() -> None:
    """Check a sum over all ranks, then time one; rank 0 prints the result as JSON."""
    with_gpu = torch.cuda.is_available()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if with_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if with_gpu else "gloo")
    device = "cuda" if with_gpu else "cpu"
    total = torch.full((1,), float(rank + 1), device=device)
    dist.all_reduce(total)
    expected = world * (world + 1) / 2
    size = _ELEMENTS * (8 if with_gpu else 1)
    values = torch.ones(size, device=device)
    dist.all_reduce(values)
    if with_gpu:
        torch.cuda.synchronize()
    begun = time.perf_counter()
    dist.all_reduce(values)
    if with_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    # Bytes that each rank's link carries in a ring, as NCCL's own tests report it ("bus bandwidth").
    bandwidth = 4 * size * 2 * (world - 1) / world / seconds
    if rank == 0:
        result = {
            "correct": float(total) == expected,
            "gigabytes_per_second": bandwidth / 1e9,
            "backend": dist.get_backend(),
        }
        print("RESULT " + json.dumps(result), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
