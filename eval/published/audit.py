"""The published comparison as data, and what can be recomputed from it.

The printed indices do not follow from the printed formula; they follow from one scale per group for all models
(`paper` in `transfer_index.py`, whose two constants are fitted). `recompute` lists the models for which even that
does not give the printed index: then a score or an index in the paper is wrong.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eval.statistics.transfer_index import DEFINITIONS, MATH, PAPER_SCALES, transfer_gain, transfer_index

GROUPS = {
    MATH: ("math500", "aime24", "aime25", "olympiadbench"),
    "other_reasoning": ("livecodebench", "gpqa", "acpbench", "headqa"),
    "non_reasoning": ("coqa", "ifeval", "halueval", "mctaco"),
}
_ROUNDING = 0.05  # scores and indices are printed to 0.1
_ROUNDINGS = 4000
_FILE = Path(__file__).parent / "paper.yaml"


@dataclass(frozen=True)
class PublishedModel:
    """One audited model with its printed scores (percent) and indices."""

    name: str
    base: str
    size: float
    """Billions of parameters."""
    method: str
    scores: dict[str, float]
    base_scores: dict[str, float]
    index: dict[str, float]
    """Group -> printed index, percent."""


@lru_cache(maxsize=1)
def _values() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return values


def published_models() -> list[PublishedModel]:
    """All models with a printed index, in the order of the paper's table; the three of Table 1 last."""
    values = _values()
    columns = values["columns"]
    return [
        PublishedModel(
            row["name"],
            row["base"],
            float(row["size"]),
            row["method"],
            dict(zip(columns, row["scores"], strict=True)),
            dict(zip(columns, values["bases"][row["base"]], strict=True)),
            {group: float(row[group]) for group in GROUPS if group != MATH},
        )
        for row in values["models"]
    ]


def published_benchmarks() -> set[str]:
    """Names of the benchmarks with published scores."""
    return set(_values()["columns"])


def replications() -> dict[str, dict[str, list[float]]]:
    """Scores that others measured for released models: model -> benchmark -> lowest and highest."""
    scores: dict[str, dict[str, list[float]]] = _values()["replications"]
    return scores


def group_index(model: PublishedModel, definition: Any, group: str) -> float:
    """An index recomputed from the printed scores, percent; NaN where it is undefined."""
    gains = {}
    for name in (group, MATH):
        base = np.array([model.base_scores[benchmark] for benchmark in GROUPS[name]])
        tuned = np.array([model.scores[benchmark] for benchmark in GROUPS[name]])
        gains[name] = transfer_gain(definition, base, tuned)
    return float(transfer_index(definition, group, gains[group], gains[MATH]))


def rounding_range(model: PublishedModel, group: str) -> tuple[float, float]:
    """Lowest and highest index (definition `paper`) among scores that would be printed as these are.

    Monte Carlo: 4,000 sets of scores, each within 0.05 of the printed one.
    """
    rng = np.random.default_rng(0)
    gains = {}
    for name in (group, MATH):
        printed = np.array([[scores[b] for b in GROUPS[name]] for scores in (model.base_scores, model.scores)])
        moved = printed + rng.uniform(-_ROUNDING, _ROUNDING, (_ROUNDINGS, *printed.shape))
        gains[name] = transfer_gain("paper", moved[:, 0], moved[:, 1])
    drawn = transfer_index("paper", group, gains[group], gains[MATH])
    return float(np.nanmin(drawn)) - _ROUNDING, float(np.nanmax(drawn)) + _ROUNDING


def recompute() -> list[dict[str, Any]]:
    """Every model with its printed indices, the recomputed ones by each definition, and whether they agree.

    An index reproduces if it is what the definition `paper` gives for some scores that round to the printed ones.
    """
    rows = []
    for model in published_models():
        recomputed = {
            definition: {group: _rounded(group_index(model, definition, group)) for group in model.index}
            for definition in DEFINITIONS
        }
        ranges = {group: rounding_range(model, group) for group in model.index}
        off = [group for group, printed in model.index.items() if not ranges[group][0] <= printed <= ranges[group][1]]
        rows.append(
            {
                "model": model.name,
                "base": model.base,
                "size": model.size,
                "method": model.method,
                "published": model.index,
                "recomputed": recomputed,
                "rounding_range": {group: [round(value, 2) for value in ends] for group, ends in ranges.items()},
                "reproduces": not off,
                "off": off,
            }
        )
    return rows


def _rounded(value: float) -> float | None:
    return round(value, 1) if np.isfinite(value) else None


def format_published(rows: list[dict[str, Any]]) -> str:
    """The audit of the published indices as text."""
    others = [group for group in GROUPS if group != MATH]
    head = f"{'model':<36}{'method':<8}" + "".join(f"{group + ', printed':>26}{'recomputed':>12}  " for group in others)
    lines = ["transferability indices of arXiv 2507.00432 v2, percent of the math gain", "", head, "-" * len(head)]
    for row in rows:
        cells = "".join(
            f"{row['published'][group]:>26.1f}{row['recomputed']['paper'][group]:>12.1f}"
            + ("* " if group in row["off"] else "  ")
            for group in others
        )
        lines.append(f"{row['model']:<36}{row['method']:<8}{cells}".rstrip())
    constants = ", ".join(f"{group} {PAPER_SCALES[group]}" for group in others)
    off = [row["model"] for row in rows if not row["reproduces"]]
    lines += [
        "",
        "recomputed by the definition `paper` from the printed scores. Its constants are fitted to the six indices of",
        f"the UniReason models, not derived ({constants}); the printed formula",
        "gives other values (--json has all definitions).",
        f"{len(rows) - len(off)} of {len(rows)} models reproduce, rounding of scores allowed for. These do not (*):",
        f"{', '.join(off)}.",
        "For these a printed score or index is wrong; the paper does not show which.",
    ]
    return "\n".join(lines)
