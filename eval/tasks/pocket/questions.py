"""Documents of the pocket benchmarks and their score, for lm-evaluation-harness."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset

from data.pocket_world import benchmark_questions
from data.rows import problem_id, read_problems
from eval.scoring import mean_accuracy


def load(
    world_task: str, questions: int, split: str, seed: int, scoring: str, suffix: str, **_: Any
) -> dict[str, Dataset]:
    """The questions of one task of the synthetic world, as the split lm-evaluation-harness calls test."""
    rows = [
        {
            "question_id": problem_id(question.problem),
            "problem": question.problem + (suffix if scoring != "exact" else ""),
            "reference_answer": question.reference_answer,
            "scoring": scoring,
        }
        for question in benchmark_questions(seed, world_task, split, questions)
    ]
    return {"test": Dataset.from_list(rows)}


def load_heldout(corpus_dir: str, scoring: str, suffix: str, **_: Any) -> dict[str, Dataset]:
    """All held-out math problems of the corpus, for choosing hyperparameters without touching a benchmark."""
    rows = [
        {
            "question_id": problem.problem_id,
            "problem": problem.problem + suffix,
            "reference_answer": problem.reference_answer,
            "scoring": scoring,
        }
        for problem in read_problems(Path(corpus_dir), "heldout")
    ]
    return {"test": Dataset.from_list(rows)}


def keep_all(responses: Iterable[list[str]], documents: Any) -> Iterable[list[str]]:
    """Hand every sample of a question to the score instead of the first one."""
    return responses


def accuracy(document: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
    """Mean accuracy over the samples of one question."""
    return {"accuracy": mean_accuracy(results[0], document["reference_answer"], document["scoring"])}
