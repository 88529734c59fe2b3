"""Mirroring a run's metrics to Weights & Biases; `metrics.jsonl` stays the source of truth.

One group per study, one job type per arm, one run per arm and seed. A run's id is kept in its stage directory, so that
a resumed run and its offline segments are the same run.
"""

import netrc
import os
import secrets
from pathlib import Path
from typing import Any

from recipes.manifest import write_atomic
from recipes.schema import Recipe
from train.runtime.ranks import rank

_ID_FILE = "wandb-id"
_SHOWN_COMPLETIONS = 8


class Tracker:
    """A run of wandb; does nothing where the recipe has no `wandb` section, and on all ranks but the first.

    Args:
        recipe: of the study.
        settings: of the arm, as JSON values.
        stage_dir: of the run.
        arm, seed: of the run.
    """

    def __init__(self, recipe: Recipe, settings: dict[str, Any], stage_dir: Path, arm: str, seed: int) -> None:
        self._run: Any = None
        if recipe.wandb is None or rank() != 0:
            return
        import wandb

        self.every = recipe.wandb.completions_every_steps
        self._run = wandb.init(
            project=recipe.wandb.project,
            entity=recipe.wandb.entity,
            group=recipe.study,
            job_type=arm,
            name=f"{arm}-seed{seed}",
            id=run_id(stage_dir),
            resume="allow",
            mode=wandb_mode(recipe.wandb.mode),
            dir=str(stage_dir),
            config=settings | {"seed": seed},
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Metrics of an update."""
        if self._run is not None:
            self._run.log(values, step=step)

    def completions(self, step: int, rows: list[dict[str, Any]]) -> None:
        """A table of sampled completions, every `completions_every_steps` updates."""
        if self._run is None or step % self.every:
            return
        import wandb

        shown = rows[:_SHOWN_COMPLETIONS]
        table = wandb.Table(columns=list(shown[0]), data=[list(row.values()) for row in shown])
        self._run.log({"completions": table}, step=step)

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()


def run_id(stage_dir: Path) -> str:
    """Id of the run in a stage directory: drawn once and kept beside its files.

    A resumed run, or one whose study was moved, keeps its id. No two runs share one, whatever their folders are called.
    """
    path = stage_dir / _ID_FILE
    if not path.exists():
        write_atomic(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8").strip()


def wandb_mode(mode: str) -> Any:
    """Online or offline: WANDB_MODE takes precedence over the recipe, and `auto` is offline without a key."""
    if chosen := os.environ.get("WANDB_MODE"):
        return chosen
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].split("/")[0]
        return "online" if netrc.netrc().authenticators(host) else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"
