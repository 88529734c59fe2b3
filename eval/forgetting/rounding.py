"""Which runs are so near the base that rounding alone could be their distance."""

from pathlib import Path

import numpy as np

from recipes.files import read_json_lines
from recipes.layout import run_folder
from recipes.schema import Recipe
from train.drift import DRIFT

_NEAR = 3.0  # times what rounding alone amounts to


def near_rounding(recipe: Recipe, study_dir: Path) -> dict[str, str]:
    """Arm -> a warning, where the KL of its final checkpoints is not well above that of rounding alone.

    Rounding is measured on the base (see `train.drift`); it adds about as much to every KL in the same number format.
    """
    rows = read_json_lines(study_dir / "drift" / "base" / DRIFT) if recipe.drift is not None else []
    rounding = rows[0].get("rounding_kl") if rows else None
    if rounding is None:
        return {}
    warnings = {}
    for arm in recipe.trained:
        ends = [read_json_lines(run_folder(study_dir, arm, seed, "drift") / DRIFT)[-1] for seed in recipe.seeds]
        for name, what in (("kl_from_base", f"KL(base || {arm})"), ("kl_to_base", f"KL({arm} || base)")):
            kl = float(np.mean([row[name] for row in ends]))
            if kl < _NEAR * rounding:
                dtype = recipe.require_drift().dtype or recipe.require_model().dtype
                warnings[arm] = (
                    f"{what} is {kl:.2g} nats a token, and rounding to {dtype} alone is {rounding:.2g}: its distance "
                    "and its curves against KL may be rounding; drift.dtype=float32 measures it"
                )
                break
    return warnings
