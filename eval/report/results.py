"""From stored scores to `transfer.json`: gains, indices and contrasts in every reading, and what qualifies them.

It holds nothing that depends on the clock, so two runs of one recipe give the same file.
"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Literal

from eval.forgetting.curves import summarise_trajectories
from eval.forgetting.rounding import near_rounding
from eval.questions.analysis_lock import decided
from eval.report.certificate import budget, certificate, evaluation_differences, model_hashes, versions
from eval.report.examples import sample_responses
from eval.report.schema import (
    REHEARSAL,
    SCHEMA_VERSION,
    Analysis,
    ArmBenchmark,
    ArmResult,
    Base,
    BaseBenchmark,
    BenchmarkContrast,
    CellScore,
    Claim,
    Contrast,
    IndexValue,
    ReadingResult,
    ReportWarning,
    Transfer,
)
from eval.report.token_warnings import template_warnings
from eval.responses.readings import pass_curve, read_answers, read_cell, reading_cells
from eval.shifts.summary import empty_samples, summarise_shifts
from eval.statistics.bootstrap import ArmScores, draw_scores
from eval.statistics.inference import (
    contrast_interval,
    gain_p_value,
    holm,
    linear_interval,
    percentile_interval,
    weights_of,
)
from eval.statistics.transfer_index import (
    DEFINITIONS,
    Definition,
    Index,
    group_gain,
    index_difference,
    index_with_interval,
    without_each,
)
from eval.statistics.values import Estimate
from recipes.schema import Recipe
from train.accounting.hardware import hardware_differences
from train.accounting.matching import recipe_differences, recorded_differences
from train.no_gradient import runs_without_gradient

READINGS = ("robust", "paper")
ClaimVerdict = Literal["supported", "contradicted", "undecided"]


def compute_transfer(recipe: Recipe, study_dir: Path) -> tuple[Transfer, dict[str, list[float]]]:
    """Everything in `transfer.json`, and apart from it the hours of each arm's checkpoints.

    Scores and gains in points, indices in percent.

    Raises:
        UserError: models cannot be compared, or the lock of the analysis is damaged.
    """
    suite = recipe.require_suite()
    labels = recipe.all_labels
    differences = recipe_differences(recipe) + recorded_differences(recipe, study_dir)
    differences += evaluation_differences(study_dir, labels)
    primary = recipe.analysis.reading
    readings = {name: Reading(recipe, study_dir, name) for name in dict.fromkeys([primary, *READINGS])}
    first = readings[primary]
    shifts = summarise_shifts(recipe, study_dir) if recipe.with_diagnostics else None
    unknown = "unknown lineage" if recipe.external else "matched"
    trajectory, hours = summarise_trajectories(recipe, study_dir) if recipe.with_trajectories else (None, {})
    warnings = [
        *_toy_warning(recipe),
        *(
            ReportWarning(code="nothing_learned", message=str(run), model=run.arm)
            for run in runs_without_gradient(recipe, study_dir)
        ),
        *first.warnings(),
        *template_warnings(study_dir, list(recipe.external)),
        *(ReportWarning(code="empty_samples", message=text) for text in empty_samples(shifts)),
        *(
            ReportWarning(code="kl_near_rounding", message=text, model=arm)
            for arm, text in near_rounding(recipe, study_dir).items()
        ),
        *(ReportWarning(code="other_hardware", message=text) for text in hardware_differences(recipe, study_dir)),
    ]
    results = first.results(full=True)
    return Transfer(
        schema_version=SCHEMA_VERSION,
        study=recipe.study,
        title=recipe.title,
        status=REHEARSAL if recipe.rehearsal else "UNMATCHED" if differences else unknown,
        differences=differences,
        seeds=list(recipe.seeds) if recipe.trained else [],
        split=suite.split,
        samples={item.name: suite.samples(item) for item in suite.benchmarks},
        confidence=recipe.statistics.confidence,
        draws=recipe.statistics.draws,
        groups={group: [first.answers[b].name for b in members] for group, members in first.groups.items()},
        trained_group=first.trained,
        questions={item.name: len(item.score_QM) for item in first.answers},
        clusters={item.name: item.clusters for item in first.answers},
        pocket=bool(recipe.model and recipe.model.pocket),
        analysis=Analysis(**decided(recipe, study_dir), claims=_claims(recipe, first)),
        reading=primary,
        definition=recipe.analysis.definition,
        base=results.base,
        arms=results.arms,
        contrasts=results.contrasts,
        readings={name: reading.results(full=False) for name, reading in readings.items()},
        cells=_cells(recipe, study_dir),
        pass_at_k=_pass_curves(recipe, study_dir),
        warnings=warnings,
        trajectory=trajectory,
        diagnostics=shifts,
        examples=sample_responses(recipe, study_dir),
        certificate=certificate(recipe, study_dir),
        versions=versions(study_dir),
        budget={arm: [budget(study_dir, arm, seed) for seed in recipe.seeds] for arm in recipe.trained},
        settings={name: arm.model_dump(mode="json", exclude_none=True) for name, arm in recipe.arms.items()},
        models={label: model_hashes(study_dir, label) for label in labels},
    ), hours


def _toy_warning(recipe: Recipe) -> list[ReportWarning]:
    message = "REHEARSAL: the models are tiny and random; no number here is a result"
    return [ReportWarning(code="rehearsal", message=message)] if recipe.rehearsal else []


class Reading:
    """A study's scores in one reading, with their joint draws."""

    def __init__(self, recipe: Recipe, study_dir: Path, name: str) -> None:
        labels, self.recipe = recipe.all_labels, recipe
        self.arms = {arm: recipe.labels(arm) for arm in recipe.arms}
        self.cells = reading_cells(recipe, name)
        self.answers, self.outcomes = read_answers(recipe, study_dir, labels, self.cells)
        self.confidence, self.trained = recipe.statistics.confidence, recipe.analysis.trained_group
        self.groups: dict[str, list[int]] = {}
        for index, item in enumerate(self.answers):
            self.groups.setdefault(item.group, []).append(index)
        self.columns = {arm: [labels.index(label) for label in names] for arm, names in self.arms.items()}
        statistics = recipe.statistics
        self.drawn = draw_scores(
            self.answers, {"base": [0]} | self.columns, statistics.draws, statistics.seed, self.confidence
        )

    def results(self, full: bool) -> ReadingResult:
        """Base, arms and contrasts; `full` adds what only the primary reading needs."""
        base = self.drawn["base"]
        scores = {
            item.name: BaseBenchmark(
                score=Estimate.of(percentile_interval(base.base_B[b], base.base_DB[:, b], self.confidence)),
                outcomes=self._totals(["base"], item.name),
            )
            for b, item in enumerate(self.answers)
        }
        return ReadingResult(
            base=Base(benchmarks=scores),
            arms={arm: self._arm(arm, full) for arm in self.arms},
            contrasts=[self._contrast(*pair) for pair in combinations(self.arms, 2)],
            cells={name: list(cell) for name, cell in self.cells.items()},
        )

    def _arm(self, arm: str, full: bool) -> ArmResult:
        scores, size = self.drawn[arm], len(self.answers)
        singles = [weights_of([b], size) for b in range(size)]
        p_values = [gain_p_value(scores, None, weight) for weight in singles]
        adjusted = holm(p_values)
        benchmarks = {}
        for b, item in enumerate(self.answers):
            per_seed = item.means()[self.columns[arm]]
            outcomes = self._totals(self.arms[arm], item.name)
            benchmarks[item.name] = ArmBenchmark(
                score=Estimate.of(percentile_interval(scores.arm_B[b], scores.arm_DB[:, b], self.confidence)),
                gain=Estimate.of(linear_interval(scores, singles[b], self.confidence)),
                p_value=round(p_values[b], 5),
                p_holm=round(adjusted[b], 5),
                seed_scores=[round(float(value), 3) for value in per_seed],
                outcomes=outcomes,
                change=outcome_change(self._totals(["base"], item.name), outcomes),
            )
        index = self._indices(
            lambda definition, group: index_with_interval(
                definition, scores, self.groups, group, self.confidence, self.trained
            )
        )
        groups = {
            name: Estimate.of(group_gain(scores, members, self.confidence)) for name, members in self.groups.items()
        }
        if not full:
            return ArmResult(groups=groups, benchmarks=benchmarks, index=index)
        return ArmResult(groups=groups, benchmarks=benchmarks, index=index, without=self._without(scores))

    def _indices(self, compute: Callable[[Definition, str], Index]) -> dict[str, dict[str, IndexValue]]:
        """Every definition for every group but the trained one."""
        others = [group for group in self.groups if group != self.trained]
        return {
            definition: {group: index_value(compute(definition, group)) for group in others}
            for definition in DEFINITIONS
        }

    def _without(self, scores: ArmScores) -> dict[str, dict[str, IndexValue]]:
        """The index of the primary definition with each benchmark left out."""
        definition = self.recipe.analysis.definition
        return {
            group: {
                self.answers[b].name: index_value(index)
                for b, index in without_each(
                    definition, scores, self.groups, group, self.confidence, self.trained
                ).items()
            }
            for group in self.groups
            if group != self.trained
        }

    def _contrast(self, first: str, second: str) -> Contrast:
        left, right, size = self.drawn[first], self.drawn[second], len(self.answers)
        p_values = [gain_p_value(left, right, weights_of([b], size)) for b in range(size)]
        adjusted = holm(p_values)
        return Contrast(
            first=first,
            second=second,
            groups={
                group: Estimate.of(contrast_interval(left, right, weights_of(members, size), self.confidence))
                for group, members in self.groups.items()
            },
            benchmarks={
                item.name: BenchmarkContrast(
                    difference=Estimate.of(contrast_interval(left, right, weights_of([b], size), self.confidence)),
                    p_holm=round(adjusted[b], 5),
                )
                for b, item in enumerate(self.answers)
            },
            index=self._indices(
                lambda definition, group: index_difference(
                    definition, left, right, self.groups, group, self.confidence, self.trained
                )
            ),
        )

    def warnings(self) -> list[ReportWarning]:
        """What a reader must know before relying on a value."""
        warnings = []
        for item in self.answers:
            for who, labels in {"base": ["base"], **self.arms}.items():
                counts = self._totals(labels, item.name)
                total, cut = sum(counts.values()), counts.get("truncated", 0)
                if cut == total:
                    message = (
                        f"{item.name}: every response of {who} was cut off at suite.max_response_tokens; its score "
                        "says nothing"
                    )
                    warnings.append(ReportWarning(code="all_truncated", message=message, model=who))
                elif cut > 0.1 * total:
                    message = f"{item.name}: {cut / total:.0%} of the responses of {who} were cut off unfinished"
                    warnings.append(ReportWarning(code="many_truncated", message=message, model=who))
            if item.means()[0] == 0:
                message = f"{item.name}: the base scores zero, so gains relative to it are undefined"
                warnings.append(ReportWarning(code="base_scores_zero", message=message))
        few = [f"{item.name} ({item.clusters})" for item in self.answers if item.clusters < 50]
        if few:
            message = f"few independent questions, so intervals of their own are approximate: {', '.join(few)}"
            warnings.append(ReportWarning(code="few_questions", message=message))
        return warnings

    def _totals(self, labels: list[str], benchmark: str) -> dict[str, int]:
        total: dict[str, int] = {}
        for label in labels:
            for name, count in self.outcomes[label][benchmark].items():
                total[name] = total.get(name, 0) + count
        return dict(sorted(total.items()))


