"""SFT on several ranks: each has its share of the demonstrations of a step, and the update is that of one rank."""

import json
import os
import subprocess
import sys

import pytest

from tests.paths import ROOT
from tests.support.sft_ranks import LENGTHS


def train(ranks, directory):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    result = subprocess.run(
        [*command, "-m", "tests.support.sft_ranks", str(directory)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    (line,) = [line for line in result.stdout.splitlines() if "FOUND " in line] or [result.stdout + result.stderr]
    return json.loads(line.partition("FOUND ")[2])


@pytest.mark.slow
def test_two_ranks_share_the_demonstrations_and_equal_one(tmp_path):
    one, two = train(1, tmp_path / "one"), train(2, tmp_path / "two")
    (alone,) = one["computed"]
    for step, lengths in enumerate(LENGTHS):
        shares = [computed[step] for computed in two["computed"]]
        assert sorted(length for share in shares for length in share) == alone[step]
        assert len(alone[step]) == len(lengths)
        # Neither rank has a row more than its part, nor more tokens than one row makes.
        assert abs(len(shares[0]) - len(shares[1])) <= 1
        assert abs(sum(shares[0]) - sum(shares[1])) <= 10
    assert len(two["logs"]) == 2
    for left, right in zip(one["logs"], two["logs"], strict=True):
        assert right == pytest.approx(left, abs=1e-6, rel=1e-6)
