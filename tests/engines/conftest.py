"""Shared by the tests with a real vLLM, in its CPU build: a pocket base model, prepared once per session.

They run in the environment of `make setup-engines`, by `make test-engines`. A test file here begins with
`pytestmark = pytest.mark.engines`. What vLLM needs on a CPU is set here too, so that plain pytest works as well.
"""

import os
import shutil
from pathlib import Path

import psutil
import pytest

from tests.paths import SMOKE
from tests.support.forked_command import run_fresh

ENVIRONMENT = {
    "TORCH_COMPILE_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all engines take the first core
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TQDM_DISABLE": "1",  # as in every stage of a study
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# vLLM's attention on a CPU takes head_dim 32 and more, which the smoke study's hidden size 64 does not give.
POCKET = ("model.pocket={hidden_size: 128, num_layers: 2, documents: 6000, learning_rate: 6.0e-3}",)


@pytest.fixture(scope="session")
def pocket_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a study whose base is made: recipe `SMOKE` with the overrides `POCKET`. Copy or link, do not change.

    The base is float32 with head_dim 32, 2 layers and the vocabulary of the smoke study.
    """
    study = tmp_path_factory.mktemp("pocket") / "study"
    result = run_fresh(["run", str(SMOKE), "--out", str(study), "--until", "base", *POCKET])
    assert result.returncode == 0, result.stdout + result.stderr
    return study


@pytest.fixture(scope="session")
def other_model(pocket_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of another model: noise on the base's head, and the pad token in place of the end of the turn."""
    import torch

    from data.language_model import load_model

    target = tmp_path_factory.mktemp("models") / "other"
    target.mkdir()
    for path in (pocket_study / "base").iterdir():
        if path.suffix != ".safetensors" and path.is_file():
            shutil.copy(path, target)
    model = load_model(pocket_study / "base", "float32")
    eos, pad = model.generation_config.eos_token_id
    head = model.lm_head.weight.detach().clone()
    head += 0.02 * torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    head[[eos, pad]] = head[[pad, eos]]
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(target)
    return target


def engine_processes() -> list[str]:
    """Command lines of the processes that this one has started and that are alive, other than those that only watch."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            line = " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
        if (
            line
            and not any(word in line for word in ("resource_tracker", "TRANSFER_ENGINE"))
            and child.status() != psutil.STATUS_ZOMBIE
        ):
            found.append(line)
    return found
