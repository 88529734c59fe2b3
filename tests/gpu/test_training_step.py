"""One update of SFT and of GRPO on a GPU, in bfloat16, against the same update on the CPU in float32."""

import copy

import pytest
import torch

from data.corpus.rows import read_demonstrations, read_problems
from data.language_model import load_model
from data.prompts.prompt import load_tokenizer, render_prompt
from recipes.loading import load_study
from recipes.training_schema import PromptSpec
from tests.support.trainers import grpo_trainer, replace, sft_trainer
from train import grpo, sft
from train.arms import resolve_arm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing was tested"),
]


def trained(build, base, monkeypatch, on_gpu, dtype):
    """Weights after one update, as one vector on the CPU."""
    for module in (sft, grpo):
        monkeypatch.setattr(module, "on_cpu", lambda: not on_gpu)
    trainer = build(copy.deepcopy(base), dtype)
    trainer.train()
    return torch.cat([p.detach().float().cpu().flatten() for p in trainer.model.parameters()])


def test_sft_update_agrees_with_the_cpu(smoke_study, tmp_path, monkeypatch):
    recipe = load_study(smoke_study)
    tokenizer, base = load_tokenizer(str(smoke_study / "base")), load_model(smoke_study / "base", "float32")
    demonstrations = read_demonstrations(smoke_study / "corpus")
    rows = [
        {"prompt": render_prompt(tokenizer, p.problem, PromptSpec()), "completion": d.completion}
        for p in read_problems(smoke_study / "corpus", "train")[:8]
        for d in demonstrations[p.problem_id]
    ]
    settings = replace(resolve_arm(recipe, "off_policy_sft"), steps=1)

    def build(model, dtype):
        return sft_trainer(replace(settings, dtype=dtype), model, tokenizer, rows, tmp_path / dtype, 0)

    start = torch.cat([p.detach().flatten() for p in base.parameters()])
    cpu = trained(build, base, monkeypatch, False, "float32") - start
    gpu = trained(build, base, monkeypatch, True, "bfloat16") - start
    # Adam's first update is the sign of the gradient times the rate: bfloat16 may flip small entries only.
    assert float(torch.cosine_similarity(cpu, gpu, dim=0)) > 0.9


def test_grpo_update_moves_the_weights_and_stays_finite(smoke_study, tmp_path, monkeypatch):
    recipe = load_study(smoke_study)
    tokenizer, base = load_tokenizer(str(smoke_study / "base")), load_model(smoke_study / "base", "float32")
    rows = [
        {"prompt": render_prompt(tokenizer, p.problem, PromptSpec())}
        for p in read_problems(smoke_study / "corpus", "train")[:8]
    ]
    settings = replace(resolve_arm(recipe, "grpo"), steps=1)

    def reward(prompts, completions, **kwargs):
        return [float(number % 2) for number in range(len(completions))]

    def build(model, dtype):
        return grpo_trainer(replace(settings, dtype=dtype), model, tokenizer, rows, tmp_path, 0, reward)

    start = torch.cat([p.detach().flatten() for p in base.parameters()])
    moved = trained(build, base, monkeypatch, True, "bfloat16") - start
    assert torch.isfinite(moved).all()
    assert moved.abs().max() > 0
