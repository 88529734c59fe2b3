"""Which version of the scoring rules judged stored responses: a hash of the code that decides a score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from recipes.code_version import code_version
from recipes.manifest import read_manifest

SCORING = ("eval.scorers", "data.grading")
"""The code of the rules. It is not in the code version of an evaluation, whose responses do not depend on it."""
RULES_VERSION = "rules_version"
"""Key of the version in a unit's facts, and in its tables."""

JudgedBy = Literal["current", "other", "not recorded"]
"""The rules of this version, of another one in part or as a whole, or of a version from before it was recorded."""


def rules_version() -> str:
    """Version of the rules, of the grader and of what they import, but for `recipes`, which decides no score."""
    return code_version("eval.scorers.rules", "data.grading.worker", without=("recipes", "eval.scorers.version"))


def unit_versions(manifest: dict[str, Any]) -> dict[str, str | None]:
    """Unit -> version of the rules that judged it, by the manifest of an evaluation; None: not recorded."""
    units = (manifest.get("facts") or {}).get("units", {})
    return {name: facts.get(RULES_VERSION) for name, facts in units.items()}


def judged_by(directory: Path) -> JudgedBy | None:
    """By which rules the scores in the folder of an evaluation are; None: there are none yet."""
    versions = set(unit_versions(read_manifest(directory) or {}).values())
    if not versions:
        return None
    if versions - {None} and versions - {None} != {rules_version()}:
        return "other"
    return "not recorded" if None in versions else "current"


def by_other_rules(labels: Sequence[str], study: str | Path) -> tuple[str, str]:
    """That the scores of these models are by other rules than those of today, and what judges them again."""
    says = f"scores of {', '.join(labels)} are by other scoring rules than this version's"
    return says, f"`transfer score {study} --write` judges them again"
