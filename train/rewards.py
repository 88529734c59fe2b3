"""The rewards of the sampled arms: TRL's calling convention around `data/grading/grader.py`; no rule of its own.

Each call grades one generation batch and enters it in the ledger: what was presented, generated and used.
"""

import random
from collections.abc import Callable, Sequence

from data.grading.grader import AnswerForm, Grade, Grader, Outcome
from train.accounting.cost import forward_flops, train_flops
from train.accounting.ledger import Ledger
from train.arms import ResolvedArm
from train.runtime.ranks import gathered, rank
from train.runtime.tracking import Tracker

_EARLY_UPDATES = 5
_GRADE_SECONDS = 120.0  # of one batch; other ranks wait, and give up after minutes


def overlong_punishment(length: int, limit: int, buffer: int) -> float:
    """Soft overlong punishment: 0 to -1 over the last `buffer` tokens before the limit (DAPO, arXiv 2503.14476)."""
    return 0.0 if not buffer else min(0.0, (limit - buffer - length) / buffer)


def reward_of(grade: Grade, kind: str, coin: random.Random) -> float:
    """1 for a completion that earns the reward: a correct one; one with any final answer; or by a coin."""
    if kind == "random":
        return float(coin.random() < 0.5)
    if kind == "format":
        return float(grade.extracted_answer is not None)
    return float(grade.correct)


class RecordedReward:
    """Reward function for `GRPOTrainer` that also keeps the books.

    Args:
        grader: the grader.
        form: what counts as a final answer.
        ledger: receives the counts of every batch.
        parameters: of the policy, for FLOPs.
        settings: of the arm. Batches arrive grouped by problem. With group advantages a mixed group moves the policy,
            as a whole or (without negatives) by its better half, and a uniform one not at all; with uniform credit
            each rewarded completion counts alone; with beta above 0 every completion has a gradient, and a reference
            model reads it.
        seed: of the random reward.
        warn: told, once, if the first updates were all rewarded alike, so that nothing was learned from them.
        tracker: gets the completions of some updates, if given.
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
        warn: Callable[[str], None] | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        self.grader = grader
        self.form = form
        self.ledger = ledger
        self.parameters = parameters
        self.settings = settings
        self.seed = seed
        self.warn, self.tracker = warn, tracker
        self._alike: list[float] = []  # the reward of each update so far, while all completions got the same

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
        """Rewards in [0, 1], one per completion. Columns of the dataset arrive as keyword arguments."""
        grades, rewards = self.judge(completions, completion_ids, reference_answer, problem_id)
        lengths = [len(ids) for ids in completion_ids]
        correct = [grade.correct for grade in grades]
        rows = gathered(list(zip(problem_id, rewards, lengths, correct, prompt_tokens, strict=True)))
        self._enter(rows)
        self._look_for_alike([reward for _, reward, *_ in rows])
        if log_metric is not None:  # TRL's, averaged over ranks and shown with its own
            for outcome in Outcome:
                share = sum(grade.outcome is outcome for grade in grades) / len(grades)
                log_metric(f"outcomes/{outcome}", share)
        if self.tracker is not None:
            shown = zip(problem_id, reference_answer, completions, grades, rewards, strict=True)
            keys = ("problem_id", "reference_answer", "completion", "outcome", "reward")
            table = [dict(zip(keys, (p, a, c, str(g.outcome), r), strict=True)) for p, a, c, g, r in shown]
            self.tracker.completions(self.ledger.last_step + 1, table)
        return rewards

    def judge(
        self,
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        reference_answer: Sequence[str],
        problem_id: Sequence[str],
    ) -> tuple[list[Grade], list[float]]:
        """Grade and reward of each completion; nothing is entered in the ledger."""
        grades = self.grader.grade_many(completions, reference_answer, self.form, _GRADE_SECONDS)
        # Coins come from the update and the completion's place among those of all ranks, not from a running generator:
        # a resumed run tosses the same ones, and no two ranks share them.
        first = rank() * len(grades)
        coins = [random.Random(f"reward {self.seed} {self.ledger.last_step} {first + n}") for n in range(len(grades))]
        rewards = [reward_of(grade, self.settings.reward, coin) for grade, coin in zip(grades, coins, strict=True)]
        limit, buffer = self.settings.prompt.max_completion_tokens, self.settings.overlong_tokens
        punished = [overlong_punishment(len(ids), limit, buffer) for ids in completion_ids]
        return grades, [reward + punishment for reward, punishment in zip(rewards, punished, strict=True)]

    def _look_for_alike(self, rewards: list[float]) -> None:
        if self.warn is None or len(self._alike) >= _EARLY_UPDATES:
            return
        if len(set(rewards)) > 1:
            self.warn = None  # it varies
            return
        self._alike.append(rewards[0])
        if len(self._alike) == _EARLY_UPDATES:
            self.warn(
                f"every completion of the first {_EARLY_UPDATES} updates got the reward {rewards[0]:g}, so nothing is "
                "learned; look at some completions: is the answer in the wanted form, are they cut off, is the corpus "
                "far too hard or too easy?"
            )

    def _enter(self, rows: list[tuple[str, float, int, bool, int]]) -> None:
        """Enter the completions of all ranks: problem id, reward, length, correctness and prompt length of each."""
        group_size, beta = self.settings.completions_per_problem, self.settings.beta
        presented, contributed, trained = [], [], 0
        for start in range(0, len(rows), group_size):
            group = rows[start : start + group_size]
            presented.append(group[0][0])
            mixed = len({reward for _, reward, *_ in group}) > 1
            rewarded = [length for _, reward, length, *_ in group if reward > 0]
            if beta > 0:
                weighted = [length for _, _, length, *_ in group]
            elif self.settings.negatives:
                weighted = [length for _, _, length, *_ in group] if mixed else []
            elif self.settings.credit == "advantage":  # without negatives: those above the group's mean
                mean = sum(reward for _, reward, *_ in group) / len(group)
                weighted = [length for _, reward, length, *_ in group if reward > mean] if mixed else []
            else:
                weighted = rewarded
            if weighted:
                contributed.append(group[0][0])
            trained += sum(weighted)
        generated = sum(length for _, _, length, *_ in rows)
        asked = sum(tokens for *_, tokens in rows)
        read = asked + generated
        sampled = self.settings.sampling == "current"  # stored completions were paid for when they were written
        self.ledger.spend(
            presented,
            contributed,
            exposures=len(presented),
            completions=len(rows),
            correct_completions=sum(right for _, _, _, right, _ in rows),
            prompt_tokens=asked,
            generated_tokens=generated if sampled else 0,
            trained_tokens=trained,
            generate_flops=forward_flops(self.parameters, read) if sampled else 0,
            reference_flops=forward_flops(self.parameters, read) if beta > 0 else 0,
            train_flops=train_flops(self.parameters, read),
        )
