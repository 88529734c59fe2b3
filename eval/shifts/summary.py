"""What the stages `diagnostics/` measured, put together by arm: layers, averages and histograms, shifted words."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from eval.shifts.diagnostics import AVERAGED, BASE, OWN, REFERENCE
from eval.shifts.pca_shift import MEASURES as LAYER_MEASURES
from eval.shifts.states import POOLINGS
from eval.shifts.token_shift import KL_EDGES, RANK_EDGES, merge_shifted
from eval.statistics.bootstrap import seed_noise
from eval.statistics.inference import percentile_interval
from recipes.schema import Recipe

Array = np.ndarray
KINDS = (OWN, BASE, REFERENCE)
_BOUNDS = {"pca_shift": (0.0, np.inf), "centroid_shift": (0.0, np.inf), "cka": (0.0, 1.0), "angle": (0.0, 90.0)}
WORDS = 40  # shifted words kept for each arm


def summarise(recipe: Recipe, study_dir: Path) -> dict[str, Any]:
    """Representation and token shift of every arm, as JSON values.

    A group is the mean over its benchmarks, an arm the mean over its seeds. Draws resample prompts, the same for all
    models; the spread between seeds is added as for scores.
    """
    assert recipe.diagnostics is not None
    arms = {arm: _arm(recipe, study_dir, arm) for arm in recipe.arms}
    first = next(iter(arms.values()))
    return {
        "sets": first.pop("sets"),
        "levels": first["levels"],
        "kl_edges": list(KL_EDGES[:-1]),
        "rank_edges": list(RANK_EDGES[:-1]),
        "arms": {arm: {key: value for key, value in found.items() if key != "sets"} for arm, found in arms.items()},
    }


def _arm(recipe: Recipe, study_dir: Path, arm: str) -> dict[str, Any]:
    folders = [study_dir / "diagnostics" / label for label in recipe.labels(arm)]
    names = json.loads((folders[0] / "manifest.json").read_text())["facts"]["sets"]
    results = {name: [json.loads((folder / f"shift-{name}.json").read_text()) for folder in folders] for name in names}
    draws = {name: [load_file(folder / f"draws-{name}.safetensors") for folder in folders] for name in names}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(results[name][0]["group"], []).append(name)
    confidence = recipe.statistics.confidence
    rng = np.random.default_rng([recipe.diagnostics.seed, 2]) if recipe.diagnostics else np.random.default_rng(2)
    first = results[names[0]][0]
    everything = [row for rows in results.values() for row in rows]
    found = {
        "sets": {name: {"group": results[name][0]["group"], "prompts": results[name][0]["prompts"]} for name in names},
        "models": len(folders),
        "levels": len(first["layers"][POOLINGS[0]]["cka"]),
        "layers": {
            group: {
                pooling: {
                    measure: _levels(members, results, draws, pooling, measure, confidence, rng)
                    for measure in LAYER_MEASURES
                }
                | {"shuffled_cka": _floor(members, results, pooling)}
                for pooling in POOLINGS
            }
            for group, members in groups.items()
        },
        "tokens": {
            kind: {
                group: {
                    measure: {
                        way: _mean(
                            [[row["texts"][kind]["averages"][measure][way] for row in results[name]] for name in has],
                            [[drawn[f"{kind}/{measure}/{way}"] for drawn in draws[name]] for name in has],
                            confidence,
                            rng,
                            floor=0.0 if measure.startswith(("kl", "entropy")) else None,
                        )
                        for way in ("per_token", "per_response")
                    }
                    for measure in AVERAGED
                }
                for group, members in groups.items()
                if (has := [name for name in members if kind in results[name][0]["texts"]])
            }
            for kind in KINDS
        },
        "by_set": {
            name: {
                kind: round(
                    float(np.mean([row["texts"][kind]["averages"]["kl_to_base"]["per_token"] for row in rows])), 6
                )
                for kind in KINDS
                if kind in rows[0]["texts"]
            }
            for name, rows in results.items()
        },
        "histograms": {
            kind: np.sum([row["texts"][OWN][f"{kind}_histogram"] for row in everything], axis=0).tolist()
            for kind in ("kl", "rank")
        },
        "own_tokens": sum(row["texts"][OWN]["tokens"] for row in everything),
        "empty": {
            name: sum(row["texts"][OWN]["empty"] for row in rows)
            for name, rows in results.items()
            if any(row["texts"][OWN]["empty"] for row in rows)
        },
        "shifted": _words(everything),
    }
    if first["paper"]:
        found["paper"] = {
            "d": {
                name: round(float(np.mean([row["paper"]["d"] for row in rows])), 6) for name, rows in results.items()
            },
            "kl": {
                name: round(float(np.mean(values)), 6)
                for name, rows in results.items()
                if (values := [row["paper"]["kl"] for row in rows if row["paper"]["kl"] is not None])
            },
        }
    return found


def _mean(
    estimate_BS: Sequence[Sequence[float]],
    drawn: Sequence[Sequence[Array]],
    confidence: float,
    rng: np.random.Generator,
    bounds: tuple[float, float] | None = None,
    floor: float | None = None,
) -> dict[str, float]:
    """Mean over benchmarks and seeds with its interval.

    Args:
        estimate_BS: of each benchmark and seed.
        drawn: of each benchmark and seed, [draws].
        confidence: coverage.
        rng: for the spread between seeds.
        bounds: of a measure that is a length or an angle, which resampling makes larger as noise does: its interval is
            the draws reflected at the estimate (Davison and Hinkley 1997, Sec. 5.2), within these bounds.
        floor: least value of a measure that has one and needs no reflection.
    """
    per_seed_S = np.mean(estimate_BS, axis=0)
    drawn_D = np.mean([np.mean(seeds, axis=0) for seeds in drawn], axis=0)
    deviation_S1 = (per_seed_S - per_seed_S.mean())[:, None]
    drawn_D = drawn_D + seed_noise(deviation_S1, len(drawn_D), rng)[:, 0]
    estimate = float(per_seed_S.mean())
    if floor is not None:  # Student's noise of few seeds knows no bounds
        drawn_D = np.maximum(drawn_D, floor)
    if bounds is not None:
        drawn_D = np.clip(2 * estimate - drawn_D, *bounds)
    interval = percentile_interval(estimate, drawn_D, confidence)
    return {key: round(float(value), 6) for key, value in interval._asdict().items()}


def _levels(
    members: Sequence[str],
    results: dict[str, list[dict[str, Any]]],
    draws: dict[str, list[dict[str, Array]]],
    pooling: str,
    measure: str,
    confidence: float,
    rng: np.random.Generator,
) -> list[dict[str, float] | None]:
    """A layer measure of a group at every level; None where the base's states do not differ between prompts."""
    number, place = POOLINGS.index(pooling), LAYER_MEASURES.index(measure)
    levels: list[dict[str, float] | None] = []
    for level in range(len(results[members[0]][0]["layers"][pooling][measure])):
        estimate = [[row["layers"][pooling][measure][level] for row in results[name]] for name in members]
        if any(value is None for row in estimate for value in row):
            levels.append(None)
            continue
        drawn = [[drawn["layers"][number, :, level, place] for drawn in draws[name]] for name in members]
        levels.append(_mean(estimate, drawn, confidence, rng, _BOUNDS[measure]))
    return levels


