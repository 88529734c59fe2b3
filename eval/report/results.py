"""From stored scores to `transfer.json`: gains, indices and contrasts in every reading, and what qualifies them.

It holds nothing that depends on the clock, so two runs of one recipe give the same file.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

from eval.forgetting.curves import summarise_trajectories
from eval.forgetting.rounding import near_rounding
from eval.questions.analysis_lock import decided
from eval.questions.guessing import guess_levels
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
from eval.report.wording import apart_text
from eval.responses.readings import pass_curve, read_benchmark_scores, read_cell, reading_cells
from eval.shifts.summary import empty_samples, summarise_shifts
from eval.statistics.bootstrap import draw_scores
from eval.statistics.decisions import fell, gained
from eval.statistics.inference import (
    Interval,
    beyond_guessing,
    contrast_interval,
    gain_p_value,
    holm,
    percentile_interval,
    weights_of,
)
from eval.statistics.transfer_index import DEFINITIONS, Index, index_difference, index_with_interval, without_each
from eval.statistics.values import Estimate
from recipes.schema import Recipe
from train.accounting.hardware import hardware_differences
from train.accounting.matching import recipe_differences, recorded_differences
from train.no_gradient import runs_without_gradient

READINGS = ("robust", "paper")
_TOY = "REHEARSAL: the models are tiny and random; no number here is a result"


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
    guess_level = guess_levels(recipe, study_dir, primary)
    shifts = summarise_shifts(recipe, study_dir) if recipe.with_diagnostics else None
    trajectory, hours = summarise_trajectories(recipe, study_dir) if recipe.with_trajectories else (None, {})
    warnings = [
        *([ReportWarning(code="rehearsal", message=_TOY)] if recipe.rehearsal else []),
        *(
            ReportWarning(code="nothing_learned", message=str(run), model=run.arm)
            for run in runs_without_gradient(recipe, study_dir)
        ),
        *first.warnings(),
        *first.guessing(guess_level),
        *template_warnings(study_dir, list(recipe.external)),
        *(ReportWarning(code="empty_samples", message=text) for text in empty_samples(shifts)),
        *(
            ReportWarning(code="kl_near_rounding", message=text, model=arm)
            for arm, text in near_rounding(recipe, study_dir).items()
        ),
        *(ReportWarning(code="other_hardware", message=text) for text in hardware_differences(recipe, study_dir)),
    ]
    status = "UNMATCHED" if differences else "unknown lineage" if recipe.external else "matched"
    results = {name: reading.results() for name, reading in readings.items()}
    return Transfer(
        schema_version=SCHEMA_VERSION,
        study=recipe.study,
        title=recipe.title,
        status=REHEARSAL if recipe.rehearsal else status,
        differences=differences,
        seeds=list(recipe.seeds) if recipe.trained else [],
        split=suite.split,
        samples={item.name: suite.samples(item) for item in suite.benchmarks},
        confidence=recipe.statistics.confidence,
        draws=recipe.statistics.draws,
        groups={group: [first.benchmarks[b].name for b in members] for group, members in first.groups.items()},
        trained_group=first.trained,
        questions={item.name: len(item.score_QM) for item in first.benchmarks},
        clusters={item.name: item.clusters for item in first.benchmarks},
        guess_level=guess_level,
        pocket=bool(recipe.model and recipe.model.pocket),
        analysis=Analysis(**decided(recipe, study_dir), claims=_claims(recipe, first)),
        reading=primary,
        definition=recipe.analysis.definition,
        base=results[primary].base,
        arms={
            arm: result.model_copy(update={"without": first.leave_one_out(arm)})
            for arm, result in results[primary].arms.items()
        },
        contrasts=results[primary].contrasts,
        readings=results,
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


class Reading:
    """A study's scores in one reading, with their joint draws; the base is drawn like an arm."""

    def __init__(self, recipe: Recipe, study_dir: Path, name: str) -> None:
        labels, statistics = recipe.all_labels, recipe.statistics
        self.models = {who: recipe.labels(who) for who in ("base", *recipe.arms)}
        self.cells = reading_cells(recipe, name)
        self.benchmarks, self.outcomes = read_benchmark_scores(recipe, study_dir, labels, self.cells)
        self.definition, self.trained = recipe.analysis.definition, recipe.analysis.trained_group
        self.groups: dict[str, list[int]] = {}
        for index, item in enumerate(self.benchmarks):
            self.groups.setdefault(item.group, []).append(index)
        self.others = [group for group in self.groups if group != self.trained]
        self.columns = {who: [labels.index(label) for label in own] for who, own in self.models.items()}
        self.drawn = draw_scores(
            self.benchmarks, self.columns, statistics.draws, statistics.seed, statistics.confidence
        )

    def results(self) -> ReadingResult:
        """Base, arms and contrasts."""
        _, *arms = self.models
        base = {
            item.name: BaseBenchmark(score=self._score("base", b), outcomes=self._totals("base", item.name))
            for b, item in enumerate(self.benchmarks)
        }
        return ReadingResult(
            base=Base(benchmarks=base),
            arms={arm: self._arm(arm) for arm in arms},
            contrasts=[self._contrast(*pair) for pair in combinations(arms, 2)],
            cells={name: list(cell) for name, cell in self.cells.items()},
        )

    def _score(self, who: str, b: int) -> Estimate:
        scores = self.drawn[who]
        return Estimate.of(percentile_interval(scores.arm_B[b], scores.arm_DB[:, b], scores.confidence))

    def _arm(self, arm: str) -> ArmResult:
        benchmarks = {}
        for b, (item, (gain, p_value, p_holm)) in enumerate(
            zip(self.benchmarks, self._tests(arm, "base"), strict=True)
        ):
            outcomes = self._totals(arm, item.name)
            benchmarks[item.name] = ArmBenchmark(
                score=self._score(arm, b),
                gain=gain,
                p_value=p_value,
                p_holm=p_holm,
                seed_scores=[round(float(value), 3) for value in item.means()[self.columns[arm]]],
                outcomes=outcomes,
                change=outcome_change(self._totals("base", item.name), outcomes),
            )
        index = self._indices(index_with_interval, arm)
        return ArmResult(groups=self._gains(arm, "base"), benchmarks=benchmarks, index=index)

    def _contrast(self, first: str, second: str) -> Contrast:
        tests = zip(self.benchmarks, self._tests(first, second), strict=True)
        return Contrast(
            first=first,
            second=second,
            groups=self._gains(first, second),
            benchmarks={
                item.name: BenchmarkContrast(difference=gain, p_holm=p_holm) for item, (gain, _, p_holm) in tests
            },
            index=self._indices(index_difference, first, second),
        )

    def interval(self, members: Sequence[int], first: str, second: str) -> tuple[Interval, float]:
        """How much more one model gained than another, mean over some benchmarks, with its p-value."""
        models, weight_B = (self.drawn[first], self.drawn[second]), weights_of(members, len(self.benchmarks))
        return contrast_interval(*models, weight_B), gain_p_value(*models, weight_B)

    def _gains(self, first: str, second: str) -> dict[str, Estimate]:
        return {name: Estimate.of(self.interval(members, first, second)[0]) for name, members in self.groups.items()}

    def _tests(self, first: str, second: str) -> list[tuple[Estimate, float, float]]:
        """The difference on every benchmark, its p-value, and that adjusted for all benchmarks."""
        found = [self.interval([b], first, second) for b in range(len(self.benchmarks))]
        adjusted = holm([p_value for _, p_value in found])
        rows = zip(found, adjusted, strict=True)
        return [(Estimate.of(gain), round(p_value, 5), round(corrected, 5)) for (gain, p_value), corrected in rows]

    def _indices(self, compute: Callable[..., Index], *models: str) -> dict[str, dict[str, IndexValue]]:
        """Every definition for every group but the trained one."""
        scores = [self.drawn[who] for who in models]
        return {
            definition: {
                group: IndexValue.of(compute(definition, *scores, self.groups, group, self.trained))
                for group in self.others
            }
            for definition in DEFINITIONS
        }

    def leave_one_out(self, arm: str) -> dict[str, dict[str, IndexValue]]:
        """The index of the primary definition with each benchmark left out."""
        rows = {g: without_each(self.definition, self.drawn[arm], self.groups, g, self.trained) for g in self.others}
        return {
            g: {self.benchmarks[b].name: IndexValue.of(index) for b, index in row.items()} for g, row in rows.items()
        }

    def warnings(self) -> list[ReportWarning]:
        """What a reader must know before relying on a value."""
        warnings = []
        for item in self.benchmarks:
            for who in self.models:
                counts = self._totals(who, item.name)
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
        few = [f"{item.name} ({item.clusters})" for item in self.benchmarks if item.clusters < 50]
        if few:
            message = f"few independent questions, so intervals of their own are approximate: {', '.join(few)}"
            warnings.append(ReportWarning(code="few_questions", message=message))
        return warnings

    def guessing(self, level: dict[str, float]) -> list[ReportWarning]:
        """A warning for every arm whose score on the trained group is not above guessing. `level`: by benchmark.

        A benchmark whose level is not known counts with its gain over the base.
        """
        members = self.groups.get(self.trained, [])
        names = [self.benchmarks[b].name for b in members]
        if not any(name in level for name in names):
            return []
        warnings, known = [], ", ".join(f"{name} {level[name]:.1f}" for name in names if name in level)
        if others := [name for name in names if name not in level]:
            known += f"; {', '.join(others)} count{'s' * (len(others) == 1)} with the gain over the base"
        average = " on average" if len(names) > 1 else ""
        for arm in [who for who in self.models if who != "base"]:
            scores = self.drawn[arm]
            beyond = Estimate.of(
                beyond_guessing(
                    scores, members, {b: level[n] for b, n in zip(members, names, strict=True) if n in level}
                )
            )
            if not gained(beyond):
                word = "is not above" if fell(beyond) else "cannot be told from"
                message = (
                    f"{arm} {word} guessing on {self.trained} (guessing gets: {known}): "
                    f"{apart_text(beyond, 'points above it', 'points below it')}{average}, so a gain may be the form "
                    "of the answers alone"
                )
                warnings.append(ReportWarning(code="not_above_guessing", message=message, model=arm))
        return warnings

    def _totals(self, who: str, benchmark: str) -> dict[str, int]:
        total: Counter[str] = Counter()
        for label in self.models[who]:
            total.update(self.outcomes[label][benchmark])
        return dict(sorted(total.items()))


