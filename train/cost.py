"""Parameters and FLOPs of a decoder, without torch: used by the ledger and by `transfer plan`.

FLOPs follow the usual count of 2 N per token for a forward pass and 6 N for forward and backward, with N the
parameters that take part in a matrix product (Kaplan et al. 2020, arXiv 2001.08361, Sec. 2.1). Attention scores
are left out; at the lengths of the pocket study they are below 5 %.
"""

from recipes.schema import PocketModelSpec

FORWARD_FLOPS_PER_PARAMETER = 2
TRAIN_FLOPS_PER_PARAMETER = 6


def pocket_parameters(spec: PocketModelSpec) -> int:
    """Parameters of the pocket model (embeddings tied), for the upper bound of its vocabulary."""
    hidden, head = spec.hidden_size, max(16, spec.hidden_size // 4)
    attention = 2 * hidden * 4 * head + 2 * hidden * 2 * head + 2 * head
    layer = attention + 3 * hidden * 3 * hidden + 2 * hidden
    return spec.vocab_size * hidden + spec.num_layers * layer + hidden


def forward_flops(parameters: int, tokens: int) -> int:
    """FLOPs of reading or generating `tokens` tokens."""
    return FORWARD_FLOPS_PER_PARAMETER * parameters * tokens


def train_flops(parameters: int, tokens: int) -> int:
    """FLOPs of a forward and a backward pass over `tokens` tokens."""
    return TRAIN_FLOPS_PER_PARAMETER * parameters * tokens