def _floor(members: Sequence[str], results: dict[str, list[dict[str, Any]]], pooling: str) -> list[float | None]:
    """Mean CKA with shuffled prompts at every level."""
    levels = []
    for values in zip(*(row["layers"][pooling]["shuffled_cka"] for m in members for row in results[m]), strict=True):
        levels.append(None if None in values else round(float(np.mean(values)), 6))
    return levels


def _words(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shifted words of an arm over all its sets, by kind, and how many of all tokens they are."""
    merged = merge_shifted(row["texts"][OWN]["shifted"] for row in rows)
    kinds: dict[str, int] = {"connective": 0, "content": 0, "format": 0}
    for word in merged:
        kinds[word["kind"]] += word["shifted"]
    shown = [word | {"rise": round(word["rise"], 3), "base_rank": round(word["base_rank"], 1)} for word in merged]
    return {"tokens": sum(kinds.values()), "by_kind": kinds, "different": len(merged), "words": shown[:WORDS]}


def empty_samples(shifts: dict[str, Any] | None) -> list[str]:
    """Sentences about samples in which a model said nothing at all, whose shift is that of one token."""
    if shifts is None:
        return []
    return [
        f"token shift: {count} of {models * shifts['sets'][name]['prompts']} samples of {arm} on {name} are empty: the "
        "model stopped at once"
        for arm, found in shifts["arms"].items()
        for models in [found["models"]]
        for name, count in found["empty"].items()
    ]
