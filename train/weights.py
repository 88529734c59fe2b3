"""The weight of each completion in the loss of arms with rewards.

Every arm minimises, over the completions i of a step,

    L = - sum_i w_i * log p(completion_i | prompt_i) / T,      T = sum of tokens_i over the completions with w_i != 0

where log p is summed over the tokens of a completion. Arms differ in who wrote the completions (`train/rollouts.py`)
and in the weights, which follow from the rewards r_i of a group:

    credit: uniform                       w_i = 1 if r_i > 0, else 0
    credit: advantage                     w_i = max(0, A_i)        A_i = (r_i - mean(r)) / (std(r) + 1e-4)
    credit: advantage, negatives: true    w_i = A_i

SFT on a teacher's correct solutions has w_i = 1 throughout. It has no rewards, so `train/sft.py` does not ask this
module: its weight is the mask of its labels, and its T counts the tokens of that mask.

Which weights are zero is decided here, by the rewards, for the trainer and for the ledger. The values of the others are
TRL's where they are advantages: the trainer is given those that TRL has computed, in float32, so that a GRPO weight is
TRL's to the last bit. The ledger counts which weights are not zero and reads no values, so it computes its own A_i.

A_i is GRPO's group-normalised advantage (Shao et al. 2024, arXiv 2402.03300, Sec. 4.1.2), with the sample standard
deviation and the epsilon of TRL's `scale_rewards: "group"`; Dr. GRPO (Liu et al. 2025, arXiv 2503.20783) would leave
the deviation out. One division by the tokens of a whole step is DAPO's (Yu et al. 2025, arXiv 2503.14476, Sec. 3.3),
but DAPO counts all tokens in T, also those without a weight: `loss_normalisation: all_tokens`. With `beta` above 0 the
KL term, which every token has, is added with the same T, which then counts all tokens. Where several steps share a
generation batch, PPO's clipped importance ratio replaces log p.

A reward of None marks a row that holds no completion to learn from (`TeacherRollouts.surplus`). It is left out of its
group's mean and deviation, its weight is 0 and T does not count it.
"""

from collections.abc import Sequence
from statistics import fmean, stdev

from train.arms import ResolvedArm

Rewards = Sequence[float | None]

_EPSILON = 1e-4  # as in TRL
# A reward this close to its group's mean has advantage 0. Computed in float32, as TRL does, the advantage of a reward
# that equals the mean may be up to 1e-3 instead, because the rounding error is divided by epsilon. Rewards other than 0
# and 1 come from the overlong punishment, in steps of 1 / overlong_tokens, so differences from the mean are larger.
_SAME_REWARD = 2.5e-7


def completion_weights(rewards: Rewards, arm: ResolvedArm, advantages: Sequence[float] | None = None) -> list[float]:
    """Weight w_i of each completion.

    Args:
        rewards: one per completion of the step, of all ranks, [problems * completions_per_problem], grouped by
            problem.
        arm: its credit, negatives and group size.
        advantages: TRL's, of the same completions: the values of those that are not zero by the rewards. None: A_i as
            computed here, which differs from TRL's by rounding.
    """
    if arm.credit == "uniform":
        return [float(reward is not None and reward > 0) for reward in rewards]
    size = arm.completions_per_problem
    weights = [
        value for start in range(0, len(rewards), size) for value in group_advantages(rewards[start : start + size])
    ]
    if advantages is not None:
        weights = [0.0 if own == 0 else given for own, given in zip(weights, advantages, strict=True)]
    return weights if arm.negatives else [max(0.0, weight) for weight in weights]


def group_advantages(group: Rewards) -> list[float]:
    """A_i of the completions of one group; 0 for a reward that equals the mean, and for all in a group of one."""
    present = [reward for reward in group if reward is not None]
    if len(present) < 2:
        return [0.0] * len(group)
    mean, deviation = fmean(present), stdev(present)
    differences = [0.0 if reward is None else reward - mean for reward in group]
    return [0.0 if abs(value) < _SAME_REWARD else value / (deviation + _EPSILON) for value in differences]


def has_gradient(rewards: Rewards, weights: Sequence[float], arm: ResolvedArm) -> list[bool]:
    """Whether each completion contributes to the gradient: by its weight, or by the KL term."""
    return [
        reward is not None and (weight != 0 or arm.beta > 0) for reward, weight in zip(rewards, weights, strict=True)
    ]


def is_divided_by(rewards: Rewards, weights: Sequence[float], arm: ResolvedArm) -> list[bool]:
    """Whether T counts the tokens of each completion."""
    if arm.loss_normalisation == "all_tokens":
        return [reward is not None for reward in rewards]
    return has_gradient(rewards, weights, arm)
