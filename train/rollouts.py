"""Completions that do not come from the current policy, and dynamic sampling.

The stored sources of the unified loss (`train/weights.py`): a teacher's samples, right and wrong; the base model's
samples, drawn once; the policy's samples, drawn again every round. Each gives the trainer one completion per row of a
step, as token ids. Samples of the policy are written to `rollouts/`, so that a resumed run trains on the same ones.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from data.corpus.rows import Demonstration, Problem
from data.grading.grader import Grade
from data.prompts.prompt import completion_ids
from recipes.errors import UserError
from recipes.files import read_json, write_atomic, write_json
from recipes.progress import Progress
from train.accounting.cost import forward_flops
from train.accounting.ledger import Completion, Ledger
from train.arms import ResolvedArm
from train.runtime.ranks import from_first_rank, gathered, rank, world_size
from train.weights import completion_weights

Completions = list[list[int]]
"""Token ids, [completions][tokens]."""
Compact = list[npt.NDArray[np.int32]]
"""Completions that stay in memory: four bytes a token, a ninth of what Python's integers take."""
Row = dict[str, Any]
"""A row of the trainer's dataset: prompt, reference_answer, problem_id, prompt_tokens."""
Draw = Callable[[list[str], int], list[Completions]]
"""Samples from the current policy: prompts and a seed -> a group of completions per prompt, the same on every rank."""
LogProbs = list[list[float | None]]
"""Log-probabilities of a group's tokens by the engine that sampled them, [completions][tokens]; None: not known."""
GradeAndReward = Callable[[int, list[str], Completions, list[str]], tuple[list[Grade], list[float]]]
"""A `train.rewards.Judge`: a step, texts, token ids and reference answers -> grades and rewards."""
Sample = Callable[[list[str], int], tuple[list[Completions], list[LogProbs] | None]]
"""As `Draw`, with the log-probabilities of each group; None where transformers samples, which are the trainer's own."""


def compact(completions: Completions) -> Compact:
    """Completions in four bytes a token."""
    return [np.array(ids, dtype=np.int32) for ids in completions]


def write_groups(path: Path, groups: Sequence[Compact]) -> None:
    """Write groups of completions as JSON, a list of ids each."""
    write_atomic(path, "[" + ", ".join(json.dumps([ids.tolist() for ids in group]) for group in groups) + "]")


def read_groups(path: Path) -> list[Compact]:
    """Groups of completions from a file. They are decoded one by one, so that few Python integers exist at a time."""
    text, decoder, groups = path.read_text(encoding="utf-8"), json.JSONDecoder(), []
    position = 1
    while text[position] != "]":
        group, position = decoder.raw_decode(text, position)
        groups.append(compact(group))
        position += 2 * text.startswith(", ", position)
    return groups


class TeacherRollouts:
    """A teacher's graded samples, right and wrong, in turn; the same for every seed.

    No sample is used twice in a step. TRL needs `completions_per_problem` rows for every problem; rows for which
    there is no further sample hold an end-of-turn token alone, and `surplus` names them.

    The end-of-turn token is appended to every sample. `text_of` turns a sample into the text to train on.

    Raises:
        UserError: a problem has no sample that was finished and fits the length limit.
    """

    def __init__(
        self,
        order: Sequence[Problem],
        demonstrations: dict[str, list[Demonstration]],
        tokenizer: PreTrainedTokenizerBase,
        settings: ResolvedArm,
        text_of: Callable[[str], str] = str,
    ) -> None:
        self.order, self.settings = order, settings
        self._filler = [int(tokenizer.eos_token_id)]
        self._samples: dict[str, Compact] = {}
        for problem in set(order):
            texts = [text_of(row.completion) for row in demonstrations.get(problem.problem_id, []) if row.fits]
            if not texts:
                raise UserError(
                    f"problem {problem.problem_id} has no demonstration that was finished and fits; set "
                    "corpus.problem_set=teacher_solvable, or raise prompt.max_completion_tokens"
                )
            self._samples[problem.problem_id] = compact(completion_ids(tokenizer, texts))
        seen: dict[str, int] = {}
        self._exposures = []  # by position in the order: how often its problem was presented before
        for problem in order:
            self._exposures.append(seen.get(problem.problem_id, 0))
            seen[problem.problem_id] = self._exposures[-1] + 1

    def completions(self, step: int, draw: Draw) -> Completions:
        """Token ids for the rows of step `step`, counted from 0. Nothing is drawn."""
        return [
            self._filler if index is None else self._samples[identity][index].tolist()
            for identity, index in self._rows(step)
        ]

    def surplus(self, step: int) -> list[bool]:
        """Whether each row of step `step` lacks a sample: its weight is 0, and the ledger leaves it out."""
        return [index is None for _, index in self._rows(step)]

    def _rows(self, step: int) -> list[tuple[str, int | None]]:
        """Problem id and sample of each row; None where all samples of the problem are in the step already."""
        group, problems = self.settings.completions_per_problem, self.settings.problems_per_step
        rows: list[tuple[str, int | None]] = []
        used: set[tuple[str, int]] = set()
        for position in range(step * problems, (step + 1) * problems):
            identity = self.order[position].problem_id
            for offset in range(group):
                index = (self._exposures[position] * group + offset) % len(self._samples[identity])
                rows.append((identity, None if (identity, index) in used else index))
                used.add((identity, index))
        return rows


