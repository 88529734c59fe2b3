"""The weights of `train/weights.py` by hand. Trainer and ledger have them on the same completions; values are TRL's."""

import copy

import pytest

from data.corpus.rows import Demonstration, read_problems
from data.grading.grader import Grade, Outcome
from data.language_model import load_model
from data.prompts.prompt import load_tokenizer, render_prompt
from recipes.loading import load_recipe
from recipes.training_schema import PromptSpec
from tests.paths import SMOKE
from tests.support.trainers import grpo_trainer, replace
from train.accounting.ledger import Ledger
from train.arms import resolve_arm
from train.rewards import Judge, RecordedReward
from train.rollouts import TeacherRollouts
from train.weights import completion_weights, has_gradient, is_divided_by

ARMS = {
    "uniform": {"credit": "uniform", "negatives": False, "beta": 0.0},
    "advantage": {"credit": "advantage", "negatives": True, "beta": 0.0},
    "positive": {"credit": "advantage", "negatives": False, "beta": 0.0},
    "kl": {"credit": "advantage", "negatives": True, "beta": 0.1},
}


def arm_for(name, **changes):
    small = {"steps": 1, "problems_per_step": 1, "micro_batch_size": None}
    return replace(resolve_arm(load_recipe(SMOKE), "grpo"), **(small | ARMS[name] | changes))


# Sample deviations: of 1 0.5 0 0.5: sqrt(1/6); of 0 0 0 -0.5: 1/4; of 1 0 0: sqrt(1/3).
@pytest.mark.parametrize(
    ("arm", "rewards", "weights"),
    [
        ("uniform", [1.0, 0.5, 0.0, -0.5], [1, 1, 0, 0]),  # a correct one with a punishment of 1 has no weight
        ("uniform", [0.0, 0.0, 0.0, -0.5], [0, 0, 0, 0]),
        ("advantage", [1.0, 0.5, 0.0, 0.5], [0.5 / (6**-0.5 + 1e-4), 0, -0.5 / (6**-0.5 + 1e-4), 0]),
        ("positive", [1.0, 0.5, 0.0, 0.5], [0.5 / (6**-0.5 + 1e-4), 0, 0, 0]),
        ("advantage", [0.0, 0.0, 0.0, -0.5], [0.125 / 0.2501] * 3 + [-0.375 / 0.2501]),
        ("positive", [0.0, 0.0, 0.0, -0.5], [0.125 / 0.2501] * 3 + [0]),
        ("advantage", [0.3, 0.3, 0.3, 0.3], [0, 0, 0, 0]),
        ("advantage", [1.0, 0.0, 0.0, None], [2 / 3 / (3**-0.5 + 1e-4), *[-1 / 3 / (3**-0.5 + 1e-4)] * 2, 0]),
        ("advantage", [1.0, None, None, None], [0, 0, 0, 0]),
    ],
)
def test_weights_by_hand(arm, rewards, weights):
    assert completion_weights(rewards, arm_for(arm, completions_per_problem=4)) == pytest.approx(weights)


def test_what_has_a_gradient_and_what_the_loss_is_divided_by():
    rewards, weights = [1.0, 0.5, 0.0, None], [1.2, 0.0, -1.2, 0.0]
    plain, kl = arm_for("advantage"), arm_for("kl")
    assert has_gradient(rewards, weights, plain) == is_divided_by(rewards, weights, plain) == [True, False, True, False]
    assert has_gradient(rewards, weights, kl) == is_divided_by(rewards, weights, kl) == [True, True, True, False]
    everything = replace(plain, loss_normalisation="all_tokens")
    assert has_gradient(rewards, weights, everything) == [True, False, True, False]
    assert is_divided_by(rewards, weights, everything) == [True, True, True, False]


def test_trls_values_are_kept_where_the_rewards_differ_from_the_mean():
    """The rewards say which are zero; the values of the others are those given, not the +-1.22 computed here."""
    trl = [1.5, 3e-4, -1.5, 3e-4]
    assert completion_weights([1.0, 0.5, 0.0, 0.5], arm_for("advantage"), trl) == [1.5, 0.0, -1.5, 0.0]


class GradeByText:
    def grade_many(self, completions, references, form, limit_seconds):
        return [Grade(Outcome.CORRECT if "yes" in text else Outcome.WRONG, "1") for text in completions]