def outcome_change(before: dict[str, int], after: dict[str, int]) -> dict[str, float]:
    """How the shares of outcomes moved from base to arm, in points of all responses."""
    totals = sum(before.values()), sum(after.values())
    names = sorted(before.keys() | after.keys())
    return {n: round(100 * (after.get(n, 0) / totals[1] - before.get(n, 0) / totals[0]), 3) for n in names}


def _claims(recipe: Recipe, reading: Reading) -> list[Claim]:
    """The primary claims with their verdicts; their p-values are adjusted together."""
    claims, level = recipe.analysis.claims, 1 - recipe.statistics.confidence
    found = [reading.interval(reading.groups[claim.group], claim.first, claim.second) for claim in claims]
    adjusted = holm([p_value for _, p_value in found])
    return [
        Claim(
            **claim.model_dump(mode="json"),
            difference=Estimate.of(gain),
            p_value=round(p_value, 5),
            p_holm=round(corrected, 5),
            verdict="undecided" if corrected >= level else "supported" if gain.estimate > 0 else "contradicted",
        )
        for claim, (gain, p_value), corrected in zip(claims, found, adjusted, strict=True)
    ]


def _cells(recipe: Recipe, study_dir: Path) -> list[CellScore]:
    """The score of every model in every prompting by every scoring, for benchmarks that have more than one."""
    labels, rows = recipe.all_labels, []
    columns = {who: [labels.index(label) for label in recipe.labels(who)] for who in ("base", *recipe.arms)}
    for benchmark in recipe.require_suite().benchmarks:
        for prompting, scoring in benchmark.cells():
            of_cell, _ = read_cell(study_dir, labels, benchmark, prompting, scoring)
            mean_M = of_cell.means()
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
    suite, cells = recipe.require_suite(), reading_cells(recipe, recipe.analysis.reading)
    return {
        b: {who: pass_curve(study_dir, recipe.labels(who), b, *cells[b]) for who in ("base", *recipe.arms)}
        for b in (item.name for item in suite.benchmarks if suite.samples(item) > 1)
    }
