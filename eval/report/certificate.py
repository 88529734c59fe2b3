"""The matched-arms certificate: what the arms shared, by hash and value, and what they were meant to differ in."""

from pathlib import Path
from typing import Any

from eval.report.schema import Certificate, Presented
from recipes.manifest import read_manifest
from recipes.schema import Recipe
from train.accounting.lineage import study_lineage
from train.accounting.matching import attention_of
from train.arms import resolve_arm

_SHOWN = (
    "steps",
    "problems_per_step",
    "completions_per_problem",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "loss_normalisation",
    "temperature",
    "problem_set",
    "dtype",
    "sampling",
    "credit",
    "negatives",
    "beta",
    "reward",
    "start_from",
)


def certificate(recipe: Recipe, study_dir: Path) -> Certificate | None:
    """What the runs of a study recorded; None where nothing was trained.

    `shared`: value of everything that is the same for all arms. `differs`: value of each arm of the rest. `presented`:
    whether all arms were presented the same problems equally often, and how many.
    """
    if not recipe.trained:
        return None
    arms = list(recipe.trained)
    records: dict[str, dict[str, Any]] = {}
    for arm in arms:
        manifest = read_manifest(study_dir / "arms" / arm / f"seed-{recipe.seeds[0]}")
        assert manifest is not None
        settings = resolve_arm(recipe, arm).matched_on()
        records[arm] = {
            "base weights (sha256)": str(manifest["inputs"]["output of base"])[:16],
            "corpus (sha256)": str(manifest["inputs"]["output of corpus"])[:16],
            "prompt template (sha256)": manifest["facts"]["template_hash"][:16],
            "code": str(manifest.get("code"))[:16],
            "attention": attention_of(manifest["facts"]),
        } | {name: settings[name] for name in _SHOWN}
    shared = {key: value for key, value in records[arms[0]].items() if all(r[key] == value for r in records.values())}
    lineage = study_lineage(recipe, study_dir)
    counts = lineage["seeds"][str(recipe.seeds[0])]["arms"]
    return Certificate(
        varies=list(recipe.varies),
        shared=shared,
        differs={key: {arm: records[arm][key] for arm in arms} for key in records[arms[0]] if key not in shared},
        presented=Presented(
            equal=lineage["equal"],
            problems={arm: counts[arm]["problems_presented"] for arm in counts},
            with_gradient={arm: counts[arm]["problems_contributed"] for arm in counts},
        ),
    )
