"""Replicas of an evaluation with vLLM: they share one queue, and one that dies is replaced by the others."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest

from tests.engines.outputs import stored_responses
from tests.paths import ROOT, SMOKE

pytestmark = pytest.mark.engines

QUESTIONS, SAMPLES = 60, 6  # more responses than one engine claims at once
RESPONSES = QUESTIONS * SAMPLES
SETTINGS = (
    "suite.engine={kind: vllm, eager: true, memory_share: 0.4}",
    "suite.benchmarks=[{name: sum, group: math, scorings: {robust: boxed}}]",
    "model.dtype=float32",
    "suite.max_prompt_tokens=96",
    f"suite.questions={QUESTIONS}",
    f"suite.samples_per_question={SAMPLES}",
    "resources.workers=1",
)


def start(*arguments):
    command = [sys.executable, "-m", "launch", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def lines(path):
    """The whole lines of a file that another process appends to."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def journals(out, label):
    """Process id of a worker -> the (question, sample) that it has stored."""
    stored = {}
    for path in out.glob(f"eval/{label}/*/answers-*.jsonl"):
        stored[int(path.stem.split("-")[-2])] = [(entry["question"], entry["sample"]) for entry in lines(path)]
    return stored


def wait_for(process, happened):
    while not (value := happened()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    return value


def pause_at_first_response(process, out, label):
    """Stop the worker of a command as soon as it has stored a response of the model; returns the worker."""
    pid = wait_for(process, lambda: next((pid for pid, keys in journals(out, label).items() if keys), None))
    worker = psutil.Process(pid)
    worker.suspend()
    return worker


def claimed(out, label):
    """Number of responses that workers have claimed."""
    text = (out / "eval" / label / ".queue" / "claims.jsonl").read_text()
    return sum(len(json.loads(line)[2]) for line in text.splitlines() if line)


def test_replicas_share_one_queue_and_a_dead_one_loses_nothing(pocket_study, other_model, tmp_path):
    out = tmp_path / "replicas"
    models = ["--base", pocket_study / "base", "--model", other_model, "--suite", SMOKE]
    command = start("eval", *models, "--out", out, *SETTINGS)

    # The base: while the first worker is paused, a replica generates what it has not claimed, and no more.
    worker = pause_at_first_response(command, out, "base")
    mine = claimed(out, "base")
    assert 0 < mine < RESPONSES
    text, _ = (replica := start("work", out)).communicate(timeout=300)
    assert replica.returncode == 0, text
    assert f"{RESPONSES - mine} response(s) generated; other workers are generating the rest" in text
    stored = journals(out, "base")
    assert sum(map(len, stored.values())) == RESPONSES - mine + len(stored[worker.pid])
    assert max(Counter(key for keys in stored.values() for key in keys).values()) == 1
    worker.resume()

    # The next model: the replica is killed after its first response, and the first worker generates the rest.
    worker = pause_at_first_response(command, out, "other")
    mine = claimed(out, "other")
    replica = start("work", out)
    wait_for(replica, lambda: any(keys for pid, keys in journals(out, "other").items() if pid != worker.pid))
    engines = psutil.Process(replica.pid).children(recursive=True)
    replica.send_signal(signal.SIGKILL)
    replica.wait()
    _, left = psutil.wait_procs(engines, timeout=60)
    assert left == []
    assert claimed(out, "other") == RESPONSES > mine
    worker.resume()
    text, _ = command.communicate(timeout=300)
    assert command.returncode == 0, text

    # One worker alone gives the same responses.
    whole = tmp_path / "whole"
    text, _ = (command := start("eval", *models, "--out", whole, *SETTINGS)).communicate(timeout=300)
    assert command.returncode == 0, text
    for label in ("base", "other"):
        assert stored_responses(out, label) == stored_responses(whole, label)
