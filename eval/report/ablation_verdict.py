"""What an ablation concludes: the value to take for each arm, what it costs, how sure; or that this is not identified.

By the rules of `eval/statistics/decisions.py`. Differences between points are those of separate studies: their
intervals are put together as if the questions were independent.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from eval.drawing import label
from eval.report.response_curves import ResponseCurves, is_number
from eval.report.schema import REHEARSAL
from eval.report.wording import change_text, intervals_text, points, sentence_start
from eval.statistics.decisions import may_lose, preferred, ties, worst_group
from eval.statistics.values import Estimate, Values


class Missing(Values):
    """A point without a finished report."""

    point: str
    values: dict[str, Any]
    """Value of every axis."""
    reason: str


class Choice(Values):
    """The point to take for one arm."""

    point: str | None
    """None: no point has a gain that can be told from zero."""
    equals: list[str]
    """The other points whose gain cannot be told from the best one."""
    untouched: bool
    """Whether the arm has the same gains at every point, as where no axis concerns it."""
    gain: Estimate | None
    """In the trained group, at the point."""
    worst_group: str | None
    """The group that may have lost most there."""
    worst: Estimate | None


class Conclusion(Values):
    """The first screen of an ablation's page."""

    answer: str
    arms: dict[str, str]
    """Arm -> what its choice rests on."""
    certainty: list[str]
    choices: dict[str, Choice]


def value_text(values: Mapping[str, Any], axes: Sequence[str]) -> str:
    """A point by its values, for instance `learning_rate 0.0002`; axes with one name and one value are said once."""
    shown = {axis: setting_text(values[axis]) for axis in axes}
    short = {axis: axis.rpartition(".")[2] for axis in axes}
    same = {name: {shown[axis] for axis in axes if short[axis] == name} for name in short.values()}
    parts = [f"{short[axis] if len(same[short[axis]]) == 1 else axis} {shown[axis]}" for axis in axes]
    return ", ".join(dict.fromkeys(parts))


