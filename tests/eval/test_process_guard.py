"""Processes that end with the one that started them, and those that are none of its business."""

import os
import signal
import subprocess
import sys
import time

import psutil

from eval.responses.process_guard import ProcessGuard
from tests.paths import ROOT

# A parent with a guarded child that has a child, and a child that was started afterwards; it prints their ids.
PARENT = """
import subprocess, sys, time
from eval.responses.process_guard import ProcessGuard
nested = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
guard = ProcessGuard()
child = subprocess.Popen([sys.executable, "-c", nested], stdout=subprocess.PIPE, text=True)
grandchild = int(child.stdout.readline())
guard.started()
later = subprocess.Popen(["sleep", "60"])
print(child.pid, grandchild, later.pid, flush=True)
time.sleep(60)
"""


def ended(processes, seconds=20):
    return len(psutil.wait_procs(processes, timeout=seconds)[0]) == len(processes)


def test_what_a_killed_process_has_started_is_killed():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment)
    child, grandchild, later = map(psutil.Process, map(int, parent.stdout.readline().split()))
    try:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert ended([child, grandchild])
        assert later.is_running()  # started when the guard had been told that all are there
    finally:
        later.kill()


def test_closing_kills_what_is_left_and_nothing_else():
    other = subprocess.Popen(["sleep", "60"])
    guard = ProcessGuard()
    left = subprocess.Popen(["sleep", "60"])
    guard.close()
    assert left.wait(20) == -signal.SIGKILL
    time.sleep(0.2)
    assert other.poll() is None
    other.kill()
    assert "TRANSFER_ENGINE" not in os.environ
