"""Mistakes that can be found before anything runs: missing files and models, unknown benchmarks, too few problems."""

from pathlib import Path

from data.sources import POCKET_POOL
from eval.task_files import task_folder
from recipes.errors import UserError
from recipes.schema import Recipe


def check_before_running(recipe: Recipe) -> None:
    """Raise UserError for a source file, a model directory or a task file that is not there, or too large a wish."""
    for number, source in enumerate(recipe.corpus.sources):
        if source.kind == "file" and not Path(str(source.path)).is_file():
            raise UserError(
                f"source file {source.path} of {source.name} does not exist; set corpus.sources.{number}.path=FILE"
            )
    corpus = recipe.corpus
    if all(source.kind == "pocket" for source in corpus.sources):
        for setting, split in (("train_problems", "train"), ("heldout_problems", "heldout")):
            wanted, there = getattr(corpus, setting) or 0, POCKET_POOL[split]
            if wanted > there:
                raise UserError(f"corpus.{setting} is {wanted} but the synthetic world draws {there}; ask for fewer")
    path = recipe.model.path if recipe.model is not None else None
    # A hub id is "owner/name"; whether it exists only the hub knows.
    if path is not None and not Path(path).is_dir() and (path.count("/") != 1 or path[0] in "./~"):
        raise UserError(f"model.path {path} is neither a directory nor a Hugging Face id such as Qwen/Qwen3-14B-Base")
    if recipe.suite is not None:
        task_folder(recipe.suite)


def check_resolved(recipe: Recipe) -> None:
    """Raise UserError for a hub dataset or model that no lock pins: it could be another one tomorrow."""
    locked = recipe.lock.get("sources", {})
    for item in recipe.corpus.all_files():
        if item.kind == "hub" and item.name not in locked:
            raise UserError(f"source {item.name} is not resolved; run `transfer fetch RECIPE` on a connected machine")
    model = recipe.model
    if model is None or model.path is None or Path(model.path).is_dir() or model.revision is not None:
        return
    if model.path not in recipe.lock.get("models", {}):
        raise UserError(f"model {model.path} is not resolved; run `transfer fetch RECIPE` on a connected machine")