class PolicyRollouts:
    """Samples of the policy as it was at the start of the run, or at the start of each round.

    `order` holds problem ids and rendered prompts. The cost of sampling is entered in the ledger in the step that
    samples. Without `round_steps` in the arm's settings one group is sampled for every problem, once.

    `count_earlier` is called in that step with the seconds, of all processes together, in which earlier attempts drew
    the samples that are kept.
    """

    def __init__(
        self,
        order: Sequence[tuple[str, str]],
        tokenizer: PreTrainedTokenizerBase,
        directory: Path,
        ledger: Ledger,
        settings: ResolvedArm,
        seed: int,
        count_earlier: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.order, self.tokenizer, self.ledger, self.count_earlier = order, tokenizer, ledger, count_earlier
        self.directory, self.seed = directory / "rollouts", seed
        self.problems_per_step, self.group = settings.problems_per_step, settings.completions_per_problem
        self.round_steps = settings.round_steps
        self._round = -1
        self._groups: dict[str, Compact] | list[Compact] = []

    def completions(self, step: int, draw: Draw) -> Completions:
        """Token ids for the rows of step `step`, counted from 0; samples them first where a round begins."""
        current = 0 if self.round_steps is None else step // self.round_steps
        begins = step == current * (self.round_steps or 0)
        if current != self._round or begins:
            self._groups = self._groups_of(current, draw, begins)
            self._round = current
        if begins:  # the order of the rows must not depend on whether the samples were drawn or read from disk
            torch.manual_seed(self._seed(current))
        positions = range(step * self.problems_per_step, (step + 1) * self.problems_per_step)
        if isinstance(self._groups, dict):
            return [ids.tolist() for position in positions for ids in self._groups[self.order[position][0]]]
        first = current * (self.round_steps or 0) * self.problems_per_step
        return [ids.tolist() for position in positions for ids in self._groups[position - first]]

    def _groups_of(self, current: int, draw: Draw, begins: bool) -> dict[str, Compact] | list[Compact]:
        """The groups of a round, from disk or from the model: by position; without rounds, by problem id."""
        path = self.directory / f"round-{current}.json"
        if self.round_steps is None:
            prompts = list(dict(self.order).items())
        else:
            first = current * self.round_steps * self.problems_per_step
            prompts = list(self.order[first : first + self.round_steps * self.problems_per_step])
        if path.exists():
            groups, earlier = read_groups(path), sum(self._seconds(current).values())
        else:
            groups, earlier = self._sample([prompt for _, prompt in prompts], current, draw)
            if rank() == 0:
                write_groups(path, groups)
                shutil.rmtree(self.directory / f"round-{current}.parts")
        if begins:
            tokens = sum(len(ids) for group in groups for ids in group)
            prompt_tokens = self.group * sum(len(self.tokenizer(prompt)["input_ids"]) for _, prompt in prompts)
            flops = forward_flops(self.ledger.parameters, tokens + prompt_tokens)
            self.ledger.spend(generated_tokens=tokens, generate_flops=flops)
            self.count_earlier(earlier)
        return groups if self.round_steps is not None else dict(zip(dict(self.order), groups, strict=True))

    def _seed(self, current: int) -> int:
        return (self.seed * 1_000_003 + current * 10_007) % 2**31

    def _seconds(self, current: int) -> dict[str, float]:
        """Seconds, of all processes together, in which each batch of a round was drawn, by its first problem."""
        return read_json(self.directory / f"seconds-{current}.json") or {}

    def _sample(self, prompts: list[str], current: int, draw: Draw) -> tuple[list[Compact], float]:
        """One group per prompt, a batch of problems at a time; batches from before a kill are read from disk.

        Returns the groups, and the seconds in which those from the disk were drawn.
        """
        progress = Progress(self.directory.parent, len(prompts), "problems sampled")
        parts_dir = self.directory / f"round-{current}.parts"
        groups: list[Compact] = []
        starts = range(0, len(prompts), self.problems_per_step)
        stored = sum(1 for _ in takewhile(lambda start: (parts_dir / f"{start}.json").exists(), starts))
        # A shared file system may show a rank fewer batches than another, and all of them must draw the same ones.
        known = min(gathered([stored]))
        seconds = self._seconds(current)
        earlier = sum(seconds.get(str(start), 0.0) for start in starts[:known])
        for batch, start in enumerate(starts):
            part = parts_dir / f"{start}.json"
            if batch < known:
                groups += read_groups(part)
                continue
            asked = prompts[start : start + self.problems_per_step]
            began = time.monotonic()
            drawn = [compact(group) for group in draw(asked, (self._seed(current) + start) % 2**31)]
            groups += drawn
            if rank() == 0:
                seconds[str(start)] = round((time.monotonic() - began) * world_size(), 3)
                write_json(self.directory / f"seconds-{current}.json", seconds)
                write_groups(part, drawn)
                progress.update(len(groups))
        return groups, earlier


class DynamicSampling:
    """DAPO's dynamic sampling (arXiv 2503.14476, Sec. 3.2): groups without any weight are replaced by other problems'.

    If too few groups have a weight after all batches, others fill the step. Groups that were sampled and not used
    were presented too, and are in the ledger.

    `reserve`: further rows, `dynamic_sampling` (the largest number of further batches in a step) times as many.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        reserve: Sequence[Row],
        judge: GradeAndReward,
        tokenizer: PreTrainedTokenizerBase,
        ledger: Ledger,
        settings: ResolvedArm,
        seed: int,
    ) -> None:
        self.rows, self.reserve, self.judge, self.tokenizer = rows, reserve, judge, tokenizer
        self.ledger, self.settings, self.seed = ledger, settings, seed
        self._chosen: list[Completions] = []
        self._log_probs: list[LogProbs] | None = None

    def choose(self, step: int, sample: Sample) -> list[Row]:
        """Sample for step `step`, counted from 0; returns the rows it trains on, one per problem."""
        size, batches = self.settings.problems_per_step, self.settings.dynamic_sampling
        each = self.settings.completions_per_problem
        weighted: list[tuple[Row, Completions, list[Grade], LogProbs | None]] = []
        others: list[tuple[Row, Completions, list[Grade], LogProbs | None]] = []
        for attempt in range(batches + 1):
            batch = self.rows[step * size : (step + 1) * size]
            if attempt:
                first = (step * batches + attempt - 1) * size
                batch = self.reserve[first : first + size]
            groups, log_probs = sample(
                [row["prompt"] for row in batch], (self.seed * 1_000_003 + step * 101 + attempt) % 2**31
            )
            flat, repeated = [ids for group in groups for ids in group], [row for row in batch for _ in range(each)]
            texts = self.tokenizer.batch_decode(flat, skip_special_tokens=True)
            references = [row["reference_answer"] for row in repeated]
            # Grading has a time limit, so the first rank grades for all: they must train on the same rewards.
            grades, rewards = from_first_rank(partial(self.judge, step, texts, flat, references))
            for index, (row, group) in enumerate(zip(batch, groups, strict=True)):
                own = slice(index * each, (index + 1) * each)
                has_weight = any(completion_weights(rewards[own], self.settings))
                entry = (row, group, grades[own], None if log_probs is None else log_probs[index])
                (weighted if has_weight else others).append(entry)
            if len(weighted) >= size:
                break
        sampled = [*weighted, *others]
        self._chosen = [group for _, group, *_ in sampled[:size]]
        kept = [known for *_, known in sampled[:size] if known is not None]
        self._log_probs = kept if len(kept) == len(self._chosen) else None
        unused = sampled[size:]
        self.ledger.enter(
            [row["problem_id"] for row, *_ in unused],
            [],
            [
                Completion(row["problem_id"], row["prompt_tokens"], len(ids), grade.correct)
                for row, group, grades, _ in unused
                for ids, grade in zip(group, grades, strict=True)
            ],
            sampled=True,
            trained=False,
        )
        return [row for row, *_ in sampled[:size]]

    def completions(self, step: int, draw: Draw) -> Completions:
        """Token ids for the rows that `choose` returned for this step."""
        return [ids for group in self._chosen for ids in group]

    def log_probs(self) -> LogProbs | None:
        """The engine's log-probabilities of these completions, for the importance ratio of vLLM's samples."""
        return None if self._log_probs is None else [values for group in self._log_probs for values in group]


Rollouts = TeacherRollouts | PolicyRollouts | DynamicSampling
