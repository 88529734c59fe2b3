"""Who wrote the completions an arm learns from, where it is not the policy of the very step; and dynamic sampling.

The stored sources of the unified loss: a teacher's demonstrations, right and wrong; the base's own samples, drawn once;
the policy's samples, drawn anew every round. Each hands the trainer, for an update, one completion per row, as token
ids. What was drawn is written to `rollouts/`, so that a killed run reads again what it had trained on.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from data.corpus.rows import Demonstration, Problem
from data.grading.grader import Grade
from data.prompts.prompt import completion_ids
from recipes.errors import UserError
from recipes.manifest import write_atomic
from train.accounting.cost import forward_flops
from train.accounting.ledger import Ledger
from train.runtime.ranks import rank

Completions = list[list[int]]
Kept = list[npt.NDArray[np.int32]]
"""Completions in memory for a long time: Python's integers would take nine times as much."""
Row = dict[str, Any]
"""A row of the trainer's dataset: prompt, reference_answer, problem_id, prompt_tokens."""
Draw = Callable[[list[str], int], list[Completions]]
"""Lets the policy answer prompts with a seed; a group of completions for each prompt, the same on every rank."""


def keep(completions: Completions) -> Kept:
    """Completions in four bytes a token."""
    return [np.array(ids, dtype=np.int32) for ids in completions]


def write_groups(path: Path, groups: Sequence[Kept]) -> None:
    """Write groups of completions as JSON, a list of ids each."""
    write_atomic(path, "[" + ", ".join(json.dumps([ids.tolist() for ids in group]) for group in groups) + "]")


def read_groups(path: Path) -> list[Kept]:
    """Groups of completions from a file, one after the other, so that few Python integers exist at a time."""
    text, decoder, groups = path.read_text(encoding="utf-8"), json.JSONDecoder(), []
    place = 1
    while text[place] != "]":
        group, place = decoder.raw_decode(text, place)
        groups.append(keep(group))
        place += 2 * text.startswith(", ", place)
    return groups


class TeacherRollouts:
    """A teacher's graded samples, right and wrong, in turn; the same for every seed.

    Args:
        order: the problems in the order they are presented.
        demonstrations: samples by problem id.
        tokenizer: turns them into ids; the end-of-turn token is appended.
        problems_per_step: problems of an update.
        group: completions of a problem.
        read: makes the text to learn from of a completion.

    Raises:
        UserError: a problem has no sample that was finished and fits the length limit.
    """

    def __init__(
        self,
        order: Sequence[Problem],
        demonstrations: dict[str, list[Demonstration]],
        tokenizer: PreTrainedTokenizerBase,
        problems_per_step: int,
        group: int,
        read: Callable[[str], str] = str,
    ) -> None:
        self.order, self.problems_per_step, self.group = order, problems_per_step, group
        self._ids: dict[str, Kept] = {}
        for problem in set(order):
            fitting = [read(row.completion) for row in demonstrations.get(problem.problem_id, []) if row.fits]
            if not fitting:
                raise UserError(f"problem {problem.problem_id} has no demonstration that was finished and fits")
            self._ids[problem.problem_id] = keep(completion_ids(tokenizer, fitting))
        seen: dict[str, int] = {}
        self._firsts = []  # how often a problem was presented before, by place in the order
        for problem in order:
            self._firsts.append(seen.get(problem.problem_id, 0))
            seen[problem.problem_id] = self._firsts[-1] + 1

    def completions(self, step: int, draw: Draw) -> Completions:
        """Token ids for the rows of update `step`, counted from 0. Nothing is drawn."""
        found = []
        for place in range(step * self.problems_per_step, (step + 1) * self.problems_per_step):
            rows = self._ids[self.order[place].problem_id]
            start = self._firsts[place] * self.group
            found += [rows[(start + offset) % len(rows)].tolist() for offset in range(self.group)]
        return found


