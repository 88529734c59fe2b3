"""The two trainers as a run makes them, for tests that look into a single update."""

import pytest
import torch

from train import grpo, sft


def sft_trainer(settings, model, tokenizer, rows, directory, seed, callbacks=()):
    return sft.build_trainer(settings, model, tokenizer, rows, sft.arguments(settings, directory, seed), callbacks)


def grpo_trainer(settings, model, tokenizer, rows, directory, seed, reward, callbacks=(), rollouts=None):
    arguments = grpo.arguments(settings, tokenizer, directory, seed)
    return grpo.build_trainer(settings, model, tokenizer, rows, arguments, reward, callbacks, rollouts)


def replace(settings, **changes):
    """Settings of an arm with other values, which are not validated."""
    return settings.model_copy(update=changes)


class CapturedError(Exception):
    """Raised in place of the optimizer's step."""


def gradient_of(trainer) -> torch.Tensor:
    """The accumulated gradient when the optimizer is about to step."""
    found = {}

    def capture(*args, **kwargs):
        parameters = trainer.model.parameters()
        found["gradient"] = torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None])
        raise CapturedError

    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer.optimizer.step = capture
    with pytest.raises(CapturedError):
        trainer.train()
    return found["gradient"]
