"""What manifests say of a study: the matched-arms certificate, versions, hashes, and what each run spent."""

from pathlib import Path
from typing import Any

from eval.report.schema import Budget, Certificate, ModelHashes, Presented
from eval.scorers.version import unit_versions
from recipes.layout import run_folder
from recipes.manifest import OUTPUT_OF, read_manifest
from recipes.schema import Recipe
from train.accounting.arm_facts import ArmFacts
from train.accounting.lineage import study_lineage
from train.arms import resolve_arm

NO_REPOSITORY = "not in a repository"
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
        manifest = read_manifest(run_folder(study_dir, arm, recipe.seeds[0]))
        assert manifest is not None
        facts, settings = ArmFacts.of(manifest), resolve_arm(recipe, arm).matched_on()
        records[arm] = {
            "base, all files (sha256)": str(manifest["inputs"][f"{OUTPUT_OF}base"])[:16],
            "corpus (sha256)": str(manifest["inputs"][f"{OUTPUT_OF}corpus"])[:16],
            "prompt template (sha256)": facts.template_hash[:16],
            "code": str(manifest.get("code"))[:16],
            "attention": facts.attention,
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


def evaluation_differences(study_dir: Path, labels: list[str]) -> list[str]:
    """Models that were judged by other scoring rules than the base, or evaluated by other code or packages.

    The Python on which programs of models ran is one of the packages.
    """
    records, rules = {}, {}
    for label in labels:
        manifest = read_manifest(study_dir / "eval" / label)
        assert manifest is not None
        units = (manifest.get("facts") or {}).get("units", {})
        sandboxes = {name: unit["sandbox"] for name, unit in units.items() if "sandbox" in unit}
        records[label] = (manifest.get("code"), manifest["environment"]["packages"], sandboxes)
        rules[label] = unit_versions(manifest)
    others = [label for label in labels if records[label] != records["base"]]
    found = [f"evaluation: {', '.join(others)} by other code or packages than base"] if others else []
    known = {name: version for name, version in rules["base"].items() if version}
    others = [label for label in labels if any(rules[label].get(name) not in (None, known[name]) for name in known)]
    if others:
        found.append(
            f"scoring rules: {', '.join(others)} judged by another version than base; `transfer score RUN --write` "
            "judges all models again"
        )
    return found


def versions(study_dir: Path) -> dict[str, str]:
    """What the base was evaluated with; models evaluated with anything else are in `differences`."""
    manifest = read_manifest(study_dir / "eval" / "base")
    assert manifest is not None
    environment = manifest["environment"]
    dirty = " with uncommitted changes" if environment["git_dirty"] else ""
    commit = f"{environment['git_commit']}{dirty}" if environment["git_commit"] else NO_REPOSITORY
    return {"commit": commit, "python": environment["python"], **environment["packages"]}


def model_hashes(study_dir: Path, label: str) -> ModelHashes:
    """Hashes of what a score rests on: the files of the model that answered, and the stored responses."""
    responses = read_manifest(study_dir / "eval" / label)
    assert responses is not None
    (trained,) = (key for key in responses["inputs"] if key.startswith(OUTPUT_OF) and key != f"{OUTPUT_OF}questions")
    return ModelHashes(weights=responses["inputs"][trained], responses=responses["output_hash"])


def budget(study_dir: Path, arm: str, seed: int) -> Budget:
    """The ledger's totals, with the number of problems presented and of those that had a gradient."""
    manifest = read_manifest(run_folder(study_dir, arm, seed))
    assert manifest is not None
    facts = ArmFacts.of(manifest)
    presented, contributed = len(facts.presented_problems), len(facts.contributed_problems)
    return Budget(presented_problems=presented, contributed_problems=contributed, **facts.totals)
