"""Mirroring a study's report to Weights & Biases, and making the runs of its arms again from `metrics.jsonl`.

The study is one more run of its group: summary metrics, figures, and the table of responses.
"""

from pathlib import Path

from eval.report.schema import Transfer
from recipes.errors import UserError
from recipes.files import read_json_lines
from recipes.layout import run_folder
from recipes.resource_schema import WandbSpec
from recipes.schema import Recipe
from train.arms import resolve_arm
from train.runtime.recorder import METRICS
from train.runtime.tracking import Tracker, start_run, wandb_mode


def summary_metrics(transfer: Transfer) -> dict[str, float]:
    """The numbers a table of studies is sorted by: gains, scores, and distances, by name."""
    metrics: dict[str, float] = {}
    for arm, result in transfer.arms.items():
        for group, gain in result.groups.items():
            metrics |= {f"{arm}/gain/{group}{suffix}": getattr(gain, key) for key, suffix in _PARTS}
        metrics |= {f"{arm}/score/{name}": row.score.estimate for name, row in result.benchmarks.items()}
        if transfer.diagnostics is not None:
            tokens = transfer.diagnostics.arms[arm].tokens["own_samples"]
            metrics |= {f"{arm}/kl_to_base/{g}": v["kl_to_base"].per_token.estimate for g, v in tokens.items()}
    return metrics


_PARTS = (("estimate", ""), ("low", "/low"), ("high", "/high"))


def track_study(recipe: Recipe, stage_dir: Path, transfer: Transfer, *, must_reach: bool = False) -> None:
    """Write the study's run in wandb, where the recipe has it. `must_reach`: see `start_run`."""
    spec = recipe.wandb_settings
    if spec is None:
        return
    import wandb

    run = start_run(
        spec,
        stage_dir,
        must_reach=must_reach,
        group=recipe.study,
        job_type="report",
        name=f"{recipe.study} report",
        config={"study": recipe.study, "status": transfer.status, "reading": transfer.reading},
    )
    run.summary.update({"status": transfer.status, **summary_metrics(transfer)})
    figures = {f"figures/{p.stem}": wandb.Image(str(p)) for p in sorted((stage_dir / "figures").glob("*.png"))}
    models = ["base", *transfer.arms]
    rows = [[e.benchmark, e.prompt, e.reference, *(e.responses[who].text for who in models)] for e in transfer.examples]
    run.log(figures | {"samples": wandb.Table(columns=["benchmark", "prompt", "reference", *models], data=rows)})
    run.finish()


def sync_study(recipe: Recipe, study_dir: Path, transfer: Transfer | None, online: bool) -> list[str]:
    """Make the runs of all finished arms, and of the report, again; their names.

    A run keeps its id, so what is there already is not doubled. Sampled completions are not in `metrics.jsonl` and
    are not made again.

    Raises:
        UserError: `online` without a key, or where the server cannot be used.
    """
    spec = recipe.wandb_settings or WandbSpec()
    if online and wandb_mode("auto") != "online":
        raise UserError(
            "there is no key for Weights & Biases; set WANDB_API_KEY or run `wandb login`, or say --offline"
        )
    mode = "online" if online else "offline"
    recipe = recipe.model_copy(update={"wandb": spec.model_copy(update={"mode": mode}), "tracking": ()})
    made = []
    for arm in recipe.trained:
        for seed in recipe.seeds:
            run_dir = run_folder(study_dir, arm, seed)
            rows = read_json_lines(run_dir / METRICS)
            if not rows:
                continue
            matched = resolve_arm(recipe, arm).matched_on()
            tracker = Tracker(recipe, matched, run_dir, arm, seed, must_reach=online)
            for row in rows:
                tracker.log(row["step"], {key: value for key, value in row.items() if key != "step"})
            tracker.close()
            made.append(f"{arm}-seed{seed}")
    if transfer is not None:
        track_study(recipe, study_dir / "report", transfer, must_reach=online)
        made.append("report")
    return made
