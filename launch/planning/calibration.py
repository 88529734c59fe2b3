"""What finished stages took, against what was planned for them, and rates for what is left. Needs no torch.

A factor is measured over planned, for stages that do the same: those of an arm, else of arms that train the same way,
or those of a kind. It lumps start and work together. Memory is corrected by a difference, because libraries and
allocator take about as much whatever the model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.execution.usage import read_usage
from launch.planning.hours import StageHours
from launch.stages import Stage
from recipes.files import read_json_lines
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
        for stage in stages:
            if stage.name in measured and planned[stage.name] is not None:
                for group in _factor_groups(recipe, stage):
                    self._by_group.setdefault(group, []).append(stage)

    def factors(self) -> tuple[Factor, ...]:
        """How far the plan was off, for every arm and kind that was measured."""
        own = dict.fromkeys(group_of(stage) for members in self._by_group.values() for stage in members)
        return tuple(self._factor(group, self._by_group[group]) for group in own)

    def corrected_by(self, stage: Stage) -> tuple[str, ...]:
        """The groups of the measured stages that correct the hours of a stage; empty: nothing like it was measured."""
        return tuple(dict.fromkeys(group_of(member) for member in self._like(stage)))

    def _like(self, stage: Stage) -> list[Stage]:
        """The measured stages that are most like a stage as a whole."""
        return next((found for group in _factor_groups(self.recipe, stage) if (found := self._by_group.get(group))), [])

    def _factor(self, group: str, members: Sequence[Stage]) -> Factor:
        planned = taken = 0.0
        for stage in members:
            hours, measured = self.planned[stage.name], self.measured[stage.name]
            assert hours is not None
            planned += hours.hours * measured.share
            taken += measured.hours
        return Factor(group, len(members), planned, taken)

    def expected(self, stage: Stage) -> StageHours | None:
        """What a stage is expected to take as a whole: planned, times the factor of the stages that are like it."""
        hours, like = self.planned[stage.name], self._like(stage)
        if hours is None or not like:
            return hours
        ratio = self._factor(group_of(stage), like).ratio
        return StageHours(hours.gpus, {part: seconds * ratio for part, seconds in hours.seconds.items()})

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
