"""The first screen of a report: which method, by how much, what it lost, how sure, ship or not.

From `transfer.json`, by the rules of `eval/statistics/decisions.py`.
"""

from typing import Any, NamedTuple

from eval.drawing import label
from eval.forgetting.schema import EqualGain
from eval.report.schema import Transfer
from eval.report.wording import (
    apart_text,
    bounded_text,
    change_text,
    interval_text,
    intervals_text,
    lost_points,
    points,
    sentence_start,
)
from eval.statistics.decisions import fell, gained, limit_shown, may_lose, preferred, smallest_limit, worst_group
from eval.statistics.values import Estimate


class Card(NamedTuple):
    """What the first screen says of one arm."""

    arm: str
    method: str
    gain: str
    lost: str
    cost: str
    moved: str


def method_of(settings: dict[str, Any]) -> str:
    """An arm's place in the unified loss in words."""
    if settings.get("external"):
        return "trained elsewhere"
    who = {
        "teacher": "a teacher's text",
        "base_once": "the base's own samples, drawn once",
        "round": "its own samples, drawn in rounds",
        "current": "its own samples of every step",
    }[settings["sampling"]]
    if settings["credit"] == "uniform":
        weight = "weight 1 if correct"
    else:
        weight = "weighted by advantage" + ("" if settings["negatives"] else ", positive ones only")
    kl = f", KL {settings['beta']:g}" if settings.get("beta") else ""
    start = f", started from {label(settings['start_from'])}" if settings.get("start_from") else ""
    return f"{who}, {weight}{kl}{start}"


class Number(NamedTuple):
    """One of the numbers of the first screen."""

    value: str
    interval: str
    meaning: str


class StudyVerdict(NamedTuple):
    """The first screen of a report: the answer, its reasons and the numbers behind it."""

    answer: str
    sentences: list[str]
    numbers: list[Number]
    arm: str | None
    """The arm that the answer is about."""


def verdict(transfer: Transfer) -> StudyVerdict:
    """The answer of a study, made from its bounds by fixed rules.

    The arm is the preferred one of those that pass `transfer gate` with the smallest limit. An arm that gained more is
    named with the limit it needs. An arm that no limit passes, because all responses to a benchmark were cut off, is
    not shipped, and neither is one that learned nothing or whose score is not above guessing.
    """
    trained = transfer.trained_group
    if transfer.status == "REHEARSAL":
        text = "Every stage up to this report ran. The models are tiny and random, so nothing is concluded."
        return StudyVerdict(text, [], [], None)
    if not transfer.arms:
        return StudyVerdict("Scores of the base alone: there is no other model to compare it with.", [], [], None)
    gain = {arm: result.groups[trained] for arm, result in transfer.arms.items()}
    cut_off = [arm for arm in gain if transfer.warnings_of("all_truncated", arm)]
    idle = [arm for arm in gain if transfer.learned_nothing(arm)]
    guessing = [arm for arm in gain if transfer.guesses(arm) and arm not in cut_off and arm not in idle]
    judged = [arm for arm in gain if gained(gain[arm]) and arm not in (*cut_off, *idle, *guessing)]
    # What an arm may have lost in its worst group, rounded up to a tenth of a point.
    most = {arm: min(transfer.arms[arm].groups.values(), key=lambda value: value.low) for arm in judged}
    risk = {arm: limit_shown(may_lose(value)) for arm, value in most.items()}
    limit = smallest_limit({arm: gain[arm] for arm in risk}, risk)
    without = [*_without_verdict(transfer, cut_off, idle, guessing), *_starts(transfer, idle)]
    if limit is None:
        if cut_off:
            text = "Keep the base: no method can be judged."
            if len(cut_off) < len(gain):
                names = ", ".join(map(label, cut_off))
                rest = f"no other method has a gain on {label(trained)} to rely on"
                text = f"Keep the base: {names} cannot be judged, and {rest}."
            return StudyVerdict(text, without, [], None)
        what = f"has a gain on {label(trained)} that can be told from zero"
        if any(gained(gain[arm]) for arm in guessing):
            what = f"has both a gain on {label(trained)} and a score above guessing"
            if all(transfer.guesses(arm) for arm in gain):
                what = f"scores above guessing on {label(trained)}"
        text = f"Keep the base: no method {what}."
        beyond = " above guessing" if guessing else ""
        weighed = f"Without a gain{beyond} there is nothing to weigh a loss elsewhere against."
        sentences = [weighed, *_guessing_text(transfer, guessing), *_idle_text(transfer, idle)]
        sentences += _starts(transfer, idle)
        return StudyVerdict(text, sentences, [], None)
    arm = preferred(
        {name: gain[name] for name in risk if risk[name] <= limit},
        risk,
        lambda first, second: transfer.difference(first, second, trained),
    )
    assert arm is not None
    group = worst_group(transfer.arms[arm].groups, trained)
    numbers = [_number(gain[arm], f"gain of {label(arm)} on {label(trained)}, points")]
    sentences = [f"{sentence_start(arm)} gained {points(gain[arm])} points on {label(trained)}."]
    without = _as_good(transfer, arm, [*cut_off, *idle, *guessing]) + without
    if group is None:
        return StudyVerdict(f"Ship {label(arm)}. No other group was measured.", sentences + without, numbers, arm)
    worst = transfer.arms[arm].groups[group]
    numbers += [
        _number(worst, f"change on {label(group)}, the group that may have lost most"),
        Number(f"{risk[arm]:.1f}", "", "points of loss that transfer gate has to allow, rounded up"),
    ]
    sentences.append(f"Of the other groups {label(group)} may have lost most: its change is {change_text(worst)}.")
    sentences += [*_others(transfer, arm, most), *without]
    if risk[arm] == 0:
        answer = f"Ship {label(arm)}: it gained on {label(trained)} and no group lost anything."
    else:
        acceptable = f"if a loss of {lost_points(most[arm])} in a group of benchmarks is acceptable"
        answer = f"Ship {label(arm)} {acceptable}; otherwise keep the base."
    return StudyVerdict(answer, sentences, numbers, arm)


