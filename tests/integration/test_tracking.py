"""Weights & Biases: offline without a key, the same run after a resume, and the metrics that are in metrics.jsonl."""

import json
import os
import re

from tests.integration.test_deepspeed import SMOKE, study_of
from train.runtime.tracking import run_id, wandb_mode


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


def test_wandb_mirrors_the_metrics_of_a_run(transfer, smoke_study, tmp_path):
    study = study_of(smoke_study, tmp_path / "study")
    assert "WANDB_API_KEY" not in os.environ
    result = transfer("run", SMOKE, "--out", study, "wandb={completions_every_steps: 2}", "--until", "arms/grpo/seed-0")
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
    assert tables == 2  # after the updates 2 and 4
    assert (offline / "files" / "media" / "table").is_dir()
