"""Micro-batches by length: the dealing by value, and updates that equal those of TRL's padded trainers."""

import itertools
import math
import random
from functools import partial

import pytest
import torch
from datasets import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from recipes.errors import UserError
from recipes.loading import load_recipe
from recipes.training_schema import LoraSpec, PromptSpec
from tests.bench.bench_training import tokenizer
from tests.paths import SMOKE
from tests.support.trainers import gradient_of, grpo_trainer, replace, sft_trainer
from train.arms import resolve_arm
from train.micro_batches import in_rank_order, micro_batches, split_to
from train.runtime.checkpoints import CheckpointMarker
from train.sft import rows_of_step
from train.token_budget import merged

GROUP, PROBLEMS, UPDATES = 4, 4, 2
LENGTHS = [3, 40, 7, 12, 5, 5, 6, 9, 30, 4, 8, 11, 2, 18, 10, 6]
"""Tokens of the completions of an update; the second group gets one reward throughout, so it has no weight."""
SAME_REWARD = range(4, 8)


def cost(lengths, parts):
    return sum(len(part) * max(lengths[index] for index in part) for part in parts) + 512 * len(parts)


def every_partition(rows):
    if not rows:
        yield []
        return
    first, rest = rows[0], rows[1:]
    for size in range(len(rest) + 1):
        for others in itertools.combinations(rest, size):
            left = [row for row in rest if row not in others]
            for parts in every_partition(left):
                yield [[first, *others], *parts]


def test_no_other_dealing_costs_less():
    draw = random.Random(0)
    for _ in range(20):
        lengths = [round(draw.lognormvariate(6, 1)) for _ in range(6)]
        limit = max(lengths) + draw.randrange(1000)
        dealt = micro_batches(lengths, limit)
        assert sorted(row for part in dealt for row in part) == list(range(6))
        allowed = [
            parts
            for parts in every_partition(list(range(6)))
            if all(cost(lengths, [part]) - 512 <= limit for part in parts)
        ]
        assert cost(lengths, dealt) == min(cost(lengths, parts) for parts in allowed)


def test_dealing_by_hand():
    assert micro_batches([10, 4000, 12, 11], 8000) == [[1], [2, 3, 0]]  # one micro-batch would pad 11,967 tokens
    assert micro_batches([10, 40, 12, 11], 8000) == [[1, 2, 3, 0]]  # padding of 87 tokens costs less than a pass
    assert micro_batches([10, 40, 12, 11], 80) == [[1], [2, 3, 0]]  # at most 80 tokens
    assert micro_batches([90, 10], 80) == [[0], [1]]  # a row that is too long alone
    assert micro_batches([40, 60, 50, 70], 110, joined=True) == [[3, 0], [1, 2]]
    assert micro_batches([], 80) == []
    assert split_to([[0], [1, 2, 3, 4]], 3) == [[0], [1, 2], [3, 4]]
    assert split_to([[0], [1]], 3) == [[0], [1], []]


def test_rows_of_ranks_by_hand():
    lengths = [40, 6, 30, 8, 0, 0, 0, 0]  # four fillers
    assert in_rank_order(lengths, 1) == list(range(8))
    assert in_rank_order(lengths, 2) == [0, 4, 5, 6, 1, 2, 3, 7]  # 40 and 44 tokens; in order they were 84 and none
    assert in_rank_order(lengths, 4) == [0, 7, 2, 6, 3, 5, 1, 4]
    assert in_rank_order([9, 1, 1, 1], 2) == [0, 3, 1, 2]  # a rank has as many rows as another
    assert in_rank_order([5] * 6, 3) == [0, 3, 1, 4, 2, 5]


def test_fillers_are_shared_by_the_ranks(monkeypatch):
    demonstrations = [
        {"prompt": f"{n}", "completion": "x", "tokens": tokens, "prompt_tokens": 2}
        for n, tokens in enumerate((40, 6, 30, 8))
    ]
    filler = {"prompt": "p", "completion": None, "tokens": 0, "prompt_tokens": 0}
    assert rows_of_step(demonstrations, 8, "p") == demonstrations + [filler] * 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    (a, b, c, d), rows = demonstrations, rows_of_step(demonstrations, 8, "p")
    assert rows == [a, b, filler, filler, c, d, filler, filler]


def test_metrics_of_an_update_are_means_over_tokens():
    seen = [
        (30, {"entropy": [1.0], "clip_ratio/low_min": [0.2], "clip_ratio/high_max": [0.3]}),
        (10, {"entropy": [2.0], "clip_ratio/low_min": [0.1], "clip_ratio/high_max": [0.1]}),
        (0, {"entropy": [0.0], "clip_ratio/low_min": [0.0], "clip_ratio/high_max": [math.nan]}),
    ]
    assert merged(seen) == {"entropy": 1.25, "clip_ratio/low_min": 0.1, "clip_ratio/high_max": 0.3}


