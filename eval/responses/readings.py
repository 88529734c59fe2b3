"""Stored scores as the arrays the statistics need: one reading (prompting and scoring of each benchmark) at a time."""

from pathlib import Path
from typing import Any

import numpy as np

from eval.responses.generate import scores_path
from eval.scorers.records import ScoreRow, count_outcomes, read_scores
from eval.statistics.bootstrap import BenchmarkScores
from recipes.errors import UserError
from recipes.manifest import finished_manifest
from recipes.schema import Recipe
from recipes.suite_schema import BenchmarkSpec

Cells = dict[str, tuple[str, str]]


def reading_cells(recipe: Recipe, reading: str) -> Cells:
    """The prompting and scoring of each benchmark in a reading."""
    return {benchmark.name: benchmark.cell(reading) for benchmark in recipe.require_suite().benchmarks}


def unit_dir(study_dir: Path, label: str, benchmark: str, prompting: str) -> Path:
    """Where a model's responses to a benchmark in a prompting are."""
    return study_dir / "eval" / label / f"{benchmark}-{prompting}"


def require_same_requests(study_dir: Path, labels: list[str], benchmark: str, prompting: str) -> None:
    """Refuse to compare models whose requests differ.

    Raises:
        UserError: their questions, task file, budget, decoding or thinking mode differ, or a model has no responses.
    """
    first: dict[str, Any] = {}
    for label in labels:
        manifest = finished_manifest(unit_dir(study_dir, label, benchmark, prompting))
        if manifest is None:
            raise UserError(f"{label} has no responses to {benchmark}-{prompting}; `transfer run` generates them")
        inputs = {key: value for key, value in manifest["inputs"].items() if key != "model"}
        first = first or inputs
        for key in sorted(first.keys() | inputs.keys()):
            if first.get(key) != inputs.get(key):
                raise UserError(
                    f"{label} and {labels[0]} cannot be compared on {benchmark}-{prompting}: {key} was "
                    f"{inputs.get(key)!r} and {first.get(key)!r}; evaluate both with one suite"
                )


def read_cell_scores(study_dir: Path, label: str, benchmark: str, prompting: str, scoring: str) -> list[ScoreRow]:
    """One score table. Raises UserError if it is missing, damaged, or has a response twice."""
    path = scores_path(unit_dir(study_dir, label, benchmark, prompting), scoring)
    if not path.is_file():
        raise UserError(f"{path} does not exist; `transfer score` or `transfer run` makes it")
    return read_scores(path)


def read_benchmark_scores(
    recipe: Recipe, study_dir: Path, labels: list[str], cells: Cells
) -> tuple[list[BenchmarkScores], dict[str, dict[str, dict[str, int]]]]:
    """Per-question scores of the models `labels`, and counts of outcomes by model and benchmark.

    Raises:
        UserError: the questions or requests of a model are not those of the first.
    """
    benchmarks = []
    outcomes: dict[str, dict[str, dict[str, int]]] = {label: {} for label in labels}
    for benchmark in recipe.require_suite().benchmarks:
        of_benchmark, counted = read_cell(study_dir, labels, benchmark, *cells[benchmark.name])
        benchmarks.append(of_benchmark)
        for label in labels:
            outcomes[label][benchmark.name] = counted[label]
    return benchmarks, outcomes


def read_cell(
    study_dir: Path, labels: list[str], benchmark: BenchmarkSpec, prompting: str, scoring: str
) -> tuple[BenchmarkScores, dict[str, dict[str, int]]]:
    """Per-question scores of the models `labels` on one benchmark, and counts of outcomes by model.

    Of one prompting by one scoring.

    Raises:
        UserError: the questions or requests of a model are not those of the first.
    """
    require_same_requests(study_dir, labels, benchmark.name, prompting)
    tables = {label: read_cell_scores(study_dir, label, benchmark.name, prompting, scoring) for label in labels}
    counts = {label: count_outcomes(table) for label, table in tables.items()}
    return stacked_scores(benchmark.name, benchmark.group, tables), counts


def stacked_scores(name: str, group: str, tables: dict[str, list[ScoreRow]]) -> BenchmarkScores:
    """Score tables of several models on one benchmark as one array in the order of the models.

    Raises:
        UserError: a model answered other questions than the first.
    """
    columns: list[np.ndarray] = []
    first_ids: list[str] = []
    clusters = weights = np.zeros(0)
    for label, table in tables.items():
        ids = list(dict.fromkeys(row.question_id for row in table))
        first_ids = first_ids or ids
        if ids != first_ids:
            raise UserError(f"{label} answered other questions of {name} than {next(iter(tables))}; evaluate again")
        position = {identity: index for index, identity in enumerate(ids)}
        rows = np.array([position[row.question_id] for row in table])
        counts = np.bincount(rows, minlength=len(ids))
        columns.append(100 * np.bincount(rows, np.array([row.value for row in table]), len(ids)) / counts)
        first_rows = np.unique(rows, return_index=True)[1]
        clusters = np.array([row.cluster for row in table])[first_rows]
        weights = np.array([row.weight for row in table])[first_rows]
    alone = len(np.unique(clusters)) == len(clusters)
    equal = bool((weights == weights[0]).all())
    return BenchmarkScores(
        name,
        group,
        np.stack(columns, axis=1),
        None if alone else clusters,
        None if equal else weights,
    )


def pass_at_k(correct_Q: np.ndarray, samples_Q: np.ndarray, k: int) -> float:
    """Share of questions that k responses solve at least once, in points.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of a question with c of n responses correct (Chen et al. 2021,
    arXiv 2107.03374, Eq. 1), averaged. Raises ValueError if a question has fewer than k responses.
    """
    if (samples_Q < k).any():
        raise ValueError(f"pass@{k} needs {k} responses to every question")
    missed_Q = np.ones(len(correct_Q))
    for step in range(k):  # the product form of the two binomials, which never overflows
        missed_Q *= np.clip(samples_Q - correct_Q - step, 0, None) / (samples_Q - step)
    return float(100 * (1 - missed_Q).mean())


def pass_curve(
    study_dir: Path, labels: list[str], benchmark: str, prompting: str, scoring: str
) -> list[tuple[float, float]]:
    """(k, pass@k in points) for k = 1, 2, 4, ... and the number of responses, averaged over an arm's models."""
    curves: dict[int, list[float]] = {}
    for label in labels:
        table = read_cell_scores(study_dir, label, benchmark, prompting, scoring)
        _, question = np.unique([row.question_id for row in table], return_inverse=True)
        samples_Q = np.bincount(question)
        correct_Q = np.bincount(question, np.array([row.value for row in table]) == 1)
        most = int(samples_Q.min())
        for k in sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most}):
            curves.setdefault(k, []).append(pass_at_k(correct_Q, samples_Q, k))
    return [(k, round(float(np.mean(values)), 3)) for k, values in sorted(curves.items())]
