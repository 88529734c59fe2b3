"""The command with vLLM as engine: it ends, leaves nothing running, and goes on after kill -9."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from recipes.manifest import read_manifest
from tests.engines.outputs import stored_responses
from tests.paths import ROOT, SMOKE

pytestmark = pytest.mark.engines

BENCHMARKS = "suite.benchmarks=[{name: sum, group: math, scorings: {robust: boxed}}]"
QUESTIONS = 20
ENGINE = "suite.engine={kind: vllm, eager: true, memory_share: 0.5}"


def descendants(process):
    """The processes a command has started, Python's tracker of shared memory aside."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if "resource_tracker" not in " ".join(child.cmdline())]


def engines(processes):
    return [child for child in processes if child.name().startswith("VLLM::")]


def alive(processes):
    return [child for child in processes if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def journal(out):
    """The whole lines of the journals: (model, question, sample) -> text."""
    found = {}
    for path in out.glob("eval/*/*/answers-*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            entry = json.loads(line)
            found[path.parts[-3], entry["question"], entry["sample"]] = entry["text"]
    return found


def test_two_models_by_one_worker_killed_and_continued(pocket_study, other_model, tmp_path):
    """One worker process asks both models. The first run is killed in the middle; the second ends by itself."""
    out = tmp_path / "killed"
    arguments = ["--base", pocket_study / "base", "--model", other_model, "--suite", SMOKE, ENGINE, BENCHMARKS]
    settings = ["model.dtype=float32", f"suite.questions={QUESTIONS}", "suite.samples_per_question=3"]
    settings += ["suite.chunk_questions=5", "resources.workers=1", "suite.max_prompt_tokens=96"]

    def command(folder, *more):
        asked = [sys.executable, "-m", "launch", "eval", *map(str, arguments), "--out", str(folder), *settings, *more]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(asked, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    # Killed at the first response; the engine's processes notice and end.
    process = command(out)
    while not journal(out):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    started = descendants(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(engines(started)) == 2  # the engine's core and its worker
    _, left = psutil.wait_procs(started, timeout=60)
    assert alive(left) == []
    before = journal(out)
    assert 1 <= len(before) < 2 * QUESTIONS * 3

    # Continued: it ends by itself, keeps what was stored, and its own record says what generated the rest.
    process = command(out)
    while process.poll() is None and not any(label == "other" for label, *_ in journal(out)):
        time.sleep(0.02)
    started = descendants(process) if process.poll() is None else []
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert alive(started) == []
    kept = {label: stored_responses(out, label) for label in ("base", "other")}
    assert {key: kept[key[0]][key[1]].responses[key[2]] for key in before} == before
    for label in ("base", "other"):
        facts = read_manifest(out / "eval" / label)["facts"]["engine"]
        assert (facts["name"], facts["device"], facts["dtype"], facts["eager"]) == ("vllm", "cpu", "float32", True)

    # Never killed: the same responses, sampled with a seed each.
    whole = tmp_path / "whole"
    text, _ = (process := command(whole)).communicate(timeout=300)
    assert process.returncode == 0, text
    for label in ("base", "other"):
        assert stored_responses(out, label) == stored_responses(whole, label)
    assert stored_responses(out, "base") != stored_responses(out, "other")
    assert any(len(set(row.responses)) == 3 for row in stored_responses(out, "base"))
