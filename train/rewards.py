"""Rewards of the GRPO trainer: TRL's calling convention around `data/grading/grader.py`, and their ledger entry.

Each call grades one generation batch and enters it in the ledger: what was presented, generated and trained on.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from data.grading.grader import AnswerForm, Grade, Grader, Outcome
from train.accounting.cost import forward_flops, train_flops
from train.accounting.ledger import Ledger
from train.arms import ResolvedArm
from train.runtime.ranks import gathered, rank
from train.runtime.tracking import Tracker
from train.weights import completion_weights, has_gradient

_EARLY_BATCHES = 5
_GRADE_SECONDS = 120.0  # per batch; the other ranks wait, and their collective times out after minutes


class Completion(NamedTuple):
    """What the ledger needs to know about a completion."""

    problem_id: str
    reward: float | None
    """None: the row holds no completion, see `TeacherRollouts.surplus`."""
    tokens: int
    correct: bool
    prompt_tokens: int


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


class RecordedReward:
    """Reward function for `GRPOTrainer` that also writes the ledger.

    `parameters`: of the policy, for FLOPs. `warn` is called once, with headline and detail, if no completion of the
    first batches has a weight, so that nothing was learned. `surplus`: given a step, counted from 0, which rows of all
    ranks hold no completion; None: all hold one.
    """

    __name__ = "reward"

    def __init__(
        self,
        grader: Grader,
        form: AnswerForm,
        ledger: Ledger,
        parameters: int,
        settings: ResolvedArm,
        seed: int,
        warn: Callable[[str, str], None] | None = None,
        tracker: Tracker | None = None,
        surplus: Callable[[int], list[bool]] | None = None,
    ) -> None:
        self.grader, self.form, self.ledger, self.parameters = grader, form, ledger, parameters
        self.settings, self.seed, self.tracker, self.surplus = settings, seed, tracker, surplus
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
        **kwargs: object,
    ) -> list[float]:
        """Rewards in [-1, 1], one per completion. Columns of the dataset arrive as keyword arguments."""
        grades, rewards = self.judge(completions, completion_ids, reference_answer)
        lengths = [len(ids) for ids in completion_ids]
        correct = [grade.correct for grade in grades]
        rows = gathered(list(map(Completion, problem_id, rewards, lengths, correct, prompt_tokens)))
        first, missing = rank() * len(rewards), [False] * len(rows)
        if self.surplus is not None:
            missing = self.surplus(self.ledger.last_step)
            rows = [row._replace(reward=None) if none else row for row, none in zip(rows, missing, strict=True)]
        self._enter(rows)
        present = [index for index in range(len(rewards)) if not missing[first + index]]
        if log_metric is not None and present:  # TRL averages it over ranks and logs it with its own metrics
            for outcome in Outcome:
                share = sum(grades[index].outcome is outcome for index in present) / len(present)
                log_metric(f"outcomes/{outcome}", share)
        if self.tracker is not None and present:
            table = [
                {
                    "problem_id": problem_id[index],
                    "reference_answer": reference_answer[index],
                    "completion": completions[index],
                    "outcome": str(grades[index].outcome),
                    "reward": rewards[index],
                }
                for index in present
            ]
            self.tracker.completions(self.ledger.last_step + 1, table, self.settings.updates_per_batch)
        return rewards

    def judge(
        self,
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        reference_answer: Sequence[str],
    ) -> tuple[list[Grade], list[float]]:
        """Grade and reward of each completion; nothing is entered in the ledger."""
        grades = self.grader.grade_many(completions, reference_answer, self.form, _GRADE_SECONDS)
        # A coin depends on the step and on the completion's index among those of all ranks, not on the state of a
        # generator: a resumed run gets the same coins, and no two ranks share them.
        first = rank() * len(grades)
        coins = [random.Random(f"reward {self.seed} {self.ledger.last_step} {first + n}") for n in range(len(grades))]
        rewards = [reward_of(grade, self.settings.reward, coin) for grade, coin in zip(grades, coins, strict=True)]
        limit, buffer = self.settings.prompt.max_completion_tokens, self.settings.overlong_tokens
        punished = [overlong_punishment(len(ids), limit, buffer) for ids in completion_ids]
        return grades, [reward + punishment for reward, punishment in zip(rewards, punished, strict=True)]

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
                f"no completion of the first {_EARLY_BATCHES * self.settings.updates_per_batch} steps has a weight",
                f"rewards are {low:g}{'' if low == high else f' to {high:g}'}, so nothing is learned; look at some "
                "completions: is the answer in the required form, are they truncated, is the corpus far too hard or "
                "too easy?",
            )
            self._warn = None

    def _enter(self, rows: Sequence[Completion]) -> None:
        """Enter the completions of all ranks in a generation batch, grouped by problem."""
        settings = self.settings
        rewards = [row.reward for row in rows]
        weights = completion_weights(rewards, settings)
        trained = has_gradient(rewards, weights, settings)
        self._warn_without_weights([reward for reward in rewards if reward is not None], weights)
        size = settings.completions_per_problem
        groups = range(0, len(rows), size)
        present = [row for row in rows if row.reward is not None]
        prompt_tokens = sum(row.prompt_tokens for row in present)
        completion_tokens = sum(row.tokens for row in present)
        processed = prompt_tokens + completion_tokens
        sampled = settings.sampling == "current"  # the cost of stored completions was entered when they were sampled
        self.ledger.spend(
            presented=[rows[start].problem_id for start in groups],
            contributed=[rows[start].problem_id for start in groups if any(trained[start : start + size])],
            exposures=len(groups),
            completions=len(present),
            correct_completions=sum(row.correct for row in present),
            prompt_tokens=prompt_tokens,
            generated_tokens=completion_tokens if sampled else 0,
            trained_tokens=sum(row.tokens for row, has in zip(rows, trained, strict=True) if has),
            generate_flops=forward_flops(self.parameters, processed) if sampled else 0,
            reference_flops=forward_flops(self.parameters, processed) if settings.beta > 0 else 0,
            train_flops=train_flops(self.parameters, processed),
        )
