"""Which samples a training seed draws with transformers' generation; with vLLM: tests/engines/test_training_vllm.py."""

import pytest

from data.corpus.rows import read_problems
from data.language_model import load_model, seed_everything
from data.prompts.prompt import load_tokenizer, render_prompt
from recipes.loading import load_recipe
from tests.paths import SMOKE
from tests.support.trainers import grpo_trainer
from train.arms import resolve_arm


def first_samples(study, directory, seed):
    """The first sampling of a run on the same prompts, whatever the seed."""
    settings = resolve_arm(load_recipe(SMOKE, ["train.steps=1"]), "grpo")
    tokenizer = load_tokenizer(str(study / "base"))
    problems = read_problems(study / "corpus", "train")[:8]
    rows = [{"prompt": render_prompt(tokenizer, problem.problem, settings.prompt)} for problem in problems]
    found = []

    def reward(completion_ids, **columns):
        found.extend(tuple(ids) for ids in completion_ids)
        return [float(len(ids)) for ids in completion_ids]

    seed_everything(seed)
    model = load_model(study / "base", "float32")
    grpo_trainer(settings, model, tokenizer, rows, directory, seed, reward).train()
    return found


def test_samples_belong_to_the_training_seed(smoke_study, tmp_path):
    first, other, again = (first_samples(smoke_study, tmp_path / str(n), seed) for n, seed in enumerate((0, 1, 0)))
    assert len(first) == 32
    assert first == again
    assert sum(a == b for a, b in zip(first, other, strict=True)) < 16


@pytest.mark.parametrize(("process", "parallel", "expected"), [(0, 1, 7_000_021), (3, 1, 7_000_024), (3, 2, 7_000_022)])
def test_seeds_of_ranks_differ_unless_they_hold_one_model_together(process, parallel, expected):
    from train.runtime.sampler import engine_seed

    assert engine_seed(7, process, parallel) == expected
    assert engine_seed(8, 0, 1) != engine_seed(7, 1, 1)  # no rank of one seed is a rank of another
