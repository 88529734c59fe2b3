"""Log-probabilities of completions without TRL's padding."""

from typing import Any

import torch


def token_log_probs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_width: int, joined: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probability of every completion token and entropy of its distribution, with TRL's fused language-model head.

    Rows are moved to the left, so that they are as wide as the longest row and not as the longest prompt and the
    longest completion together. Causal attention then never sees padding, so no mask is needed, and attention kernels
    that take none can run. Joined rows are one sequence, told apart by positions and, for flash attention, boundaries.

    Args:
        model: with TRL's `add_fused_lm_head`.
        input_ids: prompts padded on the left, completions padded on the right, [rows, tokens].
        attention_mask: 1 for tokens, same shape; every row has a token of its prompt.
        completion_width: the last columns, which hold the completions.
        joined: whether to join the rows into one sequence.

    Returns:
        Two tensors, [rows, completion_width], 0 where there is no token; the second None if the head has no entropy.
    """
    device, width = input_ids.device, input_ids.size(1)
    padding = (attention_mask[:, : width - completion_width] == 0).sum(dim=1, keepdim=True)
    prompt_tokens = width - completion_width - padding
    tokens = attention_mask.sum(dim=1, keepdim=True)
    widest = max(2, int(tokens.max()))

    column = torch.arange(widest, device=device)
    ids = input_ids.gather(1, (column + padding).clamp(max=width - 1))
    present = column < tokens
    labels = ids.masked_fill(~present | (column < prompt_tokens), -100)

    # Column of the prediction of each completion token: that of the token before it
    wanted = torch.arange(completion_width, device=device) + prompt_tokens - 1
    has_token = wanted < tokens - 1
    wanted = wanted.clamp(max=widest - 2)
    if joined:
        present[0, :2] = True  # the head predicts from all tokens but the last
        lengths = present.sum(dim=1)
        ends = lengths.cumsum(0)
        wanted = torch.where(has_token, wanted + (ends - lengths).unsqueeze(1), 0).view(1, -1)
        bounds = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
        longest = int(lengths.max())
        kept = present.flatten()
        ids, labels = ids.flatten()[kept][None], labels.flatten()[kept][None]
        read = {
            "position_ids": column.expand(len(present), -1).flatten()[kept][None],
            "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest,
        }  # fmt: skip
    else:
        ids, read = ids.masked_fill(~present, 0), {}
    outputs = model(input_ids=ids, labels=labels, fused_lm_head=True, **read)
    logps, entropies = (
        None if values is None else values.gather(1, wanted).view(has_token.shape).masked_fill(~has_token, 0.0)
        for values in (outputs.log_probs, outputs.entropy)
    )
    assert logps is not None
    return logps, entropies
