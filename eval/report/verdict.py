"""The first screen of a report: which method, what gain, what cost, what was lost, how sure. From `transfer.json`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from eval.drawing import label
from eval.forgetting.schema import EqualGain
from eval.report.schema import Budget, Transfer
from eval.report.table import interval_text
from eval.statistics.transfer_index import MATH
from eval.statistics.values import Estimate, PartialEstimate


class Card(NamedTuple):
    """One arm in five answers."""

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
    return f"{who}, {weight}" + (f", KL {settings['beta']:g}" if settings.get("beta") else "")


def worst_group(groups: Mapping[str, Estimate | PartialEstimate]) -> str | None:
    """The group other than math with the smallest gain; None where there is none."""
    others = {name: gain for name, gain in groups.items() if name != MATH}
    return min(others, key=lambda name: others[name].estimate, default=None)


def cards(transfer: Transfer) -> list[Card]:
    """One card for each arm."""
    found = []
    for arm, result in transfer.arms.items():
        worst = worst_group(result.groups)
        lost = "no other group" if worst is None else f"{label(worst)} {points(result.groups[worst])}"
        found.append(
            Card(
                arm,
                method_of(transfer.settings[arm]),
                points(result.groups[MATH]),
                lost,
                _cost(transfer.budget.get(arm)),
                _moved(transfer, arm),
            )
        )
    return found


def _cost(budgets: list[Budget] | None) -> str:
    if not budgets:
        return "not known"
    flops = sum(row.flops for row in budgets) / len(budgets)
    generated = sum(row.generated_tokens for row in budgets) / len(budgets)
    tokens = f"{generated:,.0f} tokens generated" if generated else "a teacher's tokens, not counted here"
    return f"{teraflops(flops)} a run; {tokens}"


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


def headline(transfer: Transfer) -> list[str]:
    """Sentences that answer the question of the study, made from its intervals by fixed rules."""
    arms = transfer.arms
    if transfer.status == "REHEARSAL":
        return ["Every stage up to this report ran. The models are tiny and random, so nothing is concluded."]
    gaining = [arm for arm, result in arms.items() if result.groups[MATH].low > 0]
    if not gaining:
        return ["No arm has a math gain that can be told from zero, so nothing can be said about transfer."]
    worst = {arm: group for arm in gaining if (group := worst_group(arms[arm].groups)) is not None}
    if not worst:
        return [f"{label(arm)} gained {points(arms[arm].groups[MATH])} points on math." for arm in gaining]
    kept = {arm: arms[arm].groups[group].estimate for arm, group in worst.items()}
    best, least = max(kept, key=kept.__getitem__), min(kept, key=kept.__getitem__)
    lost = "lost least" if kept[best] < 0 else "lost nothing on average"
    among = f"Of the {len(gaining)} arms that gained on math, " if len(gaining) > 1 else ""
    sentences = [
        f"{among}{label(best)} {lost} elsewhere: math {points(arms[best].groups[MATH])}, its worst group, "
        f"{label(worst[best])}, {points(arms[best].groups[worst[best]])} points."
    ]
    if least != best:
        group = worst[least]
        sentences.append(
            f"{label(least)} gained {points(arms[least].groups[MATH])} on math and has "
            f"{points(arms[least].groups[group])} on {label(group)}; there the two differ by "
            f"{_difference(transfer, best, least, group)}."
        )
    return sentences


def points(value: Estimate) -> str:
    """An interval in points."""
    return interval_text(value, "+.1f")


def _difference(transfer: Transfer, first: str, second: str, group: str) -> str:
    for pair in transfer.contrasts:
        if (pair.first, pair.second) == (first, second):
            return interval_text(pair.groups[group], "+.1f")
        if (pair.first, pair.second) == (second, first):
            return interval_text(-pair.groups[group], "+.1f")
    raise ValueError(f"{first} and {second} are not compared")


def certainty(transfer: Transfer) -> list[str]:
    """What the intervals know and what they do not."""
    sentences = []
    if transfer.status == "UNMATCHED":
        sentences.append(f"UNMATCHED: the arms differ in {len(transfer.differences)} further point(s), listed below.")
    elif transfer.status == "unknown lineage":
        sentences.append("An arm was trained elsewhere; what it was trained on is unknown.")
    seeds = len(transfer.seeds)
    percent = f"{100 * transfer.confidence:.0f} % intervals"
    if seeds > 1:
        sentences.append(f"{percent} over questions and {seeds} training seeds.")
    elif seeds == 1:
        sentences.append(f"{percent} over questions; one training seed, so they know nothing of another one.")
    else:
        sentences.append(f"{percent} over questions.")
    if transfer.trajectory is not None and transfer.trajectory.equal_gain:
        sentences += _at_equal_gain(transfer.trajectory.equal_gain[-1])
    return sentences


def _at_equal_gain(target: EqualGain) -> list[str]:
    """The worst group of every arm that reaches the held-out gain and has a group besides math."""
    parts = []
    for arm, result in target.arms.items():
        group = None if result.groups is None else worst_group(result.groups)
        if result.groups is not None and group is not None:
            parts.append(f"{label(arm)} {result.groups[group].estimate:+.1f} ({label(group)})")
    start = f"At an equal held-out gain of {target.heldout_gain:+.1f}, worst groups on the slice:"
    return [f"{start} {', '.join(parts)}."] if parts else []
