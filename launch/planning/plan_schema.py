"""What `transfer plan` says, as frozen dataclasses, and their JSON."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from launch.planning.analysis_plan import AnalysisPlan
from launch.planning.calibration import Factor, Rehearsed
from launch.planning.disk import Disk
from launch.planning.findings import Finding
from launch.planning.schedule import Schedule
from launch.planning.teacher import TeacherPlan
from train.accounting.memory import RankMemory, SamplingMemory

CHANGE = 0.2
"""By how much an assumption is changed to see what it moves."""


@dataclass(frozen=True)
class StagePlan:
    """What the plan says of one stage."""

    name: str
    group: str
    """Its row of the table: an arm, or a kind of stage."""
    state: str
    """done, reused (from another study), running, resume, changed or new."""
    reasons: tuple[str, ...]
    command: str
    files: dict[str, dict[str, Any]]
    """Files that its ranks are given, by path."""
    topology: str
    reads: tuple[str, ...]
    writes: str
    gpus: int
    requested_gpus: int
    """By its job on the cluster that the plan is for; 0: none, or the plan is for this machine."""
    planned_hours: float | None
    """Of the clock, by the assumptions; None: unknown."""
    expected_hours: float | None
    """Of the clock as a whole; corrected by what stages like it took."""
    corrected_by: tuple[str, ...]
    """Rows of the table whose measured stages correct it; empty where no stage like it was measured."""
    taken_hours: float | None
    """None: not begun, or not known."""
    left_hours: float | None
    seconds: dict[str, float]
    """Expected, by what is done."""
    memory_bytes: int | None
    """Expected at the peak, on one GPU; without GPUs of the host."""
    peak_bytes: int | None
    """Measured."""


@dataclass(frozen=True)
class Assumption:
    """What total hours would be with one assumption raised by 20 %."""

    name: str
    value: float
    change: float
    """Of the hours that are left, as a fraction."""


@dataclass(frozen=True)
class AssumedLengths:
    """How long texts are assumed to be, where the recipe does not say it and no measured stage tells."""

    completion_share: float
    """Of the limit, in training and for the analyses."""
    response_share: float
    """Of the limit, in the evaluation."""
    hours_at_limits: float
    """Of the whole study, if every text reached its limit."""


@dataclass(frozen=True)
class Totals:
    """Of the whole study. GPU-hours are those of the GPUs that stages hold; without GPUs they are stage-hours."""

    unit: str
    hours: float
    """Taken, and expected of what is left."""
    taken_hours: float
    left_hours: float
    nodes: int
    """That a run occupies; the schedule `on_one_machine` has as many."""
    node_gpus: int
    """GPUs of the machine that `on_one_machine` is about."""
    on_one_machine: Schedule
    """Of what is left."""
    with_endless_nodes: Schedule


@dataclass(frozen=True)
class ArmPlan:
    """One run of an arm; tokens and FLOPs are upper bounds from the length limits."""

    runs: int
    updates: int
    exposures: int
    completions: int
    generated_tokens_at_most: int
    flops_at_most: int | None
    gpu_hours: float | None
    """By the assumptions; None for an unknown model or without a GPU."""
    hours_between_checkpoints: float | None
    save_every_steps: int
    updates_per_batch: int
    disk_bytes: int | None
    learning_rate: float
    memory_per_rank: RankMemory | None
    sampling_memory: SamplingMemory | None


@dataclass(frozen=True)
class Plan:
    """What `transfer plan` says."""

    study: str
    directory: str
    on_cluster: bool
    gpu: str | None
    parameters: int | None
    pretraining_tokens: int | None
    stages: tuple[StagePlan, ...]
    totals: Totals
    assumptions: tuple[Assumption, ...]
    """The largest change first."""
    lengths: AssumedLengths | None
    calibration: tuple[Factor, ...]
    rehearsed: tuple[Rehearsed, ...]
    arms: dict[str, ArmPlan]
    teacher: TeacherPlan | None
    responses_at_most: int | None
    analyses: AnalysisPlan
    disk: Disk | None
    findings: tuple[Finding, ...]
    errors: tuple[str, ...]
    unresolved: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    external: tuple[str, ...]
    """Arms that were trained elsewhere, of which nothing else is known."""
    differences: tuple[str, ...]


def as_json(value: Any) -> Any:
    """JSON values of a plan: fields of dataclasses, then their properties."""
    if is_dataclass(value):
        names = [field.name for field in fields(value)]
        names += [name for name, item in vars(type(value)).items() if isinstance(item, property)]
        return {name: as_json(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, tuple | list) else value
