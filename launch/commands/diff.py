"""`transfer diff`: how two studies differ."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.commands.arguments import argument, command, input_file, print_result

if TYPE_CHECKING:
    from eval.report.differences import Results
    from recipes.schema import Recipe


@command(
    "how two studies differ",
    argument("first", metavar="RECIPE|RUN", type=input_file, help="a recipe, or the folder of a study"),
    argument("second", metavar="RECIPE|RUN", type=input_file, help="the other one"),
)
def diff(options: argparse.Namespace) -> int:
    """Compare the settings of two recipes or studies and, if they have run, their versions and gains. Results that a
    study produced with other settings than its recipe has now are left out. Exit status: 0 if the settings are equal, 1
    if they differ, 2 for a mistake in the command.
    """
    from eval.report.differences import differences, differences_text
    from recipes.loading import load_recipe

    paths: list[Path] = [options.first, options.second]
    recipes = [load_recipe(path) for path in paths]
    found = [_results(path, recipe) for path, recipe in zip(paths, recipes, strict=True)]
    results = [result for result, _ in found]
    compared = differences(results[0], results[1], (recipes[0].dump(), recipes[1].dump()))
    print_result(options, compared.dump(), differences_text(compared))
    sys.stdout.flush()
    for _, note in found:
        if note is not None:
            print(f"transfer: {note}", file=sys.stderr)
    return 1 if compared.settings else 0


def _results(path: Path, recipe: "Recipe") -> "tuple[Results, str | None]":
    """What a study has made of a recipe, and what was left out because other settings ran."""
    from eval.report.differences import Results
    from recipes.errors import UserError
    from recipes.loading import STUDY_FILE, load_study
    from recipes.manifest import finished_manifest

    folder = path if path.is_dir() else Path("runs") / recipe.study
    if not (folder / STUDY_FILE).is_file():
        lacks = f"{path} has not run, there is no {folder} (`transfer run {path}` makes its report)"
        return Results(None, None, lacks), None
    try:
        settings = _settings_of_report(recipe)
        same = settings == _settings_of_report(load_study(folder))
    except UserError as error:  # a file of the recipe is gone
        lacks = f"what {path} is now cannot be read: {error}"
        return Results(folder, folder) if path.is_dir() else Results(None, None, lacks), None
    if not same:
        other = f"{folder} ran with other settings than {path} now has"
        lacks = f"{other} (`transfer run {path}` makes a report of these)"
        return Results(None, None, lacks), f"{other}; its results are left out"
    report = finished_manifest(folder / "report")
    if report is None:
        return Results(folder, None, f"{folder} has no finished report (`transfer run {path}` makes it)"), None
    if any(key not in report["inputs"] or report["inputs"][key] != value for key, value in settings.items()):
        note = (
            f"the report in {folder} is stale: its study now has other settings; its gains are left out; "
            f"`transfer run {path}` writes it again"
        )
        lacks = f"the report in {folder} is of other settings (`transfer run {path}` writes it again)"
        return Results(folder, None, lacks), note
    return Results(folder, folder), None


def _settings_of_report(recipe: "Recipe") -> dict[str, Any]:
    """The settings that a report rests on."""
    from launch.stages import build_stages

    return next((stage.reads for stage in build_stages(recipe) if stage.kind == "report"), {})
