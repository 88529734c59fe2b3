"""Stage `report`: scores and manifests in; `transfer.json`, `figures/*.svg` and `index.html` out.

`transfer.json` holds nothing that depends on the clock, so two runs of one recipe give the same file.
"""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from eval.page import draw_figures, render_page
from eval.transfer_index import (
    DEFINITIONS,
    MATH,
    Answers,
    Interval,
    draw_scores,
    group_gain,
    index_with_interval,
    percentile_interval,
)
from recipes.errors import UserError
from recipes.manifest import finish_stage, hash_files, read_manifest, write_atomic, write_json
from recipes.schema import Recipe
from train.callbacks import METRICS
from train.ledger import read_rows
from train.matching import recipe_differences, recorded_differences

TRANSFER, PAGE = "transfer.json", "index.html"


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool) -> None:
    """Compute the transfer report of a study and write it into `stage_dir`."""
    transfer = compute_transfer(recipe, study_dir)
    write_json(stage_dir / TRANSFER, transfer)
    figures = draw_figures(transfer, training_curves(recipe, study_dir))
    for name, svg in figures.items():
        write_atomic(stage_dir / "figures" / f"{name}.svg", svg)
    write_atomic(stage_dir / PAGE, render_page(transfer, recipe, figures))
    finish_stage(stage_dir, hash_files(stage_dir, [TRANSFER]), {"status": transfer["status"]})


def read_answers(recipe: Recipe, study_dir: Path, labels: list[str]) -> tuple[list[Answers], dict[str, Any]]:
    """Per-question accuracies of the models `labels` and their outcome counts, benchmark by benchmark.

    Raises:
        UserError: a model did not answer the same questions as the first.
    """
    assert recipe.suite is not None
    answers = []
    outcomes: dict[str, Any] = {label: {} for label in labels}
    for benchmark in recipe.suite.benchmarks:
        columns: list[np.ndarray] = []
        first_ids: list[str] = []
        for label in labels:
            path = study_dir / "eval" / label / f"{benchmark.name}-native" / f"scores-{benchmark.scoring}.parquet"
            table = pq.read_table(path).to_pydict()
            ids = list(dict.fromkeys(table["question_id"]))
            first_ids = first_ids or ids
            if ids != first_ids:
                raise UserError(
                    f"{label} answered other questions of {benchmark.name} than {labels[0]}; evaluate again"
                )
            position = {identity: number for number, identity in enumerate(ids)}
            totals, counts = np.zeros(len(ids)), np.zeros(len(ids))
            rows = np.array([position[identity] for identity in table["question_id"]])
            np.add.at(totals, rows, np.array(table["correct"], dtype=float))
            np.add.at(counts, rows, 1)
            columns.append(100 * totals / counts)
            names, numbers = np.unique(table["outcome"], return_counts=True)
            outcomes[label][benchmark.name] = {str(n): int(c) for n, c in zip(names, numbers, strict=True)}
        answers.append(Answers(benchmark.name, benchmark.group, np.stack(columns, axis=1)))
    return answers, outcomes


