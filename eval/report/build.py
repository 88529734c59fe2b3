"""Stage `report`: scores and manifests in; `transfer.json`, `summary.md`, `figures/` and `index.html` out."""

from pathlib import Path
from typing import Any

from eval.drawing import watermark
from eval.report.page import draw_figures, render_page, render_summary
from eval.report.results import compute_transfer
from eval.report.schema import REHEARSAL, TRANSFER, write_transfer
from eval.report.tracking import track_study
from recipes.files import hash_files, read_json_lines, write_atomic, write_json
from recipes.layout import run_folder
from recipes.manifest import finish_stage
from recipes.schema import Recipe
from train.runtime.recorder import CLOCK, METRICS

PAGE, SUMMARY, HOURS = "index.html", "summary.md", "hours.json"


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool) -> None:
    """Compute the transfer report of a study and write it into `stage_dir`."""
    transfer, at_checkpoints = compute_transfer(recipe, study_dir)
    write_transfer(stage_dir / TRANSFER, transfer)
    clock = spent_hours(recipe, study_dir, at_checkpoints)
    write_json(stage_dir / HOURS, clock)
    with watermark(REHEARSAL if recipe.rehearsal else None):
        figures = draw_figures(transfer, training_curves(recipe, study_dir), clock)
    for name, drawing in figures.items():
        write_atomic(stage_dir / "figures" / f"{name}.svg", drawing.svg)
        write_atomic(stage_dir / "figures" / f"{name}.png", drawing.png)
    write_atomic(stage_dir / PAGE, render_page(transfer, recipe, figures, clock))
    write_atomic(stage_dir / SUMMARY, render_summary(transfer))
    track_study(recipe, stage_dir, transfer)
    finish_stage(stage_dir, hash_files(stage_dir, [TRANSFER]), {"status": transfer.status})


def training_curves(recipe: Recipe, study_dir: Path) -> dict[str, list[list[dict[str, Any]]]]:
    """The rows of `metrics.jsonl` of every arm, one list per seed."""
    return {
        arm: [read_json_lines(run_folder(study_dir, arm, seed) / METRICS) for seed in recipe.seeds]
        for arm in recipe.trained
    }


def spent_hours(recipe: Recipe, study_dir: Path, at_checkpoints: dict[str, list[float]]) -> dict[str, Any]:
    """Hours of all processes together of one run of each arm, mean over seeds; arms without a clock are left out."""
    spent: dict[str, Any] = {}
    for arm in recipe.trained:
        clocks = [read_json_lines(run_folder(study_dir, arm, seed) / CLOCK) for seed in recipe.seeds]
        if all(clocks):
            hours = sum(rows[-1]["process_seconds"] for rows in clocks) / len(clocks) / 3600
            spent[arm] = {"hours": hours, "at_checkpoints": at_checkpoints.get(arm, [])}
    return spent
