"""What finished stages took, against what was planned for them, and rates for what is left. Needs no torch.

A factor is measured over planned, for stages that do the same: those of an arm, else of arms that train the same way,
or those of a kind. It lumps start and work together. A stage like which none was measured takes factors for the parts
it shares with some: passes through the model, and sampling by the same engine. Memory is corrected by a difference,
because libraries and allocator take about as much whatever the model. A rehearsal at toy size can only tell how long
stages take to start, and only on the same sort of machine.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from launch.execution.usage import read_usage
from launch.planning.hours import StageHours, WorkPart
from launch.stage_kinds import StageKind, kind_of
from launch.stages import Stage
from recipes.files import read_json, read_json_lines
from recipes.manifest import StageState, read_manifest
from recipes.schema import Recipe

_CLOCK = "clock.jsonl"  # train/runtime/recorder.py, which needs torch
_LEAST_SHARE = 0.02  # of a run, to be taken as measured


@dataclass(frozen=True)
class Taken:
    """What a stage has taken so far."""

    stage: str
    share: float
    """Of its work that is done; 1: finished."""
    hours: float
    host_bytes: int
    gpu_bytes: int


@dataclass(frozen=True)
class Factor:
    """How far the plan was off for some stages."""

    group: str
    stages: int
    planned_hours: float
    """Of the clock, for what was measured of them."""
    taken_hours: float

    @property
    def ratio(self) -> float:
        """Hours taken, divided by hours planned."""
        return self.taken_hours / self.planned_hours


@dataclass(frozen=True)
class Rehearsed:
    """Seconds to start a stage of a kind, by a rehearsal."""

    kind: StageKind
    stages: int
    seconds: float
    """The median of its stages, a little work included."""


def group_of(stage: Stage) -> str:
    """Stages that are planned alike: those of an arm, or of a kind."""
    return f"arms/{stage.arm}" if stage.kind == "arms" else stage.kind


def _factor_groups(recipe: Recipe, stage: Stage) -> list[str]:
    """Names of the groups whose factor a stage may take, the nearest first."""
    if stage.kind != "arms":
        return [stage.kind]
    sampled = recipe.arms[stage.arm].sampling != "teacher"
    return [group_of(stage), f"arms that sample with {stage.module}" if sampled else f"arms of {stage.module}"]


def taken(recipe: Recipe, stage: Stage, state: StageState, study_dir: Path) -> Taken | None:
    """What a stage has taken; None where that is not known.

    `usage.json` has only the last process of a stage that was interrupted, so the clock of its steps is taken for one
    that trains, and nothing for others.
    """
    folder = study_dir / stage.name
    manifest = read_manifest(folder)
    if manifest is None or state.state not in ("done", "resume"):
        return None
    usage: Mapping[str, Any] = read_usage(folder) or {}
    memory = int(usage.get("host_bytes", 0)), int(usage.get("gpu_bytes", 0))
    if state.state == "done" and not manifest.get("resumed") and usage:
        return Taken(stage.name, 1.0, float(usage["seconds"]) / 3600, *memory)
    rows = read_json_lines(folder / _CLOCK) if stage.kind == "arms" else []
    if not rows:
        return None
    from train.arms import resolve_arm

    share = rows[-1]["step"] / resolve_arm(recipe, stage.arm).steps
    hours = rows[-1]["process_seconds"] / recipe.resources.ranks / 3600
    return Taken(stage.name, min(1.0, share), hours, *memory) if share >= _LEAST_SHARE else None


_PASSES: tuple[WorkPart, ...] = (
    "forward and backward",
    "recomputation",
    "old log-probabilities",
    "reference model",
    "reading",
)
"""Parts of stages that are passes through the model."""


def _work(recipe: Recipe, stage: Stage, part: WorkPart) -> str | None:
    """What a part of a stage has in common with parts of stages of other kinds; None: nothing that is known.

    The base is trained on other rows and with other threads, so it tells nothing.
    """
    if stage.facts.makes_model:
        return None
    if part in _PASSES:
        return "passes"
    if part != "generation":
        return None
    sampler = stage.facts.samples_with
    if sampler == "suite.engine":
        return f"sampling with {recipe.require_suite().engine.kind}"
    return f"sampling with {'hf' if sampler == 'transformers' or recipe.resources.vllm is None else 'vllm'}"


class Calibration:
    """Corrections from what the stages of a study took.

    `planned`: hours of each stage by the assumptions, None where unknown. `measured`: what stages took, by name.
    """

    def __init__(
        self,
        recipe: Recipe,
        stages: Sequence[Stage],
        planned: Mapping[str, StageHours | None],
        measured: Mapping[str, Taken],
    ) -> None:
        self.recipe, self.planned, self.measured = recipe, planned, measured
        self._by_group: dict[str, list[Stage]] = {}
        self._by_work: dict[str, list[Stage]] = {}
        for stage in stages:
            if stage.name in measured and planned[stage.name] is not None:
                for group in _factor_groups(recipe, stage):
                    self._by_group.setdefault(group, []).append(stage)
                for work in self._works(stage):
                    self._by_work.setdefault(work, []).append(stage)
        self._of_work = {work: self._factor(work, members).ratio for work, members in self._by_work.items()}

    def factors(self) -> tuple[Factor, ...]:
        """How far the plan was off, for every arm and kind that was measured."""
        own = dict.fromkeys(group_of(stage) for members in self._by_group.values() for stage in members)
        return tuple(self._factor(group, self._by_group[group]) for group in own)

    def corrected_by(self, stage: Stage) -> tuple[str, ...]:
        """The groups of the measured stages that correct the hours of a stage; empty: nothing like it was measured."""
        members = self._like(stage) or [other for work in self._works(stage) for other in self._by_work.get(work, [])]
        return tuple(dict.fromkeys(group_of(member) for member in members))

    def _like(self, stage: Stage) -> list[Stage]:
        """The measured stages that are most like a stage as a whole."""
        return next((found for group in _factor_groups(self.recipe, stage) if (found := self._by_group.get(group))), [])

    def _works(self, stage: Stage) -> list[str]:
        """What a stage does that others do too."""
        hours = self.planned[stage.name]
        parts = () if hours is None else (part for part, seconds in hours.seconds.items() if seconds)
        return [work for part in parts if (work := _work(self.recipe, stage, part)) is not None]

    def _factor(self, name: str, members: Sequence[Stage]) -> Factor:
        """Of stages, or of a work that they share: then each counts by its planned share of it, at its own ratio."""
        planned = taken = 0.0
        for stage in members:
            hours, measured = self.planned[stage.name], self.measured[stage.name]
            assert hours is not None
            whole = sum(hours.seconds.values())
            own = sum(value for part, value in hours.seconds.items() if _work(self.recipe, stage, part) == name)
            weight = own / whole if name in self._by_work else 1.0
            planned += weight * hours.hours * measured.share
            taken += weight * measured.hours
        return Factor(name, len(members), planned, taken)

    def expected(self, stage: Stage) -> StageHours | None:
        """What a stage is expected to take as a whole: planned, times the factors that hold for it or its parts."""
        hours, like = self.planned[stage.name], self._like(stage)
        if hours is None:
            return None
        if like:
            ratios = dict.fromkeys(hours.seconds, self._factor(group_of(stage), like).ratio)
        else:
            ratios = {part: self._of_work.get(_work(self.recipe, stage, part) or "", 1.0) for part in hours.seconds}
        return StageHours(hours.gpus, {part: seconds * ratios[part] for part, seconds in hours.seconds.items()})

    def memory(self, stage: Stage, planned: Callable[[Stage], int | None], on_gpu: bool) -> int | None:
        """Bytes a stage is expected to take: planned, and what stages like it took more; None if nothing is known.

        Where none is like it, the most that any stage with a model took more.
        """
        own = planned(stage)

        def excess(members: Iterable[Stage]) -> list[int]:
            return [
                (self.measured[member.name].gpu_bytes if on_gpu else self.measured[member.name].host_bytes)
                - (planned(member) or 0)
                for member in members
                if self.measured[member.name].host_bytes
            ]

        for group in _factor_groups(self.recipe, stage):
            if like := excess(self._by_group.get(group, [])):
                return (own or 0) + round(sum(like) / len(like))
        if own is None:
            return None
        others = (member for members in self._by_group.values() for member in members if planned(member) is not None)
        return own + max([0, *excess(others)])


def rehearsed(study_dir: Path, study: str, on_gpu: bool) -> tuple[tuple[Rehearsed, ...], str | None]:
    """Seconds to start a stage of each kind by the study's rehearsal, and a sentence about why they are not used.

    The rehearsal is beside the study, where `transfer rehearse` puts it. `on_gpu`: whether the study is planned for
    GPUs.
    """
    folder = study_dir.parent / "rehearsals" / study
    outcome = read_json(folder / "rehearsal.json") or {}
    rows = [row for row in outcome.get("stages", []) if row["verdict"] == "passed" and row["seconds"] is not None]
    if not rows:
        return (), None
    if on_gpu != any(row["gpu_bytes"] for row in rows):
        where = "a CPU" if on_gpu else "a GPU"
        return (), f"{folder} ran on {where}, which says nothing about the hours of this study"
    seconds: dict[StageKind, list[float]] = {}
    for row in rows:
        seconds.setdefault(kind_of(row["stage"]), []).append(float(row["seconds"]))
    return tuple(Rehearsed(kind, len(times), median(times)) for kind, times in seconds.items()), None


def with_rehearsed_start(
    hours: StageHours | None, kind: StageKind, rehearsal: Sequence[Rehearsed]
) -> StageHours | None:
    """Hours with the seconds to start as rehearsed, in place of the assumed ones."""
    start = next((item.seconds for item in rehearsal if item.kind == kind), None)
    if hours is None or start is None:
        return hours
    return StageHours(hours.gpus, hours.seconds | {"start": start})
