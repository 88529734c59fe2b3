"""The results of the stages `diagnostics/` by arm: layers, averages and histograms, shifted words."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from eval.shifts.diagnostics import AVERAGED, BASE, OWN, REFERENCE
from eval.shifts.pca_shift import MEASURES as LAYER_MEASURES
from eval.shifts.schema import (
    ArmShifts,
    PaperMeasures,
    PromptSetSize,
    ShiftedWord,
    ShiftedWords,
    Shifts,
    TokenMeasure,
)
from eval.shifts.states import POOLINGS
from eval.shifts.token_shift import KL_EDGES, RANK_EDGES, merge_shifted
from eval.statistics.bootstrap import seed_noise
from eval.statistics.inference import percentile_interval
from eval.statistics.values import Estimate
from recipes.schema import Recipe

Array = np.ndarray
KINDS = (OWN, BASE, REFERENCE)
_BOUNDS = {"pca_shift": (0.0, np.inf), "centroid_shift": (0.0, np.inf), "cka": (0.0, 1.0), "angle": (0.0, 90.0)}
WORDS = 40  # shifted words kept for each arm


def summarise_shifts(recipe: Recipe, study_dir: Path) -> Shifts:
    """Representation and token shift of every arm.

    A group is the mean over its benchmarks, an arm the mean over its seeds. Draws resample prompts, the same for all
    models; the spread between seeds is added as for scores.
    """
    measured = {arm: _read(recipe, study_dir, arm) for arm in recipe.arms}
    arms = {arm: _summarise_arm(recipe, items) for arm, items in measured.items()}
    first = next(iter(measured.values()))
    return Shifts(
        sets={
            name: PromptSetSize(group=rows[0]["group"], prompts=rows[0]["prompts"]) for name, rows in first.rows.items()
        },
        levels=next(iter(arms.values())).levels,
        kl_edges=list(KL_EDGES[:-1]),
        rank_edges=list(RANK_EDGES[:-1]),
        arms=arms,
    )


@dataclass(frozen=True)
class _Measured:
    """The stored results of one arm by set of prompts, one entry for each training seed."""

    rows: dict[str, list[dict[str, Any]]]
    """The contents of `shift-<set>.json`."""
    draws: dict[str, list[dict[str, Array]]]
    """The contents of `draws-<set>.safetensors`."""

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group -> its sets, in the order of the manifest."""
        groups: dict[str, list[str]] = {}
        for name, rows in self.rows.items():
            groups.setdefault(rows[0]["group"], []).append(name)
        return groups


def _read(recipe: Recipe, study_dir: Path, arm: str) -> _Measured:
    folders = [study_dir / "diagnostics" / label for label in recipe.labels(arm)]
    names = json.loads((folders[0] / "manifest.json").read_text())["facts"]["sets"]
    return _Measured(
        {name: [json.loads((folder / f"shift-{name}.json").read_text()) for folder in folders] for name in names},
        {name: [load_file(folder / f"draws-{name}.safetensors") for folder in folders] for name in names},
    )


def _summarise_arm(recipe: Recipe, measured: _Measured) -> ArmShifts:
    # With several seeds the intervals depend on the order in which this generator is used: layers before tokens, each
    # in the order of the loops below.
    rng = np.random.default_rng([recipe.require_diagnostics().seed, 2])
    confidence = recipe.statistics.confidence
    first = next(iter(measured.rows.values()))
    everything = [row for rows in measured.rows.values() for row in rows]
    parts: dict[str, Any] = {"paper": _paper(measured)} if first[0]["paper"] else {}
    return ArmShifts(
        models=len(first),
        levels=len(first[0]["layers"][POOLINGS[0]]["cka"]),
        layers=_layers(measured, confidence, rng),
        tokens={kind: _tokens(measured, kind, confidence, rng) for kind in KINDS},
        by_set={name: _kl_by_kind(rows) for name, rows in measured.rows.items()},
        histograms={
            kind: np.sum([row["texts"][OWN][f"{kind}_histogram"] for row in everything], axis=0).tolist()
            for kind in ("kl", "rank")
        },
        own_tokens=sum(row["texts"][OWN]["tokens"] for row in everything),
        empty={
            name: count
            for name, rows in measured.rows.items()
            if (count := sum(row["texts"][OWN]["empty"] for row in rows))
        },
        shifted=_words(everything),
        **parts,
    )


def _layers(
    measured: _Measured, confidence: float, rng: np.random.Generator
) -> dict[str, dict[str, dict[str, list[Estimate | float | None]]]]:
    """Group -> pooling -> measure -> value at every level."""
    layers: dict[str, dict[str, dict[str, list[Estimate | float | None]]]] = {}
    for group, members in measured.groups.items():
        layers[group] = {}
        for pooling in POOLINGS:
            measures = layers[group][pooling] = {}
            for measure in LAYER_MEASURES:
                measures[measure] = _levels(members, measured, pooling, measure, confidence, rng)
            measures["shuffled_cka"] = _floor(members, measured.rows, pooling)
    return layers


