"""Run a Python program that ignores SIGTERM, as do the processes it starts.

    python -m launch.slurm.without_sigterm PROGRAM ARGUMENT...

vLLM installs handlers of its own in every process, so an inherited SIG_IGN would not last, and multiprocessing unblocks
SIGTERM. A process of multiprocessing imports the main module of its parent before anything else: this one.
"""

import signal
import sys
from pathlib import Path
from typing import Any

_install = signal.signal


def _keep_ignoring(number: int, handler: Any) -> Any:
    return signal.SIG_IGN if number == signal.SIGTERM else _install(number, handler)


signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal = _keep_ignoring  # type: ignore[assignment]  # asyncio, uvloop and uvicorn go through it


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    # Not by runpy, which would make the program the main module.
    exec(compile(Path(sys.argv[0]).read_text(encoding="utf-8"), sys.argv[0], "exec"), {"__name__": "__main__"})
