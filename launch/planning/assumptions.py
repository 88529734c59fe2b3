"""What the hours of a plan assume, and how much depends on it. Needs no torch."""

from collections.abc import Sequence
from dataclasses import fields, replace

from launch.planning.calibration import Calibration
from launch.planning.hours import PlanContext, StageHours, stage_hours
from launch.planning.plan_schema import CHANGE, AssumedLengths, Assumption, Totals
from launch.stages import Stage
from recipes.schema import Recipe
from train.accounting.rates import Rates

_LENGTH = "resources.expected_completion_tokens"


def assumed_hours(context: PlanContext | None, stages: Sequence[Stage]) -> dict[str, StageHours | None]:
    """Hours of every stage by the assumptions; those of the seeds of an arm are the same and computed once."""
    hours: dict[tuple[str, str | None], StageHours | None] = {}
    for stage in stages:
        if _key(stage) not in hours:
            hours[_key(stage)] = stage_hours(context, stage)
    return {stage.name: hours[_key(stage)] for stage in stages}


def _key(stage: Stage) -> tuple[str, str | None]:
    return (stage.kind, stage.arm) if "arm" in stage.arguments else (stage.name, None)


class UnmeasuredHours:
    """The hours of the stages to run that no measured stage tells about."""

    def __init__(
        self,
        recipe: Recipe,
        context: PlanContext | None,
        waiting: Sequence[Stage],
        calibration: Calibration,
    ) -> None:
        self.recipe, self.context = recipe, context
        self._stages = [stage for stage in waiting if not calibration.corrected_by(stage)]

    def hours(self, **rates: float) -> float:
        """GPU-hours, or hours of the clock without a GPU, with some of the assumed rates changed."""
        assert self.context is not None
        return self.hours_in(replace(self.context, rates=replace(self.context.rates, **rates)))

    def hours_in(self, context: PlanContext | None) -> float:
        """The same in another context."""
        on_gpu = self.recipe.resources.gpu is not None
        found = assumed_hours(context, self._stages).values()
        return sum(hours.gpu_hours if on_gpu else hours.hours for hours in found if hours is not None)


def assumptions(unmeasured: UnmeasuredHours) -> tuple[Assumption, ...]:
    """What each assumption moves."""
    recipe, context = unmeasured.recipe, unmeasured.context
    before = unmeasured.hours_in(context)
    if context is None or not before:
        return ()
    made = []
    for item in fields(Rates):
        value = float(getattr(context.rates, item.name))
        made.append(Assumption(item.name, value, unmeasured.hours(**{item.name: value * (1 + CHANGE)}) / before - 1))
    expected = recipe.resources.expected_completion_tokens
    if expected is not None:
        longer = recipe.resources.model_copy(update={"expected_completion_tokens": round(expected * (1 + CHANGE))})
        raised = replace(context, recipe=recipe.model_copy(update={"resources": longer}))
        made.append(Assumption(_LENGTH, float(expected), unmeasured.hours_in(raised) / before - 1))
    return tuple(sorted(made, key=lambda item: -abs(item.change)))


def assumed_lengths(unmeasured: UnmeasuredHours, totals: Totals) -> AssumedLengths | None:
    """The lengths that are assumed; None where they change nothing."""
    if unmeasured.context is None or unmeasured.recipe.resources.expected_completion_tokens is not None:
        return None
    longer = unmeasured.hours(completion_share=1.0, response_share=1.0) - unmeasured.hours()
    rates = unmeasured.context.rates
    return AssumedLengths(rates.completion_share, rates.response_share, totals.hours + longer) if longer > 0 else None
