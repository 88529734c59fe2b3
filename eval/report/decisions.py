"""Decisions that rest on a finished report: does it agree with the published one, has a model lost too much.

The rules are those of `eval/statistics/decisions.py`.
"""

from math import sqrt

from scipy import stats

from eval.published.audit import PublishedModel, published_models, replications
from eval.report.schema import ArmResult, Base, Transfer
from eval.report.wording import loss_text, points
from eval.statistics.decisions import Agreement, agreement, gained, refused_groups
from eval.statistics.values import Estimate, Values
from recipes.suggestions import did_you_mean

ROWS = {"sft_think": "UniReason SFT-think", "sft_no_think": "UniReason SFT-no-think", "rl": "UniReason RL"}
MARGIN = 5.0  # points within which two scores are called the same


class PublishedComparison(Values):
    """A score of this study beside the published one, in points."""

    model: str
    published_model: str
    benchmark: str
    ours: Estimate
    published: float
    difference: float
    half_width: float
    verdict: Agreement
    replications: list[float] | None
    """Lowest and highest score that others measured."""


def compare_with_published(transfer: Transfer, rows: dict[str, str]) -> list[PublishedComparison]:
    """Every score of a report in the reading `paper` beside the published one.

    `rows`: arm -> name of the published model. The published score gets the standard error of a proportion over the
    benchmark's questions, because the paper prints none; at 0 and 100 with the prior of Jeffreys, as ours.
    """
    models = {model.name: model for model in published_models()}
    quantile = float(stats.norm.ppf((1 + transfer.confidence) / 2))
    reading = transfer.readings["paper"]
    cells = []
    for who, name in {"base": next(iter(rows.values())), **rows}.items():
        source: Base | ArmResult = reading.base if who == "base" else reading.arms[who]
        model = models[name]
        printed = model.base_scores if who == "base" else model.scores
        label = model.base if who == "base" else name
        for benchmark, theirs in printed.items():
            if benchmark not in source.benchmarks:
                continue
            ours = source.benchmarks[benchmark].score
            own_error = (ours.high - ours.low) / (2 * quantile)
            their_error = proportion_error(theirs, transfer.clusters[benchmark])
            half = quantile * sqrt(own_error**2 + their_error**2)
            difference = ours.estimate - theirs
            others = replications().get(label, {}).get(benchmark)
            cells.append(
                PublishedComparison(
                    model=who,
                    published_model=label,
                    benchmark=benchmark,
                    ours=ours,
                    published=theirs,
                    difference=round(difference, 2),
                    half_width=round(half, 2),
                    verdict=agreement(difference, half, MARGIN),
                    replications=others,
                )
            )
    return cells


def proportion_error(score: float, questions: int) -> float:
    """Standard error of a printed score in points; half a success and half a failure are added near 0 and 100."""
    least = 50 / (questions + 1)
    inside = min(max(score, least), 100 - least)
    return sqrt(inside * (100 - inside) / questions)


def format_comparison(cells: list[PublishedComparison]) -> str:
    """The comparison as text."""
    counts = {verdict: sum(cell.verdict == verdict for cell in cells) for verdict in ("agrees", "differs")}
    lines = [
        f"{counts['agrees']} of {len(cells)} scores agree with the published ones within {MARGIN:g} points, "
        f"{counts['differs']} differ, {len(cells) - sum(counts.values())} have too wide intervals to say",
        "scores in points, with intervals; ± is the half width of the difference's interval",
        "",
        f"{'model':<16}{'benchmark':<16}{'ours (paper reading)':>26}{'published':>11}{'difference':>16}  verdict",
    ]
    for cell in cells:
        ours = f"{cell.ours.estimate:.1f} [{cell.ours.low:.1f}, {cell.ours.high:.1f}]"
        gap = f"{cell.difference:+.1f} ± {cell.half_width:.1f}"
        low, high = cell.replications or (None, None)
        note = "" if low is None else f"  (others measured {low:g}" + (f" to {high:g})" if high != low else ")")
        lines.append(
            f"{cell.model:<16}{cell.benchmark:<16}{ours:>26}{cell.published:>11.1f}{gap:>16}  {cell.verdict}{note}"
        )
    return "\n".join(lines)


def default_rows(arms: list[str], given: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Arm -> published model, from what was given (its name, or a key of `ROWS`) and from the arms' names; and what is
    wrong with it.
    """
    known: dict[str, PublishedModel] = {model.name: model for model in published_models()}
    given = {arm: ROWS.get(name, name) for arm, name in given.items()}
    wrong = [f"{arm!r} is not an arm of this study; {did_you_mean(arm, arms)}" for arm in given if arm not in arms]
    wrong += [
        f"{name!r} is not a published model; {did_you_mean(name, [*ROWS, *known])}"
        for name in given.values()
        if name not in known
    ]
    rows = {arm: ROWS[arm] for arm in arms if arm in ROWS} | given
    if not rows:
        some = "sft_think, sft_no_think or rl"
        wrong.append(
            f"no arm is named like a published model ({some}); say which one an arm is with --as ARM=rl, where ARM is "
            f"one of {', '.join(arms)}"
        )
    return rows, wrong


def gate(transfer: Transfer, arm: str, max_drop: float) -> tuple[bool, list[str]]:
    """Whether no group of benchmarks may have lost more than `max_drop` points, by the lower end of each interval.

    Returns the verdict and a sentence for each group that fails, or one that says what holds.
    """
    percent = f"{100 * transfer.confidence:.0f} %"
    gains = transfer.arms[arm].groups
    # Where all responses were cut off, the score measures the limit, not the model.
    lost = [warning.message for warning in transfer.warnings_of("all_truncated", arm)]
    for group in refused_groups(gains, max_drop):
        lost.append(
            f"{arm} may have lost up to {loss_text(gains[group])} points on {group} "
            f"({points(gains[group])}, {percent}); allowed are {max_drop:g} (losses are rounded up)"
        )
    if lost:
        return False, lost
    group = min(gains, key=lambda name: gains[name].low)
    return True, [
        f"{arm} keeps every group within {max_drop:g} points of the base; the least certain is {group} with "
        f"{points(gains[group])} ({percent})"
    ]


def without_gain(transfer: Transfer, arm: str) -> str | None:
    """A sentence about an arm that has no gain to release it for, which `gate` does not judge; None if it has one."""
    trained = transfer.arms[arm].groups.get(transfer.trained_group)
    if transfer.learned_nothing(arm):
        start = transfer.started_from(arm)
        still = "" if start is None else f", and its model is still that of {start}"
        why = f"{arm} learned nothing: none of its steps had a gradient{still}"
    elif trained is not None and not gained(trained):
        why = f"{arm} has no gain on {transfer.trained_group} that can be told from zero ({points(trained)})"
    else:
        return None
    return f"{why}; gate judges losses only"
