"""What an ablation says: gains along each axis with intervals, and points of equal gain.

Its inputs are the finished reports of all points (`transfer.json`), each with the recipe it was made from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from matplotlib import pyplot as plt
from pydantic import TypeAdapter

from eval.drawing import INK, Drawing, colour_of, error_bars, label, legend, ringed_line, styled, tick_text, to_drawing
from eval.report.schema import Budget, Transfer
from eval.report.wording import points as points_text
from eval.statistics.decisions import gained
from eval.statistics.values import Estimate
from recipes.errors import UserError


@dataclass(frozen=True)
class PointResult:
    """A point of an ablation with a finished report."""

    name: str
    values: Mapping[str, Any]
    """Value of every axis."""
    settings: Mapping[str, Any]
    """Its whole recipe, flat: dotted key -> value."""
    made_by: Mapping[str, Any]
    """Version of the code and of the packages behind every stage."""
    transfer: Transfer
    hours: Mapping[str, float] = field(default_factory=dict)
    """Arm -> hours of all processes of one run, mean over seeds."""


def require_comparable(points: Sequence[PointResult], axes: Sequence[str]) -> None:
    """Refuse to put points together that differ in more than the axes.

    Raises:
        UserError: recipes differ elsewhere, or code or packages do; with the list.
    """
    first = points[0]
    unlike = []
    for point in points[1:]:
        for key in sorted(first.settings.keys() | point.settings.keys()):
            declared = any(key == axis or key.startswith(f"{axis}.") or axis.startswith(f"{key}.") for axis in axes)
            if not declared and first.settings.get(key) != point.settings.get(key):
                contrast = f"{first.settings.get(key)!r} in {first.name}, {point.settings.get(key)!r} in {point.name}"
                unlike.append(f"{key}: {contrast}")
        if first.made_by != point.made_by:
            unlike.append(f"code or package versions of {first.name} and {point.name}")
    if unlike:
        more = f", and {len(unlike) - 8} more" if len(unlike) > 8 else ""
        raise UserError(
            f"these points differ in more than {', '.join(axes)} and are not compared: {'; '.join(unlike[:8])}{more}; "
            "run all of them again with one recipe and one version, in another folder (--out)"
        )


@dataclass(frozen=True)
class Cost:
    """What one run of an arm took, mean over seeds."""

    generated_tokens: float
    trained_tokens: float
    flops: float
    hours: float | None


@dataclass(frozen=True)
class CurvePoint:
    """Gains of all arms at one point."""

    point: str
    values: dict[str, Any]
    status: str
    seeds: int
    arms: dict[str, dict[str, Estimate]]
    """Arm -> group -> gain."""
    costs: dict[str, Cost]
    """Of the arms that the point trained."""
    warnings: list[str]
    cut_off: list[str]
    """Arms with a score that says nothing: every response to a benchmark was cut off, theirs or the base's."""
    learned_nothing: list[str]
    """Arms without a gradient in any step."""

    guessing: list[str]
    """Arms whose score on the trained group is not above guessing."""

    def judged(self, arm: str) -> bool:
        """Whether the gains of an arm say something of its training."""
        return not any(arm in left_out for left_out in (self.cut_off, self.learned_nothing, self.guessing))


@dataclass(frozen=True)
class Curve:
    """Points along one axis with the others fixed, in the order they were declared in."""

    axis: str
    fixed: dict[str, Any]
    points: list[str]


@dataclass(frozen=True)
class Matched:
    """The point of an arm whose trained gain is nearest to the common one."""

    point: str
    within: bool
    """Whether its interval holds that gain."""
    gains: dict[str, Estimate]


