"""Does a finished report agree with the published scores?"""

from math import sqrt

from scipy import stats

from eval.published.audit import PublishedModel, published_models, replications
from eval.report.schema import ArmResult, Base, Transfer
from eval.statistics.decisions import Agreement, agreement
from eval.statistics.values import Estimate, Values, number_text
from recipes.errors import UserError
from recipes.suggestions import did_you_mean

SHORT_NAMES = {"sft_think": "UniReason SFT-think", "sft_no_think": "UniReason SFT-no-think", "rl": "UniReason RL"}
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


def compare_with_published(transfer: Transfer, model_of_arm: dict[str, str]) -> list[PublishedComparison]:
    """Every score of a report in the reading `paper` beside the published one.

    `model_of_arm`: arm -> name of the published model. The published score gets the standard error of a proportion over
    the benchmark's questions, because the paper prints none; at 0 and 100 with the prior of Jeffreys, as ours.
    """
    models = {model.name: model for model in published_models()}
    quantile = float(stats.norm.ppf((1 + transfer.confidence) / 2))
    reading = transfer.readings["paper"]
    comparisons = []
    for who, name in {"base": next(iter(model_of_arm.values())), **model_of_arm}.items():
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
            comparisons.append(
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
    return comparisons


def proportion_error(score: float, questions: int) -> float:
    """Standard error of a printed score in points; half a success and half a failure are added near 0 and 100."""
    least = 50 / (questions + 1)
    inside = min(max(score, least), 100 - least)
    return sqrt(inside * (100 - inside) / questions)


def format_comparison(comparisons: list[PublishedComparison]) -> str:
    """The comparison as text."""
    counts = {verdict: sum(row.verdict == verdict for row in comparisons) for verdict in ("agrees", "differs")}
    lines = [
        f"{counts['agrees']} of {len(comparisons)} scores agree with the published ones within {MARGIN:g} points, "
        f"{counts['differs']} differ, {len(comparisons) - sum(counts.values())} have too wide intervals to say",
        "scores in points, with intervals; ± is the half width of the difference's interval",
        "",
        f"{'model':<16}{'benchmark':<16}{'ours (paper reading)':>26}{'published':>11}{'difference':>16}  verdict",
    ]
    for row in comparisons:
        ours = f"{row.ours.estimate:.1f} [{row.ours.low:.1f}, {row.ours.high:.1f}]"
        gap = f"{number_text(row.difference)} ± {row.half_width:.1f}"
        low, high = row.replications or (None, None)
        note = "" if low is None else f"  (others measured {low:g}" + (f" to {high:g})" if high != low else ")")
        lines.append(
            f"{row.model:<16}{row.benchmark:<16}{ours:>26}{row.published:>11.1f}{gap:>16}  {row.verdict}{note}"
        )
    return "\n".join(lines)


def match_models(arms: list[str], given: dict[str, str]) -> dict[str, str]:
    """Arm -> name of the published model, for arms that were given one (its name or short name) or are named like one.

    Raises:
        UserError: an arm or a model does not exist, or no arm has a model.
    """
    known: dict[str, PublishedModel] = {model.name: model for model in published_models()}
    given = {arm: SHORT_NAMES.get(name, name) for arm, name in given.items()}
    wrong = [f"{arm!r} is not an arm of this study; {did_you_mean(arm, arms)}" for arm in given if arm not in arms]
    wrong += [
        f"{name!r} is not a published model; {did_you_mean(name, [*SHORT_NAMES, *known])}"
        for name in given.values()
        if name not in known
    ]
    model_of_arm = {arm: SHORT_NAMES[arm] for arm in arms if arm in SHORT_NAMES} | given
    if not model_of_arm:
        some = "sft_think, sft_no_think or rl"
        wrong.append(
            f"no arm is named like a published model ({some}); say which one an arm is with --as ARM=rl, where ARM is "
            f"one of {', '.join(arms)}"
        )
    if wrong:
        raise UserError("; ".join(wrong))
    return model_of_arm