class PolicyRollouts:
    """Samples of the policy as it was at the start of the run, or at the start of each round.

    Args:
        order: the problems in the order they are presented, with their rendered prompts.
        tokenizer: of the policy.
        directory: of the run.
        ledger: what drawing costs is entered here, in the update that draws.
        parameters: of the policy, for FLOPs.
        problems_per_step: problems of an update.
        group: completions of a problem.
        round_steps: updates between refreshes; None: drawn once, one group for every problem.
        seed: of the random numbers.
    """

    def __init__(
        self,
        order: Sequence[tuple[str, str]],
        tokenizer: PreTrainedTokenizerBase,
        directory: Path,
        ledger: Ledger,
        parameters: int,
        problems_per_step: int,
        group: int,
        round_steps: int | None,
        seed: int,
    ) -> None:
        self.order, self.tokenizer, self.ledger = order, tokenizer, ledger
        self.directory = directory / "rollouts"
        self.problems_per_step, self.group, self.round_steps = problems_per_step, group, round_steps
        self.parameters, self.seed = parameters, seed
        self._round = -1
        self._drawn: dict[str, Kept] | list[Kept] = []

    def completions(self, step: int, draw: Draw) -> Completions:
        """Token ids for the rows of update `step`, counted from 0; draws them first where a round begins."""
        number = 0 if self.round_steps is None else step // self.round_steps
        begins = step == (0 if self.round_steps is None else number * self.round_steps)
        if number != self._round or begins:
            self._drawn = self._draw(number, draw, begins)
            self._round = number
        places = range(step * self.problems_per_step, (step + 1) * self.problems_per_step)
        if isinstance(self._drawn, dict):
            return [ids.tolist() for place in places for ids in self._drawn[self.order[place][0]]]
        first = number * (self.round_steps or 0) * self.problems_per_step
        return [ids.tolist() for place in places for ids in self._drawn[place - first]]

    def _draw(self, number: int, draw: Draw, begins: bool) -> dict[str, Kept] | list[Kept]:
        """The groups of a round, from disk or from the model; in a round by place, else by problem id."""
        path = self.directory / f"round-{number}.json"
        if self.round_steps is None:
            wanted = list(dict(self.order).items())
        else:
            first = number * self.round_steps * self.problems_per_step
            wanted = list(self.order[first : first + self.round_steps * self.problems_per_step])
        if path.exists():
            groups = read_groups(path)
        else:
            groups = self._sample(wanted, number, draw)
            if rank() == 0:
                write_groups(path, groups)
        if begins:
            tokens = sum(len(ids) for group in groups for ids in group)
            read = self.group * sum(len(self.tokenizer(prompt)["input_ids"]) for _, prompt in wanted)
            flops = forward_flops(self.parameters, tokens + read)
            self.ledger.spend(generated_tokens=tokens, generate_flops=flops)
        return groups if self.round_steps is not None else dict(zip(dict(self.order), groups, strict=True))

    def _sample(self, wanted: list[tuple[str, str]], number: int, draw: Draw) -> list[Kept]:
        groups: list[Kept] = []
        for start in range(0, len(wanted), self.problems_per_step):
            part = wanted[start : start + self.problems_per_step]
            seed = (self.seed * 1_000_003 + number * 10_007 + start) % 2**31
            groups += [keep(group) for group in draw([prompt for _, prompt in part], seed)]
        return groups


class DynamicSampling:
    """DAPO's dynamic sampling (arXiv 2503.14476, Sec. 3.2): groups without variance give way to other problems' groups.

    If too few groups vary after all batches, uniform ones fill the update; they weigh nothing. What is drawn and not
    used was presented too, and is in the ledger.

    Args:
        rows: of the dataset, one per presented problem, in order.
        reserve: further rows, `batches` times as many.
        judge: grades and rewards of completions (texts, ids, reference answers, problem ids).
        tokenizer: of the policy.
        ledger: receives what was drawn and not used.
        parameters: of the policy, for FLOPs.
        problems_per_step: problems of an update.
        batches: further batches drawn at most in an update.
        seed: of the random numbers.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        reserve: Sequence[Row],
        judge: Callable[[list[str], Completions, list[str], list[str]], tuple[list[Grade], list[float]]],
        tokenizer: PreTrainedTokenizerBase,
        ledger: Ledger,
        parameters: int,
        problems_per_step: int,
        batches: int,
        seed: int,
    ) -> None:
        self.rows, self.reserve, self.judge, self.tokenizer = rows, reserve, judge, tokenizer
        self.ledger, self.parameters, self.seed = ledger, parameters, seed
        self.problems_per_step, self.batches = problems_per_step, batches
        self._chosen: list[Completions] = []

    def choose(self, step: int, draw: Draw) -> list[Row]:
        """Draw for update `step`, counted from 0; the rows it will learn from, one per problem."""
        wanted = self.problems_per_step
        batch = self.rows[step * wanted : (step + 1) * wanted]
        varied: list[tuple[Row, Completions, int]] = []
        uniform: list[tuple[Row, Completions, int]] = []
        for number in range(self.batches + 1):
            if number:
                first = (step * self.batches + number - 1) * wanted
                batch = self.reserve[first : first + wanted]
            groups = draw([row["prompt"] for row in batch], (self.seed * 1_000_003 + step * 101 + number) % 2**31)
            for row, group in zip(batch, groups, strict=True):
                texts = self.tokenizer.batch_decode(group, skip_special_tokens=True)
                grades, rewards = self.judge(
                    texts, group, [row["reference_answer"]] * len(group), [row["problem_id"]] * len(group)
                )
                correct = sum(grade.correct for grade in grades)
                (varied if len(set(rewards)) > 1 else uniform).append((row, group, correct))
            if len(varied) >= wanted:
                break
        drawn = [*varied, *uniform]
        self._chosen = [group for _, group, _ in drawn[:wanted]]
        self._enter(drawn[wanted:])
        return [row for row, *_ in drawn[:wanted]]

    def _enter(self, unused: list[tuple[Row, Completions, int]]) -> None:
        generated = sum(len(ids) for _, group, _ in unused for ids in group)
        asked = sum(row["prompt_tokens"] * len(group) for row, group, _ in unused)
        self.ledger.spend(
            presented=[row["problem_id"] for row, *_ in unused],
            exposures=len(unused),
            completions=sum(len(group) for _, group, _ in unused),
            correct_completions=sum(correct for *_, correct in unused),
            prompt_tokens=asked,
            generated_tokens=generated,
            generate_flops=forward_flops(self.parameters, generated + asked),
        )

    def completions(self, step: int, draw: Draw) -> Completions:
        """Token ids for the rows that `choose` returned for this update."""
        return [ids for group in self._chosen for ids in group]


Rollouts = TeacherRollouts | PolicyRollouts | DynamicSampling