@dataclass(frozen=True)
class ResponseCurves:
    """What an ablation found."""

    axes: list[str]
    paired: bool
    groups: list[str]
    trained_group: str
    confidence: float
    points: list[CurvePoint]
    curves: list[Curve]
    matched_gain: float | None
    """The gain in the trained group that every arm reaches; None where an arm has no gain, so nothing is matched."""
    matched: dict[str, Matched]

    @property
    def arms(self) -> list[str]:
        """The arms that every point has."""
        return [arm for arm in self.points[0].arms if all(arm in row.arms for row in self.points)]

    def dump(self) -> dict[str, Any]:
        """The curves as JSON values."""
        return dict(TypeAdapter(ResponseCurves).dump_python(self, mode="json"))

    def gaining(self, arm: str) -> list[CurvePoint]:
        """The points at which an arm has a gain, without those at which its scores say nothing."""
        return [row for row in self.points if row.judged(arm) and gained(row.arms[arm][self.trained_group])]

    def row(self, point: str) -> CurvePoint:
        """A point by its name."""
        return next(row for row in self.points if row.point == point)


def response_curves(points: Sequence[PointResult], axes: Sequence[str], paired: bool) -> ResponseCurves:
    """Curves of all arms along all axes.

    A curve holds everything but its axis fixed; paired axes move together and are one. Arms are compared at the
    largest trained gain that every arm reaches, each at its nearest point with a gain, where the interval of that point
    holds it. Where an arm has a gain at no point, nothing is compared.
    """
    require_comparable(points, axes)
    trained = points[0].transfer.trained_group
    rows = [
        CurvePoint(
            point.name,
            dict(point.values),
            point.transfer.status,
            len(point.transfer.seeds),
            {arm: dict(result.groups) for arm, result in point.transfer.arms.items()},
            {arm: _cost(rows, point.hours.get(arm)) for arm, rows in point.transfer.budget.items() if rows},
            [warning.message for warning in point.transfer.warnings],
            [arm for arm in point.transfer.arms if point.transfer.warnings_of("all_truncated", arm)],
            [arm for arm in point.transfer.arms if point.transfer.learned_nothing(arm)],
            [arm for arm in point.transfer.arms if point.transfer.guesses(arm)],
        )
        for point in points
    ]
    curves = ResponseCurves(
        axes=list(axes),
        paired=paired,
        groups=list(points[0].transfer.groups),
        trained_group=trained,
        confidence=points[0].transfer.confidence,
        points=rows,
        curves=_curves(rows, axes, paired),
        matched_gain=None,
        matched={},
    )
    gaining = {arm: curves.gaining(arm) for arm in curves.arms}
    if not all(gaining.values()):
        return curves
    target = min(max(row.arms[arm][trained].estimate for row in own) for arm, own in gaining.items())
    return replace(
        curves, matched_gain=target, matched={arm: _matched(own, arm, trained, target) for arm, own in gaining.items()}
    )


def _cost(seeds: Sequence[Budget], hours: float | None) -> Cost:
    generated, trained, flops = (
        sum(getattr(row, name) for row in seeds) / len(seeds)
        for name in ("generated_tokens", "trained_tokens", "flops")
    )
    return Cost(generated, trained, flops, hours)


def _matched(rows: Sequence[CurvePoint], arm: str, trained: str, target: float) -> Matched:
    nearest = min(rows, key=lambda row: abs(row.arms[arm][trained].estimate - target))
    gain = nearest.arms[arm][trained]
    return Matched(nearest.point, gain.low <= target <= gain.high, nearest.arms[arm])


def _curves(rows: Sequence[CurvePoint], axes: Sequence[str], paired: bool) -> list[Curve]:
    if paired:
        return [Curve(axes[0], {}, [row.point for row in rows])]
    curve_by_fixed: dict[tuple[str, str], Curve] = {}
    for axis in axes:
        for row in rows:
            fixed = {key: value for key, value in row.values.items() if key != axis}
            curve_by_fixed.setdefault((axis, repr(fixed)), Curve(axis, fixed, [])).points.append(row.point)
    return [curve for curve in curve_by_fixed.values() if len(curve.points) > 1]


