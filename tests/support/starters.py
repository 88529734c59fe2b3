"""Changes to recipes that `transfer init` wrote."""

import yaml


def edit(path, **changes):
    """Change values of a recipe by dotted keys, written with two underscores."""
    values = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        node = values
        *before, last = [int(part) if part.isdigit() else part for part in key.split("__")]
        for part in before:
            node = node[part]
        node[last] = value
    path.write_text(yaml.safe_dump(values, sort_keys=False))
