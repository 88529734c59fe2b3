"""Version of the code behind a stage: a hash of its modules without comments and docstrings.

It is recorded but not an input of the stage, so that an edit does not discard a training run that cost days. Stages
of another version are reported, and arms of different versions are not matched.
"""

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("recipes", "data", "train", "eval", "launch")


def code_version(*modules: str, without: tuple[str, ...] = ()) -> str:
    """Hash over `modules` and every module of the project they import, directly or not: 12 hexadecimal digits.

    `without`: packages that are left out, with what only they import.
    """
    seen: dict[str, str] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name not in seen and not f"{name}.".startswith(tuple(f"{package}." for package in without)):
            seen[name], imported = _read(name)
            pending += imported
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(seen.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=256)
def _read(module: str) -> tuple[str, tuple[str, ...]]:
    """Hash of one module, and the project's modules that it imports, also inside functions."""
    tree = ast.parse(_file(module).read_bytes())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            imported.add(node.module)
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            imported.update(name for name in names if _file(name).is_file())  # modules of a package
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(sorted(imported))


def _file(module: str) -> Path:
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
