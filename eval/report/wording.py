"""How numbers are written in every table and sentence of a report."""

from eval.drawing import label
from eval.forgetting.schema import EqualGainArm
from eval.report.schema import ArmResult, IndexValue
from eval.statistics.decisions import fell, gained, limit_shown, may_lose, rounded_up
from eval.statistics.values import NOT_IDENTIFIED, Estimate, PartialEstimate, number_text


def interval_text(value: Estimate, form: str) -> str:
    """An estimate with its interval, each number in the format `form`."""
    return f"{number_text(value.estimate, form)} [{number_text(value.low, form)}, {number_text(value.high, form)}]"


def points(value: Estimate) -> str:
    """A gain in points with its interval."""
    return interval_text(value, "+.1f")


def loss_text(gain: Estimate) -> str:
    """What a group may have lost, rounded up as the limit that it passes."""
    return f"{limit_shown(may_lose(gain)):.1f}"


def lost_points(gain: Estimate) -> str:
    """`loss_text` with its unit, and a word where the interval beside it ends earlier."""
    return f"{loss_text(gain)} points{rounded_up(gain)}"


def bounded_text(value: PartialEstimate) -> str:
    """A gain in points with its interval, or alone where it has no bounds."""
    if value.low is None or value.high is None:
        return number_text(value.estimate)
    return points(Estimate(estimate=value.estimate, low=value.low, high=value.high))


def not_reached_text(arm: EqualGainArm) -> str:
    """Why an arm is not compared at a held-out gain that its curve does not pass."""
    return "began above it" if arm.began_above else "never reaches it"


def change_text(gain: Estimate) -> str:
    """The change of a group, and whether it is a loss, a gain or neither."""
    word = "a loss" if fell(gain) else "a gain" if gained(gain) else "which cannot be told from zero"
    return f"{points(gain)}, {word}"


def apart_text(difference: Estimate, more: str, less: str) -> str:
    """A difference without its sign, with the word for its direction."""
    value, word = (difference, more) if difference.estimate >= 0 else (-difference, less)
    return f"{interval_text(value, '.1f')} {word}"


def intervals_text(confidence: float, seeds: int) -> str:
    """What intervals of a study with so many training seeds cover."""
    text = f"{100 * confidence:.0f} % intervals over questions"
    if seeds > 1:
        return f"{text} and {seeds} training seeds."
    single_seed = ". One training seed: another, or another kind of CPU or GPU, may differ by more than they say."
    return text + (single_seed if seeds == 1 else ".")


def sentence_start(name: str) -> str:
    """A name at the start of a sentence."""
    text = label(name)
    return text[:1].upper() + text[1:]


def axis_value(value: float, axis: str) -> str:
    """A checkpoint's place on an axis: tokens in whole numbers, KL in nats a token, FLOPs with an exponent."""
    return f"{value:,.0f}" if axis.endswith("tokens") else f"{value:.3e}" if axis == "flops" else f"{value:.4g}"


def p_text(value: float) -> str:
    """A p-value with four digits; below what they show, the bound."""
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def index_cell(cell: IndexValue) -> str:
    """An index with its interval, or why it has none."""
    return interval_text(cell.interval, "+.0f") if cell.interval else cell.status


def index_text(result: ArmResult, definition: str, group: str, trained: str) -> str:
    """One cell of the index of an arm, or why it has none. The trained group's own is 100 by definition."""
    if group == trained:
        return "100" if gained(result.groups[trained]) else NOT_IDENTIFIED
    return index_cell(result.index[definition][group])
