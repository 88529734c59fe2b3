"""The levers of the unified loss, by value: who wrote the completions, how they are weighted, KL, reward, start."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from data.corpus.rows import Demonstration, Problem, read_demonstrations, read_problems
from data.grading.grader import Grade, Outcome
from data.language_model import generate_ids, load_model
from data.prompts.prompt import load_tokenizer, render_prompt
from launch.stages import build_stages
from recipes.errors import UserError
from recipes.files import read_json_lines
from recipes.loading import load_recipe
from recipes.manifest import read_manifest, start_stage
from recipes.training_schema import PromptSpec
from tests.paths import RECIPES
from tests.support.trainers import gradient_of, grpo_trainer, replace, sft_trainer
from train import grpo, sft
from train.accounting.ledger import Ledger
from train.arms import resolve_arm
from train.rewards import reward_of
from train.rollouts import PolicyRollouts, TeacherRollouts

GROUP = 4
DECODING = {"max_new_tokens": 24, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


@pytest.fixture(scope="module")
def base(smoke_study):
    return load_tokenizer(str(smoke_study / "base")), load_model(smoke_study / "base", "float32")


@pytest.fixture(scope="module")
def problems(smoke_study):
    return read_problems(smoke_study / "corpus", "train")


def settings_for(arm, **changes):
    """Settings of an ablation arm at the smoke size: two problems of four completions, one update, no clipping."""
    recipe = load_recipe(RECIPES / "pocket" / "ablation.yaml", ["train.max_grad_norm=1.0e+9"])
    small = {"steps": 1, "problems_per_step": 2, "completions_per_problem": GROUP, "micro_batch_size": 2 * GROUP}
    return replace(resolve_arm(recipe, arm), **(small | {"schedule": "constant", "warmup_steps": 0} | changes))


def logprobs_of(model, prompt, completion):
    """Log-probabilities of the completion's tokens, with a gradient."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return torch.stack([logits[len(prompt) - 1 + place, token] for place, token in enumerate(completion)])


def weighted_gradient(model, rows, weights):
    """Gradient of the weighted negative log-likelihood over the tokens whose weight is not zero."""
    model = copy.deepcopy(model).train()
    total = sum(len(ids) for (_, ids), weight in zip(rows, weights, strict=True) if weight)
    for (prompt, ids), weight in zip(rows, weights, strict=True):
        if weight:
            (-weight * logprobs_of(model, prompt, ids).sum() / total).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


def record(seen, judge):
    def reward(prompts, completions, completion_ids, **columns):
        seen["texts"], seen["ids"] = completions, [list(ids) for ids in completion_ids]
        seen["rewards"] = [float(judge(place)) for place in range(len(completions))]
        return seen["rewards"]

    return reward


def advantages_by_hand(rewards):
    """(reward - mean) / (sample deviation + 1e-4) within each group: Shao et al. 2024, arXiv 2402.03300, as in TRL."""
    found = []
    for start in range(0, len(rewards), GROUP):
        group = torch.tensor(rewards[start : start + GROUP])
        found += ((group - group.mean()) / (group.std() + 1e-4)).tolist()
    return found


def rows_of(tokenizer, problems, count=2):
    return [
        {
            "prompt": render_prompt(tokenizer, p.problem, PromptSpec()),
            "problem_id": p.problem_id,
            "reference_answer": p.reference_answer,
        }
        for p in problems[:count]
    ]


def test_positive_only_keeps_the_better_half(base, problems, tmp_path):
    tokenizer, model = base
    seen, rows = {}, rows_of(tokenizer, problems)
    reward = record(seen, lambda place: place % 3 == 0)
    trainer = grpo_trainer(settings_for("grpo_positive"), copy.deepcopy(model), tokenizer, rows, tmp_path, 1, reward)
    gradient = gradient_of(trainer)
    weights = [max(0.0, value) for value in advantages_by_hand(seen["rewards"])]
    assert sum(weight > 0 for weight in weights) == 3
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows for _ in range(GROUP)]
    expected = weighted_gradient(model, list(zip(prompts, seen["ids"], strict=True)), weights)
    assert relative_error(gradient, expected) < 1e-3


