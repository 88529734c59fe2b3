"""Mirroring a run's metrics to Weights & Biases and TensorBoard; `metrics.jsonl` stays the source of truth.

wandb has one group per study, one job type per arm, one run per arm and seed. A run's id is kept in its stage
directory, so that a resumed run and its offline segments are the same run.
"""

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from recipes.errors import UserError
from recipes.files import write_atomic
from recipes.resource_schema import WandbSpec
from recipes.schema import Recipe
from train.runtime.ranks import rank

EVENTS = "tensorboard"
"""Folder of a run's event files."""
_ID_FILE = "wandb-id"
_OFFLINE_FILE = "wandb-offline"
"""Why a run that the recipe wants on the server is on this machine only; `transfer sync` removes it."""
_SHOWN_COMPLETIONS = 8
_UPLOAD_SECONDS = 600.0  # at the end of a run, whose GPUs wait for it


class Tracker:
    """Mirrors of a run's metrics; does nothing where the recipe has none, and on all ranks but the first.

    `must_reach`: see `start_run`.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: dict[str, Any],
        stage_dir: Path,
        arm: str,
        seed: int,
        *,
        must_reach: bool = False,
    ) -> None:
        self._run: Any = None
        self._events: Any = None
        self._event_dir = stage_dir / EVENTS if "tensorboard" in recipe.tracking and rank() == 0 else None
        spec = recipe.wandb_settings
        if spec is None or rank() != 0:
            return
        self.every = spec.completions_every_steps
        self._run = start_run(
            spec,
            stage_dir,
            must_reach=must_reach,
            group=recipe.study,
            job_type=arm,
            name=f"{arm}-seed{seed}",
            config=settings | {"seed": seed},
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


def start_run(spec: WandbSpec, stage_dir: Path, *, must_reach: bool = False, **values: Any) -> Any:
    """Start or resume the wandb run of a stage directory; offline, with a warning, where its server cannot be used.

    A mirror must not end a training: its data stay in the run's folder. `must_reach`: fail instead.

    Raises:
        UserError: `must_reach`, and the server cannot be used.
    """
    import wandb

    def start(mode: str) -> Any:
        # Only a run that must reach the server waits for it to the end; what is not sent is on disk.
        wait = 0.0 if must_reach else _UPLOAD_SECONDS
        return wandb.init(
            project=spec.project,
            entity=spec.entity,
            id=run_id(stage_dir),
            resume="allow",
            mode=cast(Any, mode),
            dir=str(stage_dir),
            settings=wandb.Settings(silent=True, console="off", finish_timeout=wait),
            **values,
        )

    mode, note = wandb_mode(spec.mode), stage_dir / _OFFLINE_FILE
    try:
        run = start(mode)
        if mode == "online":
            note.unlink(missing_ok=True)
        elif mode == "offline" and spec.mode != "offline" and "WANDB_MODE" not in os.environ:
            write_atomic(note, "there is no key")
        return run
    except wandb.errors.AuthenticationError as error:  # a malformed key, found without the server
        raise UserError(_unusable_key(error)) from None
    except wandb.errors.CommError as error:
        wandb.teardown()  # its service holds the run's id, and would refuse the same one
        reason = " ".join(str(error).split())
        if must_reach:
            raise UserError(f"Weights & Biases cannot be used ({reason}); try again later") from None
        print(
            f"transfer: warning: Weights & Biases cannot be used ({reason}); this run is written offline, and "
            "`transfer sync` sends it later",
            file=sys.stderr,
            flush=True,
        )
        write_atomic(note, reason)
        return start("offline")


def why_offline(stage_dir: Path) -> str | None:
    """Why the run of a stage directory is not on the server of Weights & Biases, where it should be; None: it is."""
    try:
        return (stage_dir / _OFFLINE_FILE).read_text(encoding="utf-8")
    except OSError:
        return None


def require_usable_key(recipe: Recipe) -> None:
    """Raise UserError if a run would end because its key for Weights & Biases is malformed. Asks no server."""
    spec = recipe.wandb_settings
    if spec is None or (os.environ.get("WANDB_MODE") or spec.mode) not in ("auto", "online"):
        return
    from wandb.errors import AuthenticationError
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    settings = wandb_setup.singleton().settings
    try:
        if settings.api_key:
            wbauth.AuthApiKey(host=settings.base_url, api_key=settings.api_key)
    except AuthenticationError as error:
        raise UserError(_unusable_key(error)) from None


def _unusable_key(error: Exception) -> str:
    return f"the key for Weights & Biases cannot be used ({error}); correct it, unset it, or set wandb.mode=offline"


def run_id(stage_dir: Path) -> str:
    """Id of the run in a stage directory: drawn once and kept beside its files.

    A resumed run, or one whose study was moved, keeps its id. No two runs share one, whatever their folders are called.
    """
    path = stage_dir / _ID_FILE
    if not path.exists():
        write_atomic(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8").strip()


def wandb_mode(mode: str) -> str:
    """Online or offline: WANDB_MODE takes precedence over the recipe, and `auto` is offline without a key."""
    if chosen := os.environ.get("WANDB_MODE"):
        return chosen
    if mode != "auto":
        return mode
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    """Whether wandb itself would find a key: in the environment, its settings, or the netrc entry of its server.

    The server is that of wandb's settings. Its default differs between versions.
    """
    from wandb.errors import AuthenticationError
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    settings = wandb_setup.singleton().settings
    if settings.api_key or settings.identity_token_file:
        return True
    try:
        return wbauth.read_netrc_auth(host=settings.base_url) is not None
    except AuthenticationError:  # a password that is no key
        return False
