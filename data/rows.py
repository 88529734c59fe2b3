"""The corpus on disk: reading it back, and the order in which every arm is presented its problems."""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from recipes.errors import UserError

PROBLEMS, DEMONSTRATIONS, REJECTS = "problems.parquet", "demonstrations.parquet", "rejects.jsonl"


class Problem(NamedTuple):
    """One row of `problems.parquet`."""

    problem_id: str
    problem: str
    reference_answer: str
    source: str
    level: str | None
    split: str
    """"train" or "heldout"."""
    teacher_solvable: bool | None
    """Whether some demonstration was graded correct; None without a teacher."""


class Demonstration(NamedTuple):
    """One row of `demonstrations.parquet`: a graded sample of the teacher, right or wrong."""

    problem_id: str
    completion: str
    """The whole text after the prompt, thinking included."""
    thinking: str
    """The text between the thinking tags; empty if there is none."""
    teacher: str
    sample_index: int
    grade: str
    """An `Outcome` of `data/grading.py`."""
    tokens: int
    """Tokens of the completion, end-of-turn token included; 0 if no tokenizer was at hand."""


def read_problems(corpus_dir: Path, split: str, problem_set: str = "all") -> list[Problem]:
    """Problems of one split in file order, for `problem_set` "all" or "teacher_solvable"."""
    rows = [Problem(**row) for row in pq.read_table(corpus_dir / PROBLEMS).to_pylist()]
    chosen = [row for row in rows if row.split == split and (problem_set == "all" or row.teacher_solvable)]
    if not chosen:
        raise UserError(f"{corpus_dir / PROBLEMS} has no {split} problems in the set {problem_set!r}")
    return chosen


def read_demonstrations(corpus_dir: Path) -> dict[str, list[Demonstration]]:
    """All demonstrations by problem id, in sample order."""
    by_problem: dict[str, list[Demonstration]] = defaultdict(list)
    rows: list[dict[str, Any]] = pq.read_table(corpus_dir / DEMONSTRATIONS).to_pylist()
    for row in rows:
        by_problem[row["problem_id"]].append(Demonstration(**row))
    return by_problem


def presented_order(problems: list[Problem], exposures: int, seed: int) -> list[Problem]:
    """The problems an arm is presented, in order: as many shuffled passes over the set as `exposures` needs.

    It depends on the set and the seed alone, so arms of one seed see the same problems in the same order. It is
    written out in full instead of being left to a sampler, because samplers forget it when a run resumes.
    """
    order: list[Problem] = []
    rng = random.Random(f"presented order {seed}")
    while len(order) < exposures:
        epoch = sorted(problems)
        rng.shuffle(epoch)
        order += epoch
    return order[:exposures]


def correct_demonstrations(
    demonstrations: dict[str, list[Demonstration]], problem_id: str, count: int, first: int
) -> list[Demonstration]:
    """`count` correct demonstrations of one problem, taken in turn from position `first` on.

    With fewer than `count` correct ones some repeat, so every problem weighs the same.
    """
    correct = [row for row in demonstrations.get(problem_id, []) if row.grade == "correct"]
    if not correct:
        raise UserError(
            f"problem {problem_id} has no correct demonstration; use problem_set: teacher_solvable for SFT arms"
        )
    return [correct[(first + offset) % len(correct)] for offset in range(count)]
