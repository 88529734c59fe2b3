"""Mirroring a run's metrics to Weights & Biases and TensorBoard; `metrics.jsonl` stays the source of truth.

wandb has one group per study, one job type per arm, one run per arm and seed. A run's id is kept in its stage
directory, so that a resumed run and its offline segments are the same run.
"""

import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.files import write_atomic
from recipes.schema import Recipe
from train.runtime.ranks import rank

EVENTS = "tensorboard"
"""Folder of a run's event files."""
_ID_FILE = "wandb-id"
_SHOWN_COMPLETIONS = 8


class Tracker:
    """Mirrors of a run's metrics; does nothing where the recipe has none, and on all ranks but the first."""

    def __init__(self, recipe: Recipe, settings: dict[str, Any], stage_dir: Path, arm: str, seed: int) -> None:
        self._run: Any = None
        self._events: Any = None
        self._event_dir = stage_dir / EVENTS if "tensorboard" in recipe.tracking and rank() == 0 else None
        spec = recipe.wandb_settings
        if spec is None or rank() != 0:
            return
        import wandb

        self.every = spec.completions_every_steps
        self._run = wandb.init(
            project=spec.project,
            entity=spec.entity,
            group=recipe.study,
            job_type=arm,
            name=f"{arm}-seed{seed}",
            id=run_id(stage_dir),
            resume="allow",
            mode=wandb_mode(spec.mode),
            dir=str(stage_dir),
            config=settings | {"seed": seed},
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Metrics of a step; None is one that could not be computed, which TensorBoard cannot show."""
        if self._run is not None:
            self._run.log(dict(values), step=step)
        if self._event_dir is not None:
            if self._events is None:
                from tensorboardX import SummaryWriter

                # A resumed run writes the steps after its checkpoint again: TensorBoard drops the earlier ones.
                self._events = SummaryWriter(str(self._event_dir), purge_step=step)
            for name, value in values.items():
                if value is not None:
                    self._events.add_scalar(name, value, step)

    def completions(self, step: int, rows: list[dict[str, Any]], steps_per_generation: int = 1) -> None:
        """A table of sampled completions in wandb, every `completions_every_steps` steps.

        `steps_per_generation`: steps that share these completions, of which `step` is the first.
        """
        if self._run is None:
            return
        if not any((step + index) % self.every == 0 for index in range(steps_per_generation)):
            return
        import wandb

        shown = rows[:_SHOWN_COMPLETIONS]
        table = wandb.Table(columns=list(shown[0]), data=[list(row.values()) for row in shown])
        self._run.log({"completions": table}, step=step)

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()
        if self._events is not None:
            self._events.close()


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