def is_number(value: Any) -> bool:
    """Whether a value of a setting has a place on an axis of numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@styled
def curve_figure(curves: ResponseCurves, index: int) -> Drawing:
    """One curve: a panel for each group of benchmarks, a line for each arm, matched points ringed."""
    curve = curves.curves[index]
    members = [curves.row(name) for name in curve.points]
    numbers = all(is_number(row.values[curve.axis]) for row in members)
    if numbers:  # else the line would run back and forth
        members.sort(key=lambda row: row.values[curve.axis])
    settings = [row.values[curve.axis] for row in members]
    places = [float(value) for value in settings] if numbers else [float(position) for position in range(len(settings))]
    groups = curves.groups
    figure, axes = plt.subplots(1, len(groups), figsize=(3.8 * len(groups), 3.4), squeeze=False)
    for axis, group in zip(axes[0], groups, strict=True):
        for position, arm in enumerate(curves.arms):
            gains = [row.arms[arm][group] for row in members]
            chosen = curves.matched.get(arm)
            ringed = None
            if chosen is not None and chosen.within and chosen.point in curve.points:
                ringed = [row.point for row in members].index(chosen.point)
            middle, colour = [gain.estimate for gain in gains], colour_of(position)
            ringed_line(axis, places, middle, error_bars(gains), colour, label(arm), ringed)
        if numbers and min(places) > 0 and max(places) / min(places) > 8:
            axis.set_xscale("log")
        else:
            axis.set_xticks(places, [tick_text(str(value)) for value in settings])
        axis.axhline(0, color=INK, lw=1)
        axis.set_title(label(group), loc="left", fontsize=11)
        axis.set_xlabel(curve.axis)
    axes[0][0].set_ylabel("mean gain over the base (points)")
    legend(figure, axes[0][0], 1.08)
    return to_drawing(figure)


def format_curves(curves: ResponseCurves) -> str:
    """The curves as text."""
    groups = curves.groups
    width = max(24, *(len(name) + 2 for name in (*(row.point for row in curves.points), *curves.arms)))
    lines = []
    for curve in curves.curves:
        fixed = ", ".join(f"{key}={value}" for key, value in curve.fixed.items())
        lines += ["", f"gains along {curve.axis}" + (f" at {fixed}" if fixed else "") + ", in points"]
        lines.append(" " * width + "".join(f"{label(group):>26}" for group in groups))
        for arm in curves.arms:
            lines.append(f"{arm}")
            for name in curve.points:
                row, chosen = curves.row(name), curves.matched.get(arm)
                cells = "".join(f"{points_text(row.arms[arm][group]):>26}" for group in groups)
                mark = " *" if chosen is not None and chosen.point == name and chosen.within else ""
                lines.append(f"  {row.values[curve.axis]!s:<{width - 2}}{cells}{mark}")
    lines += ["", *_equal_gain(curves, width)]
    stamped = [row.point for row in curves.points if row.status == "UNMATCHED"]
    if stamped:
        lines += ["", f"UNMATCHED arms within: {', '.join(stamped)}"]
    return "\n".join(lines)


def _equal_gain(curves: ResponseCurves, width: int) -> list[str]:
    """The arms at an equal gain, or why they are not compared."""
    trained = label(curves.trained_group)
    if curves.matched_gain is None:
        who = ", ".join(arm for arm in curves.arms if not curves.gaining(arm))
        return [f"no comparison at equal gain: no gain on {trained} that can be told from zero at any point of {who}"]
    lines = [
        f"at an equal gain on {trained}, {curves.matched_gain:+.1f} (the most that every arm reaches): points marked *"
    ]
    for arm, chosen in curves.matched.items():
        if chosen.within:
            cells = "".join(f"{points_text(chosen.gains[group]):>26}" for group in curves.groups)
            lines.append(f"{arm:<{width}}{cells}")
        else:
            lines.append(f"{arm:<{width}}no point there; the nearest is {chosen.point}")
    return lines
