"""Rewards of the GRPO trainer.

`Judge` grades completions and rewards them. `RecordedReward` is the reward function that TRL calls with a generation
batch: it asks the judge, enters the batch in the ledger and logs outcomes and samples.
"""

import random
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from data.grading.grader import AnswerForm, Grade, Grader, Outcome
from train.accounting.ledger import Completion, Ledger
from train.arms import ResolvedArm
from train.runtime.ranks import gathered, rank
from train.runtime.tracking import Tracker
from train.weights import Rewards, completion_weights, has_gradient

_SHOWN = ("problem_id", "reference_answer", "completion", "outcome", "reward")
_EARLY_BATCHES = 5
_GRADE_SECONDS = 120.0  # per batch; the other ranks wait, and their collective times out after minutes


def overlong_punishment(length: int, limit: int, buffer: int) -> float:
    """Soft overlong punishment: 0 to -1 over the last `buffer` tokens before the limit (DAPO, arXiv 2503.14476)."""
    return 0.0 if not buffer else min(0.0, (limit - buffer - length) / buffer)


def reward_of(grade: Grade, kind: str, coin: random.Random) -> float:
    """1 or 0. `kind` "correct": is it correct; "format": has it any final answer; "random": a coin flip."""
    if kind == "random":
        return float(coin.random() < 0.5)
    if kind == "format":
        return float(grade.extracted_answer is not None)
    return float(grade.correct)


@dataclass(frozen=True)
class Judge:
    """Grades completions and turns grades and lengths into rewards."""

    grader: Grader
    form: AnswerForm
    arm: ResolvedArm
    seed: int
    stop_ids: Set[int]
    """Tokens that end a completion."""

    def __call__(
        self,
        step: int,
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        reference_answers: Sequence[str],
    ) -> tuple[list[Grade], list[float]]:
        """Grades and rewards, in [-1, 1], of this rank's completions in step `step`, counted from 0."""
        grades = self.grader.grade_many(completions, reference_answers, self.form, _GRADE_SECONDS)
        limit, buffer = self.arm.prompt.max_completion_tokens, self.arm.overlong_tokens
        rewards = []
        # A coin depends on the step and on the completion's index among those of all ranks, not on the state of a
        # generator: a resumed run gets the same coins, and no two ranks share them.
        for index, (grade, ids) in enumerate(zip(grades, completion_ids, strict=True), rank() * len(grades)):
            counts = not self.arm.require_finished or (bool(ids) and ids[-1] in self.stop_ids)
            coin = random.Random(f"reward {self.seed} {step} {index}")
            reward = reward_of(grade, self.arm.reward, coin) if counts else 0.0
            rewards.append(reward + overlong_punishment(len(ids), limit, buffer))
        return grades, rewards


class RecordedReward:
    """Reward function for `GRPOTrainer` that also enters each generation batch in the ledger.

    `warn` is called once, with headline and detail, if no completion of the first batches has a weight, so that nothing
    was learned. `surplus`: given a step, counted from 0, which rows of all ranks hold no completion; None: all do.
    """

    __name__ = "reward"

    def __init__(
        self,
        judge: Judge,
        ledger: Ledger,
        warn: Callable[[str, str], None] | None = None,
        tracker: Tracker | None = None,
        surplus: Callable[[int], list[bool]] | None = None,
    ) -> None:
        self.judge, self.ledger, self.tracker, self.surplus = judge, ledger, tracker, surplus
        self._warn = warn if ledger.last_step == 0 else None  # a resumed run is past its beginning
        self._early: list[float] = []  # the rewards so far, while none has a weight
        self._early_batches = 0

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        reference_answer: Sequence[str],
        problem_id: Sequence[str],
        prompt_tokens: Sequence[int],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: object,
    ) -> list[float]:
        """Rewards in [-1, 1], one per completion. Columns of the dataset arrive as keyword arguments."""
        step = self.ledger.last_step
        grades, rewards = self.judge(step, completions, completion_ids, reference_answer)
        correct = [grade.correct for grade in grades]
        rows = zip(problem_id, prompt_tokens, map(len, completion_ids), correct, strict=True)
        of_all_ranks, all_rewards = gathered([Completion(*row) for row in rows]), gathered(rewards)
        missing = self.surplus(step) if self.surplus is not None else [False] * len(all_rewards)
        self.enter(of_all_ranks, [None if none else one for one, none in zip(all_rewards, missing, strict=True)])
        outcomes = [str(grade.outcome) for grade in grades]
        samples = zip(problem_id, reference_answer, completions, outcomes, rewards, strict=True)
        own_missing = missing[rank() * len(rewards) :][: len(rewards)]
        self._log(step, [row for row, none in zip(samples, own_missing, strict=True) if not none], log_metric)
        return rewards

    def _log(self, step: int, samples: list[tuple[Any, ...]], log_metric: Callable[[str, float], None] | None) -> None:
        """Log the outcomes of this rank's completions, which TRL averages over ranks, and show some of them."""
        table = [dict(zip(_SHOWN, sample, strict=True)) for sample in samples]
        if log_metric is not None and table:
            for outcome in Outcome:
                log_metric(f"outcomes/{outcome}", sum(row["outcome"] == outcome for row in table) / len(table))
        if self.tracker is not None and table:
            self.tracker.completions(step + 1, table, self.judge.arm.updates_per_batch)

    def enter(self, completions: Sequence[Completion], rewards: Rewards) -> None:
        """Enter the completions of all ranks, grouped by problem; rows without a reward hold none."""
        arm = self.judge.arm
        weights = completion_weights(rewards, arm)
        self._warn_without_weights([reward for reward in rewards if reward is not None], weights)
        trained, size = has_gradient(rewards, weights, arm), arm.completions_per_problem
        groups = {start: completions[start].problem_id for start in range(0, len(completions), size)}
        self.ledger.enter(
            list(groups.values()),
            [identity for start, identity in groups.items() if any(trained[start : start + size])],
            [
                row._replace(has_gradient=has)
                for row, has, reward in zip(completions, trained, rewards, strict=True)
                if reward is not None
            ],
            sampled=arm.sampling == "current",
            with_reference=arm.beta > 0,
        )

    def _warn_without_weights(self, rewards: list[float], weights: list[float]) -> None:
        if self._warn is None:
            return
        self._early += rewards
        self._early_batches += 1
        if any(weights):
            self._warn = None
        elif self._early_batches == _EARLY_BATCHES:
            low, high = min(self._early), max(self._early)
            self._warn(
                f"no completion of the first {_EARLY_BATCHES * self.judge.arm.updates_per_batch} steps has a weight",
                f"rewards are {low:g}{'' if low == high else f' to {high:g}'}, so nothing is learned: is the answer "
                "in the required form, are completions truncated, is the corpus far too hard or too easy? `transfer "
                "view` shows the base's responses once they are scored",
            )
            self._warn = None
