"""The reward of the sampled arms: TRL's calling convention around `data/grading.py`; no rule of its own.

Each call grades one generation batch and enters it in the ledger: what was presented, generated and used.
"""

from collections.abc import Sequence

from data.grading import AnswerForm, Grade, Grader
from train.cost import forward_flops, train_flops
from train.ledger import Ledger


def reward_of(grade: Grade) -> float:
    """1 for a correct completion, 0 for every other outcome."""
    return float(grade.correct)


class CorrectnessReward:
    """Reward function for `GRPOTrainer` that also keeps the books.

    Args:
        grader: the grader.
        form: what counts as a final answer.
        ledger: receives the counts of every batch.
        parameters: of the policy, for FLOPs.
        num_generations: completions per problem; batches arrive grouped by problem.
        negatives: True for group advantages, where a mixed group moves the policy as a whole and a uniform one
            not at all; False where each correct completion counts alone.
        beta: of the KL term; above 0 every completion has a gradient, and a reference model reads it.
    """

    __name__ = "correctness"

    def __init__(
        self,
        grader: Grader,
        form: AnswerForm,
        ledger: Ledger,
        parameters: int,
        num_generations: int,
        negatives: bool,
        beta: float,
    ) -> None:
        self.grader = grader
        self.form = form
        self.ledger = ledger
        self.parameters = parameters
        self.num_generations = num_generations
        self.negatives = negatives
        self.beta = beta

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
        rewards = [reward_of(grade) for grade in grades]
        lengths = [len(ids) for ids in completion_ids]
        presented, contributed, trained = [], [], 0
        for start in range(0, len(rewards), self.num_generations):
            group = slice(start, start + self.num_generations)
            presented.append(problem_id[start])
            if self.beta > 0:
                weighted = lengths[group]
            elif self.negatives:
                weighted = lengths[group] if len(set(rewards[group])) > 1 else []
            else:
                weighted = [n for n, reward in zip(lengths[group], rewards[group], strict=True) if reward > 0]
            if weighted:
                contributed.append(problem_id[start])
            trained += sum(weighted)
        read = sum(prompt_tokens) + sum(lengths)
        self.ledger.spend(
            presented,
            contributed,
            exposures=len(presented),
            completions=len(rewards),
            correct_completions=sum(grade.correct for grade in grades),
            prompt_tokens=sum(prompt_tokens),
            generated_tokens=sum(lengths),
            trained_tokens=trained,
            generate_flops=forward_flops(self.parameters, read),
            reference_flops=forward_flops(self.parameters, read) if self.beta > 0 else 0,
            train_flops=train_flops(self.parameters, read),
        )
        return rewards
