"""GRPO with a real vLLM beside the trainer: the same policy, its seeds, its weights, and what is left when it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from recipes.files import read_json_lines
from recipes.loading import load_recipe
from recipes.manifest import read_manifest, start_stage
from tests.engines.conftest import POCKET
from tests.paths import ROOT, SMOKE
from tests.support.forked_command import run_fresh

pytestmark = pytest.mark.engines

VLLM = "resources.vllm={mode: colocate, memory_share: 0.05}"
FIXED = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]  # ids to compare probabilities of
SAME = 1e-4  # nats; float32 on both sides, in another order of additions


@pytest.fixture(scope="module")
def prepared(pocket_study, tmp_path_factory):
    """A study with base and corpus, and no arms yet."""
    study = tmp_path_factory.mktemp("prepared") / "study"
    shutil.copytree(pocket_study, study)
    result = run_fresh(["run", str(SMOKE), "--out", str(study), "--until", "corpus", *POCKET])
    assert result.returncode == 0, result.stdout + result.stderr
    return study


def study_of(prepared, directory):
    directory.mkdir(parents=True)
    for name in ("base", "corpus"):
        shutil.copytree(prepared / name, directory / name)
    shutil.copy(prepared / "study.json", directory)
    return directory


def run_arm(prepared, directory, *settings, seed=0, arm="grpo"):
    """One run of an arm in this process; its directory."""
    from train import grpo

    recipe = load_recipe(SMOKE, [*POCKET, VLLM, f"seeds=[{seed}]", *settings])
    study = study_of(prepared, directory)
    stage_dir = study / "arms" / arm / f"seed-{seed}"
    start_stage(stage_dir, f"arms/{arm}/seed-{seed}", {})
    grpo.run(recipe, study, stage_dir, False, arm, seed)
    return stage_dir


def facts(stage_dir):
    return read_manifest(stage_dir)["facts"]


def engine_logprobs(llm):
    """vLLM's log-probabilities of all but the first of the fixed ids."""
    from vllm import SamplingParams

    (output,) = llm.generate(
        [{"prompt_token_ids": FIXED}], SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False
    )
    rows = zip(FIXED[1:], output.prompt_logprobs[1:], strict=True)
    return [row[token].logprob for token, row in rows]


def policy_logprobs(model):
    import torch

    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([FIXED])).logits[0].log_softmax(-1)
    return [float(logprobs[place, token]) for place, token in enumerate(FIXED[1:])]


@pytest.fixture
def compared(monkeypatch):
    """Differences between engine and policy right after every sampling, in nats; and the completions of every one."""
    from train.weighted_grpo import WeightedGRPOTrainer

    found = {"differences": [], "ids": [], "policy": []}
    rewards = WeightedGRPOTrainer._calculate_rewards

    def compare(self, inputs, prompts, completions, completion_ids):
        policy = policy_logprobs(self.model)
        engine = engine_logprobs(self.vllm_generation.llm)
        found["policy"].append(policy)
        found["differences"].append(max(abs(a - b) for a, b in zip(policy, engine, strict=True)))
        found["ids"].append([list(ids) for ids in completion_ids])
        return rewards(self, inputs, prompts, completions, completion_ids)

    monkeypatch.setattr(WeightedGRPOTrainer, "_calculate_rewards", compare)
    return found


FORMAT = (
    "arms.grpo={sampling: current, credit: advantage, negatives: true, reward: format}",
    "varies=[sampling, credit, negatives, reward]",
)


def test_the_engine_samples_from_the_policy_of_every_update(prepared, tmp_path, compared):
    stage_dir = run_arm(prepared, tmp_path / "study", *FORMAT)
    assert len(compared["differences"]) == 4
    assert max(compared["differences"]) < SAME
    # The policy moved, else agreement would mean nothing.
    assert max(abs(a - b) for a, b in zip(compared["policy"][0], compared["policy"][3], strict=True)) > 0.05
    rows = read_json_lines(stage_dir / "metrics.jsonl")
    for row in rows:
        assert 1 - SAME < row["mismatch/ratio_p01"] <= row["mismatch/ratio_p99"] < 1 + SAME
        assert row["mismatch/clipped_share"] == 0.0
    engine = facts(stage_dir)["engine"]
    assert (engine["name"], engine["device"], engine["dtype"]) == ("vllm", "cpu", "float32")
    assert engine["version"].startswith("0.")
    assert facts(stage_dir)["warnings"] == []
    assert "engine" not in facts(stage_dir)["matched_on"]
    # Nothing is left that would make a later stage of this process take itself for a rank.
    import torch.distributed as dist

    assert not dist.is_initialized()
    assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "VLLM_ENABLE_V1_MULTIPROCESSING"} & set(os.environ)


