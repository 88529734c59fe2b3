"""Representation shift: how a tuned model's hidden states of the same prompts differ from its base's, layer by layer.

All measures are free of the signs of principal components and of the scale of a layer. `paper_shift` is the published
distance (arXiv 2507.00432, Sec. 4), which depends on both; it is computed for comparison. Shapes: N prompts, D width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data.language_model import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Array = np.ndarray
MEASURES = ("pca_shift", "centroid_shift", "cka", "angle")
_PAPER_TOKENS = 128


def representation_shift(base_ND: Array, tuned_ND: Array, draw_BN: Array, components: int) -> tuple[Array, Array]:
    """`MEASURES` between two models' states of the same prompts, and under resampled prompts.

    pca_shift: distance of the mean states in the plane of the base's first two principal components, over the base's
    standard deviation in that plane. The plane is that of all prompts in every draw.
    centroid_shift: distance of the mean states over the base's total standard deviation, sqrt(tr Sigma).
    cka: linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414, Eq. 3); 1: the same up to rotation
    and scale.
    angle: mean principal angle between the spaces of the first `components` principal components, in degrees
    (Bjorck and Golub 1973).

    Args:
        base_ND: the base's states, prompt n in row n.
        tuned_ND: the tuned model's.
        draw_BN: how often each prompt occurs in each draw.
        components: dimensions of the spaces.

    Returns:
        [measures] and [draws, measures]; nan where the base's states do not differ between prompts, as the embeddings
        of a last token that all prompts end with.
    """
    base_ND, tuned_ND = base_ND.astype(np.float64), tuned_ND.astype(np.float64)
    if not has_spread(base_ND):
        return np.full(len(MEASURES), np.nan), np.full((len(draw_BN), len(MEASURES)), np.nan)
    weight_BN = np.concatenate([np.ones((1, len(base_ND))), draw_BN]) / len(base_ND)  # the first is the estimate

    mean = base_ND.mean(axis=0)
    _, _, directions = np.linalg.svd(base_ND - mean, full_matrices=False)
    plane_2D = directions[:2]
    base_N2, move_N2 = (base_ND - mean) @ plane_2D.T, (tuned_ND - base_ND) @ plane_2D.T
    moved_B2 = weight_BN @ move_N2
    variance_B = (weight_BN @ base_N2**2 - (weight_BN @ base_N2) ** 2).sum(axis=1)
    pca_B = np.linalg.norm(moved_B2, axis=1) / np.sqrt(np.maximum(variance_B, np.finfo(float).tiny))

    difference_ND = tuned_ND - base_ND
    gram_NN = difference_ND @ difference_ND.T
    centred_ND = base_ND - mean
    squares_N = (centred_ND**2).sum(axis=1)
    base_gram_NN = centred_ND @ centred_ND.T
    total_B = weight_BN @ squares_N - np.einsum("bn,nm,bm->b", weight_BN, base_gram_NN, weight_BN, optimize=True)
    distance_B = np.einsum("bn,nm,bm->b", weight_BN, gram_NN, weight_BN, optimize=True)
    centroid_B = np.sqrt(np.maximum(distance_B, 0) / np.maximum(total_B, np.finfo(float).tiny))

    tuned_centred_ND = tuned_ND - tuned_ND.mean(axis=0)
    cka_B = linear_cka(base_gram_NN, tuned_centred_ND @ tuned_centred_ND.T, weight_BN)

    angle_B = _angles(centred_ND, tuned_centred_ND, weight_BN, components)
    measures_BM = np.stack([pca_B, centroid_B, cka_B, angle_B], axis=1)
    return measures_BM[0], measures_BM[1:]


def has_spread(states_ND: Array) -> bool:
    """Whether states differ between prompts by more than rounding."""
    deviation = states_ND.astype(np.float64) - states_ND.mean(axis=0, dtype=np.float64)
    return bool((deviation**2).sum() > 1e-10 * (states_ND.astype(np.float64) ** 2).sum())


def linear_cka(first_NN: Array, second_NN: Array, weight_BN: Array) -> Array:
    """Linear CKA of two sets of states from their Gram matrices, for each row of weights, which sum to 1."""

    def centred(gram_NN: Array, weight_N: Array) -> Array:
        means_N = gram_NN @ weight_N
        return gram_NN - means_N[:, None] - means_N[None, :] + weight_N @ means_N

    result = []
    for weight_N in weight_BN:
        left, right = centred(first_NN, weight_N), centred(second_NN, weight_N)
        outer = np.outer(weight_N, weight_N)
        cross, left_square, right_square = (
            (outer * a * b).sum() for a, b in ((left, right), (left, left), (right, right))
        )
        result.append(cross / np.sqrt(max(left_square * right_square, np.finfo(float).tiny)))
    return np.array(result)


def shuffled_cka(base_ND: Array, tuned_ND: Array, rng: np.random.Generator) -> float:
    """Linear CKA with the prompts of one model in random order, mean of ten: the value for unrelated states."""
    if not has_spread(base_ND):
        return float("nan")
    base_ND, tuned_ND = base_ND - base_ND.mean(axis=0), tuned_ND - tuned_ND.mean(axis=0)
    first, second = base_ND @ base_ND.T, tuned_ND @ tuned_ND.T
    equal = np.full((1, len(base_ND)), 1 / len(base_ND))
    orders = [rng.permutation(len(base_ND)) for _ in range(10)]
    return float(np.mean([linear_cka(first, second[np.ix_(order, order)], equal)[0] for order in orders]))


def _angles(base_ND: Array, tuned_ND: Array, weight_BN: Array, components: int) -> Array:
    """Mean principal angles in degrees, of weighted prompts.

    Draws are taken within the first 3 `components` directions of each model, which hold nearly all of what resampling
    can bring to the front, so that a draw costs a small eigenproblem; the estimate itself is exact.
    """
    kept = min(components, len(base_ND) - 1, base_ND.shape[1])
    coordinates, axes = [], []
    for states_ND in (base_ND, tuned_ND):
        _, _, directions = np.linalg.svd(states_ND, full_matrices=False)
        axis_KD = directions[: 3 * kept]
        coordinates.append(states_ND @ axis_KD.T)
        axes.append(axis_KD)
    overlap = axes[0] @ axes[1].T
    spaces = []
    for inside_NK in coordinates:
        mean_BK = weight_BN @ inside_NK
        covariance = np.einsum("bn,nk,nl->bkl", weight_BN, inside_NK, inside_NK, optimize=True)
        covariance -= mean_BK[:, :, None] * mean_BK[:, None, :]
        spaces.append(np.linalg.eigh(covariance)[1][:, :, -kept:])
    cosines = np.linalg.svd(np.swapaxes(spaces[0], 1, 2) @ overlap @ spaces[1], compute_uv=False)
    return np.degrees(np.arccos(np.clip(cosines, -1, 1))).mean(axis=1)


def paper_shift(base_LND: Array, tuned_LND: Array) -> dict[str, Any]:
    """The published distance d of two models' states of the same texts, as the authors' code computes it.

    At each level the two principal components of the base are fitted and both models projected without centring; d is
    the length of the mean over levels of the two mean displacements, with the signs the components happen to have.
    Here each has its largest entry positive, as scikit-learn since 1.5 makes it.

    Returns:
        `d`, and `levels`: the displacements along both components at every level.
    """
    moves = []
    for base_ND, tuned_ND in zip(base_LND, tuned_LND, strict=True):
        base_ND, tuned_ND = base_ND.astype(np.float64), tuned_ND.astype(np.float64)
        _, _, directions = np.linalg.svd(base_ND - base_ND.mean(axis=0), full_matrices=False)
        plane_2D = directions[:2]
        largest = np.abs(plane_2D).argmax(axis=1)
        plane_2D = plane_2D * np.sign(plane_2D[np.arange(2), largest])[:, None]
        moves.append((tuned_ND @ plane_2D.T).mean(axis=0) - (base_ND @ plane_2D.T).mean(axis=0))
    moves_L2 = np.array(moves)
    return {"d": float(np.linalg.norm(moves_L2.mean(axis=0))), "levels": moves_L2.tolist()}


def paper_states(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], budget: int
) -> Array:
    """Mean states as the authors' code takes them, [levels, texts, width]: at most 128 tokens, padded on the left to
    the longest text, and the mean over all positions, padding included.
    """
    import torch

    device = to_device(model)
    rows = [tokenizer(text, truncation=True, max_length=_PAPER_TOKENS)["input_ids"] for text in texts]
    width = max(map(len, rows))
    size = max(1, budget // width)
    means = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids = torch.full((len(part), width), int(tokenizer.pad_token_id))
        mask = torch.zeros(len(part), width, dtype=torch.long)
        for index, row in enumerate(part):
            ids[index, width - len(row) :] = torch.tensor(row)
            mask[index, width - len(row) :] = 1
        with torch.no_grad():
            hidden = model.get_decoder()(
                input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True, use_cache=False
            ).hidden_states
        means.append(torch.stack([states.float().mean(dim=1) for states in hidden]).cpu().numpy())
    return np.concatenate(means, axis=1)