def test_limit_below_a_row_at_the_length_limits_is_refused():
    with pytest.raises(UserError, match=r"micro_batch_tokens is 100 but must be at least 128"):
        resolve_arm(load_recipe(SMOKE, ["train.micro_batch_tokens=100"]), "grpo")
    settings = resolve_arm(load_recipe(SMOKE, ["train.micro_batch_size=2"]), "grpo")
    assert settings.tokens_per_micro_batch(1) == 2 * 128
    assert replace(settings, micro_batch_size=None).tokens_per_micro_batch(2) == 16 * 128
    assert replace(settings, micro_batch_tokens=500).tokens_per_micro_batch(2) == 500


def test_rank_without_rows_reads_along_and_changes_nothing(tok, tiny, tmp_path):
    """As if another rank had two micro-batches more than there are rows."""
    gradients, padding = [], []
    for extra in (0, 2):
        trainer = grpo_trainer(arm(), tiny(), tok, problems(), tmp_path, 0, rewards, rollouts=Fed(arm()))
        deal = trainer.deal
        trainer.deal = lambda lengths, deal=deal, extra=extra: [*deal(lengths), *[[]] * extra]
        trainer.on_work = lambda work: padding.append(work.padding)
        gradients.append(gradient_of(trainer))
    assert torch.equal(*gradients)
    assert padding[1] == padding[0] + 2 * 2  # two tokens each


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.fixture(scope="module")
def tiny(tok, tmp_path_factory):
    """Loads the same small model again; from a file, because TRL loads the reference of the KL term itself."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("tiny")
    Qwen3ForCausalLM(config).save_pretrained(directory)
    return partial(Qwen3ForCausalLM.from_pretrained, directory)


def completions(step):
    draw = torch.Generator().manual_seed(step)
    return [torch.randint(2, 250, (length,), generator=draw).tolist() for length in LENGTHS]


class Fed:
    """Completions made beforehand, for the updates of a sampling."""

    def __init__(self, settings):
        self.updates = settings.updates_per_batch

    def completions(self, step, draw):
        return [ids for number in range(self.updates) for ids in completions(step + number)]


def rewards(prompts, completions, completion_ids, **kwargs):
    return [1.0 if 4 <= n < 8 else float(n % 3 == 0) for n in range(len(completions))]


def problems():
    return [{"prompt": "12345678"[: 1 + n % 5] + " ="} for n in range(UPDATES * PROBLEMS)]


def arm(**changes):
    settings = resolve_arm(load_recipe(SMOKE), "grpo")
    fixed = {
        "steps": UPDATES, "problems_per_step": PROBLEMS, "completions_per_problem": GROUP, "save_every_steps": 100,
        "learning_rate": 1e-2, "max_grad_norm": 1e9, "micro_batch_tokens": 60,
        "prompt": PromptSpec(max_prompt_tokens=8, max_completion_tokens=48),
    }  # fmt: skip
    return replace(settings, **(fixed | changes))


def trained(trainer):
    """Losses and the change of all weights."""
    before = weights_of(trainer)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], weights_of(trainer) - before


def weights_of(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def padded(trainer):
    """The same trainer with TRL's own loss and log-probabilities."""
    for name in ("compute_loss", "_get_per_token_logps_and_entropies"):
        setattr(trainer, name, partial(getattr(GRPOTrainer, name), trainer))
    return trainer


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_normalisation": "weighted_tokens"},
        {"loss_normalisation": "all_tokens"},
        {"credit": "uniform", "negatives": False},
        {"beta": 0.1},
        {"updates_per_batch": 2},
        {"lora": LoraSpec(rank=4, alpha=8)},
        {"padding_free": True, "updates_per_batch": 2, "beta": 0.1},
    ],
    ids=str,
)
def test_update_of_grpo_equals_the_padded_one(tok, tiny, tmp_path, changes):
    results = []
    for change in (padded, lambda trainer: trainer):
        trainer = grpo_trainer(
            arm(**changes), tiny(), tok, problems(), tmp_path, 0, rewards, rollouts=Fed(arm(**changes))
        )
        results.append(trained(change(trainer)))
    (losses, moved), (own_losses, own_moved) = results
    assert float(moved.norm()) > 0.1
    assert own_losses == pytest.approx(losses, abs=1e-6)
    assert float((own_moved - moved).norm() / moved.norm()) < 1e-3


def test_update_of_grpo_equals_bare_trls(tok, tiny, tmp_path):
    """With every advantage and all tokens, TRL alone does the same."""
    settings = arm(loss_normalisation="all_tokens")
    ours = grpo_trainer(settings, tiny(), tok, problems(), tmp_path, 0, rewards, rollouts=Fed(settings))

    def fed(prompts, trainer):
        ids = completions(trainer.state.global_step)
        return {"prompt_ids": tok(prompts)["input_ids"], "completion_ids": ids, "logprobs": None}

    bare = GRPOTrainer(
        model=tiny(), processing_class=tok, train_dataset=Dataset.from_list(problems()), reward_funcs=rewards,
        rollout_func=fed,
        args=GRPOConfig(
            output_dir=str(tmp_path), num_generations=GROUP, shuffle_dataset=False, max_steps=UPDATES, beta=0.0,
            per_device_train_batch_size=GROUP, gradient_accumulation_steps=PROBLEMS, learning_rate=1e-2,
            lr_scheduler_type="constant", max_grad_norm=1e9, loss_type="dapo", max_completion_length=48, use_cpu=True,
            bf16=False, gradient_checkpointing=False, logging_steps=1, report_to=[], save_strategy="no", seed=0,
        ),
    )  # fmt: skip
    (losses, moved), (own_losses, own_moved) = trained(bare), trained(ours)
    assert own_losses == pytest.approx(losses, abs=1e-6)
    assert float((own_moved - moved).norm() / moved.norm()) < 1e-3


