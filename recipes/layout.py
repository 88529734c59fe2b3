"""Where the folder of a study has its runs and locks."""

from pathlib import Path


def run_name(arm: str, seed: int) -> str:
    """The run of an arm with a training seed, below the folders `arms`, `drift` and `trajectory`."""
    return f"{arm}/seed-{seed}"


def run_folder(study_dir: Path, arm: str, seed: int, kind: str = "arms") -> Path:
    """The folder of a run: what it trained, or what a stage of another kind found out about it."""
    return study_dir / kind / run_name(arm, seed)


def flat(stage: str) -> str:
    """The name of a stage as one part of a path."""
    return stage.replace("/", "--")


def stage_lock(study_dir: Path, stage: str) -> Path:
    """The file that the process of a stage holds locked."""
    return study_dir / ".locks" / flat(stage)
