"""The types of `transfer.json`, and the only code that writes and reads it.

Scores and gains are in points (0 to 100), indices in percent of the trained gain.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from eval.forgetting.schema import Trajectory
from eval.shifts.schema import Shifts
from eval.statistics.values import Estimate, Values
from recipes.errors import UserError
from recipes.files import write_json

if TYPE_CHECKING:
    import pandas as pd

    from eval.statistics.transfer_index import Index

SCHEMA_VERSION = 3
TRANSFER = "transfer.json"
REHEARSAL = "REHEARSAL"  # the status of a study whose models are tiny and random

WarningCode = Literal[
    "rehearsal",
    "all_truncated",
    "many_truncated",
    "base_scores_zero",
    "few_questions",
    "shared_bos_eos",
    "other_template",
    "other_eos",
    "empty_samples",
    "kl_near_rounding",
    "other_hardware",
    "nothing_learned",
    "not_above_guessing",
]


class ReportWarning(Values):
    """What a reader must know before relying on a value."""

    code: WarningCode
    message: str
    model: str | None = None
    """`base` or the arm that it concerns; none where it concerns all."""


class IndexValue(Values):
    """A transfer index in percent. `method` says how its interval was computed, `reason` why there is none."""

    estimate: float | None
    interval: Estimate | None
    method: str | None
    status: str
    """`identified`, `not identified` or `undefined`."""
    reason: str | None

    @classmethod
    def of(cls, index: "Index") -> "IndexValue":
        """An index, rounded."""
        estimate = None if index.estimate is None else round(index.estimate, 3)
        interval = None if index.interval is None else Estimate.of(index.interval)
        return cls(estimate=estimate, interval=interval, method=index.method, status=index.status, reason=index.reason)


class BaseBenchmark(Values):
    """The base on one benchmark."""

    score: Estimate
    outcomes: dict[str, int]


class Base(Values):
    """The base's scores by benchmark."""

    benchmarks: dict[str, BaseBenchmark]


class ArmBenchmark(Values):
    """An arm on one benchmark."""

    score: Estimate
    gain: Estimate
    p_value: float
    p_holm: float
    seed_scores: list[float]
    outcomes: dict[str, int]
    change: dict[str, float]
    """Outcome -> how its share moved from base to arm, in points of all responses."""


class ArmResult(Values):
    """Gains and indices of one arm."""

    groups: dict[str, Estimate]
    """Group -> mean gain over the base."""
    benchmarks: dict[str, ArmBenchmark]
    index: dict[str, dict[str, IndexValue]]
    """Definition -> group -> index."""
    without: dict[str, dict[str, IndexValue]] | None = None
    """Group -> benchmark left out -> index; in the primary reading only."""


class BenchmarkContrast(Values):
    """Difference of two arms on one benchmark."""

    difference: Estimate
    p_holm: float


class Contrast(Values):
    """Differences of two arms, `first` minus `second`, on the same draws."""

    first: str
    second: str
    groups: dict[str, Estimate]
    benchmarks: dict[str, BenchmarkContrast]
    index: dict[str, dict[str, IndexValue]]


class ReadingResult(Values):
    """Every benchmark prompted and scored in one reading."""

    base: Base
    arms: dict[str, ArmResult]
    contrasts: list[Contrast]
    cells: dict[str, list[str]]
    """Benchmark -> its prompting and its scoring."""


class Claim(Values):
    """A primary claim with its test."""

    group: str
    first: str
    second: str
    difference: Estimate
    p_value: float
    p_holm: float
    verdict: Literal["supported", "contradicted", "undecided"]


class Analysis(Values):
    """What was decided before the evaluation, what after, and the primary claims."""

    sha256: str
    before: list[str]
    after: list[str]
    claims: list[Claim]


class CellScore(Values):
    """Scores of all models on a benchmark in one prompting by one scoring."""

    benchmark: str
    prompting: str
    scoring: str
    rule: str
    scores: dict[str, float]


class ShownResponse(Values):
    """A response, its thinking apart."""

    thinking: str | None
    text: str
    outcome: str


class Example(Values):
    """One question with the first response of every model."""

    benchmark: str
    group: str
    question_id: str
    why: str
    prompt: str
    reference: str | None
    responses: dict[str, ShownResponse]


class Presented(Values):
    """The problems that the arms were presented, over a whole run."""

    equal: bool
    problems: dict[str, int]
    with_gradient: dict[str, int]


class Certificate(Values):
    """What the arms shared, by hash and value, and what they differed in."""

    varies: list[str]
    shared: dict[str, JsonValue]
    differs: dict[str, dict[str, JsonValue]]
    presented: Presented


class Budget(Values):
    """The totals of one run's ledger."""

    presented_problems: int
    contributed_problems: int
    exposures: int
    completions: int
    correct_completions: int
    prompt_tokens: int
    generated_tokens: int
    trained_tokens: int
    generate_flops: float
    reference_flops: float
    train_flops: float

    @property
    def flops(self) -> float:
        """FLOPs of generation, reference and training together."""
        return self.generate_flops + self.reference_flops + self.train_flops


class ModelHashes(Values):
    """Hashes of the files of a model's stage, and of its stored responses."""

    weights: str
    """Over the hashes of weights, configurations and tokenizer, and of an arm's ledger: not of the weights alone."""
    responses: str