def test_off_policy_rl_learns_from_the_stored_completions_right_and_wrong(base, problems, smoke_study, tmp_path):
    tokenizer, model = base
    chosen = problems[:2]
    texts = ["\\boxed{1}", "then 2+2=4", "and then \\boxed{7}", "cut off"]
    stored = {
        p.problem_id: [
            Demonstration(p.problem_id, f"{text} {n}", "", "t", n, "wrong", 9, text != "cut off")
            for n, text in enumerate(texts)
        ]
        for p in chosen
    }
    settings = settings_for("off_policy_rl")
    rollouts = TeacherRollouts(chosen, stored, tokenizer, settings)
    seen, rows = {}, rows_of(tokenizer, problems)
    reward = record(seen, lambda place: place in (0, 5))
    trainer = grpo_trainer(settings, copy.deepcopy(model), tokenizer, rows, tmp_path, 1, reward, (), rollouts)
    gradient = gradient_of(trainer)
    # Three of the four were finished. The fourth row holds an end of turn alone and is no part of its group.
    expected_texts = [*(f"{text} {n}" for n, text in enumerate(texts[:3])), ""] * 2
    assert [text.replace("<|im_end|>", "") for text in seen["texts"]] == expected_texts
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in expected_texts]
    assert seen["ids"] == ids
    deviation = (1 / 3) ** 0.5  # of the rewards 1 0 0 and 0 1 0
    high, low = (2 / 3) / (deviation + 1e-4), (-1 / 3) / (deviation + 1e-4)
    by_hand = [high, low, low, 0.0, low, high, low, 0.0]
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows for _ in range(GROUP)]
    assert relative_error(gradient, weighted_gradient(model, list(zip(prompts, ids, strict=True)), by_hand)) < 1e-3


def test_teacher_rollouts_go_on_where_the_exposure_before_stopped(base):
    tokenizer, _ = base
    one, two = (Problem(name, name, "1", "s", None, "train", True, None) for name in ("one", "two"))
    stored = {
        name: [Demonstration(name, f"{name} {n}", "", "t", n, "correct", 9, True) for n in range(3)]
        for name in ("one", "two")
    }
    settings = settings_for("off_policy_rl", problems_per_step=1, completions_per_problem=2)
    rollouts = TeacherRollouts([one, two, one], stored, tokenizer, settings)
    texts = [[tokenizer.decode(ids[:-1]) for ids in rollouts.completions(step, None)] for step in range(3)]
    assert texts == [["one 0", "one 1"], ["two 0", "two 1"], ["one 2", "one 0"]]
    # Presented twice in one update, with three samples: the fourth row has none.
    twice = TeacherRollouts([one, one], stored, tokenizer, replace(settings, problems_per_step=2))
    texts = [tokenizer.decode(ids[:-1]) for ids in twice.completions(0, None)]
    assert (texts, twice.surplus(0)) == (["one 0", "one 1", "one 2", ""], [False, False, False, True])
    with pytest.raises(UserError, match=r"problem one has no demonstration .* set corpus\.problem_set="):
        TeacherRollouts([one], {}, tokenizer, settings)


