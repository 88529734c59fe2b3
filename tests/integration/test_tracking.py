"""Weights & Biases: offline without a key, the same run after a resume, and the metrics that are in metrics.jsonl."""

import json
import os
import re
import time

import pytest
import wandb
from wandb.sdk.lib.wbauth import write_netrc_auth

from eval.report.tracking import sync_study
from launch.commands.main import main
from recipes.errors import UserError
from recipes.loading import load_recipe
from tests.integration.test_deepspeed import study_of
from tests.paths import SMOKE
from train.runtime.tracking import Tracker, require_usable_key, run_id, wandb_mode, why_offline

KEY = "a" * 40
UNREACHABLE = "http://127.0.0.1:1"  # no server has this port


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """A home without a login, and no variable of wandb; its settings are read anew."""
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()
    yield monkeypatch
    wandb.teardown()


def auto():
    """The mode that `auto` is, by what wandb's settings are now."""
    wandb.teardown()
    return wandb_mode("auto")


def test_wandb_is_offline_without_a_key(no_key):
    assert auto() == "offline"
    assert wandb_mode("online") == "online"
    no_key.setenv("WANDB_API_KEY", KEY)
    assert auto() == "online"
    no_key.setenv("WANDB_MODE", "disabled")
    assert auto() == "disabled"


def test_a_login_counts_for_the_server_it_was_made_for(no_key, tmp_path):
    """`wandb login` writes the key under the host of wandb's own settings, which changed between versions."""
    write_netrc_auth(host=wandb.Settings().base_url, api_key=KEY)
    assert "machine api.forge.coreweave.com" in (tmp_path / ".netrc").read_text()
    assert auto() == "online"
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")  # of an earlier version
    assert auto() == "online"
    no_key.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert auto() == "offline"
    write_netrc_auth(host="https://wandb.example.org", api_key=KEY)
    assert auto() == "online"


def test_a_run_is_offline_where_the_server_cannot_be_reached(no_key, tmp_path, capfd):
    """A key and no network, as on a compute node: the metrics are on disk under the run's id, with a warning."""
    no_key.setenv("WANDB_API_KEY", KEY)
    no_key.setenv("WANDB_BASE_URL", UNREACHABLE)
    no_key.setenv("WANDB_INIT_TIMEOUT", "2")
    recipe = load_recipe(SMOKE, ["tracking=[wandb]"])
    tracker = Tracker(recipe, {}, tmp_path, "grpo", 0)
    tracker.log(1, {"loss": 0.25})
    tracker.close()
    wandb.teardown()  # as at the end of a process: its service writes the rest of the file
    said = capfd.readouterr().err
    assert "transfer: warning: Weights & Biases cannot be used (Failed to get resume status" in said
    assert "connection refused); this run is written offline, and `transfer sync` sends it later" in said
    assert why_offline(tmp_path).startswith("Failed to get resume status")
    (offline,) = (tmp_path / "wandb").glob("offline-run-*")
    assert offline.name.endswith(run_id(tmp_path))
    assert [items["loss"] for items in history_of(next(offline.glob("*.wandb")))] == ["0.25"]


def test_a_run_that_was_to_be_online_says_why_it_is_not(no_key, tmp_path):
    """And one that was to be offline says nothing."""
    for name, mode, why in (("auto", "auto", "there is no key"), ("offline", "offline", None)):
        Tracker(load_recipe(SMOKE, [f"wandb={{mode: {mode}}}"]), {}, tmp_path / name, "grpo", 0).close()
        assert why_offline(tmp_path / name) == why
        assert len(list((tmp_path / name / "wandb").glob("offline-run-*"))) == 1
    no_key.setenv("WANDB_MODE", "offline")
    Tracker(load_recipe(SMOKE, ["tracking=[wandb]"]), {}, tmp_path / "variable", "grpo", 0).close()
    assert why_offline(tmp_path / "variable") is None


def test_a_malformed_key_is_refused_before_a_run_begins(no_key, capsys, tmp_path):
    no_key.setenv("WANDB_API_KEY", "abc")
    out = tmp_path / "study"
    assert main(["run", str(SMOKE), "wandb={}", "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        "transfer: the key for Weights & Biases cannot be used (API key must have 40+ characters, has 3.); correct it, "
        "unset it, or set wandb.mode=offline\n"
    )
    assert not out.exists()
    for settings in (["wandb={mode: offline}"], []):
        require_usable_key(load_recipe(SMOKE, settings))
    no_key.setenv("WANDB_MODE", "offline")
    require_usable_key(load_recipe(SMOKE, ["wandb={}"]))


def test_sync_fails_where_the_server_cannot_be_reached(no_key, tmp_path):
    """It must not say `sent` of what is on disk."""
    no_key.setenv("WANDB_API_KEY", KEY)
    no_key.setenv("WANDB_BASE_URL", UNREACHABLE)
    no_key.setenv("WANDB_INIT_TIMEOUT", "2")
    recipe = load_recipe(SMOKE, ["arms.on_policy_sft=null", "arms.off_policy_sft=null"])
    run_dir = tmp_path / "arms" / "grpo" / "seed-0"
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text('{"step": 1, "loss": 0.25}\n')
    with pytest.raises(UserError, match=r"Weights & Biases cannot be used \(.*refused\); try again later"):
        sync_study(recipe, tmp_path, None, online=True)
    assert sync_study(recipe, tmp_path, None, online=False) == ["grpo-seed0"]


def test_a_run_keeps_its_id(tmp_path):
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


def test_wandb_mirrors_the_metrics_of_a_run(transfer, smoke_study, tmp_path, no_key):
    study = study_of(smoke_study, tmp_path / "study")
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