def headline(transfer: Transfer) -> list[str]:
    """The verdict as sentences."""
    conclusion = verdict(transfer)
    return [conclusion.answer, *conclusion.sentences]


def _others(transfer: Transfer, arm: str, most: dict[str, Estimate]) -> list[str]:
    """What sets the other arms with a gain apart: more of it, or a worse loss.

    `most`: of every arm, the change of the group that may have lost most.
    """
    trained = transfer.trained_group
    sentences = []
    for other in sorted(set(most) - {arm}, key=lambda name: limit_shown(may_lose(most[name]))):
        group = worst_group(transfer.arms[other].groups, trained)
        assert group is not None
        change, difference = transfer.arms[other].groups[group], transfer.difference(other, arm, group)
        if fell(change):
            lost, its = f"it lost {interval_text(-change, '.1f')} on {label(group)}", f"what {label(arm)} lost"
            apart = apart_text(difference, "less", "more")
            beside = f"{apart} than {label(arm)}"
        else:
            lost, its = f"its change on {label(group)} is {points(change)}", f"that of {label(arm)}"
            apart = apart_text(difference, "above", "below")
            beside = f"{apart} {its}"
        if not (fell(difference) or gained(difference)):
            beside = f"which cannot be told from {its} ({apart})"
        sentence = f"{sentence_start(other)} may have lost {lost_points(most[other])}: {lost}, {beside}."
        if gained(more := transfer.difference(other, arm, trained)):
            sentence += f" On {label(trained)} it gained {apart_text(more, 'more', 'less')} than {label(arm)}."
        sentences.append(sentence)
    return sentences


def _as_good(transfer: Transfer, arm: str, left_out: list[str]) -> list[str]:
    """The arms without a gain that cannot be told from the one that is named: its interval alone decided."""
    trained, sentences = transfer.trained_group, []
    for other, result in transfer.arms.items():
        if other in (arm, *left_out) or gained(gain := result.groups[trained]) or fell(gain):
            continue
        if not (fell(apart := transfer.difference(other, arm, trained)) or gained(apart)):
            sentences.append(
                f"{sentence_start(other)} has {points(gain)} on {label(trained)}: it cannot be told from zero, and not "
                f"from {label(arm)} either ({apart_text(apart, 'more', 'less')})."
            )
    return sentences


def _starts(transfer: Transfer, idle: list[str]) -> list[str]:
    """A sentence for every arm that was trained from another's end and learned something."""
    return [
        f"{sentence_start(arm)} started from {label(start)}: its gains, losses and cost here include those of "
        f"{label(start)}."
        for arm in transfer.arms
        if (start := transfer.started_from(arm)) is not None and arm not in idle
    ]


def _without_verdict(transfer: Transfer, cut_off: list[str], idle: list[str], guessing: list[str]) -> list[str]:
    """The arms that are not candidates, and why."""
    sentences = []
    others = {name: result for name, result in transfer.arms.items() if name not in (*cut_off, *idle, *guessing)}
    silent = [label(name) for name, result in others.items() if not gained(result.groups[transfer.trained_group])]
    if silent:
        sentences.append(f"No gain that can be told from zero: {', '.join(silent)}.")
    if cut_off:
        names = ", ".join(map(label, cut_off))
        sentences.append(
            f"{names[0].upper()}{names[1:]} cannot be judged: on a benchmark or more, every response of the method or "
            "of the base was cut off at suite.max_response_tokens."
        )
    return [*sentences, *_guessing_text(transfer, guessing), *_idle_text(transfer, idle)]


