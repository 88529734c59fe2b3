"""What the arms optimise, by value: gradients against plain PyTorch, the ledger against a count by hand."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from data.prompt import load_tokenizer, render_prompt
from data.rows import read_demonstrations, read_problems
from recipes.schema import PromptSpec
from train.grpo import OnPolicySFTTrainer
from train.ledger import Ledger, read_rows
from train.model import load_model

GROUP = 8


@pytest.fixture(scope="module")
def base(smoke_study):
    return load_tokenizer(str(smoke_study / "base")), load_model(smoke_study / "base", "float32")


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


def mean_nll_gradient(model, tokenizer, texts: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Gradient of the token mean of the negative log-likelihood of the completions, sample by sample."""
    model = copy.deepcopy(model).train()
    total = sum(len(completion) for _, completion in texts)
    for prompt, completion in texts:
        ids = torch.tensor([prompt + completion])
        logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        nll = -sum(logprobs[len(prompt) - 1 + n, token] for n, token in enumerate(completion))
        (nll / total).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def grpo_arguments(directory, **changes):
    return GRPOConfig(
        output_dir=str(directory), max_steps=1, per_device_train_batch_size=2 * GROUP, num_generations=GROUP,
        max_completion_length=24, temperature=1.0, beta=0.0, loss_type="dapo", max_grad_norm=0.0, seed=5,
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], shuffle_dataset=False, top_k=0,
        **changes,
    )  # fmt: skip


def record_samples(seen, judge):
    """A reward function that remembers what was sampled."""

    def reward(prompts, completions, completion_ids, **kwargs):
        seen["prompts"], seen["ids"] = prompts, completion_ids
        seen["rewards"] = [float(judge(n)) for n in range(len(completions))]
        return seen["rewards"]

    return reward


def prompts_dataset(smoke_study, tokenizer):
    problems = read_problems(smoke_study / "corpus", "train")[:2]
    return Dataset.from_list([{"prompt": render_prompt(tokenizer, p.problem, PromptSpec())} for p in problems])


@pytest.mark.parametrize("micro_batch", [2 * GROUP, GROUP])
def test_on_policy_sft_gradient_is_nll_on_the_correct_samples(base, smoke_study, tmp_path, micro_batch):
    tokenizer, model = base
    seen = {}
    arguments = grpo_arguments(tmp_path, gradient_accumulation_steps=2 * GROUP // micro_batch)
    arguments.per_device_train_batch_size = micro_batch
    trainer = OnPolicySFTTrainer(
        model=copy.deepcopy(model),
        args=arguments,
        reward_funcs=record_samples(seen, lambda n: n % 3 == 0),
        train_dataset=prompts_dataset(smoke_study, tokenizer),
        processing_class=tokenizer,
    )
    gradient = gradient_of(trainer)
    texts = [
        (tokenizer(prompt)["input_ids"], list(ids))
        for prompt, ids, reward in zip(seen["prompts"], seen["ids"], seen["rewards"], strict=True)
        if reward
    ]
    assert len(texts) == 6
    expected = mean_nll_gradient(model, tokenizer, texts)
    assert (gradient - expected).norm() / expected.norm() < 1e-4


def test_grpo_gradient_is_advantage_weighted_nll(base, smoke_study, tmp_path):
    """Advantages by hand: rewards 1 0 0 0 in a group of 8 twice -> mean 1/4, sample deviation sqrt(3/14)."""
    tokenizer, model = base
    seen = {}
    trainer = GRPOTrainer(
        model=copy.deepcopy(model),
        args=grpo_arguments(tmp_path),
        reward_funcs=record_samples(seen, lambda n: n % 4 == 0),
        train_dataset=prompts_dataset(smoke_study, tokenizer),
        processing_class=tokenizer,
    )
    gradient = gradient_of(trainer)
    deviation = (3 / 14) ** 0.5
    reference = copy.deepcopy(model).train()
    total = sum(len(ids) for ids in seen["ids"])
    for prompt, ids, reward in zip(seen["prompts"], seen["ids"], seen["rewards"], strict=True):
        prompt_ids = tokenizer(prompt)["input_ids"]
        logprobs = reference(input_ids=torch.tensor([prompt_ids + list(ids)])).logits[0].log_softmax(-1)
        nll = -sum(logprobs[len(prompt_ids) - 1 + n, token] for n, token in enumerate(ids))
        advantage = (reward - 0.25) / (deviation + 1e-4)
        (advantage * nll / total).backward()
    expected = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])
    assert (gradient - expected).norm() / expected.norm() < 1e-3


