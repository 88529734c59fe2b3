"""What an ablation says: gains along each axis with intervals, and points of equal math gain.

Its inputs are the finished reports of all points (`transfer.json`), each with the recipe it was made from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import pyplot as plt

from eval.drawing import PALETTE, STYLE, label, to_svg
from eval.report.schema import Transfer
from eval.statistics.transfer_index import MATH
from recipes.errors import UserError


@dataclass(frozen=True)
class PointResult:
    """A finished point."""

    name: str
    values: Mapping[str, Any]
    """Value of every axis."""
    settings: Mapping[str, Any]
    """Its whole recipe, flat: dotted key -> value."""
    made_by: Mapping[str, Any]
    """Version of the code and of the packages behind every stage."""
    transfer: Transfer


def require_comparable(points: Sequence[PointResult], axes: Sequence[str]) -> None:
    """Refuse to put points together that differ in more than the axes.

    Raises:
        UserError: recipes differ elsewhere, or code or packages do; with the list.
    """
    first = points[0]
    found = []
    for point in points[1:]:
        for key in sorted(first.settings.keys() | point.settings.keys()):
            declared = any(key == axis or key.startswith(f"{axis}.") or axis.startswith(f"{key}.") for axis in axes)
            if not declared and first.settings.get(key) != point.settings.get(key):
                values = f"{first.settings.get(key)!r} in {first.name}, {point.settings.get(key)!r} in {point.name}"
                found.append(f"{key}: {values}")
        if first.made_by != point.made_by:
            found.append(f"code or package versions of {first.name} and {point.name}")
    if found:
        more = f", and {len(found) - 8} more" if len(found) > 8 else ""
        raise UserError(
            f"these points differ in more than {', '.join(axes)} and are not compared: {'; '.join(found[:8])}{more}"
        )


def response_curves(points: Sequence[PointResult], axes: Sequence[str], paired: bool) -> dict[str, Any]:
    """Curves of all arms along all axes, as JSON values.

    A curve holds everything but its axis fixed; paired axes move together and are one. Each arm's `matched` point is
    the one whose math gain is nearest to what every arm reaches: the smallest of the arms' largest math gains. It is
    marked only if that lies within the point's interval.
    """
    require_comparable(points, axes)
    names = list(dict.fromkeys(arm for point in points for arm in point.transfer.arms))
    rows: list[dict[str, Any]] = [
        {
            "point": point.name,
            "values": dict(point.values),
            "status": point.transfer.status,
            "arms": {
                arm: {group: value.dump() for group, value in result.groups.items()}
                for arm, result in point.transfer.arms.items()
            },
        }
        for point in points
    ]
    arms = [arm for arm in names if all(arm in row["arms"] for row in rows)]
    best = {arm: max(row["arms"][arm][MATH]["estimate"] for row in rows) for arm in arms}
    target = min(best.values())
    matched = {}
    for arm in arms:
        nearest = min(rows, key=lambda row: abs(row["arms"][arm][MATH]["estimate"] - target))
        gain = nearest["arms"][arm][MATH]
        matched[arm] = {
            "point": nearest["point"],
            "within": gain["low"] <= target <= gain["high"],
            "gains": nearest["arms"][arm],
        }
    return {
        "axes": list(axes),
        "paired": paired,
        "groups": list(points[0].transfer.groups),
        "confidence": points[0].transfer.confidence,
        "points": rows,
        "curves": _curves(rows, axes, paired),
        "matched_gain": target,
        "matched": matched,
    }


def _curves(rows: list[dict[str, Any]], axes: Sequence[str], paired: bool) -> list[dict[str, Any]]:
    """Points along one axis with the others fixed, in the order they were declared in."""
    if paired:
        return [{"axis": axes[0], "fixed": {}, "points": [row["point"] for row in rows]}]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for axis in axes:
        for row in rows:
            fixed = {key: value for key, value in row["values"].items() if key != axis}
            curve = found.setdefault((axis, repr(fixed)), {"axis": axis, "fixed": fixed, "points": []})
            curve["points"].append(row["point"])
    return [curve for curve in found.values() if len(curve["points"]) > 1]


def curves_figure(curves: Mapping[str, Any], number: int) -> str:
    """One curve as SVG: a panel for each group of benchmarks, a line for each arm, matched points ringed."""
    curve = curves["curves"][number]
    rows = {row["point"]: row for row in curves["points"]}
    members = [rows[name] for name in curve["points"]]
    values = [row["values"][curve["axis"]] for row in members]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    places = [float(value) for value in values] if numbers else [float(place) for place in range(len(values))]
    groups = curves["groups"]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(groups), figsize=(3.8 * len(groups), 3.4), squeeze=False)
        for axis, group in zip(axes[0], groups, strict=True):
            for place, arm in enumerate(curves["matched"]):
                gains = [row["arms"][arm][group] for row in members]
                middle = [gain["estimate"] for gain in gains]
                errors = [
                    [max(0.0, gain["estimate"] - gain["low"]) for gain in gains],
                    [max(0.0, gain["high"] - gain["estimate"]) for gain in gains],
                ]
                colour = PALETTE[place % len(PALETTE)]
                axis.errorbar(places, middle, errors, color=colour, marker="o", ms=4, capsize=3, label=label(arm))
                chosen = curves["matched"][arm]
                if chosen["within"] and chosen["point"] in curve["points"]:
                    at = curve["points"].index(chosen["point"])
                    axis.plot(places[at], middle[at], "o", ms=12, mfc="none", mec=colour, mew=1.6)
            if numbers and min(places) > 0 and max(places) / min(places) > 8:
                axis.set_xscale("log")
            else:
                axis.set_xticks(places, [str(value) for value in values])
            axis.axhline(0, color="#444", lw=1)
            axis.set_title(label(group), loc="left", fontsize=11)
            axis.set_xlabel(curve["axis"])
        axes[0][0].set_ylabel("mean gain over the base (points)")
        handles, names = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="upper center", ncols=len(names), frameon=False, bbox_to_anchor=(0.5, 1.08))
        figure.tight_layout()
        return to_svg(figure)


def format_curves(curves: Mapping[str, Any]) -> str:
    """The curves as text."""
    groups, rows = curves["groups"], {row["point"]: row for row in curves["points"]}
    width = max(24, *(len(name) + 2 for name in (*rows, *curves["matched"])))
    lines = []
    for curve in curves["curves"]:
        fixed = ", ".join(f"{key}={value}" for key, value in curve["fixed"].items())
        lines += ["", f"gains along {curve['axis']}" + (f" at {fixed}" if fixed else "") + ", in points"]
        lines.append(" " * width + "".join(f"{label(group):>26}" for group in groups))
        for arm in curves["matched"]:
            lines.append(f"{arm}")
            for name in curve["points"]:
                cells = "".join(f"{_gain(rows[name]['arms'][arm][group]):>26}" for group in groups)
                chosen = curves["matched"][arm]
                mark = " *" if chosen["point"] == name and chosen["within"] else ""
                lines.append(f"  {rows[name]['values'][curve['axis']]!s:<{width - 2}}{cells}{mark}")
    lines += [
        "",
        f"at equal math gain, {curves['matched_gain']:+.1f} (the most that every arm reaches): points marked *",
    ]
    for arm, chosen in curves["matched"].items():
        if chosen["within"]:
            cells = "".join(f"{_gain(chosen['gains'][group]):>26}" for group in groups)
            lines.append(f"{arm:<{width}}{cells}")
        else:
            lines.append(f"{arm:<{width}}no point there; the nearest is {chosen['point']}")
    stamped = [name for name, row in rows.items() if row["status"] == "UNMATCHED"]
    if stamped:
        lines += ["", f"UNMATCHED arms within: {', '.join(stamped)}"]
    return "\n".join(lines)


def _gain(gain: Mapping[str, float]) -> str:
    return f"{gain['estimate']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]"
