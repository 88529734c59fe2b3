"""Stage `report`: scores and manifests in; `transfer.json`, `figures/*.svg` and `index.html` out."""

from pathlib import Path
from typing import Any

from eval.page import draw_figures, render_page
from eval.results import compute_transfer
from recipes.manifest import finish_stage, hash_files, write_atomic, write_json
from recipes.schema import Recipe
from train.callbacks import METRICS
from train.ledger import read_rows

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


def training_curves(recipe: Recipe, study_dir: Path) -> dict[str, list[list[dict[str, Any]]]]:
    """The rows of `metrics.jsonl` of every arm, one list per seed."""
    return {
        arm: [read_rows(study_dir / "arms" / arm / f"seed-{seed}" / METRICS) for seed in recipe.seeds]
        for arm in recipe.trained
    }