def test_the_engine_samples_from_the_policy_with_its_adapters(prepared, tmp_path, compared):
    run_arm(prepared, tmp_path / "study", *FORMAT, "train.lora={rank: 4, alpha: 8}", "train.learning_rate=0.02")
    assert max(compared["differences"]) < SAME
    assert max(abs(a - b) for a, b in zip(compared["policy"][0], compared["policy"][3], strict=True)) > 0.05


def test_without_synchronisation_the_comparison_fails(prepared, tmp_path, compared, monkeypatch):
    from trl.generation.vllm_generation import VLLMGeneration

    monkeypatch.setattr(VLLMGeneration, "sync_weights", lambda self: None)
    run_arm(prepared, tmp_path / "study", *FORMAT)
    assert compared["differences"][0] < SAME  # both have the base
    assert max(compared["differences"][1:]) > 0.02


def test_first_samples_belong_to_the_training_seed(prepared, tmp_path, compared):
    for number, seed in enumerate((0, 1, 0)):
        run_arm(prepared, tmp_path / f"study-{number}", "train.steps=1", seed=seed)
    first, other, again = compared["ids"]
    assert first == again
    assert len(first) == len(other) == 32
    # Problems come in another order too; completions that are long enough to say something are compared as sets.
    long = [{tuple(ids) for ids in rows if len(ids) > 12} for rows in (first, other)]
    assert len(long[0]) > 8
    assert len(long[0] & long[1]) <= len(long[0]) // 4


def test_equal_prompts_are_answered_by_seed(prepared, tmp_path, compared, monkeypatch):
    """The same rows for two training seeds: what differs is the sampling alone."""
    from train import grpo

    order = grpo.presented_order
    monkeypatch.setattr(grpo, "presented_order", lambda problems, count, seed: order(problems, count, 0))
    for seed in (0, 1):
        run_arm(prepared, tmp_path / f"study-{seed}", "train.steps=1", seed=seed)
    first, other = compared["ids"]
    assert sum(a == b for a, b in zip(first, other, strict=True)) < 16


def test_an_engine_with_other_weights_is_an_alarm(prepared, tmp_path, monkeypatch):
    import torch
    from trl.generation.vllm_generation import VLLMGeneration

    sync = VLLMGeneration.sync_weights

    def spoil(self):
        sync(self)
        model = self.llm.llm_engine.model_executor.driver_worker.model_runner.model
        with torch.no_grad():
            model.model.norm.weight.mul_(0.6)  # flatter probabilities

    monkeypatch.setattr(VLLMGeneration, "sync_weights", spoil)
    stage_dir = run_arm(prepared, tmp_path / "study", "train.steps=1")
    (row,) = read_json_lines(stage_dir / "metrics.jsonl")
    assert row["mismatch/clipped_share"] > 0.05
    assert row["mismatch/ratio_p99"] > 1.5
    (warning,) = [text for text in facts(stage_dir)["warnings"] if "disagree" in text]
    assert "more than 5% of the importance ratios were cut" in warning