def test_a_completion_without_an_end_has_no_reward_where_one_is_required():
    """Correct ones: of 2, 60 and 64 of 64 tokens, the last two punished by 4/8 and by 1, and one cut after 3."""
    ids = [[5, 2], [5] * 59 + [2], [5] * 64, [5] * 3]
    found = []
    for required in (False, True):
        arm = arm_for("advantage", overlong_tokens=8, require_finished=required)
        grades, rewards = Judge(GradeByText(), "boxed", arm, 0, stop_ids={1, 2})(0, ["yes"] * 4, ids, ["1"] * 4)
        assert all(grade.correct for grade in grades)
        found.append(rewards)
    assert found == [[1.0, 0.5, 0.0, 1.0], [1.0, 0.5, -1.0, 0.0]]


@pytest.fixture(scope="module")
def base(smoke_study):
    return load_tokenizer(str(smoke_study / "base")), load_model(smoke_study / "base", "float32")


LONG = 44  # tokens, of 64 with a buffer of 40: a punishment of (64 - 40 - 44) / 40 = -0.5
# Correct short, correct long, wrong short, wrong long: rewards 1, 0.5, 0, -0.5.
LENGTHS = {"C": 10, "c": LONG, "W": 12, "w": LONG}


def completion(tokenizer, kind, index):
    """Text whose ids, with the end of the turn, are `LENGTHS[kind]`, different for every index."""
    text = ("yes" if kind in "Cc" else "no") + f" {index}"
    while len(tokenizer(text)["input_ids"]) < LENGTHS[kind] - 1:
        text += " 1" if len(tokenizer(text + " 1")["input_ids"]) < LENGTHS[kind] else "1"
    assert len(tokenizer(text)["input_ids"]) == LENGTHS[kind] - 1
    return text


# Completions of a group, and how many of its tokens have a gradient: correct by count.
@pytest.mark.parametrize(
    ("group", "arm", "tokens"),
    [
        ("CcWc", "uniform", 10 + 2 * LONG),
        ("CcWc", "advantage", 10 + 12),  # the two long correct ones equal the mean of 0.5
        ("CcWc", "positive", 10),
        ("CcWc", "kl", 10 + 12 + 2 * LONG),
        ("WWWw", "uniform", 0),
        ("WWWw", "advantage", 3 * 12 + LONG),  # a long wrong completion makes the group mixed
        ("WWWw", "positive", 3 * 12),
        ("WWWw", "kl", 3 * 12 + LONG),
        ("wwwwww", "advantage", 0),
        ("CWW", "advantage", 10 + 2 * 12),  # of four rows the last holds no completion
        ("CWW", "kl", 10 + 2 * 12),
        ("CWW", "uniform", 10),
    ],
)
def test_trainer_and_ledger_agree(base, smoke_study, tmp_path, group, arm, tokens):
    tokenizer, model = base
    settings = arm_for(
        arm, sampling="teacher", completions_per_problem=max(4, len(group)), overlong_tokens=40,
        prompt=PromptSpec(max_prompt_tokens=64, max_completion_tokens=64),
    )  # fmt: skip
    problem = read_problems(smoke_study / "corpus", "train")[0]
    texts = [completion(tokenizer, kind, index) for index, kind in enumerate(group)]
    samples = [Demonstration(problem.problem_id, text, "", "t", n, "wrong", 9, True) for n, text in enumerate(texts)]
    rollouts = TeacherRollouts([problem], {problem.problem_id: samples}, tokenizer, settings)
    ledger = Ledger(tmp_path, 10)
    reward = RecordedReward(Judge(GradeByText(), "boxed", settings, 0, stop_ids={0}), ledger, surplus=rollouts.surplus)
    row = {
        "prompt": render_prompt(tokenizer, problem.problem, settings.prompt),
        "reference_answer": "1",
        "problem_id": problem.problem_id,
        "prompt_tokens": 7,
    }
    trainer = grpo_trainer(settings, copy.deepcopy(model), tokenizer, [row], tmp_path, 1, reward, (), rollouts)
    batch = trainer._generate_and_score_completions([row] * settings.completions_per_problem)
    rewards = [{"C": 1.0, "c": 0.5, "W": 0.0, "w": -0.5}[kind] for kind in group]
    rewards += [None] * (settings.completions_per_problem - len(group))
    weights = completion_weights(rewards, settings)  # as the ledger computes them
    assert batch["advantages"].tolist() == pytest.approx(weights, abs=1e-5)  # TRL's, on its `scale_rewards`
    assert [value == 0 for value in batch["advantages"].tolist()] == [weight == 0 for weight in weights]
    assert int(batch["completion_mask"].sum()) == ledger.totals["trained_tokens"] == tokens
    assert int(batch["num_items_in_batch"]) == max(1, tokens)
    assert ledger.totals["completions"] == len(group)
    assert ledger.totals["prompt_tokens"] == 7 * len(group)
    ledger.close_step(1)
    assert ledger.problems("contributed") == ([problem.problem_id] if tokens else [])
