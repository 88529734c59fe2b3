"""The corpus on disk: reading it back, and the order in which every arm is presented its problems."""

import hashlib
import random
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from recipes.errors import UserError

PROBLEMS, DEMONSTRATIONS, REJECTS = "problems.parquet", "demonstrations.parquet", "rejects.jsonl"
CONTAMINATION, FIGURES, CARD, TEACHER_LEDGER = "contamination.jsonl", "figures.jsonl", "README.md", "ledger.jsonl"


def problem_id(problem: str) -> str:
    """Content hash of a problem text, insensitive to case and spacing: 16 hexadecimal digits."""
    return hashlib.sha256(" ".join(problem.casefold().split()).encode()).hexdigest()[:16]


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
    """Whether some demonstration can be trained on; None without a teacher."""
    base_pass_rate: float | None
    """Share of the base model's samples that were correct; None if it was not measured."""


class Demonstration(NamedTuple):
    """One row of `demonstrations.parquet`: a graded sample of the teacher, right or wrong."""

    problem_id: str
    completion: str
    """The whole text after the prompt, thinking included."""
    thinking: str
    """The thinking alone; empty if there is none."""
    teacher: str
    sample_index: int
    grade: str
    """An `Outcome` of `data/grading/grader.py`."""
    tokens: int
    """Tokens of the completion, end-of-turn token included; 0 if no tokenizer was at hand."""
    fits: bool
    """Whether it was finished, is within the length limit and has no control token in it. A correct one that fits can
    be trained on."""

    @property
    def usable(self) -> bool:
        """Whether SFT may read it."""
        return self.grade == "correct" and self.fits


def read_problems(corpus_dir: Path, split: str, problem_set: str = "all") -> list[Problem]:
    """Problems of one split in file order, for `problem_set` "all" or "teacher_solvable"."""
    import pyarrow.parquet as pq  # not with every command

    rows = [Problem(**row) for row in pq.read_table(corpus_dir / PROBLEMS).to_pylist()]
    chosen = [row for row in rows if row.split == split and (problem_set == "all" or row.teacher_solvable)]
    if not chosen:
        remedy = "set corpus.heldout_problems above 0"
        if split == "train":
            remedy = "add sources; rejects.jsonl beside it says why rows were removed"
            if problem_set == "teacher_solvable":
                remedy = "raise corpus.teacher.samples_per_problem, or set corpus.problem_set=all"
        raise UserError(f"{corpus_dir / PROBLEMS} has no {split} problems in the set {problem_set!r}; {remedy}")
    return chosen


def read_demonstrations(corpus_dir: Path) -> dict[str, list[Demonstration]]:
    """All demonstrations by problem id, in sample order."""
    import pyarrow.parquet as pq

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


def demonstrations_to_read(
    demonstrations: dict[str, list[Demonstration]], problem_id: str, count: int, exposure: int, policy: str, seed: int
) -> list[Demonstration]:
    """At most `count` different demonstrations of one problem for its exposure number `exposure`, of the usable ones.

    Policy "all" takes them in turn, going on where the exposure before stopped; "first", "shortest" and "random" (by
    `seed`) choose one. None comes twice, so there are fewer where fewer are usable.

    Raises:
        UserError: the problem has none.
    """
    usable = [row for row in demonstrations.get(problem_id, []) if row.usable]
    if not usable:
        raise UserError(
            f"problem {problem_id} has no correct demonstration; use problem_set: teacher_solvable for SFT arms"
        )
    if policy == "shortest":
        usable = [min(usable, key=lambda row: (row.tokens, len(row.completion), row.sample_index))]
    elif policy == "random":
        usable = [random.Random(f"demonstration {seed} {problem_id}").choice(usable)]
    elif policy == "first":
        usable = usable[:1]
    return [usable[(exposure * count + offset) % len(usable)] for offset in range(min(count, len(usable)))]


def demonstrations_by_step(
    demonstrations: dict[str, list[Demonstration]],
    order: list[Problem],
    problems_per_step: int,
    passes_over: int,
    count: int,
    policy: str,
    seed: int,
) -> list[list[tuple[Problem, Demonstration]]]:
    """What each step reads: the demonstrations of its problems, none of them twice in one step.

    `passes_over`: size of the set that `order` passes over again and again. `count`, `policy` and `seed`: see
    `demonstrations_to_read`.

    Raises:
        UserError: a problem has no usable demonstration.
    """
    steps = []
    for start in range(0, len(order), problems_per_step):
        # Where one pass over the set ends and the next begins, a problem may be presented twice in one step.
        read: dict[tuple[str, int], tuple[Problem, Demonstration]] = {}
        for index in range(start, min(start + problems_per_step, len(order))):
            problem = order[index]
            exposure = index // passes_over
            for row in demonstrations_to_read(demonstrations, problem.problem_id, count, exposure, policy, seed):
                read.setdefault((problem.problem_id, row.sample_index), (problem, row))
        steps.append([*read.values()])
    return steps
