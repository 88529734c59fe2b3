"""Shared by the tests with a real vLLM, in its CPU build: a pocket base model, prepared once per session.

They run in the environment of `make setup-engines`, by `make test-engines`. A test file here begins with
`pytestmark = pytest.mark.engines`. What vLLM needs on a CPU is set here too, so that plain pytest works as well.
"""

import os
from pathlib import Path

import pytest

from tests.conftest import run_transfer

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "TORCH_COMPILE_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

ROOT = Path(__file__).resolve().parent.parent.parent
SMOKE = ROOT / "recipes" / "pocket" / "smoke.yaml"
# vLLM's attention on a CPU takes head_dim 32 and more, which the smoke study's hidden size 64 does not give.
POCKET = ("model.pocket={hidden_size: 128, num_layers: 2, documents: 6000, learning_rate: 6.0e-3}",)


@pytest.fixture(scope="session")
def pocket_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a study whose base is made: recipe `SMOKE` with the overrides `POCKET`. Copy or link, do not change.

    The base is float32 with head_dim 32, 2 layers and the vocabulary of the smoke study.
    """
    study = tmp_path_factory.mktemp("pocket") / "study"
    result = run_transfer("run", SMOKE, "--out", study, "--until", "base", *POCKET)
    assert result.returncode == 0, result.stdout + result.stderr
    return study