def test_sft_gradient_is_nll_on_completion_and_end_of_turn(base, smoke_study, tmp_path):
    tokenizer, model = base
    demonstrations = read_demonstrations(smoke_study / "corpus")
    problems = read_problems(smoke_study / "corpus", "train")[:3]
    rows = [
        {
            "prompt": render_prompt(tokenizer, p.problem, PromptSpec()),
            "completion": demonstrations[p.problem_id][0].completion,
        }
        for p in problems
    ]
    trainer = SFTTrainer(
        model=copy.deepcopy(model),
        args=SFTConfig(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=3, max_grad_norm=0.0, use_cpu=True,
            bf16=False, gradient_checkpointing=False, report_to=[], max_length=None, completion_only_loss=True,
            shuffle_dataset=False, train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    texts = [
        (tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id])
        for row in rows
    ]
    expected = mean_nll_gradient(model, tokenizer, texts)
    assert (gradient_of(trainer) - expected).norm() / expected.norm() < 1e-4


def test_template_contract(base, smoke_study):
    """SFT sample = prompt + completion = what the evaluation asks + answer, in ids; tags survive decoding."""
    tokenizer, _ = base
    prompt = render_prompt(tokenizer, "1+1=?", PromptSpec())
    assert prompt == "<|im_start|>user\n1+1=?<|im_end|>\n<|im_start|>assistant\n"
    completion = "<think>\nok\n</think>\n\n\\boxed{2}"
    whole = tokenizer(prompt + completion + "<|im_end|>")["input_ids"]
    parts = tokenizer(prompt)["input_ids"] + tokenizer(completion)["input_ids"] + [tokenizer.eos_token_id]
    assert whole == parts
    assert tokenizer.decode(tokenizer(completion)["input_ids"], skip_special_tokens=True) == completion
    assert len(tokenizer("<think></think>")["input_ids"]) == 2
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    text = "ünïcode → 漢字\t\x00"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_ledger_counts_what_the_smoke_arms_saw(smoke_study):
    """4 updates x 4 problems x 4 completions; ids as presented; tokens against the corpus."""
    presented = {}
    for arm in ("off_policy_sft", "on_policy_sft", "grpo"):
        rows = read_rows(smoke_study / "arms" / arm / "seed-0" / "ledger.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert rows[-1]["exposures"] == 16
        assert rows[-1]["completions"] == 64
        presented[arm] = [row["presented"] for row in rows]
    assert presented["off_policy_sft"] == presented["on_policy_sft"] == presented["grpo"]
    demonstrations = read_demonstrations(smoke_study / "corpus")
    sft = read_rows(smoke_study / "arms" / "off_policy_sft" / "seed-0" / "ledger.jsonl")
    expected = 0
    for ids in presented["off_policy_sft"]:
        for identity in ids:
            correct = [row for row in demonstrations[identity] if row.grade == "correct"]
            expected += sum(correct[n % len(correct)].tokens for n in range(4))
    assert sft[-1]["trained_tokens"] == expected
    parameters = json.loads((smoke_study / "base" / "manifest.json").read_text())["facts"]["parameters"]
    assert sft[-1]["train_flops"] == 6 * parameters * (expected + sft[-1]["prompt_tokens"])


def test_ledger_continues_from_a_checkpoint(tmp_path):
    ledger = Ledger(tmp_path)
    for step in (1, 2, 3):
        ledger.spend(presented=[f"p{step}"], exposures=1, generated_tokens=10)
        ledger.close_step(step)
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"step": 4, "expo')  # killed while writing
    resumed = Ledger(tmp_path, resumed_step=2)
    assert resumed.totals["generated_tokens"] == 20
    resumed.spend(presented=["p3"], exposures=1, generated_tokens=7)
    resumed.close_step(3)
    rows = read_rows(tmp_path / "ledger.jsonl")
    assert [(row["step"], row["presented"], row["generated_tokens"]) for row in rows] == [
        (1, ["p1"], 10),
        (2, ["p2"], 20),
        (3, ["p3"], 27),
    ]
