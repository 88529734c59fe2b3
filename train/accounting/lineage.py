"""Which problems every arm was presented, from the ids in its ledger, and whether all arms saw them equally often."""

from collections import Counter
from pathlib import Path
from typing import Any

from recipes.errors import UserError
from recipes.files import read_json_lines
from recipes.layout import run_folder
from recipes.manifest import finished_manifest
from recipes.schema import Recipe
from train.accounting.ledger import LEDGER


def study_lineage(recipe: Recipe, study_dir: Path) -> dict[str, Any]:
    """For each seed: every arm's exposures, and where they differ from those of the seed's first finished arm.

    Raises:
        UserError: no arm has finished.
    """
    seeds: dict[str, Any] = {}
    for seed in recipe.seeds:
        arms: dict[str, Any] = {}
        presented: dict[str, Counter[str]] = {}
        unfinished = []
        for arm in recipe.trained:
            run_dir = run_folder(study_dir, arm, seed)
            if finished_manifest(run_dir) is None:
                unfinished.append(arm)
                continue
            rows = read_json_lines(run_dir / LEDGER)
            presented[arm] = Counter(identity for row in rows for identity in row["presented"])
            contributed = {identity for row in rows for identity in row["contributed"]}
            arms[arm] = {
                "problems_presented": len(presented[arm]),
                "exposures": presented[arm].total(),
                "problems_contributed": len(contributed),
                "without_gradient": sorted(presented[arm].keys() - contributed),
            }
        first = next(iter(presented), None)
        differences = {
            arm: difference
            for arm, counts in presented.items()
            if first is not None and (difference := _difference(presented[first], counts))
        }
        seeds[str(seed)] = {"reference": first, "arms": arms, "unfinished": unfinished, "differences": differences}
    if not any(entry["arms"] for entry in seeds.values()):
        raise UserError(f"{study_dir} has no finished arm; `transfer run` trains them")
    compared = any(len(entry["arms"]) > 1 for entry in seeds.values())
    empty = any(not counts["exposures"] for entry in seeds.values() for counts in entry["arms"].values())
    equal = compared and not empty and not any(entry["differences"] for entry in seeds.values())
    return {"study": recipe.study, "equal": equal, "compared": compared and not empty, "seeds": seeds}


def _difference(reference: Counter[str], other: Counter[str]) -> dict[str, dict[str, list[int]]]:
    """Ids whose number of exposures differs: id -> [reference, other]; empty if none does."""
    ids = sorted(reference.keys() | other.keys())
    pairs = {identity: [reference[identity], other[identity]] for identity in ids}
    times = {identity: pair for identity, pair in pairs.items() if pair[0] != pair[1]}
    return {"times": times} if times else {}


def format_lineage(lineage: dict[str, Any]) -> str:
    """The lineage as text."""
    lines = []
    for seed, entry in lineage["seeds"].items():
        lines.append(f"seed {seed}")
        for arm, counts in entry["arms"].items():
            lines.append(
                f"  {arm:<20} {counts['problems_presented']:>7,} problems presented, "
                f"{counts['exposures']:>8,} exposures; {counts['problems_contributed']:,} problems had a gradient"
            )
        for arm, difference in entry["differences"].items():
            times = difference["times"]
            lines.append(f"  {arm} differs from {entry['reference']} in {len(times):,} problems:")
            lines += [
                f"    {identity}: {before} times, {after} times"
                for identity, (before, after) in list(times.items())[:10]
            ]
            lines += [f"    and {len(times) - 10:,} more (--json lists all)"] if len(times) > 10 else []
        if entry["unfinished"]:
            lines.append(f"  not finished: {', '.join(entry['unfinished'])}")
    if not lineage["compared"]:
        lines.append(f"{lineage['study']}: not proven, because fewer than two arms have a ledger to compare")
        return "\n".join(lines)
    verdict = "every arm was presented the same problems the same number of times"
    lines.append(
        f"{lineage['study']}: " + (verdict if lineage["equal"] else "the arms were NOT presented the same problems")
    )
    return "\n".join(lines)
