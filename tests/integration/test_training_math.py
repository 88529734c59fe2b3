"""What the arms optimise, by value: gradients against plain PyTorch, the ledger against a count by hand."""

import copy
import json

import pytest
import torch

from data.corpus.rows import read_demonstrations, read_problems
from data.grading.grader import Grader
from data.language_model import load_model
from data.prompts.prompt import load_tokenizer, render_prompt
from recipes.errors import UserError
from recipes.files import read_json_lines
from recipes.loading import load_recipe
from recipes.training_schema import PromptSpec
from tests.paths import SMOKE
from tests.support.trainers import gradient_of, grpo_trainer, replace, sft_trainer
from train.accounting.ledger import COUNTERS, Ledger
from train.arms import resolve_arm
from train.rewards import Judge, RecordedReward

GROUP = 8


@pytest.fixture(scope="module")
def base(smoke_study):
    return load_tokenizer(str(smoke_study / "base")), load_model(smoke_study / "base", "float32")


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


def token_means(model, texts):
    """Means over the completion tokens, as TRL logs them."""
    entropies, right = [], []
    for prompt, completion in texts:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)
        entropies += (-(logprobs.exp() * logprobs).sum(-1)).tolist()
        right += (logits.argmax(-1) == torch.tensor(completion)).tolist()
    return {"entropy": sum(entropies) / len(entropies), "mean_token_accuracy": sum(right) / len(right)}


def settings_for(arm, *overrides):
    """The settings of a smoke arm with one update and no clipping."""
    return resolve_arm(load_recipe(SMOKE, ["train.steps=1", "train.max_grad_norm=1.0e+9", *overrides]), arm)


def record_samples(seen, judge):
    """A reward function that remembers what was sampled."""

    def reward(prompts, completions, completion_ids, **kwargs):
        seen["prompts"], seen["ids"] = prompts, completion_ids
        seen["rewards"] = [float(judge(n)) for n in range(len(completions))]
        return seen["rewards"]

    return reward


def prompt_rows(smoke_study, tokenizer, count):
    problems = read_problems(smoke_study / "corpus", "train")[:count]
    return [{"prompt": render_prompt(tokenizer, p.problem, PromptSpec())} for p in problems]


def sampled(tokenizer, seen):
    return [
        (tokenizer(prompt)["input_ids"], list(ids), reward)
        for prompt, ids, reward in zip(seen["prompts"], seen["ids"], seen["rewards"], strict=True)
    ]


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


TWO_GROUPS = ("train.problems_per_step=2", f"train.completions_per_problem={GROUP}")


@pytest.mark.parametrize("micro_batch", [2 * GROUP, GROUP])
def test_on_policy_sft_gradient_is_nll_on_the_correct_samples(base, smoke_study, tmp_path, micro_batch):
    tokenizer, model = base
    seen = {}
    settings = settings_for("on_policy_sft", *TWO_GROUPS, f"train.micro_batch_size={micro_batch}")
    reward = record_samples(seen, lambda n: n % 3 == 0)
    rows = prompt_rows(smoke_study, tokenizer, 2)
    trainer = grpo_trainer(settings, copy.deepcopy(model), tokenizer, rows, tmp_path, 5, reward)
    gradient = gradient_of(trainer)
    assert seen["prompts"] == [row["prompt"] for row in rows for _ in range(GROUP)]  # in the order presented
    texts = [(prompt, ids) for prompt, ids, reward in sampled(tokenizer, seen) if reward]
    assert len(texts) == 6
    assert relative_error(gradient, mean_nll_gradient(model, tokenizer, texts)) < 1e-4


@pytest.mark.parametrize("micro_batch", [2 * GROUP, GROUP])
def test_grpo_gradient_is_advantage_weighted_nll(base, smoke_study, tmp_path, micro_batch):
    """First group: rewards 1 0 0 0 1 0 0 0, mean 1/4, sample deviation sqrt(3/14). Second group: all 1, no weight."""
    tokenizer, model = base
    seen = {}
    settings = settings_for("grpo", *TWO_GROUPS, f"train.micro_batch_size={micro_batch}")
    reward = record_samples(seen, lambda n: n % 4 == 0 or n >= GROUP)
    rows = prompt_rows(smoke_study, tokenizer, 2)
    trainer = grpo_trainer(settings, copy.deepcopy(model), tokenizer, rows, tmp_path, 5, reward)
    gradient = gradient_of(trainer)
    deviation = (3 / 14) ** 0.5
    reference = copy.deepcopy(model).train()
    mixed = sampled(tokenizer, seen)[:GROUP]
    total = sum(len(ids) for _, ids, _ in mixed)  # the uniform group has no weight and is not divided by
    for prompt_ids, ids, reward in mixed:
        logprobs = reference(input_ids=torch.tensor([prompt_ids + ids])).logits[0].log_softmax(-1)
        nll = -sum(logprobs[len(prompt_ids) - 1 + n, token] for n, token in enumerate(ids))
        advantage = (reward - 0.25) / (deviation + 1e-4)
        (advantage * nll / total).backward()
    expected = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])
    assert relative_error(gradient, expected) < 1e-3