def test_beta_adds_exactly_the_kl_term(base, problems, tmp_path):
    """Gradient with beta minus gradient without = beta x gradient of the mean k3 estimate (Schulman 2020), as in TRL.

    TRL multiplies the estimate by the importance ratio, which is 1 but has a gradient (bias correction of the KL).
    """
    tokenizer, model = base
    policy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from the reference, else the KL term is zero
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    gradients, seen, rows = {}, {}, rows_of(tokenizer, problems)
    for beta in (0.0, 0.5):
        settings = replace(settings_for("grpo_kl"), beta=beta)
        reward = record(seen, lambda place: place % 2)  # every group mixed: the same tokens count in both
        torch.manual_seed(3)
        trainer = grpo_trainer(settings, copy.deepcopy(policy), tokenizer, rows, tmp_path / str(beta), 1, reward)
        gradients[beta] = gradient_of(trainer)
        ids = seen["ids"]
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows for _ in range(GROUP)]
    expected = copy.deepcopy(policy).train()
    total = sum(map(len, ids))
    for prompt, completion in zip(prompts, ids, strict=True):
        policy_logprobs = logprobs_of(expected, prompt, completion)
        with torch.no_grad():
            reference = logprobs_of(model, prompt, completion)
        difference = reference - policy_logprobs
        k3 = difference.exp() - difference - 1
        (0.5 * (k3 * (policy_logprobs - policy_logprobs.detach()).exp()).sum() / total).backward()
    kl = torch.cat([p.grad.flatten() for p in expected.parameters() if p.grad is not None])
    assert float(kl.norm()) > 1e-3
    assert relative_error(gradients[0.5] - gradients[0.0], kl) < 1e-3


def test_rewards_by_hand():
    import random

    right, wrong, none = Grade(Outcome.CORRECT, "1"), Grade(Outcome.WRONG, "2"), Grade(Outcome.NO_ANSWER, None)
    coin = random.Random(0)
    assert [reward_of(grade, "correct", coin) for grade in (right, wrong, none)] == [1.0, 0.0, 0.0]
    assert [reward_of(grade, "format", coin) for grade in (right, wrong, none)] == [1.0, 1.0, 0.0]
    tossed = [reward_of(right, "random", random.Random(n)) for n in range(200)]
    assert 70 < sum(tossed) < 130
    assert tossed == [reward_of(wrong, "random", random.Random(n)) for n in range(200)]


def policy_rollouts(tokenizer, rows, directory, ledger, round_steps):
    order = [(row["problem_id"], row["prompt"]) for row in rows]
    settings = settings_for("grpo", problems_per_step=2, completions_per_problem=GROUP, round_steps=round_steps)
    return PolicyRollouts(order, tokenizer, directory, ledger, settings, seed=5)


def drawing(model, tokenizer):
    """Groups of completions for prompts, as the trainer draws them."""

    def draw(prompts, seed):
        repeated = [prompt for prompt in prompts for _ in range(GROUP)]
        rows = generate_ids(model, tokenizer, repeated, seed=seed, **DECODING)
        return [rows[start : start + GROUP] for start in range(0, len(rows), GROUP)]

    return draw


def test_samples_of_the_base_are_drawn_once(base, problems, tmp_path):
    tokenizer, model = base
    rows = rows_of(tokenizer, problems, 4)
    rows = rows + rows[2:] + rows[:2]  # every problem twice
    ledger = Ledger(tmp_path, 1000)
    rollouts = policy_rollouts(tokenizer, rows, tmp_path, ledger, None)
    first = [rollouts.completions(step, drawing(model, tokenizer)) for step in range(2)]
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.lm_head.weight.mul_(-1)
    assert (
        rollouts.completions(2, drawing(changed, tokenizer)) == first[1]
    )  # the same groups, whatever the policy has become
    assert rollouts.completions(3, drawing(changed, tokenizer)) == first[0]
    seed = (5 * 1_000_003) % 2**31
    prompts = [row["prompt"] for row in rows[:2] for _ in range(GROUP)]
    assert first[0] == generate_ids(model, tokenizer, prompts, seed=seed, **DECODING)
    # Spent once, and again after a kill in the first update, not after a later one.
    tokens = sum(len(ids) for group in first for ids in group)
    assert ledger.totals["generated_tokens"] == tokens
    again = policy_rollouts(tokenizer, rows, tmp_path, ledger, None)
    assert again.completions(2, drawing(changed, tokenizer)) == first[1]
    assert ledger.totals["generated_tokens"] == tokens


