"""Stored completions: what is kept, what is on the disk, and what a trainer gets are the same ids."""

import json
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recipes.files import read_json_lines
from recipes.loading import load_recipe
from tests.paths import SMOKE
from tests.support.trainers import replace
from train.arms import resolve_arm
from train.rollouts import PolicyRollouts, compact, read_groups, write_groups
from train.runtime.recorder import RunRecorder


def settings_for(**changes):
    return replace(resolve_arm(load_recipe(SMOKE), "grpo"), **changes)


class Books:
    def __init__(self):
        self.spent, self.parameters = [], 10

    def spend(self, **counts):
        self.spent.append(counts)


def tokenizer(text):
    return {"input_ids": list(range(len(text)))}


def test_groups_are_the_same_after_memory_and_disk(tmp_path):
    random.seed(0)
    groups = [[random.choices(range(151_936), k=random.randrange(9)) for _ in range(4)] for _ in range(5)]
    path = tmp_path / "round-0.json"
    write_groups(path, [compact(group) for group in groups])
    assert path.read_text() == json.dumps(groups)
    assert [[ids.tolist() for ids in group] for group in read_groups(path)] == groups
    assert all(ids.dtype == np.int32 for group in read_groups(path) for ids in group)
    write_groups(path, [])
    assert read_groups(path) == []


def test_a_token_takes_four_bytes():
    ids = list(range(1000, 31_000))
    (kept,) = compact([ids])
    assert kept.nbytes == 4 * len(ids)
    assert sum(map(sys.getsizeof, ids)) + 8 * len(ids) == 36 * len(ids)


def test_rounds_hand_out_what_was_drawn_and_read_it_again(tmp_path):
    """Four updates of two problems, refreshed every second one; a second process reads the files."""
    order = [(f"problem-{n}", "ask" * (n + 1)) for n in range(8)]
    asked = []

    def draw(prompts, seed):
        asked.append((prompts, seed))
        return [[[len(prompt), seed % 1000, place] for place in range(3)] for prompt in prompts]

    settings = settings_for(sampling="round", problems_per_step=2, completions_per_problem=3, round_steps=2)

    def rollouts(books):
        return PolicyRollouts(order, tokenizer, tmp_path, books, settings, 7)

    first = rollouts(books := Books())
    found = [first.completions(step, draw) for step in range(4)]
    assert len(asked) == 4
    assert books.spent[0]["generated_tokens"] == 4 * 3 * 3
    for step, rows in enumerate(found):
        prompts, seed = asked[step]
        assert rows == [[len(prompt), seed % 1000, place] for prompt in prompts for place in range(3)]
        assert all(type(token) is int for ids in rows for token in ids)
    asked.clear()
    again = rollouts(Books())
    assert [again.completions(step, draw) for step in range(4)] == found
    assert asked == []


def test_a_killed_round_keeps_the_batches_it_drew(tmp_path):
    """Sampling of four batches dies in the third; the next process draws the last two and shows its progress."""
    order = [(f"problem-{n}", "ask" * (n + 1)) for n in range(8)]
    settings = settings_for(sampling="base_once", problems_per_step=2, completions_per_problem=3, round_steps=None)
    asked = []

    def draw(prompts, seed):
        if len(asked) == fails_at:
            raise KeyboardInterrupt
        asked.append((prompts, seed))
        return [[[len(prompt), seed % 1000, place] for place in range(3)] for prompt in prompts]

    def sample(folder):
        return PolicyRollouts(order, tokenizer, folder, Books(), settings, 7).completions(3, draw)

    fails_at = None
    whole, batches = sample(tmp_path / "whole"), list(asked)
    asked.clear()
    fails_at = 2
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "killed")
    assert json.loads((tmp_path / "killed" / "progress.json").read_text())["unit"] == "problems sampled"
    fails_at = None
    assert sample(tmp_path / "killed") == whole
    assert asked == batches
    files = [sorted(path.name for path in (tmp_path / name / "rollouts").iterdir()) for name in ("whole", "killed")]
    assert files == [["round-0.json", "seconds-0.json"]] * 2
    stored = [(tmp_path / name / "rollouts" / "round-0.json").read_bytes() for name in ("whole", "killed")]
    assert stored[0] == stored[1]


