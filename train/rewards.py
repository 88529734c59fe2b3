"""The rewards of the sampled arms: TRL's calling convention around `data/grading.py`; no rule of its own.

Each call grades one generation batch and enters it in the ledger: what was presented, generated and used.
"""

import random
from collections.abc import Sequence

from data.grading import AnswerForm, Grade, Grader
from train.arms import ResolvedArm
from train.cost import forward_flops, train_flops
from train.ledger import Ledger
from train.ranks import gathered


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
    """

    __name__ = "reward"

    def __init__(
        self, grader: Grader, form: AnswerForm, ledger: Ledger, parameters: int, settings: ResolvedArm, seed: int
    ) -> None:
        self.grader = grader
        self.form = form
        self.ledger = ledger
        self.parameters = parameters
        self.settings = settings
        self.seed = seed

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        reference_answer: Sequence[str],
        problem_id: Sequence[str],
        prompt_tokens: Sequence[int],
        **kwargs: object,
    ) -> list[float]:
        """Rewards in [0, 1], one per completion. Columns of the dataset arrive as keyword arguments."""
        grades = self.grader.grade_many(completions, reference_answer, self.form)
        # From the update and the problems, not from a running generator: a resumed run tosses the same coins.
        coin = random.Random(f"reward {self.seed} {self.ledger.last_step} {problem_id[0]}")
        rewards = [reward_of(grade, self.settings.reward, coin) for grade in grades]
        lengths = [len(ids) for ids in completion_ids]
        correct = [grade.correct for grade in grades]
        rows = gathered(list(zip(problem_id, rewards, lengths, correct, prompt_tokens, strict=True)))
        self._enter(rows)
        return rewards

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
            elif self.settings.credit == "advantage" and not mixed:
                weighted = []
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
