"""Token shift: how a tuned model's distribution over the next token differs from its base's, exactly.

Both models read the same token ids. At every token of a completion: KL over the whole vocabulary in both directions
and both entropies, in nats, and the rank of the observed token in each model. The texts and the averages over tokens
are described in docs/shifts.md.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recipes.diagnostics_schema import LOGITS_TOKENS

if TYPE_CHECKING:
    import torch

Array = np.ndarray
MEASURES = (
    "kl_to_base",  # KL(tuned || base)
    "kl_from_base",  # KL(base || tuned)
    "entropy_tuned",
    "entropy_base",
    "logprob_tuned",  # of the observed token
    "logprob_base",
    "rank_tuned",  # 1: the most probable token
    "rank_base",
)
CHUNK = LOGITS_TOKENS
SHIFTED_RANK = 3
_PAPER_FLOOR = 1e-10


def token_measures(tuned: "torch.Tensor", base: "torch.Tensor", ids: "torch.Tensor") -> "torch.Tensor":
    """`MEASURES` of every token.

    Args:
        tuned: logits in float32, [tokens, vocabulary].
        base: the same of the base.
        ids: the observed tokens, [tokens].

    Returns:
        [tokens, measures], float64.
    """
    import torch

    left, right = tuned.log_softmax(-1), base.log_softmax(-1)
    p, q = left.exp(), right.exp()
    observed = ids.unsqueeze(-1)
    # Equal logits have the better rank, so that ranks do not depend on the order of the vocabulary.
    rank_tuned = 1 + (tuned > tuned.gather(-1, observed)).sum(-1)
    rank_base = 1 + (base > base.gather(-1, observed)).sum(-1)
    return torch.stack(
        [
            (p * (left - right)).sum(-1),
            (q * (right - left)).sum(-1),
            -(p * left).sum(-1),
            -(q * right).sum(-1),
            left.gather(-1, observed)[:, 0],
            right.gather(-1, observed)[:, 0],
            rank_tuned,
            rank_base,
        ],
        dim=-1,
    ).double()


def chunked_measures(
    tuned_states: "torch.Tensor", base_states: "torch.Tensor", tuned_head: Any, base_head: Any, ids: "torch.Tensor"
) -> Array:
    """`token_measures` from last hidden states, `CHUNK` tokens at a time: [tokens, measures]."""
    import torch

    measured = []
    with torch.no_grad():
        for start in range(0, len(ids), CHUNK):
            part = slice(start, start + CHUNK)
            tuned, base = tuned_head.logits(tuned_states[part]), base_head.logits(base_states[part])
            measured.append(token_measures(tuned, base, ids[part]).cpu())
    return torch.cat(measured).numpy()


class Averages(NamedTuple):
    """A measure averaged in two ways, with bootstrap draws of the prompts."""

    per_token: float
    """Mean over all tokens: long responses count more."""
    per_response: float
    """Mean over responses of their own means: every response counts the same."""
    per_token_D: Array
    per_response_D: Array


def average(values_T: Array, response_T: Array, draw_DR: Array) -> Averages:
    """Averages of a measure over tokens.

    Args:
        values_T: of every token.
        response_T: index of the response of each token, 0 to R - 1; every response has a token.
        draw_DR: how often each response occurs in each draw, [draws, responses].
    """
    tokens_R = np.bincount(response_T, minlength=draw_DR.shape[1]).astype(float)
    sums_R = np.bincount(response_T, values_T, minlength=draw_DR.shape[1])
    means_R = sums_R / tokens_R
    return Averages(
        float(sums_R.sum() / tokens_R.sum()),
        float(means_R.mean()),
        (draw_DR @ sums_R) / (draw_DR @ tokens_R),
        (draw_DR @ means_R) / draw_DR.sum(axis=1),
    )


def prompt_draws(prompts: int, draws: int, seed: Sequence[int]) -> Array:
    """How often each prompt occurs in each bootstrap draw, [draws, prompts]; the same for all models of a seed."""
    rng = np.random.default_rng(list(seed))
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=draws).astype(float)


def paper_kl(tuned: Sequence[Array], base: Sequence[Array]) -> float | None:
    """The published estimate of the KL, from log-probabilities of the tokens of greedy responses.

    As the authors' calculate_KL.py computes it: log-ratios of probabilities raised by 1e-10, the mean over a response
    without its first token, the mean over responses, the absolute value. None if no response has a second token.
    """
    means = [
        np.mean(np.log(np.exp(left[1:]) + _PAPER_FLOOR) - np.log(np.exp(right[1:]) + _PAPER_FLOOR))
        for left, right in zip(tuned, base, strict=True)
        if len(left) > 1
    ]
    return abs(float(np.mean(means))) if means else None


KL_EDGES = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, math.inf)  # nats
RANK_EDGES = (1, 2, 3, 4, 11, 101, 1001, 1 << 40)


def histogram(values: Array, edges: Sequence[float]) -> list[int]:
    """How many values lie in each bin [edge, next edge); values below the first edge, by rounding, are in the first."""
    bins = np.searchsorted(np.asarray(edges[1:-1], dtype=float), values, side="right")
    return np.bincount(bins, minlength=len(edges) - 1).tolist()


def shifted(rank_tuned: Array, rank_base: Array) -> Array:
    """Which tokens are shifted: among the tuned model's three most probable, and not among the base's.

    Ranks above 3 are what Lin et al. 2024 (arXiv 2312.01552, Sec. 2) call shifted, for greedy responses; the first
    condition is for sampled ones, where a token may be improbable in both models.
    """
    return (rank_tuned <= SHIFTED_RANK) & (rank_base > SHIFTED_RANK)


_CONNECTIVES = frozenset(
    "and but or so then now thus hence therefore because since if when while although though however instead rather "
    "also again first second third next finally wait hmm okay ok alright well maybe perhaps let alternatively "
    "actually indeed otherwise meanwhile yet still moreover furthermore consequently note recall".split()
)


def kind_of_token(text: str) -> str:
    """Connective (a word of a fixed list), format (no letter and no digit, or a control word), or content."""
    word = text.strip().lower()
    if not re.search(r"[^\W_]", word) or re.fullmatch(r"<\|.*\|>|</?think>|\\\w+|boxed", word):
        return "format"
    return "connective" if word in _CONNECTIVES else "content"


def shifted_tokens(measures_TM: Array, ids_T: Array, texts: Mapping[int, str]) -> list[dict[str, Any]]:
    """The tokens that are shifted at least once, most frequent first.

    Args:
        measures_TM: `MEASURES` of every token of the tuned model's own samples.
        ids_T: the tokens.
        texts: id -> text.

    Returns:
        For each token: how often it is shifted and how often it occurs, the mean rise of its log-probability where it
        is shifted, in nats, and the median of its rank in the base there.
    """
    columns = {name: measures_TM[:, index] for index, name in enumerate(MEASURES)}
    moved_T = shifted(columns["rank_tuned"], columns["rank_base"])
    rise_T = columns["logprob_tuned"] - columns["logprob_base"]
    rows = []
    for token in np.unique(ids_T[moved_T]).tolist():
        here_T = moved_T & (ids_T == token)
        rows.append(
            {
                "token": token,
                "text": texts[token],
                "kind": kind_of_token(texts[token]),
                "shifted": int(here_T.sum()),
                "occurs": int((ids_T == token).sum()),
                "rise": float(rise_T[here_T].mean()),
                "base_rank": float(np.median(columns["rank_base"][here_T])),
            }
        )
    return sorted(rows, key=lambda row: (-row["shifted"], row["token"]))


def merge_shifted(tables: Iterable[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Merge tables of shifted tokens; rises and ranks are averaged, weighted by how often a token is shifted."""
    merged: dict[int, dict[str, Any]] = {}
    for table in tables:
        for row in table:
            into = merged.setdefault(
                row["token"], dict(row) | {"shifted": 0, "occurs": 0, "rise": 0.0, "base_rank": 0.0}
            )
            total = into["shifted"] + row["shifted"]
            for key in ("rise", "base_rank"):
                into[key] = (into[key] * into["shifted"] + row[key] * row["shifted"]) / total
            into["shifted"], into["occurs"] = total, into["occurs"] + row["occurs"]
    return sorted(merged.values(), key=lambda row: (-row["shifted"], row["token"]))
