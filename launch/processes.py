"""What every process of a study does so that none outlives a killed command."""

import signal
import sys


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies (Linux); elsewhere the lock still prevents two writers."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