@pytest.mark.parametrize(
    ("arm", "syncs"),
    [("{sampling: base_once, credit: uniform}", 1), ("{sampling: round, credit: uniform, round_steps: 2}", 2)],
)
def test_stored_samples_are_drawn_by_the_engine(prepared, tmp_path, monkeypatch, arm, syncs):
    """Drawn when a round begins, with the weights of that moment, and read from disk in between."""
    from trl.generation.vllm_generation import VLLMGeneration

    synced, sync = [], VLLMGeneration.sync_weights

    def count(self):
        synced.append(len(synced))
        sync(self)

    monkeypatch.setattr(VLLMGeneration, "sync_weights", count)
    stage_dir = run_arm(prepared, tmp_path / "study", f"arms.stored={arm}", arm="stored")
    rounds = [json.loads(path.read_text()) for path in sorted((stage_dir / "rollouts").glob("round-*.json"))]
    assert len(rounds) == syncs
    # A round draws all its problems with the weights of one update, eight at a time, and loads them once.
    assert len(synced) == syncs
    assert sum(-(-len(groups) // 8) for groups in rounds) > syncs
    drawn = sum(len(ids) for groups in rounds for group in groups for ids in group)
    assert read_json_lines(stage_dir / "ledger.jsonl")[-1]["generated_tokens"] == drawn
    assert {len(group) for groups in rounds for group in groups} == {4}
    assert facts(stage_dir)["engine"]["name"] == "vllm"


# What is rewarded: a final answer, in few words. The little base gives answers, but hardly a right one.
CALM = ("train.steps=16", "train.problems_per_step=16", "train.learning_rate=5e-4", "train.overlong_tokens=60")


def command_line(study, *settings):
    command = [sys.executable, "-m", "launch", "run", str(SMOKE), "--out", str(study), *POCKET, *FORMAT, *CALM]
    command += [*settings, "resources.workers=1", "--until", "arms/grpo/seed-0"]
    return command, {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}


def run_here(study, *settings):
    command, how = command_line(study, *settings)
    result = subprocess.run(command, capture_output=True, check=False, **how)
    assert result.returncode == 0, result.stdout + result.stderr
    return study / "arms" / "grpo" / "seed-0"


@pytest.fixture(scope="module")
def sixteen(prepared, tmp_path_factory):
    """Sixteen updates without interruption."""
    return run_here(study_of(prepared, tmp_path_factory.mktemp("sixteen") / "study"), VLLM)


def rewards(stage_dir):
    return [row["reward"] for row in read_json_lines(stage_dir / "metrics.jsonl")]


def test_rewards_rise_as_with_transformers(prepared, sixteen, tmp_path):
    other = run_here(study_of(prepared, tmp_path / "study"), "resources.vllm=null")
    assert facts(other)["engine"]["name"] == "transformers"
    assert facts(other)["engine"]["dtype"] == "float32"
    assert facts(sixteen)["matched_on"] == facts(other)["matched_on"]
    starts, ends = ([], [])
    for run in (sixteen, other):
        found = rewards(run)
        starts.append(sum(found[:2]) / 2)
        ends.append(sum(found[-4:]) / 4)
    assert min(end - start for start, end in zip(starts, ends, strict=True)) > 0.1
    assert min(ends) > 0.9
    assert abs(ends[0] - ends[1]) < 0.05  # two draws of the same experiment


def test_kill_and_resume_give_the_same_rows_and_weights(prepared, sixteen, tmp_path):
    study = study_of(prepared, tmp_path / "study")
    stage_dir = study / "arms" / "grpo" / "seed-0"
    command, how = command_line(study, VLLM)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, **how)
    deadline = time.monotonic() + 240
    while len(read_json_lines(stage_dir / "ledger.jsonl")) < 6:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with suppress(FileNotFoundError):
        assert not read_manifest(stage_dir)["completed"]
    again = subprocess.run(command, capture_output=True, check=False, **how)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resume" in again.stdout
    assert read_json_lines(stage_dir / "ledger.jsonl") == read_json_lines(sixteen / "ledger.jsonl")
    outputs = [read_manifest(directory)["outputs"] for directory in (stage_dir, sixteen)]
    assert outputs[0]["final/model.safetensors"] == outputs[1]["final/model.safetensors"]


def test_two_ranks_with_an_engine_each(prepared, tmp_path):
    """ZeRO-3 over gloo: each rank's engine gets the whole weights, gathered from both, and draws its own samples."""
    study = study_of(prepared, tmp_path / "study")
    stage_dir = run_here(study, VLLM, "resources.ranks=2", "resources.zero_stage=3", "train.steps=3")
    assert facts(stage_dir)["topology"] == {"ranks": 2, "engine": "DeepSpeedEngine", "zero_stage": 3}
    assert facts(stage_dir)["engine"]["name"] == "vllm"
    rows = read_json_lines(stage_dir / "metrics.jsonl")
    assert len(rows) == 3
    for row in rows:
        assert 1 - SAME < row["mismatch/ratio_p01"] <= row["mismatch/ratio_p99"] < 1 + SAME
    assert max(row["grad_norm"] for row in rows) > 0
    for log in (study / "logs").glob("arms--grpo--seed-0*.log"):
        assert "Traceback" not in log.read_text()


def test_drift_samples_with_an_engine_that_is_gone_afterwards(prepared, tmp_path):
    """The base's drift by vLLM: seeded completions of the right form, and both KL of the base to itself are zero."""
    from multiprocessing import active_children

    from train import drift

    recipe = load_recipe(SMOKE, [*POCKET, VLLM, "drift={problems: 8, batch_size: 4}"])
    study = study_of(prepared, tmp_path / "study")
    samples = []
    for attempt in range(2):
        stage_dir = study / "drift" / "base"
        start_stage(stage_dir, "drift/base", {"attempt": attempt})
        drift.run(recipe, study, stage_dir, False)
        samples.append(json.loads((stage_dir / "samples.json").read_text()))
        assert not active_children()
    assert samples[0] == samples[1]
    assert len({tuple(ids) for ids in samples[0]}) > 4
    assert all(1 <= len(ids) <= 64 for ids in samples[0])
    (row,) = read_json_lines(stage_dir / "drift.jsonl")
    assert (row["kl_to_base"], row["kl_from_base"], row["completions"]) == (0.0, 0.0, 8)
    assert facts(stage_dir)["engine"]["name"] == "vllm"
    assert facts(stage_dir)["engine"]["dtype"] == "float32"


def test_a_server_without_a_gpu_is_refused_before_anything_is_loaded(prepared, tmp_path):
    study = study_of(prepared, tmp_path / "study")
    command, how = command_line(study, "resources.vllm={mode: server, server_url: 'http://127.0.0.1:9'}")
    result = subprocess.run(command, capture_output=True, check=False, **how)
    assert result.returncode == 2
    assert "resources.vllm.mode is server but this machine has no GPU" in result.stdout
    assert not (study / "arms" / "grpo" / "seed-0" / "ledger.jsonl").exists()