def test_batch_without_any_weight_leaves_the_weights_alone(base, smoke_study, tmp_path):
    tokenizer, model = base
    for arm, judge in (("on_policy_sft", lambda n: False), ("grpo", lambda n: True)):
        rows = prompt_rows(smoke_study, tokenizer, 2)
        reward = record_samples({}, judge)
        trainer = grpo_trainer(
            settings_for(arm, *TWO_GROUPS), copy.deepcopy(model), tokenizer, rows, tmp_path, 5, reward
        )
        assert not gradient_of(trainer).any()


@pytest.mark.parametrize("micro_batch", [4, 2, 1])
def test_sft_gradient_is_nll_on_completion_and_end_of_turn(base, smoke_study, tmp_path, micro_batch):
    """The first update reads the first four of eight rows, which differ in length, whatever the micro-batch."""
    tokenizer, model = base
    demonstrations = read_demonstrations(smoke_study / "corpus")
    rows = []
    for number, problem in enumerate(read_problems(smoke_study / "corpus", "train")[:8]):
        prompt = render_prompt(tokenizer, problem.problem, PromptSpec())
        completion = demonstrations[problem.problem_id][0].completion
        rows.append({"prompt": prompt, "completion": completion[number % 3 * 10 :]})
    texts = [
        (tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id])
        for row in rows[:4]
    ]
    assert len({len(completion) for _, completion in texts}) > 2
    settings = settings_for(
        "off_policy_sft", "train.problems_per_step=2", "train.completions_per_problem=2",
        f"train.micro_batch_size={micro_batch}",
    )  # fmt: skip
    trainer = sft_trainer(settings, copy.deepcopy(model), tokenizer, rows, tmp_path, 5)
    assert relative_error(gradient_of(trainer), mean_nll_gradient(model, tokenizer, texts)) < 1e-4


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("micro_batch", [8, 2, 1])
def test_filled_places_add_nothing(base, smoke_study, tmp_path, micro_batch, free):
    """Two problems of four places each, one with three demonstrations and one with two: the gradient is of the five."""
    tokenizer, model = base
    model = copy.deepcopy(model)
    demonstrations = read_demonstrations(smoke_study / "corpus")
    rows = []
    for problem, count in zip(read_problems(smoke_study / "corpus", "train")[:2], (3, 2), strict=True):
        prompt = render_prompt(tokenizer, problem.problem, PromptSpec())
        read = demonstrations[problem.problem_id][:count]
        rows += [{"prompt": prompt, "completion": row.completion} for row in read]
    texts = [
        (tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id])
        for row in rows
    ]
    rows += [{"prompt": rows[0]["prompt"], "completion": None}] * 3
    settings = settings_for(
        "off_policy_sft", "train.problems_per_step=2", "train.completions_per_problem=4",
        f"train.micro_batch_size={micro_batch}", f"train.padding_free={json.dumps(free)}",
    )  # fmt: skip
    trainer = sft_trainer(settings, copy.deepcopy(model), tokenizer, rows, tmp_path, 5)
    assert [len(row["input_ids"]) for row in trainer.train_dataset][5:] == [2, 2, 2]
    assert relative_error(gradient_of(trainer), mean_nll_gradient(model, tokenizer, texts)) < 1e-4
    logged = {name: trainer._metrics["train"][name] for name in ("entropy", "mean_token_accuracy")}
    assert logged == {name: [pytest.approx(value, rel=1e-4)] for name, value in token_means(model, texts).items()}


class Books:
    """Stands in for nothing: a real ledger in a temporary directory and a reward that writes to it."""

    def __init__(self, directory, **levers):
        self.ledger = Ledger(directory, 1000)
        settings = replace(settings_for("grpo"), completions_per_problem=2, **levers)
        self.reward = RecordedReward(Judge(Grader(), "boxed", settings, seed=0, stop_ids={0}), self.ledger)

    def call(self):
        completions = ["\\boxed{5}", "\\boxed{6}", "\\boxed{7}", "7"]
        ids = [[0] * 3, [0] * 4, [0] * 5, [0] * 6]
        golds, problems = ["5", "5", "8", "8"], ["a", "a", "b", "b"]
        return self.reward([""] * 4, completions, ids, golds, problems, [10, 10, 20, 20])


