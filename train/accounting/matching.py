"""The matching gate: do the arms of a study differ in nothing but what it declares to vary?

Before a run it compares the resolved settings of all arms; after it, what the manifests recorded: the settings of each
arm, base, corpus, prompt template, code, packages and the problems that were presented.
"""

from pathlib import Path
from typing import Any

from recipes.errors import UserError
from recipes.layout import run_folder
from recipes.manifest import BOOKKEEPING, OUTPUT_OF, finished_manifest
from recipes.schema import Recipe, without_later_defaults
from train.accounting.arm_facts import ArmFacts
from train.arms import resolve_arm


def recipe_differences(recipe: Recipe) -> list[str]:
    """Each undeclared difference between the arms, as `setting: arm value, arm value`; empty if matched."""
    settings = {name: resolve_arm(recipe, name).matched_on() for name in recipe.trained}
    return _differences(settings, set(recipe.varies) | set(BOOKKEEPING))


def recorded_differences(recipe: Recipe, study_dir: Path) -> list[str]:
    """The same for what finished arms recorded, per training seed. Arms that have not finished are left out."""
    differences = []
    allowed = set(recipe.varies) | set(BOOKKEEPING)
    for seed in recipe.seeds:
        records: dict[str, dict[str, Any]] = {}
        presented: dict[str, set[str]] = {}
        for arm in recipe.trained:
            manifest = finished_manifest(run_folder(study_dir, arm, seed))
            if manifest is None:
                continue
            facts = ArmFacts.of(manifest)
            presented[arm] = set(facts.presented_problems)
            settings = without_later_defaults(facts.matched_on)  # an earlier run has not recorded a later setting
            records[arm] = {
                **{key: value for key, value in settings.items() if key not in allowed},
                "base": manifest["inputs"][f"{OUTPUT_OF}base"],
                "corpus": manifest["inputs"][f"{OUTPUT_OF}corpus"],
                "template": facts.template_hash,
                "exposures": facts.totals["exposures"],
                "attention that ran": facts.attention,
                "code": manifest.get("code"),
                **{f"package {name}": version for name, version in manifest["environment"]["packages"].items()},
            }
        differences += [f"seed {seed}, {text}" for text in _differences(records, set())]
        everything = set().union(*presented.values()) if presented else set()
        for arm, ids in presented.items():
            if ids != everything:
                differences.append(f"seed {seed}, problems: {arm} was not presented {len(everything - ids)} of them")
    return differences


def _differences(records: dict[str, dict[str, Any]], allowed: set[str]) -> list[str]:
    differences = []
    keys = sorted({key for record in records.values() for key in record} - allowed)
    for key in keys:
        values = {arm: record.get(key) for arm, record in records.items()}
        if len({repr(value) for value in values.values()}) > 1:
            shown = ", ".join(f"{arm} {_short(value)}" for arm, value in values.items())
            differences.append(f"{key}: {shown}")
    return differences


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {inner!r}" for key, inner in value.items()) + "}"
    return str(value)


REMEDY = "make them equal, add the setting to `varies` if the study is about it, or set `unmatched: stamp`"


def require_matched(recipe: Recipe) -> list[str]:
    """The differences, if the recipe allows them with `unmatched: stamp`.

    Raises:
        UserError: the arms differ and the recipe does not allow it.
    """
    differences = recipe_differences(recipe)
    if differences and recipe.unmatched == "refuse":
        listed = "\n".join(f"  {text}" for text in differences)
        raise UserError(f"the arms of {recipe.study} are unmatched:\n{listed}\n{REMEDY}")
    return differences
