"""Many micro-batches under DeepSpeed in bfloat16: no gradient is rounded away, and the plan counts their memory."""

import json
import os
import subprocess
import sys

import pytest

from tests.paths import ROOT
from tests.support.accumulated import SIZE
from train.accounting.cost import ModelShape
from train.accounting.memory import training_memory

pytestmark = pytest.mark.slow
MICRO_BATCHES = 65


def accumulate(ranks, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "-m", "tests.support.accumulated", *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    (line,) = [line for line in result.stdout.splitlines() if "FOUND " in line] or [result.stdout + result.stderr]
    return json.loads(line.partition("FOUND ")[2])


def predicted_bytes(ranks, stage):
    """The cost model's bytes of gradients for the 2 x SIZE parameters of the miniature."""
    shape = ModelShape(0, 0, 0, 0, 1, 1, 1, True, False)
    object.__setattr__(shape, "parameters", lambda: 2 * SIZE)
    memory = training_memory(
        shape, ranks=ranks, zero_stage=stage, offload=False, bfloat16=True, checkpointing=True, tokens=0
    )
    return memory.gradients


@pytest.mark.parametrize(
    ("ranks", "stage", "offload"),
    [(1, 1, 0), (2, 2, 0), (2, 3, 0), (2, 3, 1), (1, 2, 1)],
)
def test_sum_of_micro_batches_is_exact(ranks, stage, offload):
    """1 + 64 x 2^-10 in each of 8,192 entries; 2^-10 is less than half of what bfloat16 can add to 1."""
    found = accumulate(ranks, stage, offload, MICRO_BATCHES)
    expected = 1 + 64 * 2**-10
    assert found["steps"] == [-expected]
    assert found["norm"] == pytest.approx(expected * (2 * SIZE) ** 0.5, rel=1e-6)
    if not offload:
        assert found["held_bytes"] == predicted_bytes(ranks, stage)


def test_deepspeeds_own_sum_loses_the_small_ones():
    assert accumulate(1, 3, 0, MICRO_BATCHES, "bf16")["steps"] == [-1.0]
