"""The processes of an engine end with the process that started them, also when that one is killed.

vLLM's engine runs in processes of its own, which do not notice that their parent was killed (kill -9, out of memory):
they would keep a GPU's memory, and the command that continues would find none. A small process waits for the end of a
pipe, which comes when the parent closes it or dies, and kills what is left.
"""

import os
import subprocess
import sys
import uuid
from multiprocessing import active_children

_MARK = "TRANSFER_ENGINE"
# Python's tracker of shared memory ends by itself, after it has cleaned up.
_WATCH = """
import os, signal, sys
sys.stdin.buffer.read()
mark = sys.argv[1].encode()
for again in range(3):
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                marked = mark in file.read().split(b"\\0")
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                marked = marked and b"resource_tracker" not in file.read()
            if marked:
                os.kill(int(entry), signal.SIGKILL)
        except OSError:
            pass
"""


class ProcessGuard:
    """Guards what is started between `ProcessGuard()` and `started()`; `close` kills what is left of it."""

    def __init__(self) -> None:
        mark = uuid.uuid4().hex
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-c", _WATCH, f"{_MARK}={mark}"], stdin=subprocess.PIPE, start_new_session=True
        )
        # Children inherit the mark, and theirs do. vLLM names its processes by setproctitle, which would write the name
        # over the environment that /proc shows, but for this variable.
        os.environ |= {_MARK: mark, "SPT_NOENV": "1"}

    def started(self) -> None:
        """All processes are there; what is started later is not guarded."""
        os.environ.pop(_MARK, None)

    def close(self) -> None:
        """Kill what is left, and wait until that is done."""
        self.started()
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()
        self._watcher.wait()
        active_children()  # collects those that have ended