def _guessing_text(transfer: Transfer, guessing: list[str]) -> list[str]:
    if not guessing:
        return []
    names = transfer.groups[transfer.trained_group]
    known = ", ".join(f"{name} {transfer.guess_level[name]:.1f}" for name in names if name in transfer.guess_level)
    return [
        f"Not above guessing on {label(transfer.trained_group)} (guessing gets: {known}), so a gain may be the form of "
        f"the answers alone: {', '.join(map(label, guessing))}."
    ]


def _idle_text(transfer: Transfer, idle: list[str]) -> list[str]:
    if not idle:
        return []
    starts = {arm: transfer.started_from(arm) for arm in idle}
    names = [
        label(arm)
        if start is None
        else f"{label(arm)} (still the model of {label(start)}; gains differ by sampling alone)"
        for arm, start in starts.items()
    ]
    return [f"Learned nothing, because no step had a gradient: {', '.join(names)}."]


def _number(gain: Estimate, meaning: str) -> Number:
    value, interval = points(gain).split(" ", 1)
    return Number(value, interval, meaning)


def cards(transfer: Transfer) -> list[Card]:
    """One card for each arm."""
    rows = []
    for arm, result in transfer.arms.items():
        worst = worst_group(result.groups, transfer.trained_group)
        lost = "no other group" if worst is None else f"{label(worst)} {points(result.groups[worst])}"
        gain, cost = points(result.groups[transfer.trained_group]), _cost(transfer, arm)
        rows.append(Card(arm, method_of(transfer.settings[arm]), gain, lost, cost, _moved(transfer, arm)))
    return rows


def _cost(transfer: Transfer, arm: str) -> str:
    """The cost of a run, with those of the arms that its model went through before."""
    runs = [transfer.budget.get(name) for name in (*transfer.starts(arm), arm)]
    known = [budgets for budgets in runs if budgets]
    if len(known) < len(runs):
        return "not known"
    *before, flops = [sum(row.flops for row in budgets) / len(budgets) for budgets in known]
    generated = sum(sum(row.generated_tokens for row in budgets) / len(budgets) for budgets in known)
    tokens = f"{generated:,.0f} tokens generated" if generated else "a teacher's tokens, not counted here"
    start = f", {teraflops(sum(before))} of it for {label(str(transfer.started_from(arm)))}" if before else ""
    return f"{teraflops(sum(before) + flops)} a run{start}; {tokens}"


def flops_from_base(transfer: Transfer, arm: str) -> float:
    """FLOPs of the first seed's run of an arm and of the arms that it started from."""
    return sum(transfer.budget[name][0].flops for name in (*transfer.starts(arm), arm))


def exposures_from_base(transfer: Transfer, arm: str) -> int:
    """How often problems were presented in the first seed's run of an arm and of the arms that it started from."""
    return sum(transfer.budget[name][0].exposures for name in (*transfer.starts(arm), arm))


def hours_text(hours: float) -> str:
    """Hours with two decimals, short ones with two digits: never 0.00."""
    return f"{hours:.2f}" if hours >= 0.1 else f"{hours:.2g}"


def teraflops(flops: float) -> str:
    """FLOPs in TFLOPs with three significant digits."""
    value = flops / 1e12
    return f"{value:,.0f} TFLOPs" if value >= 100 else f"{value:.3g} TFLOPs"


def _moved(transfer: Transfer, arm: str) -> str:
    if transfer.diagnostics is None:
        return "not measured"
    tokens = transfer.diagnostics.arms[arm].tokens["own_samples"]
    group = "training" if "training" in tokens else next(iter(tokens))
    distance = tokens[group]["kl_to_base"].per_token.estimate
    return f"{distance:.3f} nats a token from the base on {label(group)} prompts"


def certainty(transfer: Transfer) -> list[str]:
    """What the intervals know and what they do not."""
    sentences = []
    if transfer.status == "UNMATCHED":
        sentences.append(f"UNMATCHED: the arms differ in {len(transfer.differences)} further settings, listed below.")
    elif transfer.status == "unknown lineage":
        sentences.append("An arm was trained elsewhere; what it was trained on is unknown.")
    sentences.append(intervals_text(transfer.confidence, len(transfer.seeds)))
    if transfer.trajectory is not None and transfer.trajectory.equal_gain:
        sentences += _at_equal_gain(transfer.trajectory.equal_gain[-1], transfer.trained_group)
    return sentences


def _at_equal_gain(target: EqualGain, trained: str) -> list[str]:
    """The worst group of every arm that reaches the held-out gain with an interval and has another group.

    Nothing where fewer than two do: one arm alone is no comparison at an equal gain.
    """
    texts = []
    for arm, result in target.arms.items():
        gains = (result.groups or {}).items()
        lows = {name: gain.low for name, gain in gains if name != trained and gain.low is not None}
        if lows:
            group = min(lows, key=lows.__getitem__)
            texts.append(f"{label(arm)} {bounded_text(dict(gains)[group])} on {label(group)}")
    start = f"At an equal held-out gain of {target.heldout_gain:+.1f} the worst groups are"
    return [f"{start} {', '.join(texts)}."] if len(texts) > 1 else []