def index_value(index: Index) -> IndexValue:
    """An index, rounded."""
    return IndexValue(
        estimate=None if index.estimate is None else round(index.estimate, 3),
        interval=None if index.interval is None else Estimate.of(index.interval),
        method=index.method,
        status=index.status,
        reason=index.reason,
    )


def outcome_change(before: dict[str, int], after: dict[str, int]) -> dict[str, float]:
    """How the shares of outcomes moved from base to arm, in points of all responses."""
    totals = sum(before.values()), sum(after.values())
    names = sorted(before.keys() | after.keys())
    return {n: round(100 * (after.get(n, 0) / totals[1] - before.get(n, 0) / totals[0]), 3) for n in names}


def _claims(recipe: Recipe, reading: Reading) -> list[Claim]:
    """The primary claims with their verdicts; their p-values are adjusted together."""
    size = len(reading.answers)
    rows = []
    for claim in recipe.analysis.claims:
        weight_B = weights_of(reading.groups[claim.group], size)
        first = reading.drawn[claim.first]
        second: ArmScores | None = None if claim.second == "base" else reading.drawn[claim.second]
        gain = (
            linear_interval(first, weight_B, reading.confidence)
            if second is None
            else contrast_interval(first, second, weight_B, reading.confidence)
        )
        rows.append((claim, gain, gain_p_value(first, second, weight_B)))
    adjusted = holm([p for _, _, p in rows])
    level = 1 - recipe.statistics.confidence
    return [
        Claim(
            **claim.model_dump(mode="json"),
            difference=Estimate.of(gain),
            p_value=round(p, 5),
            p_holm=round(corrected, 5),
            verdict=_verdict(gain.estimate, corrected, level),
        )
        for (claim, gain, p), corrected in zip(rows, adjusted, strict=True)
    ]