def test_round_samples_come_from_the_policy_at_its_beginning(base, problems, tmp_path):
    tokenizer, model = base
    rows = rows_of(tokenizer, problems, 8)
    ledger = Ledger(tmp_path, 1000)
    rollouts = policy_rollouts(tokenizer, rows, tmp_path, ledger, 2)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.3)
    drawn = [rollouts.completions(0, drawing(model, tokenizer)), rollouts.completions(1, drawing(changed, tokenizer))]
    drawn += [rollouts.completions(2, drawing(changed, tokenizer)), rollouts.completions(3, drawing(model, tokenizer))]
    for step, (number, policy) in enumerate([(0, model), (0, model), (1, changed), (1, changed)]):
        seed = (5 * 1_000_003 + number * 10_007 + 2 * (step % 2)) % 2**31
        prompts = [row["prompt"] for row in rows[2 * step : 2 * step + 2] for _ in range(GROUP)]
        assert drawn[step] == generate_ids(policy, tokenizer, prompts, seed=seed, **DECODING)
    # Resumed in the middle of the second round with other weights: what was drawn is read again.
    resumed = policy_rollouts(tokenizer, rows, tmp_path, Ledger(tmp_path / "other", 1000), 2)
    assert resumed.completions(3, drawing(model, tokenizer)) == drawn[3]


def trained(trainer, directory):
    trainer.train()
    history = [
        {k: v for k, v in row.items() if k in ("loss", "grad_norm", "reward")} for row in trainer.state.log_history
    ]
    return history, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def assert_same(results, model):
    """Same losses, rewards and weights but for rounding: rows of similar length share a micro-batch in ours alone."""
    (ours, own), (plain, theirs) = results
    for left, right in zip(ours, plain, strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-6)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert float((own - theirs).norm() / (theirs - start).norm()) < 1e-3


@pytest.mark.parametrize("updates_per_batch", [1, 2])
def test_grpo_divided_by_all_tokens_is_plain_trl_step_for_step(base, problems, tmp_path, updates_per_batch):
    tokenizer, model = base
    rows = rows_of(tokenizer, problems, 8)
    settings = settings_for(
        "grpo", steps=4, loss_normalisation="all_tokens", learning_rate=1e-3, max_grad_norm=1.0,
        updates_per_batch=updates_per_batch,
    )  # fmt: skip
    results = []
    for name in ("ours", "plain"):
        reward = record({}, lambda place: place in (0, 1, 5))
        torch.manual_seed(11)
        if name == "ours":
            trainer = grpo_trainer(settings, copy.deepcopy(model), tokenizer, rows, tmp_path / name, 7, reward)
        else:
            trainer = GRPOTrainer(
                model=copy.deepcopy(model),
                args=GRPOConfig(
                    output_dir=str(tmp_path / name), seed=7, max_steps=4, per_device_train_batch_size=2 * GROUP,
                    learning_rate=1e-3, lr_scheduler_type="constant_with_warmup", adam_beta2=settings.adam_beta2,
                    weight_decay=settings.weight_decay, bf16=False, use_cpu=True, gradient_checkpointing=False,
                    dataloader_pin_memory=False, logging_steps=1, report_to=[], disable_tqdm=True, save_strategy="no",
                    num_generations=GROUP, steps_per_generation=updates_per_batch, max_completion_length=64, top_k=0,
                    shuffle_dataset=False,
                ),
                reward_funcs=reward, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
            )  # fmt: skip
        results.append(trained(trainer, tmp_path / name))
    assert len(results[0][0]) >= 3
    assert_same(results, model)


