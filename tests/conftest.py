"""Shared fixtures: a smoke study that is run once per session, and the command line as a subprocess."""

import json
import os
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


@pytest.fixture(scope="session")
def smoke_transfer(smoke_study: Path) -> dict:
    return json.loads((smoke_study / "report" / "transfer.json").read_text())
