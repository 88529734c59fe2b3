"""Hidden states of one model: of prompts, pooled per layer, and of the last layer at every token of completions.

All levels come from one forward pass. States are written to a file batch by batch, so memory does not grow with the
number of prompts, and two models are compared without being in memory together.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.language_model import to_device
from recipes.errors import UserError
from recipes.files import hash_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Array = np.ndarray
Ids = list[int]
POOLINGS = ("masked_mean", "last_token")


def require_context(model: "PreTrainedModel", lengths: Sequence[int], longest_completion: int, name: str) -> None:
    """Check that prompts fit the model's context.

    Raises:
        UserError: a prompt and the longest completion are longer than the context.
    """
    context = getattr(model.config, "max_position_embeddings", None)  # in tokens
    longest = max(lengths)
    if context is not None and longest + longest_completion > context:
        raise UserError(
            f"a prompt of {name} has {longest} tokens, and with diagnostics.max_completion_tokens={longest_completion} "
            f"that is more than the model's context of {context}; lower it to {context - longest} or less"
            if longest < context
            else f"a prompt of {name} has {longest} tokens, and the model's context is {context}; leave {name} out"
        )


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of sequences of similar length per batch: at most `budget` tokens with padding, or one sequence."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _padded(rows: Sequence[Ids], device: str) -> "tuple[torch.Tensor, torch.Tensor]":
    """Rows padded on the right, which does not change the states of a causal model, and the mask of their tokens."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tensors = [torch.tensor(row, device=device) for row in rows]
    return pad_sequence(tensors, batch_first=True), pad_sequence(list(map(torch.ones_like, tensors)), batch_first=True)


def write_pooled_states(model: "PreTrainedModel", prompts: Sequence[Ids], path: Path, budget: int, name: str) -> None:
    """Pooled states of every prompt at every level, as float32 of shape [levels, poolings, prompts, width].

    Level 0 is the embeddings, the last level the last layer after the final norm, as in transformers.

    Raises:
        UserError: a state is not finite.
    """
    import torch

    device = to_device(model)
    levels, width = model.config.num_hidden_layers + 1, model.config.hidden_size
    temporary = path.with_suffix(".tmp")
    stored = np.lib.format.open_memmap(
        temporary, mode="w+", dtype=np.float32, shape=(levels, len(POOLINGS), len(prompts), width)
    )
    for batch in batches([len(prompt) for prompt in prompts], budget):
        ids, mask = _padded([prompts[index] for index in batch], device)
        with torch.no_grad():
            hidden = model.get_decoder()(
                input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
            ).hidden_states
        weight = (mask / mask.sum(dim=1, keepdim=True)).unsqueeze(-1)
        last, rows = mask.sum(dim=1) - 1, torch.arange(len(batch), device=device)
        for level, states in enumerate(hidden):
            pooled = torch.stack([(states.float() * weight).sum(dim=1), states[rows, last].float()])
            if not bool(torch.isfinite(pooled).all()):
                raise UserError(
                    f"hidden states of {name} are not finite at level {level}: the weights are damaged, or "
                    "model.dtype is too small for them; measure another checkpoint, or in float32"
                )
            stored[level][:, batch] = pooled.cpu().numpy()
    stored.flush()
    del stored
    temporary.replace(path)


def read_pooled_states(path: Path) -> Array:
    """The states that `write_pooled_states` wrote, memory-mapped."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def completion_states(
    model: "PreTrainedModel", pairs: Sequence[tuple[Ids, Ids]], budget: int, name: str
) -> "Iterator[tuple[int, torch.Tensor]]":
    """For each pair of prompt and completion, in any order: its index, and the last layer's states that predict the
    completion's tokens, [tokens, width], in the model's number format.

    Raises:
        UserError: a state is not finite.
    """
    import torch

    device = to_device(model)
    for batch in batches([len(prompt) + len(completion) for prompt, completion in pairs], budget):
        ids, mask = _padded([pairs[index][0] + pairs[index][1] for index in batch], device)
        with torch.no_grad():
            hidden = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for row, index in enumerate(batch):
            prompt, completion = pairs[index]
            states = hidden[row, len(prompt) - 1 : len(prompt) + len(completion) - 1]
            if not bool(torch.isfinite(states).all()):
                raise UserError(
                    f"the last hidden states of {name} are not finite: the weights are damaged, or model.dtype is too "
                    "small for them; measure another checkpoint, or in float32"
                )
            yield index, states


class Head:
    """The output layer of a model, which turns last hidden states into logits.

    Raises:
        UserError: the model changes its logits after the output layer.
    """

    def __init__(self, model: "PreTrainedModel", name: str) -> None:
        config: Any = model.config
        for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(config, key, None) not in (None, 1, 1.0):
                raise UserError(
                    f"{name} changes its logits after the output layer ({key}), which the token shift does not "
                    "support; leave it out of the study, or set diagnostics=null"
                )
        layer: Any = model.get_output_embeddings()
        self.weight = layer.weight.detach()
        self.bias = None if getattr(layer, "bias", None) is None else layer.bias.detach()

    def write(self, path: Path) -> None:
        """Write it as safetensors, atomically."""
        from safetensors.torch import save_file

        tensors = {"weight": self.weight.cpu().contiguous()}
        if self.bias is not None:
            tensors["bias"] = self.bias.cpu()
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary)
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path, device: str) -> "Head":
        """Read a head that `write` wrote."""
        from safetensors.torch import load_file

        head = cls.__new__(cls)
        tensors = load_file(path, device=device)
        head.weight, head.bias = tensors["weight"], tensors.get("bias")
        return head

    def logits(self, states: "torch.Tensor") -> "torch.Tensor":
        """Logits over the vocabulary in float32, [tokens, vocabulary]."""
        import torch

        return torch.nn.functional.linear(states, self.weight, self.bias).float()


def shape_of(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Properties that two models must share to be compared layer by layer and token by token."""
    words = {word: token for word, token in tokenizer.get_vocab().items() if word not in tokenizer.get_added_vocab()}
    return {
        "hidden size": model.config.hidden_size,
        "number of layers": model.config.num_hidden_layers,
        "number of logits": model.get_output_embeddings().weight.shape[0],
        "vocabulary": hash_json(words)[:12],
    }


def require_same_shape(base: dict[str, Any], model: dict[str, Any], name: str) -> None:
    """Check that the states and distributions of two models (`shape_of`) can be compared.

    Raises:
        UserError: their hidden sizes, numbers of layers or vocabularies differ.
    """
    for what in base:
        if base[what] != model[what]:
            raise UserError(
                f"{name} cannot be compared with the base layer by layer and token by token: its {what} is "
                f"{model[what]} and the base's {base[what]}; leave it out of the study, or set diagnostics=null"
            )
