"""What finished stages took, against what was planned for them, and rates for what is left. Needs no torch.

A factor is measured over planned, for stages that do the same: those of an arm, else of arms that train the same way,
else of a kind. It lumps start and work together. Memory is corrected by a difference, because libraries and allocator
take about as much whatever the model. A rehearsal at toy size can only tell how long stages take to start, and only on
the same sort of machine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from launch.execution.usage import read_usage
from launch.planning.hours import StageHours
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
    """How far the plan was off for the stages of a group."""

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

    kind: str
    stages: int
    seconds: float
    """The median of its stages, a little work included."""


def group_of(stage: Stage) -> str:
    """Stages that are planned alike: those of an arm, or of a kind."""
    return f"arms/{stage.arguments['arm']}" if stage.kind == "arms" else stage.kind


def _alike(recipe: Recipe, stage: Stage) -> list[str]:
    """Names of the groups whose factor a stage may take, the nearest first."""
    if stage.kind != "arms":
        return [stage.kind]
    sampled = recipe.arms[str(stage.arguments["arm"])].sampling != "teacher"
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

    share = rows[-1]["step"] / resolve_arm(recipe, str(stage.arguments["arm"])).steps
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
                for group in _alike(recipe, stage):
                    self._by_group.setdefault(group, []).append(stage)

    def factors(self) -> tuple[Factor, ...]:
        """How far the plan was off, for every arm and kind that was measured."""
        own = dict.fromkeys(group_of(stage) for members in self._by_group.values() for stage in members)
        return tuple(factor for group in own if (factor := self._factor(group)) is not None)

    def factor_of(self, stage: Stage) -> Factor | None:
        """The factor that holds for a stage; None: nothing like it was measured."""
        return next((factor for group in _alike(self.recipe, stage) if (factor := self._factor(group))), None)

    def _factor(self, group: str) -> Factor | None:
        members = self._by_group.get(group, [])
        planned = sum(self._planned(stage) * self.measured[stage.name].share for stage in members)
        if not planned:
            return None
        return Factor(group, len(members), planned, sum(self.measured[stage.name].hours for stage in members))

    def _planned(self, stage: Stage) -> float:
        hours = self.planned[stage.name]
        return hours.hours if hours is not None else 0.0

    def expected(self, stage: Stage) -> StageHours | None:
        """What a stage is expected to take as a whole: planned, times the factor that holds for it."""
        hours, factor = self.planned[stage.name], self.factor_of(stage)
        if hours is None or factor is None:
            return hours
        return StageHours(hours.gpus, {part: seconds * factor.ratio for part, seconds in hours.seconds.items()})

    def memory(self, stage: Stage, planned: Callable[[Stage], int | None], on_gpu: bool) -> int | None:
        """Bytes a stage is expected to take: planned, and what stages like it took more; None if nothing is known."""
        own = planned(stage)
        for group in _alike(self.recipe, stage):
            excess_bytes = [
                (self.measured[member.name].gpu_bytes if on_gpu else self.measured[member.name].host_bytes)
                - (planned(member) or 0)
                for member in self._by_group.get(group, [])
                if self.measured[member.name].host_bytes
            ]
            if excess_bytes:
                return (own or 0) + round(sum(excess_bytes) / len(excess_bytes))
        return own


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
    seconds: dict[str, list[float]] = {}
    for row in rows:
        seconds.setdefault(row["stage"].split("/")[0], []).append(float(row["seconds"]))
    return tuple(Rehearsed(kind, len(times), median(times)) for kind, times in seconds.items()), None


def with_rehearsed_start(hours: StageHours | None, kind: str, rehearsal: Sequence[Rehearsed]) -> StageHours | None:
    """Hours with the seconds to start as rehearsed, in place of the assumed ones."""
    start = next((item.seconds for item in rehearsal if item.kind == kind), None)
    if hours is None or start is None:
        return hours
    return StageHours(hours.gpus, hours.seconds | {"start": start})
