"""`transfer config`: the reference of recipe keys."""

import argparse
import json
from dataclasses import asdict

from launch.commands.arguments import argument, command


@command(
    "the keys of a recipe: values, defaults, meaning",
    argument("key", metavar="KEY", nargs="?", default="", help="for instance train, or train.steps"),
)
def config(options: argparse.Namespace) -> int:
    """Print the reference of recipe keys as Markdown: all of them, or those at and below KEY."""
    from recipes.reference import chosen_sections, reference_text

    if options.json:
        print(json.dumps([asdict(section) for section in chosen_sections(options.key)], indent=1, ensure_ascii=False))
    else:
        print(reference_text(options.key), end="")
    return 0