class Time:
    """A clock that tests move."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_clock_of_a_resumed_run_has_the_seconds_of_samples_that_are_kept(tmp_path, monkeypatch, ranks):
    """Two rounds of four batches, a minute each, and an update of 5 seconds; every attempt but the last is killed."""
    order = [(f"problem-{n}", "ask") for n in range(16)]
    settings = settings_for(sampling="round", problems_per_step=2, completions_per_problem=3, round_steps=4)
    time = Time()
    for module in ("train.rollouts", "train.runtime.recorder"):
        monkeypatch.setattr(f"{module}.time", time)
        monkeypatch.setattr(f"{module}.world_size", lambda: ranks)

    def draw(prompts, seed):
        if time.now >= dies_at:
            raise KeyboardInterrupt
        time.now += 60
        return [[[1, 2]] * 3 for _ in prompts]

    def attempt(saved, until, seconds=None):
        """Continue from update `saved`; die in sampling after so many seconds, or after update `until`."""
        nonlocal dies_at
        time.now += 500  # the time that loading takes is not counted
        recorder = RunRecorder(tmp_path, 8, saved)
        recorder.on_train_begin()
        dies_at = float("inf") if seconds is None else time.now + seconds
        rollouts = PolicyRollouts(order, tokenizer, tmp_path, Books(), settings, 7, recorder.count_earlier)
        for step in range(saved, until):
            rollouts.completions(step, draw)
            time.now += 5
            recorder.on_step_end(None, SimpleNamespace(global_step=step + 1, is_world_process_zero=True), None)
        return [row["process_seconds"] / ranks for row in read_json_lines(tmp_path / "clock.jsonl")]

    dies_at = 0.0
    with pytest.raises(KeyboardInterrupt):
        attempt(saved=0, until=1, seconds=120)  # after two batches
    assert attempt(saved=0, until=1) == [245]  # draws the other two
    assert attempt(saved=0, until=2) == [245, 250]  # killed before a checkpoint: samples are read, the update repeated
    assert attempt(saved=2, until=3) == [245, 250, 255]  # within the round they are in the checkpoint's seconds already
    assert attempt(saved=2, until=5) == [245, 250, 255, 260, 505]
    assert attempt(saved=4, until=8) == [245, 250, 255, 260, 505, 510, 515, 520]
    assert json.loads((tmp_path / "rollouts" / "seconds-0.json").read_text()) == dict.fromkeys("0246", 60.0 * ranks)


def test_the_order_of_rows_does_not_depend_on_a_kill_after_sampling(tmp_path):
    """TRL shuffles the rows of an update with torch's generator, which drawing moves and reading does not."""
    order = [(f"problem-{n}", "ask" * (n + 1)) for n in range(8)]
    settings = settings_for(sampling="round", problems_per_step=2, completions_per_problem=3, round_steps=2)

    def draw(prompts, seed):
        torch.manual_seed(seed)
        return [[torch.randint(9, (4,)).tolist() for _ in range(3)] for _ in prompts]

    shuffled = []
    for _ in range(2):  # the second time the samples are on the disk
        torch.manual_seed(1)
        rollouts = PolicyRollouts(order, tokenizer, tmp_path, Books(), settings, 7)
        found = []
        for step in range(4):
            rows = rollouts.completions(step, draw)
            found.append([rows[index] for index in torch.randperm(len(rows))])
        shuffled.append(found)
    assert shuffled[0] == shuffled[1]


def test_batches_that_another_rank_cannot_see_are_drawn_again(tmp_path, monkeypatch):
    """Three of four batches are on disk, and another rank sees one: both draw from the second on."""
    order = [(f"problem-{n}", "ask" * (n + 1)) for n in range(8)]
    settings = settings_for(sampling="base_once", problems_per_step=2, completions_per_problem=3, round_steps=None)
    asked = []

    def draw(prompts, seed):
        asked.append(prompts)
        return [[[len(prompt), seed % 1000, place] for place in range(3)] for prompt in prompts]

    def sample():
        return PolicyRollouts(order, tokenizer, tmp_path, Books(), settings, 7).completions(3, draw)

    whole = sample()
    groups = read_groups(tmp_path / "rollouts" / "round-0.json")
    (tmp_path / "rollouts" / "round-0.json").unlink()
    for start in (0, 2, 4):
        write_groups(tmp_path / "rollouts" / "round-0.parts" / f"{start}.json", groups[start : start + 2])
    monkeypatch.setattr("train.rollouts.gathered", lambda rows: [*rows, 1])
    asked.clear()
    assert sample() == whole
    assert len(asked) == 3
