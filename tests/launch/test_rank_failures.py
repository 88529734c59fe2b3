"""Which rank's failure is reported when several ranks of a stage fail."""

import json
import time

import pytest
from torch.distributed import DistBackendError

from launch.execution import ranks
from launch.execution.failures import CRASHED, MISTAKE, STOPPED, RanksEndedError, lost_connection
from launch.stages import Stage
from recipes.errors import UserError
from recipes.resource_schema import ResourceSpec
from train.runtime import ranks as signals
from train.runtime.ranks import PreemptedError, signalled_at


def write(directory, rank, at, status=CRASHED, lost=False):
    values = {"rank": rank, "message": f"rank {rank}", "status": status, "lost_connection": lost, "at": at}
    (directory / f"failure-{rank}.json").write_text(json.dumps(values))


def test_a_failure_without_a_readable_record_is_none(tmp_path):
    assert ranks._first_failure(tmp_path) is None
    (tmp_path / "failure-0.json").write_text("{")
    assert ranks._first_failure(tmp_path) is None


def test_the_cause_is_reported_and_not_what_followed_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "noted_signal", lambda: None)
    write(tmp_path, 0, at=1.0, lost=True)
    assert ranks._first_failure(tmp_path)["rank"] == 0
    write(tmp_path, 1, at=2.0, status=STOPPED)  # the launcher ends the remaining ranks with SIGTERM
    assert ranks._first_failure(tmp_path)["rank"] == 0
    write(tmp_path, 2, at=4.0)
    write(tmp_path, 3, at=3.0)
    assert ranks._first_failure(tmp_path)["rank"] == 3


def test_a_signal_to_the_whole_stage_is_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "noted_signal", lambda: "SIGTERM")
    write(tmp_path, 0, at=1.0, lost=True)
    write(tmp_path, 1, at=2.0, status=STOPPED)
    assert ranks._first_failure(tmp_path)["rank"] == 1


@pytest.mark.parametrize("lost", [True, False])
def test_a_signal_that_ends_a_rank_before_it_listens_is_a_stop(tmp_path, monkeypatch, lost):
    """The other ranks lose their connection to it, or are gone as well."""
    stage = Stage("arms/grpo/seed-0", {})

    def launcher(command, study_dir, stage, watch):
        directory = study_dir / stage.name / "ranks"
        (directory / "0.pid").write_text("node 1")
        if lost:
            write(directory, 1, at=1.0, lost=True)
        return 1, None

    monkeypatch.setattr(ranks, "_run_launcher", launcher)
    (tmp_path / stage.name).mkdir(parents=True)
    resources = ResourceSpec(ranks=2)
    monkeypatch.setattr(ranks, "noted_signal", lambda: "SIGTERM")
    with pytest.raises(PreemptedError, match="stopped by SIGTERM before all ranks could save"):
        ranks.launch_ranks(resources, tmp_path, stage, resume=False)
    monkeypatch.setattr(ranks, "noted_signal", lambda: None)
    with pytest.raises(RanksEndedError, match="another rank was lost" if lost else "one of 2 ranks was killed"):
        ranks.launch_ranks(resources, tmp_path, stage, resume=False)


def ended(monkeypatch, tmp_path, signalled, at=None, status=CRASHED, reason=None):
    """What `launch_ranks` raises when rank 0 fails at a time, or the watchdog has a reason, around a signal."""
    stage = Stage("arms/grpo/seed-0", {})

    def launcher(command, study_dir, stage, watch):
        if at is not None:
            write(study_dir / stage.name / "ranks", 0, at, status)
        return 1, reason

    monkeypatch.setattr(ranks, "_run_launcher", launcher)
    monkeypatch.setattr(ranks, "noted_signal", lambda: "SIGTERM" if signalled else None)
    monkeypatch.setattr(ranks, "signalled_at", lambda: signalled)
    (tmp_path / stage.name).mkdir(parents=True, exist_ok=True)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the test compares it
        ranks.launch_ranks(ResourceSpec(ranks=2, nodes=2), tmp_path, stage, resume=False)
    return caught.type, str(caught.value)


def test_a_rank_that_loses_its_server_to_the_same_signal_is_preempted(monkeypatch, tmp_path):
    """Slurm signals the server's node too, and some seconds earlier or later; the job is then requeued."""
    for node in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(node, raising=False)
    stopped = (
        PreemptedError,
        "stopped by SIGTERM, and rank 0 could not save: rank 0; the same command continues from the last checkpoint",
    )
    failed = (RanksEndedError, "rank 0 of 2 ended: rank 0")
    assert ended(monkeypatch, tmp_path, signalled=1000.0, at=1030.0) == stopped
    assert ended(monkeypatch, tmp_path, signalled=1000.0, at=998.0) == stopped
    assert ended(monkeypatch, tmp_path, signalled=1000.0, at=980.0) == failed  # srun then ends the other nodes
    assert ended(monkeypatch, tmp_path, signalled=None, at=1030.0) == failed
    assert ended(monkeypatch, tmp_path, signalled=1000.0, at=1030.0, status=MISTAKE) == (UserError, "rank 0")
    silent = "the vLLM server at http://n2:8000 has not answered for 65 s"
    assert ended(monkeypatch, tmp_path, signalled=1000.0, reason=silent) == (
        PreemptedError,
        f"stopped by SIGTERM before the ranks could save: {silent}",
    )
    assert ended(monkeypatch, tmp_path, signalled=None, reason=silent) == (RanksEndedError, silent)


def test_the_time_of_a_signal_is_that_of_the_first(monkeypatch):
    assert signalled_at() is None
    monkeypatch.setattr(signals, "_noted", [("SIGTERM", time.monotonic() - 40), ("SIGTERM", time.monotonic())])
    assert signalled_at() == pytest.approx(time.time() - 40, abs=1)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (RuntimeError("grad_norm is nan"), False),
        (ValueError("gloo"), False),
    ],
)
def test_a_lost_connection_is_told_from_other_errors(error, lost):
    assert lost_connection(error) is lost