def test_sft_is_plain_trl_step_for_step(base, problems, smoke_study, tmp_path):
    tokenizer, model = base
    demonstrations = read_demonstrations(smoke_study / "corpus")
    completions = [demonstrations[p.problem_id][0].completion for p in problems[:24]]
    rows = [
        {"prompt": row["prompt"], "completion": completion}
        for row, completion in zip(rows_of(tokenizer, problems, 24), completions, strict=True)
    ]
    settings = settings_for("off_policy_sft", steps=3, learning_rate=1e-3, max_grad_norm=1.0)
    ours = sft_trainer(settings, copy.deepcopy(model), tokenizer, rows, tmp_path / "ours", 7)
    plain = SFTTrainer(
        model=copy.deepcopy(model),
        args=SFTConfig(
            output_dir=str(tmp_path / "plain"), seed=7, max_steps=3, per_device_train_batch_size=2 * GROUP,
            learning_rate=1e-3, lr_scheduler_type="constant_with_warmup", adam_beta2=settings.adam_beta2,
            weight_decay=settings.weight_decay, bf16=False, use_cpu=True, gradient_checkpointing=False,
            dataloader_pin_memory=False, logging_steps=1, report_to=[], disable_tqdm=True, save_strategy="no",
            max_length=None, train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
    )  # fmt: skip
    assert_same([trained(trainer, tmp_path) for trainer in (ours, plain)], model)


ARMS = list(load_recipe(RECIPES / "pocket" / "ablation.yaml").arms)
FAST = [
    "train.steps=4",
    "train.problems_per_step=4",
    "train.save_every_steps=2",
    "arms.self_distillation_rounds.round_steps=2",
]


@pytest.fixture(scope="module")
def ablation(smoke_study, tmp_path_factory):
    """Directory with the smoke study's base and corpus, and the ablation recipe at the smallest size."""
    study = tmp_path_factory.mktemp("ablation")
    for name in ("base", "corpus"):
        (study / name).symlink_to(smoke_study / name)
    return study, load_recipe(RECIPES / "pocket" / "ablation.yaml", FAST)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_of_the_ablation_trains(ablation, smoke_study, arm):
    study, recipe = ablation
    (stage,) = [stage for stage in build_stages(recipe) if stage.name == f"arms/{arm}/seed-0"]
    directory = study / stage.name
    start_stage(directory, stage.name, {})
    module = {"sft": sft, "grpo": grpo}[stage.trainer]
    module.run(recipe, study, directory, False, **stage.arguments)
    rows = read_json_lines(directory / "ledger.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["exposures"] == 16
    facts = read_manifest(directory)["facts"]
    assert facts["matched_on"]["sampling"] == recipe.arms[arm].sampling
    sampled = recipe.arms[arm].sampling in ("current", "round", "base_once")
    assert (rows[-1]["generated_tokens"] > 0) == sampled
    if recipe.arms[arm].sampling == "base_once":
        assert rows[0]["generated_tokens"] == rows[-1]["generated_tokens"]
    if recipe.arms[arm].sampling == "round":
        assert rows[0]["generated_tokens"] == rows[1]["generated_tokens"] < rows[2]["generated_tokens"]
    before = study / "arms" / "off_policy_sft" / "seed-0" / "final" if arm == "sft_then_grpo" else study / "base"
    moved = (directory / "final" / "model.safetensors").read_bytes() != (before / "model.safetensors").read_bytes()
    assert moved == (rows[-1]["trained_tokens"] > 0)


@pytest.mark.parametrize(("limit", "cut", "rewarded"), [(64, 0, True), (2, 1, False)])
def test_a_run_knows_which_completions_have_an_end(ablation, tmp_path, limit, cut, rewarded):
    """Coins for all completions that ended, which none of two tokens does."""
    study, _ = ablation
    own = f"{{max_prompt_tokens: 64, max_completion_tokens: {limit}}}"
    lever = ["train.require_finished=true", "arms.grpo.reward=random", f"arms.grpo.prompt={own}", "unmatched=stamp"]
    recipe = load_recipe(RECIPES / "pocket" / "ablation.yaml", [*FAST, *lever])
    start_stage(tmp_path, "arms/grpo/seed-0", {})
    grpo.run(recipe, study, tmp_path, False, "grpo", recipe.seeds[0])
    row = read_json_lines(tmp_path / "metrics.jsonl")[0]
    assert (row["completions/clipped_ratio"], row["reward"] > 0) == (cut, rewarded)


def test_arm_that_starts_from_another_needs_it_first():
    recipe = load_recipe(RECIPES / "pocket" / "ablation.yaml")
    stages = {stage.name: stage for stage in build_stages(recipe)}
    assert stages["arms/sft_then_grpo/seed-0"].needs == ("base", "corpus", "arms/off_policy_sft/seed-0")
    assert json.dumps(recipe.dump())
