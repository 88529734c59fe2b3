"""`transfer config`: the reference of the keys of recipes and site files."""

import argparse
import json
from dataclasses import asdict

from launch.commands.arguments import argument, command

_SITE_PAGE = """# Site file keys

Every key of a site file, the settings of one cluster ([slurm.md](slurm.md)). `transfer config --site-file` prints this
page, `transfer config --site-file container` one section and `transfer config --site-file stages.eval.time_limit` one
key. `<name>` is a kind of stage.

"""


@command(
    "the keys of a recipe: values, defaults, meaning",
    argument("key", metavar="KEY", nargs="?", default="", help="for instance train, or train.steps"),
    argument("--site-file", action="store_true", help="the keys of a site file instead, for instance time_limit"),
)
def config(options: argparse.Namespace) -> int:
    """Print the reference of recipe keys as Markdown: all keys, or those at and below KEY. With --site-file, print the
    keys of a cluster's site file.
    """
    from launch.site_file import SiteSpec
    from recipes.reference import RECIPES, KindOfFile, chosen_sections, reference_text

    kind = KindOfFile(SiteSpec, "site files", _SITE_PAGE) if options.site_file else RECIPES
    if options.json:
        sections = chosen_sections(options.key, kind)
        print(json.dumps([asdict(section) for section in sections], indent=1, ensure_ascii=False))
    else:
        print(reference_text(options.key, kind), end="")
    return 0
