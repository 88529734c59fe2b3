"""kill -9 in every step of the corpus stage, then the same command again: the same hashes as without the kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A corpus large enough that every step takes a moment, with benchmarks, duplicates and a held-out split."""
    folder = tmp_path_factory.mktemp("rows")
    rng = random.Random(1)
    vocabulary = [f"w{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(600)]
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(15, 60))) for _ in range(30000)]
    texts += [text + " again" for text in texts[:500]] + texts[500:700]
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"problem": t, "answer": f"\\frac{{{n % 97}}}{{7}}"}) + "\n" for n, t in enumerate(texts))
    )
    bench = folder / "bench.jsonl"
    bench.write_text("".join(json.dumps({"problem": text}) + "\n" for text in texts[1000:1200]))
    recipe = folder / "recipe.yaml"
    corpus = {
        "sources": [{"kind": "file", "name": "rows", "path": str(rows)}],
        "decontamination": {"benchmarks": [{"kind": "file", "name": "bench", "path": str(bench)}]},
        "heldout_problems": 100,
        "problem_set": "all",
    }
    recipe.write_text(json.dumps({"study": "kills", "corpus": corpus}))
    return [sys.executable, "-m", "launch", "run", "--no-reuse", str(recipe)]


def hashes(study):
    manifest = json.loads((study / "corpus" / "manifest.json").read_text())
    return manifest["output_hash"], manifest["facts"]["other_files"]


@pytest.fixture(scope="module")
def reference(command, tmp_path_factory):
    study = tmp_path_factory.mktemp("reference") / "study"
    subprocess.run([*command, "--out", str(study)], cwd=ROOT, check=True, capture_output=True)
    facts = json.loads((study / "corpus" / "manifest.json").read_text())["facts"]
    # The answers repeat every 97 rows, so few copies have the answer of their original.
    assert facts["rejected"].keys() >= {"benchmark_overlap", "conflicting_reference"}
    assert facts["contaminated"] == 200
    return hashes(study)


@pytest.mark.parametrize("steps_done", [None, 0, 1, 2, 3, 4, 7])
@pytest.mark.faults
def test_kill_after_a_step(command, reference, tmp_path, steps_done):
    study = tmp_path / "study"
    process = subprocess.Popen(
        [*command, "--out", str(study)], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
    )
    progress, manifest = study / "corpus" / "progress.json", study / "corpus" / "manifest.json"
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline
        try:
            if steps_done == 0 and manifest.exists():
                break
            if steps_done is None and study.exists():
                break
            if steps_done and json.loads(progress.read_text())["done"] >= steps_done:
                break
        except (OSError, json.JSONDecodeError):
            pass
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = subprocess.run([*command, "--out", str(study)], cwd=ROOT, check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert hashes(study) == reference