def compute_transfer(recipe: Recipe, study_dir: Path) -> dict[str, Any]:
    """Everything in `transfer.json`. Scores and gains in points, indices in percent."""
    assert recipe.suite is not None
    labels = ["base"]
    columns: dict[str, list[int]] = {}
    for arm in recipe.arms:
        for seed in recipe.seeds:
            columns.setdefault(arm, []).append(len(labels))
            labels.append(f"{arm}-seed{seed}-final")
    answers, outcomes = read_answers(recipe, study_dir, labels)
    groups: dict[str, list[int]] = {}
    for number, item in enumerate(answers):
        groups.setdefault(item.group, []).append(number)
    statistics = recipe.statistics
    drawn = draw_scores(answers, {"base": [0]} | columns, statistics.draws, statistics.seed)
    confidence = statistics.confidence

    def interval(value: Interval | None) -> dict[str, float] | None:
        return None if value is None else {key: round(number, 3) for key, number in value._asdict().items()}

    def outcome_totals(model_labels: list[str], benchmark: str) -> dict[str, int]:
        total: dict[str, int] = {}
        for label in model_labels:
            for name, count in outcomes[label][benchmark].items():
                total[name] = total.get(name, 0) + count
        return dict(sorted(total.items()))

    arms: dict[str, Any] = {}
    for arm in columns:
        scores = drawn[arm]
        benchmarks: dict[str, Any] = {}
        for number, item in enumerate(answers):
            per_seed = item.accuracy_QM[:, columns[arm]].mean(axis=0)
            gain_D = scores.arm_DB[:, number] - scores.base_DB[:, number]
            benchmarks[item.name] = {
                "score": interval(percentile_interval(scores.arm_B[number], scores.arm_DB[:, number], confidence)),
                "gain": interval(percentile_interval(scores.arm_B[number] - scores.base_B[number], gain_D, confidence)),
                "seed_scores": [round(float(value), 3) for value in per_seed],
                "outcomes": outcome_totals([labels[column] for column in columns[arm]], item.name),
            }
        index: dict[str, Any] = {}
        for definition in DEFINITIONS:
            for group in groups:
                if group != MATH:
                    found = index_with_interval(definition, scores, groups, group, confidence)
                    estimate = None if found.estimate is None else round(found.estimate, 3)
                    cell = {"estimate": estimate, "interval": interval(found.interval), "method": found.method}
                    index.setdefault(definition, {})[group] = cell
        arms[arm] = {
            "settings": recipe.arms[arm].model_dump(mode="json", exclude_none=True),
            "groups": {group: interval(group_gain(scores, members, confidence)) for group, members in groups.items()},
            "benchmarks": benchmarks,
            "index": index,
            "budget": [_budget(study_dir, arm, seed) for seed in recipe.seeds],
        }
    contrasts = []
    for first, second in combinations(columns, 2):
        gains = {}
        for group, members in groups.items():
            weight = 1 / len(members)
            difference_D = (drawn[first].arm_DB - drawn[second].arm_DB)[:, members].sum(axis=1) * weight
            estimate = (drawn[first].arm_B - drawn[second].arm_B)[members].sum() * weight
            gains[group] = interval(percentile_interval(float(estimate), difference_D, confidence))
        contrasts.append({"first": first, "second": second, "groups": gains})
    differences = recipe_differences(recipe) + recorded_differences(recipe, study_dir)
    differences += _evaluation_differences(study_dir, labels)
    base = drawn["base"]
    return {
        "study": recipe.study,
        "title": recipe.title,
        "status": "UNMATCHED" if differences else "matched",
        "differences": differences,
        "seeds": list(recipe.seeds),
        "split": recipe.suite.split,
        "samples_per_question": recipe.suite.samples_per_question,
        "confidence": confidence,
        "draws": statistics.draws,
        "groups": {group: [answers[number].name for number in members] for group, members in groups.items()},
        "questions": {item.name: len(item.accuracy_QM) for item in answers},
        "base": {
            "benchmarks": {
                item.name: {
                    "score": interval(percentile_interval(base.base_B[number], base.base_DB[:, number], confidence)),
                    "outcomes": outcome_totals(["base"], item.name),
                }
                for number, item in enumerate(answers)
            },
            "pocket": bool(recipe.model and recipe.model.pocket),
        },
        "arms": arms,
        "models": {label: _lineage(study_dir, label) for label in labels},
        "contrasts": contrasts,
    }


def _evaluation_differences(study_dir: Path, labels: list[str]) -> list[str]:
    """Models that were evaluated by other code or other packages than the base."""
    records = {}
    for label in labels:
        manifest = read_manifest(study_dir / "eval" / label)
        assert manifest is not None
        records[label] = (manifest.get("code"), manifest["environment"]["packages"])
    others = [label for label in labels if records[label] != records["base"]]
    return [f"evaluation: {', '.join(others)} by other code or packages than base"] if others else []


def _lineage(study_dir: Path, label: str) -> dict[str, str]:
    """Hashes of what a score rests on: the weights the model answered with, and the stored responses."""
    responses = read_manifest(study_dir / "eval" / label)
    assert responses is not None
    (trained,) = (key for key in responses["inputs"] if key.startswith("output of ") and key != "output of corpus")
    return {"weights": responses["inputs"][trained], "responses": responses["output_hash"]}


def _budget(study_dir: Path, arm: str, seed: int) -> dict[str, int]:
    """The ledger's totals, with the number of problems presented and of those that had a gradient."""
    manifest = read_manifest(study_dir / "arms" / arm / f"seed-{seed}")
    assert manifest is not None
    facts = manifest["facts"]
    counts = {name: len(facts[name]) for name in ("presented_problems", "contributed_problems")}
    return counts | facts["totals"]


def training_curves(recipe: Recipe, study_dir: Path) -> dict[str, list[list[dict[str, Any]]]]:
    """The rows of `metrics.jsonl` of every arm, one list per seed."""
    return {
        arm: [read_rows(study_dir / "arms" / arm / f"seed-{seed}" / METRICS) for seed in recipe.seeds]
        for arm in recipe.arms
    }