def _verdict(estimate: float, p_value: float, level: float) -> ClaimVerdict:
    if p_value >= level:
        return "undecided"
    return "supported" if estimate > 0 else "contradicted"


def _cells(recipe: Recipe, study_dir: Path) -> list[CellScore]:
    """The score of every model in every prompting by every scoring, for benchmarks that have more than one."""
    labels, rows = recipe.all_labels, []
    columns = {who: [labels.index(label) for label in recipe.labels(who)] for who in ("base", *recipe.arms)}
    for benchmark in recipe.require_suite().benchmarks:
        for prompting, scoring in benchmark.cells():
            answers, _ = read_cell(study_dir, labels, benchmark, prompting, scoring)
            mean_M = answers.means()
            rows.append(
                CellScore(
                    benchmark=benchmark.name,
                    prompting=prompting,
                    scoring=scoring,
                    rule=benchmark.scorings[scoring],
                    scores={who: round(float(mean_M[own].mean()), 3) for who, own in columns.items()},
                )
            )
    return rows


def _pass_curves(recipe: Recipe, study_dir: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """pass@k of every benchmark with several responses, in the primary reading."""
    suite = recipe.require_suite()
    cells = reading_cells(recipe, recipe.analysis.reading)
    several = [item.name for item in suite.benchmarks if suite.samples(item) > 1]
    return {
        b: {
            who: [(k, value) for k, value in pass_curve(study_dir, recipe.labels(who), b, *cells[b])]
            for who in ("base", *recipe.arms)
        }
        for b in several
    }
