"""What a run writes beside its weights: markers of checkpoints, warnings, seconds of snapshots, mirrors of metrics."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainerCallback

from recipes.loading import load_recipe
from recipes.progress import NOTES
from tests.bench.bench_training import tokenizer
from tests.paths import ROOT, SMOKE
from tests.support.trainers import sft_trainer
from train.arms import resolve_arm
from train.models import directory
from train.run import shared_arguments
from train.runtime.recorder import DivergedError, RunRecorder
from train.runtime.throughput import StepClock
from train.runtime.tracking import Tracker

SLOW_RANK = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
import torch.distributed as dist
from train.runtime.checkpoints import CheckpointMarker

dist.init_process_group("gloo")
checkpoint = Path(sys.argv[1]) / "checkpoint-1"
if dist.get_rank() == 1:
    time.sleep(1)
    (checkpoint / "rng_state_1.pth").write_text("")
state = SimpleNamespace(is_world_process_zero=dist.get_rank() == 0, global_step=1)
CheckpointMarker().on_save(SimpleNamespace(output_dir=sys.argv[1]), state, None)
if dist.get_rank() == 0:
    assert (checkpoint / "COMPLETE").exists()
    print("complete:", (checkpoint / "rng_state_1.pth").exists())
dist.destroy_process_group()
"""


def test_a_checkpoint_is_complete_when_every_rank_has_written_it(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "slow.py").write_text(SLOW_RANK)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*launch, str(tmp_path / "slow.py"), str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "complete: True" in result.stdout


def test_a_resumed_run_keeps_its_warnings(tmp_path):
    first = RunRecorder(tmp_path, 4)
    first.warn("nothing is learned")
    resumed = RunRecorder(tmp_path, 4, resumed_step=2)
    assert resumed.warnings == ["nothing is learned"]
    resumed.warn("nothing is learned")
    resumed.warn("the engines disagree", "compare (both)")
    both = ["nothing is learned", "the engines disagree: compare (both)"]
    assert RunRecorder(tmp_path, 4, resumed_step=2).warnings == both
    assert (tmp_path / NOTES).read_text() == "".join(f"warning: {text}\n" for text in both)
    assert RunRecorder(tmp_path, 4).warnings == []  # from the beginning again
    assert not (tmp_path / NOTES).exists()


def test_progress_has_the_headline_of_the_last_warning(tmp_path):
    recorder = RunRecorder(tmp_path, 4)
    state = SimpleNamespace(global_step=1, is_world_process_zero=True)
    recorder.on_log(None, state, None, {"reward": 0.5})
    assert recorder.note == "reward 0.5"
    recorder.warn("no completion (of any step) has a weight", "so nothing is learned; look at some")
    recorder.on_log(None, state, None, {"reward": 0.5})
    assert recorder.note == "reward 0.5; warning: no completion (of any step) has a weight …"
    recorder.warn("short")
    recorder.on_log(None, state, None, {"reward": 0.5})
    assert recorder.note == "reward 0.5; warning: short"


def test_seconds_of_a_snapshot_are_not_training(tmp_path, monkeypatch):
    times = [0.0]
    monkeypatch.setattr("train.runtime.throughput._now", lambda: times[0])

    def save(trainer, tokenizer, target, dtype, start_dir):
        target.mkdir(parents=True)
        times[0] += 60

    monkeypatch.setattr(directory, "save_weights", save)
    snapshots = directory.Snapshots([1], tmp_path, None, "float32", tmp_path)
    snapshots.trainer = SimpleNamespace(clock=StepClock(), is_finite=lambda: True)
    snapshots.trainer.clock.begin()
    times[0] += 2
    snapshots.on_step_end(None, SimpleNamespace(global_step=1), None)
    assert snapshots.trainer.clock.end() == {"training": 2.0, "snapshot": 60.0}
    assert list(directory.complete_snapshots(tmp_path)) == [1]


class Broken(TrainerCallback):
    """Makes the loss of the second step, or its gradient alone, infinite or nan."""

    def __init__(self, what):
        self.what = what

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step != 1:
            return
        weight = model.get_input_embeddings().weight
        if self.what == "loss":
            with torch.no_grad():
                weight.fill_(float("nan"))
        else:
            weight.register_hook(lambda gradient: gradient * float("inf"))


@pytest.mark.parametrize("what", ["loss", "grad_norm"])
def test_no_snapshot_of_a_step_that_is_not_finite(tmp_path, monkeypatch, what):
    tok = tokenizer()
    config = Qwen3Config(
        vocab_size=len(tok), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    changes = {"steps": 3, "problems_per_step": 2, "completions_per_problem": 1}
    settings = resolve_arm(load_recipe(SMOKE), "off_policy_sft").model_copy(update=changes)
    saved = []

    def save(trainer, tokenizer, target, dtype, start_dir):
        target.mkdir(parents=True)
        saved.append(target.name)

    monkeypatch.setattr(directory, "save_weights", save)
    snapshots = directory.Snapshots([1, 2], tmp_path, tok, "float32", tmp_path)
    callbacks = [Broken(what), RunRecorder(tmp_path, 3), snapshots]  # in the order of a run
    rows = [{"prompt": f"{n} =", "completion": "x" * 5} for n in range(6)]
    snapshots.trainer = sft_trainer(settings, Qwen3ForCausalLM(config), tok, rows, tmp_path, 0, callbacks)
    with pytest.raises(DivergedError, match=rf"^{what} is (nan|inf) at step 2"):
        snapshots.trainer.train()
    assert saved == ["step-1"]
    assert list(directory.complete_snapshots(tmp_path)) == [1]


def test_a_metric_that_could_not_be_computed_is_left_out_of_tensorboard(tmp_path):
    """TRL logs None, for instance the deviation of a single reward."""
    tracker = Tracker(load_recipe(SMOKE, ["tracking=tensorboard"]), {}, tmp_path, "grpo", 0)
    tracker.log(1, {"reward": 1.0, "reward_std": None})
    tracker.completions(1, [{"completion": "shown by wandb alone"}])
    tracker.close()


def test_updates_that_share_completions_show_them_when_one_is_due():
    tracker, shown = Tracker.__new__(Tracker), []
    tracker._run, tracker.every = SimpleNamespace(log=lambda row, step: shown.append(step)), 20
    for step in range(1, 101, 4):  # four updates a batch
        tracker.completions(step, [{"completion": "x"}], 4)
    assert shown == [17, 37, 57, 77, 97]
    shown.clear()
    for step in range(1, 101):
        tracker.completions(step, [{"completion": "x"}])
    assert shown == [20, 40, 60, 80, 100]


def test_a_rank_waits_for_the_sampling_of_another(tmp_path):
    """Longer than a recipe's limit of silence, which may be hours; a server's heartbeats come from one rank alone."""
    recipe = load_recipe(SMOKE, ["resources.silence_minutes=600"])
    waits = shared_arguments(resolve_arm(recipe, "grpo"), tmp_path, 0, True)["ddp_timeout"]
    assert waits > 60 * recipe.resources.silence_minutes