def setting_text(value: Any) -> str:
    """A value of a setting, for reading."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _choice(curves: ResponseCurves, arm: str) -> Choice:
    trained = curves.trained_group
    rows = {row.point: row for row in curves.points}
    gain = {name: row.arms[arm][trained] for name, row in rows.items() if row.judged(arm)}
    risk = {name: max(may_lose(value) for value in rows[name].arms[arm].values()) for name in gain}

    def difference(first: str, second: str) -> Estimate:
        return gain[first].minus(gain[second])

    taken = preferred(gain, risk, difference)
    untouched = len(rows) > 1 and all(row.arms[arm] == curves.points[0].arms[arm] for row in curves.points)
    if taken is None:
        return Choice(point=None, equals=[], untouched=untouched, gain=None, worst_group=None, worst=None)
    gains = rows[taken].arms[arm]
    group = worst_group(gains, trained)
    return Choice(
        point=taken,
        equals=[name for name in ties(gain, difference) if name != taken],
        untouched=untouched,
        gain=gain[taken],
        worst_group=group,
        worst=None if group is None else gains[group],
    )


def conclude(curves: ResponseCurves, missing: Sequence[Missing]) -> Conclusion:
    """The conclusion from the finished points; `missing` are the others."""
    choices = {arm: _choice(curves, arm) for arm in curves.arms}
    certainty = _certainty(curves, missing)
    if any(row.status == REHEARSAL for row in curves.points):
        text = "The models are tiny and random, so nothing is concluded."
        return Conclusion(answer=text, arms={}, certainty=certainty, choices={})
    return Conclusion(
        answer=_answer(curves, choices),
        arms={arm: text for arm, choice in choices.items() if (text := _reason(curves, arm, choice))},
        certainty=certainty,
        choices=choices,
    )


def _answer(curves: ResponseCurves, choices: Mapping[str, Choice]) -> str:
    """One sentence: the value of each arm that the axes concern."""
    trained = label(curves.trained_group)
    identified = {arm: choice for arm, choice in choices.items() if choice.point is not None and not choice.untouched}
    if not identified:
        if any(choice.point is not None for choice in choices.values()):
            return "Not identified: no method with a gain has other results at another point."
        return f"Not identified: at no point has a method a gain on {trained} that can be told from zero."
    parts = {arm: value_text(curves.row(str(choice.point)).values, curves.axes) for arm, choice in identified.items()}
    open_ = [label(arm) for arm, choice in choices.items() if choice.point is None]
    rest = f" Not identified for {join_names(open_)}." if open_ else ""
    return f"Take {take_text(parts)}.{rest}"


def take_text(value_of: Mapping[str, str]) -> str:
    """Arms with their values: `2 for GRPO and off-policy SFT; 4 for rejection`."""
    arms_of: dict[str, list[str]] = {}
    for arm, value in value_of.items():
        arms_of.setdefault(value, []).append(label(arm))
    return "; ".join(f"{value} for {join_names(arms)}" for value, arms in arms_of.items())


def join_names(names: Sequence[str]) -> str:
    """Names as an enumeration: `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _reason(curves: ResponseCurves, arm: str, choice: Choice) -> str:
    """What the choice of an arm rests on; empty where the answer has said all."""
    trained = label(curves.trained_group)
    if choice.point is None or choice.gain is None:
        cut_off = [_name(curves, row.point) for row in curves.points if arm in row.cut_off]
        text = f"at {join_names(cut_off)} every response to a benchmark was cut off." if cut_off else ""
        return " ".join(filter(None, [text, _not_judged(curves, arm)]))
    name = _name(curves, choice.point)
    start = "the same at every point" if choice.untouched else name
    text = f"{start}: {points(choice.gain)} points on {trained}."
    if choice.worst_group is not None and choice.worst is not None:
        text += f" The worst other group is {label(choice.worst_group)}: {change_text(choice.worst)}."
    if choice.untouched:
        return text
    if choice.equals:
        best = join_names([name, *(_name(curves, point) for point in choice.equals)])
        text += (
            f" The best gain and those that cannot be told from it are at {best}; {name} is taken because none of the "
            "others is safer."
        )
    elif len(curves.points) > 1:
        text += f" {_next_best(curves, arm, choice.point, choice.gain)}"
    return " ".join(filter(None, [text + _edge(curves, choice.point), _not_judged(curves, arm)]))


def _not_judged(curves: ResponseCurves, arm: str) -> str:
    """Where an arm learned nothing, or is not above guessing; empty where neither is so at any point."""
    idle = [_name(curves, row.point) for row in curves.points if arm in row.learned_nothing]
    guessing = [_name(curves, row.point) for row in curves.points if arm in row.guessing]
    sentences = [f"No step had a gradient at {join_names(idle)}, so nothing was learned."] if idle else []
    if guessing:
        trained = label(curves.trained_group)
        sentences.append(f"At {join_names(guessing)} its score on {trained} is not above guessing.")
    return " ".join(sentences)


def _next_best(curves: ResponseCurves, arm: str, taken: str, gain: Estimate) -> str:
    rows = [row for row in curves.points if row.point != taken]
    others = {row.point: row.arms[arm][curves.trained_group] for row in rows if row.judged(arm)}
    if not others:
        if all(arm in row.cut_off for row in rows):
            return "At every other point every response to a benchmark was cut off."
        return "No other point can be judged."
    following = max(others, key=lambda point: others[point].low)
    return f"Next comes {_name(curves, following)}; the difference is {points(gain.minus(others[following]))}."


def _edge(curves: ResponseCurves, taken: str) -> str:
    """A warning where the choice is the lowest or highest number tried on an axis."""
    tried = {axis: [row.values[axis] for row in curves.points] for axis in curves.axes}
    values = curves.row(taken).values
    sentences = [
        edge_text(values[axis], numbers, axis.rpartition(".")[2])
        for axis, numbers in tried.items()
        if all(map(is_number, numbers))
    ]
    return "".join(dict.fromkeys(sentences))


def edge_text(value: float, tried: Sequence[float], name: str) -> str:
    """A warning where a value is the lowest or highest number tried, else nothing."""
    if min(tried) == max(tried) or value not in (min(tried), max(tried)):
        return ""
    end, beyond = ("lowest", "lower") if value == min(tried) else ("highest", "higher")
    return f" {setting_text(value)} is the {end} {name} tried; a {beyond} one may be better."


def _name(curves: ResponseCurves, point: str) -> str:
    return value_text(curves.row(point).values, curves.axes)


def _certainty(curves: ResponseCurves, missing: Sequence[Missing]) -> list[str]:
    """What the intervals know and what they do not."""
    rows = curves.points
    sentences = missing_text(missing, len(rows) + len(missing), curves.axes)
    sentences.append(intervals_text(curves.confidence, min(row.seeds for row in rows)))
    if len(rows) > 1:
        sentences.append(
            "The highest of several gains is as a rule too high: a point is chosen on the questions it is reported on. "
            "Differences between points are computed as if their questions were independent, which makes them too "
            "wide rather than too narrow."
        )
    if stamped := [row.point for row in rows if row.status == "UNMATCHED"]:
        sentences.append(f"UNMATCHED: the arms differ in more than the method at {join_names(stamped)}.")
    return sentences


def missing_text(missing: Sequence[Missing], total: int, axes: Sequence[str]) -> list[str]:
    """The sentence that names the unfinished points; none where all are finished."""
    if not missing:
        return []
    names = join_names([value_text(one.values, axes) for one in missing])
    verb = "is" if len(missing) == 1 else "are"
    return [f"{len(missing)} of {total} points {verb} not finished ({names}), so the answer may still change."]


def conclusion_text(conclusion: Conclusion) -> str:
    """The conclusion as text."""
    lines = [conclusion.answer, *(f"  {sentence_start(arm)}: {text}" for arm, text in conclusion.arms.items())]
    return "\n".join([*lines, *conclusion.certainty])