def _tokens(
    measured: _Measured, kind: str, confidence: float, rng: np.random.Generator
) -> dict[str, dict[str, TokenMeasure]]:
    """Group -> measure -> its averages on one kind of text; groups without such text are left out."""
    tokens: dict[str, dict[str, TokenMeasure]] = {}
    for group, members in measured.groups.items():
        names = [name for name in members if kind in measured.rows[name][0]["texts"]]
        if not names:
            continue
        tokens[group] = {}
        for measure in AVERAGED:
            floor = 0.0 if measure.startswith(("kl", "entropy")) else None
            averages = {}
            for way in ("per_token", "per_response"):
                estimates = [
                    [row["texts"][kind]["averages"][measure][way] for row in measured.rows[name]] for name in names
                ]
                draws = [[seed[f"{kind}/{measure}/{way}"] for seed in measured.draws[name]] for name in names]
                averages[way] = _mean(estimates, draws, confidence, rng, floor=floor)
            tokens[group][measure] = TokenMeasure(**averages)
    return tokens


def _kl_by_kind(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """KL(model || base) of one set by kind of text, nats a token, mean over seeds."""
    return {
        kind: round(float(np.mean([row["texts"][kind]["averages"]["kl_to_base"]["per_token"] for row in rows])), 6)
        for kind in KINDS
        if kind in rows[0]["texts"]
    }


def _paper(measured: _Measured) -> PaperMeasures:
    """The published measures by set, mean over seeds; the KL is left out where no seed has one."""
    kl = {
        name: [row["paper"]["kl"] for row in rows if row["paper"]["kl"] is not None]
        for name, rows in measured.rows.items()
    }
    return PaperMeasures(
        d={name: round(float(np.mean([row["paper"]["d"] for row in rows])), 6) for name, rows in measured.rows.items()},
        kl={name: round(float(np.mean(values)), 6) for name, values in kl.items() if values},
    )


def _mean(
    estimate_BS: Sequence[Sequence[float]],
    drawn: Sequence[Sequence[Array]],
    confidence: float,
    rng: np.random.Generator,
    bounds: tuple[float, float] | None = None,
    floor: float | None = None,
) -> Estimate:
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
    return Estimate.of(percentile_interval(estimate, drawn_D, confidence), digits=6)


def _levels(
    members: Sequence[str],
    measured: _Measured,
    pooling: str,
    measure: str,
    confidence: float,
    rng: np.random.Generator,
) -> list[Estimate | float | None]:
    """A layer measure of a group at every level; None where the base's states do not differ between prompts."""
    pooling_index, measure_index = POOLINGS.index(pooling), LAYER_MEASURES.index(measure)
    levels: list[Estimate | float | None] = []
    for level in range(len(measured.rows[members[0]][0]["layers"][pooling][measure])):
        estimate = [[row["layers"][pooling][measure][level] for row in measured.rows[name]] for name in members]
        if any(value is None for row in estimate for value in row):
            levels.append(None)
            continue
        drawn = [
            [seed["layers"][pooling_index, :, level, measure_index] for seed in measured.draws[name]]
            for name in members
        ]
        levels.append(_mean(estimate, drawn, confidence, rng, _BOUNDS[measure]))
    return levels


def _floor(
    members: Sequence[str], results: dict[str, list[dict[str, Any]]], pooling: str
) -> list[Estimate | float | None]:
    """Mean CKA with shuffled prompts at every level."""
    levels: list[Estimate | float | None] = []
    for values in zip(*(row["layers"][pooling]["shuffled_cka"] for m in members for row in results[m]), strict=True):
        levels.append(None if None in values else round(float(np.mean(values)), 6))
    return levels


def _words(rows: Sequence[dict[str, Any]]) -> ShiftedWords:
    """Shifted words of an arm over all its sets, by kind, and how many of all tokens they are."""
    merged = merge_shifted(row["texts"][OWN]["shifted"] for row in rows)
    kinds: dict[str, int] = {"connective": 0, "content": 0, "format": 0}
    for word in merged:
        kinds[word["kind"]] += word["shifted"]
    shown = [word | {"rise": round(word["rise"], 3), "base_rank": round(word["base_rank"], 1)} for word in merged]
    words = [ShiftedWord(**word) for word in shown[:WORDS]]
    return ShiftedWords(tokens=sum(kinds.values()), by_kind=kinds, different=len(merged), words=words)


def empty_samples(shifts: Shifts | None) -> list[str]:
    """Sentences about samples in which a model generated nothing, whose shift is that of one token."""
    if shifts is None:
        return []
    return [
        f"token shift: {count} of {shift.models * shifts.sets[name].prompts} samples of {arm} on {name} are empty: the "
        "model stopped at once"
        for arm, shift in shifts.arms.items()
        for name, count in shift.empty.items()
    ]
