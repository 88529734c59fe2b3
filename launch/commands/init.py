"""`transfer init`: a commented recipe with example data, to change into one's own."""

import argparse
import re
from pathlib import Path

from launch.commands.arguments import argument, command, print_result
from recipes.errors import UserError

_KINDS = ("study", "corpus", "benchmark")
_STARTERS = Path(__file__).resolve().parents[1] / "starters"


@command(
    "write a commented recipe with example data, to start from",
    argument("kind", choices=_KINDS, metavar="|".join(_KINDS), help="what to write"),
    argument("path", metavar="PATH", nargs="?", type=Path, help="the recipe, or a folder for it (default: KIND.yaml)"),
)
def init(options: argparse.Namespace) -> int:
    """Write a recipe in which every key is explained, and small example files beside it. `transfer validate` accepts
    it as written. Nothing is overwritten.
    """
    from recipes.files import write_atomic

    name = f"{options.kind}.yaml"
    path = options.path or Path(name)
    recipe = path if path.suffix in (".yaml", ".yml") else path / name
    starter = _STARTERS / options.kind
    beside = [file for file in sorted(starter.rglob("*")) if file.is_file() and file.name != name]
    targets = {recipe.parent / file.relative_to(starter): file for file in beside} | {recipe: starter / name}
    if there := [str(target) for target in targets if target.exists()]:
        raise UserError(
            f"{', '.join(there)} already exist{'s' * (len(there) == 1)}; choose another folder, or remove "
            f"{'it' if len(there) == 1 else 'them'}"
        )
    own_name = re.compile(rf"(?<![\w./-]){re.escape(name)}")  # not tasks/my_benchmark.yaml
    for target, file in targets.items():
        write_atomic(target, own_name.sub(lambda _: recipe.name, file.read_text(encoding="utf-8")))
    files = [str(target) for target in targets]
    print_result(
        options,
        {"files": files},
        "\n".join([*(f"wrote {file}" for file in files), f"next: transfer validate {recipe}"]),
    )
    return 0
