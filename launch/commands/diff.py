"""`transfer diff`: how two studies differ."""

import argparse
from pathlib import Path

from launch.commands.arguments import argument, command, input_file, print_result


@command(
    "how two studies differ",
    argument("first", metavar="RECIPE|RUN", type=input_file, help="a recipe, or the folder of a study"),
    argument("second", metavar="RECIPE|RUN", type=input_file, help="the other one"),
)
def diff(options: argparse.Namespace) -> int:
    """Compare the settings of two recipes or studies and, where they have run, versions and gains. Exit status: 0 if
    the settings are equal, 1 if they differ, 2 for a mistake in the command.
    """
    from eval.report.differences import differences, differences_text
    from recipes.loading import load_recipe

    paths: list[Path] = [options.first, options.second]
    recipes = [load_recipe(path) for path in paths]
    folders = [
        path if path.is_dir() else Path("runs") / recipe.study for path, recipe in zip(paths, recipes, strict=True)
    ]
    compared = differences(folders[0], folders[1], (recipes[0].dump(), recipes[1].dump()))
    print_result(options, compared.dump(), differences_text(compared))
    return 1 if compared.settings else 0
