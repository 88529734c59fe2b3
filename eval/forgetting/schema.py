"""The part `trajectory` of `transfer.json`, and what `transfer pick` prints."""

from eval.statistics.values import Estimate, PartialEstimate, Values


class TrajectoryArm(Values):
    """One arm along its checkpoints, mean over training seeds; the first is what it started from."""

    steps: list[int]
    axes: dict[str, list[float]]
    """Axis -> its value at each checkpoint; the keys are those of `eval.forgetting.curves.AXES`."""
    gains: dict[str, list[Estimate]]
    """Group -> gain over the base at each checkpoint, in points."""


class EqualGainArm(Values):
    """An arm where its held-out gain first passes the target. Without `groups` it never does."""

    crossings: int
    reached: float
    """Share of the draws that reach the target."""
    between_updates: list[int] | None = None
    groups: dict[str, PartialEstimate] | None = None


class GroupContrast(Values):
    """Difference of two arms at equal held-out gain, by group, in points."""

    first: str
    second: str
    groups: dict[str, PartialEstimate]


class EqualGain(Values):
    """All arms at one held-out gain, in points."""

    heldout_gain: float
    arms: dict[str, EqualGainArm]
    contrasts: list[GroupContrast]


class RazorFit(Values):
    """Loss outside math as a quadratic of KL(base || model). Without coefficients there were too few checkpoints."""

    points: int
    coefficients: list[float] | None = None
    r2: float | None
    residuals: dict[str, Estimate] | None = None


class Trajectory(Values):
    """Forgetting curves of all arms."""

    questions: dict[str, int]
    groups: list[str]
    arms: dict[str, TrajectoryArm]
    best_heldout_gain: dict[str, float]
    equal_gain: list[EqualGain]
    razor: RazorFit | None

    def with_hours(self, hours: dict[str, list[float]]) -> "Trajectory":
        """The same with hours as a further axis of some arms; `transfer.json` does not have it."""
        arms = {
            arm: curve.model_copy(update={"axes": curve.axes | {"gpu_hours": hours[arm]}}) if hours.get(arm) else curve
            for arm, curve in self.arms.items()
        }
        return self.model_copy(update={"arms": arms})


class Candidate(Values):
    """A checkpoint that could be shipped; the base has neither arm nor seed. Gain and loss in points."""

    arm: str | None
    seed: int | None
    update: int
    math_gain: float
    worst_group: str
    worst_loss: float
    on_frontier: bool


class Pick(Values):
    """The checkpoint to ship, chosen on one half of the slice's questions and reported on the other."""

    max_drop: float
    choice: Candidate
    reported: dict[str, Estimate]
    candidates: list[Candidate]