def test_rows_without_a_weight_are_not_computed(tok, tiny, tmp_path):
    settings = arm()
    trainer = grpo_trainer(settings, tiny(), tok, problems(), tmp_path, 0, rewards, rollouts=Fed(settings))
    found, read = [], []
    trainer.on_work = found.append
    trainer.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    trainer.train()
    prompts = [len(tok(row["prompt"])["input_ids"]) for row in problems()]
    for step, work in enumerate(found):
        tokens = [prompts[PROBLEMS * step + n // GROUP] + LENGTHS[n] for n in range(PROBLEMS * GROUP)]
        assert work.skipped == sum(tokens[n] for n in SAME_REWARD)
        assert work.computed - work.padding == sum(tokens) - work.skipped
    assert sum(read) == sum(work.computed for work in found)


def test_resumed_run_reaches_the_same_weights(tok, tiny, tmp_path):
    settings = arm(save_every_steps=1)

    def made():
        return grpo_trainer(settings, tiny(), tok, problems(), tmp_path, 0, rewards, rollouts=Fed(settings))

    whole, resumed = made(), made()
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert torch.equal(weights_of(resumed), weights_of(whole))
    assert list(tmp_path.rglob("README.md")) == []  # TRL's card knows neither the base nor the study


def test_run_resumes_with_other_micro_batches_and_saves(tok, tiny, tmp_path):
    """What the out-of-memory message proposes: the checkpoint is restored, and the weights differ by rounding."""
    texts = [{"prompt": f"{n} =", "completion": "x" * LENGTHS[n % 16]} for n in range(5 * 16)]
    settings = replace(arm(steps=5, save_every_steps=1), problems_per_step=16, completions_per_problem=1)
    other, passes, ends = replace(settings, micro_batch_tokens=500, save_every_steps=2), [], []

    def made(settings, name):
        trainer = sft_trainer(settings, tiny(), tok, texts, tmp_path / name, 0, [CheckpointMarker()])
        trainer.args.save_total_limit = None
        step = trainer.training_step
        trainer.training_step = lambda *args, **kwargs: (passes.append(name), step(*args, **kwargs))[1]
        return trainer

    start = weights_of(made(settings, "unused"))
    for settings_of, name, checkpoint in ((settings, "whole", None), (other, "resumed", "checkpoint-1")):
        trainer = made(settings_of, name)
        trainer.train(resume_from_checkpoint=checkpoint and str(tmp_path / "whole" / checkpoint))
        ends.append(weights_of(trainer))
    assert (passes.count("whole"), passes.count("resumed")) == (5, 4)
    assert float((ends[0] - start).norm()) > 0.1
    assert float((ends[1] - ends[0]).norm() / (ends[0] - start).norm()) < 1e-3
    # Every second step, not every step as the checkpoint says; transformers saves the last one in any case.
    saved = sorted(path.name for path in (tmp_path / "resumed").glob("checkpoint-*"))
    assert saved == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize("free", [False, True])
def test_update_of_sft_equals_bare_trls(tok, tiny, tmp_path, free):
    texts = [{"prompt": f"{n} =", "completion": "x" * LENGTHS[n % 16]} for n in range(UPDATES * 16)]
    settings = replace(arm(padding_free=free), problems_per_step=16, completions_per_problem=1)
    ours = sft_trainer(settings, tiny(), tok, texts, tmp_path, 0)
    bare = SFTTrainer(
        model=tiny(), processing_class=tok, train_dataset=ours.train_dataset,
        args=SFTConfig(
            output_dir=str(tmp_path), max_length=None, shuffle_dataset=False, max_steps=UPDATES, use_cpu=True,
            per_device_train_batch_size=4, gradient_accumulation_steps=4, learning_rate=1e-2, bf16=False,
            lr_scheduler_type="constant", max_grad_norm=1e9, gradient_checkpointing=False, logging_steps=1,
            report_to=[], save_strategy="no", seed=0, train_sampling_strategy="sequential",
        ),
    )  # fmt: skip
    (losses, moved), (own_losses, own_moved) = trained(bare), trained(ours)
    assert own_losses == pytest.approx(losses, abs=1e-6)
    assert float((own_moved - moved).norm() / moved.norm()) < 1e-3
    for name in ("num_tokens", "entropy", "mean_token_accuracy"):
        read = [[row[name] for row in one.state.log_history if name in row] for one in (bare, ours)]
        assert len(read[1]) == UPDATES
        if name == "num_tokens":
            assert read[0] == read[1]
