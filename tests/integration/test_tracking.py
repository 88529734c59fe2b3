"""Weights & Biases: offline without a key, the same run after a resume, and the metrics that are in metrics.jsonl."""

import json
import os
import re
import time

import pytest

from recipes.loading import load_recipe
from tests.integration.test_deepspeed import SMOKE, study_of
from train.runtime.tracking import Tracker, run_id, wandb_mode


def test_wandb_is_offline_without_a_key_and_a_run_keeps_its_id(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    assert wandb_mode("auto") == "offline"
    assert wandb_mode("online") == "online"
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode("auto") == "disabled"
    # Two studies of one recipe in folders of the same name; and one of them moved.
    one, two = (tmp_path / place / "runs/s/arms/grpo/seed-0" for place in ("here", "there"))
    before = run_id(one)
    assert re.fullmatch(r"[0-9a-f]{16}", before)
    assert run_id(one) == before
    assert run_id(two) != before
    (tmp_path / "here").rename(tmp_path / "moved")
    assert run_id(tmp_path / "moved/runs/s/arms/grpo/seed-0") == before


def history_of(path):
    """Rows of metrics in wandb's offline file."""
    for record in records_of(path):
        if record.history.item:
            yield {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}


def records_of(path):
    """Records of wandb's offline file: a LevelDB log (blocks of 32 KiB, records of crc, length, type)."""
    from wandb.proto import wandb_internal_pb2

    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def scalars_of(folder):
    """(step, name, value) of every scalar in TensorBoard's event files, and the steps at which a session began: records
    of length, crc, event, crc."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, starts = [], []
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            starts += [event.step] if event.HasField("session_log") else []
    return scalars, starts


def test_a_resumed_run_replaces_its_later_updates_in_tensorboard(tmp_path):
    recipe = load_recipe(SMOKE, ["tracking=tensorboard"])
    assert recipe.wandb_settings is None
    for steps in ((1, 2, 3), (3, 4)):
        if steps[0] > 1:
            time.sleep(1.1)  # files are named by the second
        tracker = Tracker(recipe, {}, tmp_path, "grpo", 0)
        for step in steps:
            tracker.log(step, {"loss": step / 4})
        tracker.close()
    scalars, starts = scalars_of(tmp_path / "tensorboard")
    assert scalars == [(step, "loss", step / 4) for step in (1, 2, 3, 3, 4)]
    assert starts == [1, 3]  # TensorBoard drops what earlier files have from these on
    assert not (tmp_path / "wandb").exists()


def test_wandb_mirrors_the_metrics_of_a_run(transfer, smoke_study, tmp_path):
    study = study_of(smoke_study, tmp_path / "study")
    assert "WANDB_API_KEY" not in os.environ
    result = transfer(
        "run",
        SMOKE,
        "--out",
        study,
        "wandb={completions_every_steps: 2}",
        "tracking=[tensorboard]",
        "--until",
        "arms/grpo/seed-0",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    run_dir = study / "arms" / "grpo" / "seed-0"
    (offline,) = (run_dir / "wandb").glob("offline-run-*")
    assert offline.name.endswith(run_id(run_dir))
    rewards, tables = [], 0
    for items in history_of(next(offline.glob("*.wandb"))):
        if "reward" in items:
            rewards.append(json.loads(items["reward"]))
        tables += any(key.startswith("completions") and "table" in value for key, value in items.items())
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rewards == [row["reward"] for row in metrics]
    scalars, _ = scalars_of(run_dir / "tensorboard")
    written = [(row["step"], key, value) for row in metrics for key, value in row.items() if key != "step"]
    assert sorted(name for name, _, _ in written) == sorted(name for name, _, _ in scalars)
    assert [value for _, name, value in scalars if name == "reward"] == pytest.approx(rewards, rel=1e-6)  # float32
    assert tables == 2  # after the updates 2 and 4
    assert (offline / "files" / "media" / "table").is_dir()
