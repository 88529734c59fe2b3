"""The part `diagnostics` of `transfer.json`: representation shift and token shift of every arm."""

from eval.statistics.values import Estimate, Values


class PromptSetSize(Values):
    """The prompts of one benchmark."""

    group: str
    prompts: int


class TokenMeasure(Values):
    """A measure averaged over tokens, and over responses."""

    per_token: Estimate
    per_response: Estimate


class ShiftedWord(Values):
    """A token that is among the model's three most probable and not among the base's."""

    token: int
    text: str
    kind: str
    shifted: int
    occurs: int
    rise: float
    """Mean rise of its log-probability."""
    base_rank: float


class ShiftedWords(Values):
    """Shifted tokens of an arm over all sets of prompts."""

    tokens: int
    by_kind: dict[str, int]
    different: int
    words: list[ShiftedWord]


class PaperMeasures(Values):
    """The published measures (arXiv 2507.00432) by set of prompts."""

    d: dict[str, float]
    kl: dict[str, float]


class ArmShifts(Values):
    """What the diagnostics of one arm measured, mean over training seeds."""

    models: int
    levels: int
    layers: dict[str, dict[str, dict[str, list[Estimate | float | None]]]]
    """Group -> pooling -> measure -> value at every level; null where it is not defined."""
    tokens: dict[str, dict[str, dict[str, TokenMeasure]]]
    """Kind of text -> group -> measure."""
    by_set: dict[str, dict[str, float]]
    """Set of prompts -> kind of text -> KL(model || base), nats a token."""
    histograms: dict[str, list[float]]
    own_tokens: int
    empty: dict[str, int]
    shifted: ShiftedWords
    paper: PaperMeasures | None = None


class Shifts(Values):
    """Representation shift and token shift of all arms."""

    sets: dict[str, PromptSetSize]
    levels: int
    kl_edges: list[float]
    rank_edges: list[float]
    arms: dict[str, ArmShifts]
