"""Mistakes that can be found before anything runs: missing source files, unknown benchmarks."""

from pathlib import Path

from eval.task_files import task_folder
from recipes.errors import UserError
from recipes.schema import Recipe


def check_before_running(recipe: Recipe) -> None:
    """Raise UserError for a source file or a task file that is not there."""
    for number, source in enumerate(recipe.corpus.sources):
        if source.kind == "file" and not Path(str(source.path)).is_file():
            raise UserError(
                f"source file {source.path} of {source.name} does not exist; set corpus.sources.{number}.path=FILE"
            )
    if recipe.suite is not None:
        task_folder(recipe.suite)