@pytest.mark.parametrize(
    ("levers", "trained", "contributed"),
    [
        ({"negatives": True, "beta": 0.0}, 3 + 4, ["a"]),  # the mixed group, right and wrong
        ({"negatives": False, "beta": 0.0}, 3, ["a"]),  # the better half of the mixed group
        ({"negatives": False, "beta": 0.0, "credit": "uniform"}, 3, ["a"]),  # the one correct completion
        ({"negatives": True, "beta": 0.1}, 3 + 4 + 5 + 6, ["a", "b"]),  # the KL term reaches every token
    ],
)
def test_reward_and_books_of_one_batch_by_hand(tmp_path, levers, trained, contributed):
    books = Books(tmp_path, **levers)
    assert books.call() == [1.0, 0.0, 0.0, 0.0]
    books.ledger.close_step(1)
    (row,) = read_json_lines(tmp_path / "ledger.jsonl")
    assert row["presented"] == ["a", "b"]
    assert row["contributed"] == contributed == books.ledger.problems("contributed")
    read = 60 + 18
    assert {name: row[name] for name in COUNTERS} == {
        "exposures": 2,
        "completions": 4,
        "correct_completions": 1,
        "prompt_tokens": 60,
        "generated_tokens": 18,
        "trained_tokens": trained,
        "generate_flops": 2 * 1000 * read,
        "reference_flops": 2 * 1000 * read if levers["beta"] else 0,
        "train_flops": 6 * 1000 * read,
    }


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
    """4 updates x 8 problems x 4 completions; ids as presented; tokens against the corpus."""
    presented = {}
    for arm in ("off_policy_sft", "on_policy_sft", "grpo"):
        rows = read_json_lines(smoke_study / "arms" / arm / "seed-0" / "ledger.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert rows[-1]["exposures"] == 32
        assert rows[-1]["completions"] == 128 or arm == "off_policy_sft"
        presented[arm] = [row["presented"] for row in rows]
    assert presented["off_policy_sft"] == presented["on_policy_sft"] == presented["grpo"]
    demonstrations = read_demonstrations(smoke_study / "corpus")
    sft = read_json_lines(smoke_study / "arms" / "off_policy_sft" / "seed-0" / "ledger.jsonl")
    expected = read = 0
    for ids in presented["off_policy_sft"]:
        for identity in ids:
            correct = [row for row in demonstrations[identity] if row.grade == "correct"]
            expected += sum(row.tokens for row in correct[:4])
            read += len(correct[:4])
    assert sft[-1]["trained_tokens"] == expected
    assert sft[-1]["completions"] == sft[-1]["correct_completions"] == read < 128  # some have fewer than four
    parameters = json.loads((smoke_study / "base" / "manifest.json").read_text())["facts"]["parameters"]
    assert sft[-1]["train_flops"] == 6 * parameters * (expected + sft[-1]["prompt_tokens"])


def test_ledger_continues_from_a_checkpoint(tmp_path):
    ledger = Ledger(tmp_path, 10)
    for step in (1, 2, 3):
        ledger.spend(presented=[f"p{step}"], exposures=1, generated_tokens=10)
        ledger.skipped_tokens += 3
        ledger.close_step(step)
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"step": 4, "expo')  # killed while writing
    resumed = Ledger(tmp_path, 10, resumed_step=2)
    assert (resumed.totals["generated_tokens"], resumed.skipped_tokens) == (20, 6)
    resumed.spend(presented=["p3"], exposures=1, generated_tokens=7)
    resumed.close_step(3)
    rows = read_json_lines(tmp_path / "ledger.jsonl")
    assert [(row["step"], row["presented"], row["generated_tokens"]) for row in rows] == [
        (1, ["p1"], 10),
        (2, ["p2"], 20),
        (3, ["p3"], 27),
    ]


def test_ledger_that_lost_rows_is_refused(tmp_path):
    ledger = Ledger(tmp_path, 10)
    ledger.spend(presented=["p1"], exposures=1)
    ledger.close_step(1)
    with pytest.raises(UserError, match="has lost rows: it must reach step 2"):
        Ledger(tmp_path, 10, resumed_step=2)
