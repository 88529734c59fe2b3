"""The rules that every decision and every conclusion rests on. Bounds decide, never estimates alone.

1. A group may have lost as much as the lower end of its interval says (`may_lose`). A model is refused where that is
   more than the limit.
2. A gain exists only if its interval lies above zero (`gained`). Without one there is no index, no rank and no
   comparison at equal gain.
3. Of models with a gain, all that cannot be told from the one with the highest lower end are ties, and the tie goes to
   the one that may have lost least (`preferred`).
4. A model chosen on some questions ships only if other questions agree. They must also make it likely that a further
   set of as many questions agrees (`safe_limit`).
5. Where no limit was given, on the report's first screen, the limit is the smallest one that a model with a gain
   passes (`smallest_limit`). Rule 3 decides between the models that pass it. `ablate` asks for the most gain and sets
   no limit.

`transfer gate`, `pick`, `compare` and `ablate` and the report's first screen use these and have no rules of their own.
All values are gains over the base in points.
"""

from collections.abc import Callable, Collection, Mapping
from math import ceil
from typing import Literal, Protocol, TypeVar

import numpy as np

Array = np.ndarray
Key = TypeVar("Key")
Agreement = Literal["agrees", "differs", "too uncertain"]


class Bounded(Protocol):
    """An estimate with the ends of its interval."""

    @property
    def estimate(self) -> float:
        """The value itself."""

    @property
    def low(self) -> float:
        """Lower end."""

    @property
    def high(self) -> float:
        """Upper end."""


def gained(gain: Bounded) -> bool:
    """Whether there is a gain: its whole interval lies above zero."""
    return gain.low > 0


def fell(gain: Bounded) -> bool:
    """Whether there is a loss: the whole interval lies below zero."""
    return gain.high < 0


def differs(difference: Bounded) -> bool:
    """Whether two models can be told apart: the interval of their difference excludes zero."""
    return gained(difference) or fell(difference)


def may_lose(gain: Bounded) -> float:
    """The largest loss that the interval does not exclude; 0 where it excludes any."""
    return max(0.0, -gain.low)


def limit_shown(points: float) -> float:
    """A limit as people read it: rounded up to a tenth, so that a model passes with the limit that is shown."""
    return ceil(10 * points - 1e-9) / 10


def rounded_up(gain: Bounded) -> str:
    """What to say behind a loss that is shown where the interval beside it, rounded to the nearest, ends earlier."""
    loss = may_lose(gain)
    return " (rounded up)" if f"{limit_shown(loss):.1f}" != f"{loss:.1f}" else ""


def worst_group(gains: Mapping[str, Bounded], trained: str) -> str | None:
    """The group besides the trained one that may have lost most; None where there is no other."""
    others = {group: gain.low for group, gain in gains.items() if group != trained}
    return min(others, key=others.__getitem__, default=None)


def refused_groups(gains: Mapping[str, Bounded], max_drop: float) -> list[str]:
    """The groups that may have lost more than `max_drop`."""
    return [group for group, gain in gains.items() if may_lose(gain) > max_drop]


def preferred(
    gain: Mapping[Key, Bounded], risk: Mapping[Key, float], difference: Callable[[Key, Key], Bounded]
) -> Key | None:
    """The model to take; None where none has a gain.

    Args:
        gain: of each model in the trained group.
        risk: the largest loss that each model may have had elsewhere.
        difference: gain of one model minus that of another.
    """
    equals = ties(gain, difference)
    return min(equals, key=lambda key: (risk[key], -gain[key].low)) if equals else None


def ties(gain: Mapping[Key, Bounded], difference: Callable[[Key, Key], Bounded]) -> list[Key]:
    """The models with a gain that cannot be told from the best, the one with the highest lower end; with the best."""
    gaining = [key for key in gain if gained(gain[key])]
    best = max(gaining, key=lambda key: gain[key].low, default=None)
    return [key for key in gaining if best is not None and (key == best or not differs(difference(best, key)))]


def smallest_limit(gain: Mapping[Key, Bounded], risk: Mapping[Key, float]) -> float | None:
    """The limit where none was given: the smallest one that a model with a gain passes; None where none has a gain.

    Args:
        gain: of each model in the trained group.
        risk: the largest loss that each model may have had, which is the smallest limit that it passes.
    """
    return min((risk[key] for key in gain if gained(gain[key])), default=None)


def comparable(gains: Collection[Bounded]) -> bool:
    """Whether models can be compared at an equal gain: there are some, and every one has a gain."""
    return bool(gains) and all(gained(gain) for gain in gains)


def safe_limit(estimate_G: Array, drawn_DG: Array, confidence: float, rng: np.random.Generator) -> float:
    """The smallest `max_drop` at which rule 1 refuses a model on as many fresh questions with at most 1 - confidence.

    The true gains lie around the estimates as the draws do, the fresh estimates around the true gains likewise, and
    the fresh lower ends as far below those as here. Never below what the model may have lost on these questions.

    Args:
        estimate_G: gain in every group.
        drawn_DG: its joint draws.
        confidence: of the intervals.
        rng: pairs each draw of the true gains with one of the fresh questions.
    """
    deviation_DG = drawn_DG - estimate_G
    lower_G = np.percentile(deviation_DG, 50 * (1 - confidence), axis=0)
    fresh_DG = estimate_G + deviation_DG + rng.permutation(deviation_DG) + lower_G
    least_D = fresh_DG.min(axis=1)
    return float(max(0.0, -np.quantile(least_D, 1 - confidence), -(estimate_G + lower_G).min()))


def agreement(difference: float, half_width: float, margin: float) -> Agreement:
    """Whether two scores agree: two one-sided tests against a margin (Schuirmann 1987, J. Pharmacokinet. 15, 657).

    `differs` where the interval excludes zero, `agrees` where it lies within the margin.
    """
    if abs(difference) > half_width:
        return "differs"
    return "agrees" if abs(difference) + half_width <= margin else "too uncertain"
