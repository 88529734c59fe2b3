"""How the rows of a step are dealt into micro-batches, by their lengths. Needs no torch.

TRL pads a whole generation batch to its longest completion. Here rows of similar length share a micro-batch of at most
so many tokens, and each is padded to its own longest row. Which rows share a micro-batch changes no gradient, because
the loss of a step is a sum over its tokens with one divisor (`train/weights.py`).
"""

from collections.abc import Sequence
from typing import NamedTuple

_PASS_TOKENS = 512
"""What a further micro-batch costs besides its tokens, in tokens: launching kernels, and under ZeRO-3 gathering the
weights. Rows are split further only where that saves more padding than this."""


class Work(NamedTuple):
    """Tokens of the forward and backward passes of a step, prompts included."""

    computed: int = 0
    """Tokens that went through the model, padding included."""
    padding: int = 0
    """Those of them that are padding, or that only keep a rank in step with the others."""
    skipped: int = 0
    """Tokens of rows that no weight and no KL term reaches; they were not computed."""
    squares: int = 0
    """Sum of the squared lengths of the computed rows, to which their attention is proportional."""


def micro_batches(lengths: Sequence[int], limit: int, joined: bool = False) -> list[list[int]]:
    """Deal rows into micro-batches so that few tokens are padding and few passes are made.

    Padded rows are sorted by length and cut into runs where tokens and passes together are fewest (exact, by dynamic
    programming). Joined rows need no padding and are packed first-fit decreasing. A row longer than the limit gets a
    micro-batch of its own.

    Args:
        lengths: tokens of each row.
        limit: most tokens of a micro-batch, padding included.
        joined: whether the rows of a micro-batch are one sequence.

    Returns:
        The indices of the rows of each micro-batch, that with the longest row first, so that a memory that is too
        small shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return _packed(order, lengths, limit) if joined else _cut(order, lengths, limit)


def _packed(order: Sequence[int], lengths: Sequence[int], limit: int) -> list[list[int]]:
    dealt: list[list[int]] = []
    room: list[int] = []
    for index in order:
        fits = next((position for position, left in enumerate(room) if left >= lengths[index]), None)
        if fits is None:
            dealt.append([index])
            room.append(limit - lengths[index])
        else:
            dealt[fits].append(index)
            room[fits] -= lengths[index]
    return dealt


def _cut(order: Sequence[int], lengths: Sequence[int], limit: int) -> list[list[int]]:
    best = [0.0] + [float("inf")] * len(order)  # fewest tokens and passes, by the number of rows dealt
    start_of = [0] * (len(order) + 1)
    for start in range(len(order)):
        for end in range(start + 1, len(order) + 1):
            tokens = lengths[order[start]] * (end - start)
            if tokens > limit and end > start + 1:
                break
            cost = best[start] + tokens + _PASS_TOKENS
            if cost < best[end]:
                best[end], start_of[end] = cost, start
    dealt: list[list[int]] = []
    end = len(order)
    while end > 0:
        dealt.append(list(order[start_of[end] : end]))
        end = start_of[end]
    return dealt[::-1]


def in_rank_order(lengths: Sequence[int], ranks: int) -> list[int]:
    """Order of the rows of a step in which every rank's share, as many consecutive rows, has about as many tokens.

    Longest first, each row goes to the rank with the fewest tokens that has room. Rows keep their order within a rank,
    so nothing changes on one.

    Args:
        lengths: tokens of each row; 0 for rows that are not computed.
        ranks: a divisor of the number of rows.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        room = [number for number in range(ranks) if len(shares[number]) < len(lengths) // ranks]
        least = min(room, key=lambda number: (tokens[number], len(shares[number]), number))
        shares[least].append(index)
        tokens[least] += lengths[index]
    return [index for share in shares for index in sorted(share)]


def split_to(dealt: list[list[int]], count: int) -> list[list[int]]:
    """The same rows in exactly `count` micro-batches, of which some are empty if there are too few rows.

    Ranks must pass through the model equally often, because under ZeRO they exchange weights or gradients each time.
    """
    dealt = list(dealt)
    while len(dealt) < count and any(len(rows) > 1 for rows in dealt):
        largest = max(range(len(dealt)), key=lambda index: len(dealt[index]))
        rows = dealt[largest]
        dealt[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return dealt + [[]] * (count - len(dealt))
