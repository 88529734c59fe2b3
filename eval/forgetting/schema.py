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
    """An arm where its held-out gain first passes the target. Without `groups` it never does, or began above it."""

    crossings: int
    reached: float
    """Share of the draws that reach the target."""
    between_updates: list[int] | None = None
    groups: dict[str, PartialEstimate] | None = None
    began_above: bool = False
    """Whether it started from another arm's end that had gained more, and never fell to the target."""


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
    """Loss outside the trained group as a quadratic of KL(base || model), or the reason why there is none."""

    points: int
    reason: str | None = None
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
        """These curves with hours as a further axis of some arms; `transfer.json` does not have it."""
        arms = {
            arm: curve.model_copy(update={"axes": curve.axes | {"gpu_hours": hours[arm]}}) if hours.get(arm) else curve
            for arm, curve in self.arms.items()
        }
        return self.model_copy(update={"arms": arms})


class Candidate(Values):
    """A checkpoint that could be shipped, by the half it is chosen on; the base has neither arm nor seed."""

    arm: str | None
    seed: int | None
    step: int
    trained_gain: Estimate
    """Gain in the trained group, in points."""
    worst_group: str
    """The other group that may have lost most."""
    worst_gain: Estimate
    passes_from: float
    """Smallest `max_drop` with which it can be expected to pass `transfer gate` on as many further questions."""
    on_frontier: bool


class Pick(Values):
    """The checkpoint to ship, chosen on one half of the slice's questions and checked on the other."""

    max_drop: float
    choice: Candidate
    """What to ship; the base where nothing is shipped."""
    proposed: Candidate | None
    """What the first half proposed."""
    refused: list[str]
    """Why nothing is shipped; empty where something is."""
    reported: dict[str, Estimate]
    """Gains of the proposed model on the half it was not chosen on."""
    tied: list[Candidate]
    """Candidates within the limit that gained more than the proposed one, but not so much that it can be told."""
    questions: int
    """Questions that the first half has, without held-out problems."""
    checked: int
    """Questions that the other half has, without held-out problems."""
    candidates: list[Candidate]
    learned_nothing: list[str]
    """The runs without a gradient in any step, as sentences; none of their checkpoints is proposed."""