class Transfer(Values):
    """A transfer report: everything in `transfer.json`."""

    schema_version: int
    study: str
    title: str | None
    status: Literal["matched", "UNMATCHED", "unknown lineage", "REHEARSAL"]
    differences: list[str]
    seeds: list[int]
    split: str
    samples: dict[str, int]
    confidence: float
    draws: int
    groups: dict[str, list[str]]
    trained_group: str
    """The group of the domain that was trained on."""
    questions: dict[str, int]
    clusters: dict[str, int]
    guess_level: dict[str, float]
    """Benchmark -> what picking among its given answers scores, in points; of those where this is known."""
    pocket: bool
    analysis: Analysis
    reading: str
    definition: str
    base: Base
    arms: dict[str, ArmResult]
    contrasts: list[Contrast]
    readings: dict[str, ReadingResult]
    cells: list[CellScore]
    pass_at_k: dict[str, dict[str, list[tuple[float, float]]]]
    """Benchmark -> model -> [k, pass@k in points]."""
    warnings: list[ReportWarning]
    trajectory: Trajectory | None
    diagnostics: Shifts | None
    examples: list[Example]
    certificate: Certificate | None
    versions: dict[str, str]
    budget: dict[str, list[Budget]]
    settings: dict[str, dict[str, JsonValue]]
    models: dict[str, ModelHashes]

    @property
    def readings_differ(self) -> bool:
        """Whether any benchmark is prompted or scored in another way in one reading than in another."""
        first, *others = self.readings.values()
        return any(other.cells != first.cells for other in others)

    def warnings_of(self, code: WarningCode, arm: str) -> list[ReportWarning]:
        """The warnings with a code that concern the gains of an arm: its own, the base's, and those of all."""
        return [warning for warning in self.warnings if warning.code == code and warning.model in (None, "base", arm)]

    def learned_nothing(self, arm: str) -> bool:
        """Whether no run of an arm had a gradient, so that what looks like a gain is chance or where it started."""
        runs = [w for w in self.warnings if w.code == "nothing_learned" and w.model == arm]
        return bool(runs) and len(runs) == len(self.seeds)

    def guesses(self, arm: str) -> bool:
        """Whether the score of an arm on the trained group is not above what guessing gets."""
        return any(w.code == "not_above_guessing" and w.model == arm for w in self.warnings)

    def started_from(self, arm: str) -> str | None:
        """The arm whose model another was trained from; None: the base."""
        start = self.settings.get(arm, {}).get("start_from")
        return None if start is None else str(start)

    @property
    def any_started(self) -> bool:
        """Whether an arm was trained from another's end."""
        return any(self.started_from(arm) for arm in self.budget)

    def starts(self, arm: str) -> list[str]:
        """The arms that were trained before an arm on the way to its model, the first one first."""
        start = self.started_from(arm)
        return [] if start is None else [*self.starts(start), start]

    def difference(self, first: str, second: str, group: str) -> Estimate:
        """Gain of one arm in a group minus that of another."""
        for pair in self.contrasts:
            if (pair.first, pair.second) == (first, second):
                return pair.groups[group]
            if (pair.first, pair.second) == (second, first):
                return -pair.groups[group]
        raise ValueError(f"{first} and {second} are not compared")

    def gains_frame(self) -> "pd.DataFrame":
        """Gains over the base in points: columns `model`, `group`, `benchmark`, `estimate`, `low`, `high`.

        A row for every group of benchmarks, where `benchmark` is null, and one for every benchmark.
        """
        import pandas as pd

        rows = []
        for model, result in self.arms.items():
            for group, names in self.groups.items():
                cells = [(None, result.groups[group]), *((name, result.benchmarks[name].gain) for name in names)]
                rows += [{"model": model, "group": group, "benchmark": name} | gain.dump() for name, gain in cells]
        return pd.DataFrame(rows, columns=["model", "group", "benchmark", "estimate", "low", "high"])


def write_transfer(path: Path, transfer: Transfer) -> None:
    """Write a report, atomically."""
    write_json(path, transfer.dump())


def read_transfer(path: Path | str) -> Transfer:
    """Read a report.

    `path`: of `transfer.json`, or of a study directory with a finished report.

    Raises:
        UserError: there is no report, or the file is torn, not a report, or of another schema version.
    """
    given = Path(path)
    path = given / "report" / TRANSFER if given.is_dir() else given
    remedy = "remove the folder `report` of the study and run `transfer run` again; only the report is computed again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get("schema_version")
        if version == SCHEMA_VERSION:
            return Transfer.model_validate(content)
    except FileNotFoundError:
        if given.is_dir():
            raise UserError(f"{given} has no finished report; `transfer run {given}` makes it") from None
        raise UserError(f"there is no report at {path}; `transfer run` makes it") from None
    except (ValueError, AttributeError):  # torn, no object, or without some field
        raise UserError(f"{path} is damaged, or not the transfer.json of a study; {remedy}") from None
    its_version = "has no schema_version" if version is None else f"has schema_version {version}"
    raise UserError(f"{path} {its_version}, this version of the code reads {SCHEMA_VERSION}; {remedy}")
