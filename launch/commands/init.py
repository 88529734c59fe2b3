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
    """Write a recipe that explains every key, with small example files beside it. It passes `transfer validate` as
    written. The study is named after the recipe's folder. Existing files are never overwritten.
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
        text = own_name.sub(lambda _: recipe.name, file.read_text(encoding="utf-8"))
        write_atomic(target, _named(text, _study_name(recipe, options.kind)) if target == recipe else text)
    files = [str(target) for target in targets]
    print_result(
        options,
        {"files": files},
        "\n".join([*(f"wrote {file}" for file in files), f"next: transfer validate {recipe}"]),
    )
    return 0


def _study_name(recipe: Path, kind: str) -> str | None:
    """The study's name: that of the recipe's folder, so that recipes of two folders do not share their results.

    A corpus or a benchmark adds its kind, since a study may stand beside it. None where the folder's name has no letter
    or digit that a study's may have.
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", recipe.resolve().parent.name.lower()).strip("._-")
    return (name if kind == "study" else f"{name}-{kind}") if name else None


def _named(text: str, name: str | None) -> str:
    """The text of a recipe with another name of its study; the comment stays in its column."""
    return re.sub(
        r"^study: \S+( *)",
        lambda old: f"study: {name} ".ljust(len(old[0])) if name else old[0],
        text,
        count=1,
        flags=re.MULTILINE,
    )
