"""What every process of a study needs: none outlives a killed command, and each knows which GPUs there are."""

import os
import signal
import sys
from pathlib import Path


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies (Linux); elsewhere the lock still prevents two writers."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def visible_gpus(devices: Path = Path("/dev")) -> list[str]:
    """Names of the NVIDIA GPUs this process may use, as CUDA_VISIBLE_DEVICES has them; found without loading CUDA."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip()]
    found = [path for path in devices.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    return [str(number) for number in range(len(found))]  # CUDA counts from 0, whatever a container calls the files
