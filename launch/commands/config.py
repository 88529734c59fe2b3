"""The subcommand `config`: the reference of recipe keys."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from launch.commands.arguments import add_command


def add_config(commands: Any) -> None:
    """Add `transfer config`."""
    parser = add_command(
        commands,
        "config",
        "the keys of a recipe: values, defaults, meaning",
        "Print the reference of recipe keys as Markdown: all of them, or those at and below KEY.",
        _config,
    )
    parser.add_argument("key", metavar="KEY", nargs="?", default="", help="for instance train, or train.steps")


def _config(options: argparse.Namespace) -> int:
    from recipes.reference import chosen_sections, reference_page, reference_text

    if options.json:
        print(json.dumps([asdict(section) for section in chosen_sections(options.key)], indent=1, ensure_ascii=False))
    else:
        print(reference_text(options.key) if options.key else reference_page(), end="")
    return 0
