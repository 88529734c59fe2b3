"""Shared fixtures: a smoke study that is run once per session, and the command line as a subprocess."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "recipes" / "pocket" / "smoke.yaml"


def run_transfer(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `python -m launch` with arguments and wait for it."""
    return subprocess.run(
        [sys.executable, "-m", "launch", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        check=False,
    )


@pytest.fixture(scope="session")
def transfer() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run_transfer


@pytest.fixture(scope="session")
def smoke_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a finished smoke study."""
    study = tmp_path_factory.mktemp("smoke") / "study"
    result = run_transfer("run", SMOKE, "--out", study)
    assert result.returncode == 0, result.stdout + result.stderr
    # A miniature that learns nothing could not show that training state is lost; every arm must move the weights.
    weights = {
        path: path.read_bytes()
        for path in [study / "base/model.safetensors", *study.glob("arms/*/*/final/*.safetensors")]
    }
    assert len(set(weights.values())) == 4
    for ledger in study.glob("arms/*/*/ledger.jsonl"):
        assert json.loads(ledger.read_text().splitlines()[-1])["trained_tokens"] > 0, ledger
    return study


ANALYSED = (
    "train.snapshots=3",
    "probe={problems: 8, batch_size: 8}",
    "diagnostics={prompts: 8, max_completion_tokens: 24, batch_tokens: 200, components: 3, draws: 100}",
    "trajectory={questions: 6, heldout_problems: 8, draws: 200}",
    "wandb={mode: offline}",
)


@pytest.fixture(scope="session")
def analysed_study(smoke_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a finished smoke study with snapshots, probe, trajectories and diagnostics."""
    study = tmp_path_factory.mktemp("analysed") / "study"
    study.mkdir()
    for name in ("base", "corpus"):
        shutil.copytree(smoke_study / name, study / name)
    shutil.copy(smoke_study / "study.json", study)
    result = run_transfer("run", SMOKE, "--out", study, *ANALYSED)
    assert result.returncode == 0, result.stdout + result.stderr
    return study


@pytest.fixture(scope="session")
def analysed_transfer(analysed_study: Path) -> dict:
    return json.loads((analysed_study / "report" / "transfer.json").read_text())


@pytest.fixture(scope="session")
def smoke_transfer(smoke_study: Path) -> dict:
    return json.loads((smoke_study / "report" / "transfer.json").read_text())
