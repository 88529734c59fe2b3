"""Hidden states of one model at a time: prompts pooled per layer, and the last layer's at every token of completions.

All levels come from one forward pass. What is kept goes to a file batch by batch, so memory does not grow with the
number of prompts, and two models are compared without ever being loaded together.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.errors import UserError
from recipes.manifest import hash_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Array = np.ndarray
Ids = list[int]
POOLINGS = ("masked_mean", "last_token")


def context_of(model: "PreTrainedModel") -> int | None:
    """The longest sequence the model's positions were made for, in tokens; None if it does not say."""
    return getattr(model.config, "max_position_embeddings", None)


def require_context(model: "PreTrainedModel", lengths: Sequence[int], longest_completion: int, name: str) -> None:
    """Refuse prompts that do not fit the model.

    Raises:
        UserError: a prompt and the longest completion are longer than the context.
    """
    context = context_of(model)
    longest = max(lengths)
    if context is not None and longest + longest_completion > context:
        raise UserError(
            f"a prompt of {name} has {longest} tokens, and with diagnostics.max_completion_tokens={longest_completion} "
            f"that is more than the model's context of {context}; lower it, or leave the benchmark out"
        )


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Places of sequences that are read together, of similar length: at most `budget` tokens with padding, or one."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _padded(rows: Sequence[Ids], device: str) -> "tuple[torch.Tensor, torch.Tensor]":
    """Rows padded on the right, where a causal model's other positions do not see it, and the mask of real tokens."""
    import torch

    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return ids.to(device), mask.to(device)


def device_of(model: "PreTrainedModel") -> str:
    """Where the model is: it is moved to the accelerator, if there is one."""
    from data.language_model import on_cpu

    device = "cpu" if on_cpu() else "cuda"
    model.to(device)
    model.eval()
    return device


def write_pooled_states(model: "PreTrainedModel", prompts: Sequence[Ids], path: Path, budget: int, name: str) -> None:
    """Pooled states of every prompt at every level, as float32 of shape [levels, poolings, prompts, width].

    Level 0 is the embeddings, the last one the last layer's after the final norm, as transformers numbers them.

    Raises:
        UserError: a state is not finite.
    """
    import torch

    device = device_of(model)
    levels, width = model.config.num_hidden_layers + 1, model.config.hidden_size
    temporary = path.with_suffix(".tmp")
    stored = np.lib.format.open_memmap(
        temporary, mode="w+", dtype=np.float32, shape=(levels, len(POOLINGS), len(prompts), width)
    )
    for places in batches([len(prompt) for prompt in prompts], budget):
        ids, mask = _padded([prompts[place] for place in places], device)
        with torch.no_grad():
            hidden = model.get_decoder()(
                input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
            ).hidden_states
        weight = (mask / mask.sum(dim=1, keepdim=True)).unsqueeze(-1)
        last, rows = mask.sum(dim=1) - 1, torch.arange(len(places), device=device)
        for level, states in enumerate(hidden):
            pooled = torch.stack([(states.float() * weight).sum(dim=1), states[rows, last].float()])
            if not bool(torch.isfinite(pooled).all()):
                raise UserError(
                    f"hidden states of {name} are not finite at level {level}: the weights are damaged, or "
                    "model.dtype is too small for them; measure another checkpoint, or in float32"
                )
            stored[level][:, places] = pooled.cpu().numpy()
    stored.flush()
    del stored
    temporary.replace(path)


def read_pooled_states(path: Path) -> Array:
    """The states that `write_pooled_states` wrote, read from disk level by level as they are used."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def completion_states(
    model: "PreTrainedModel", pairs: Sequence[tuple[Ids, Ids]], budget: int, name: str
) -> "Iterator[tuple[int, torch.Tensor]]":
    """For each pair of prompt and completion, in any order: its place, and the last layer's states that predict the
    completion's tokens, [tokens, width], in the model's number format.

    Raises:
        UserError: a state is not finite.
    """
    import torch

    device = device_of(model)
    for places in batches([len(prompt) + len(completion) for prompt, completion in pairs], budget):
        ids, mask = _padded([pairs[place][0] + pairs[place][1] for place in places], device)
        with torch.no_grad():
            hidden = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for row, place in enumerate(places):
            prompt, completion = pairs[place]
            states = hidden[row, len(prompt) - 1 : len(prompt) + len(completion) - 1]
            if not bool(torch.isfinite(states).all()):
                raise UserError(
                    f"the last hidden states of {name} are not finite: the weights are damaged, or model.dtype is too "
                    "small for them; measure another checkpoint, or in float32"
                )
            yield place, states


class Head:
    """What turns a model's last hidden states into logits, without the rest of the model.

    Raises:
        UserError: the model does something to its logits after the head.
    """

    def __init__(self, model: "PreTrainedModel", name: str) -> None:
        config: Any = model.config
        for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(config, key, None) not in (None, 1, 1.0):
                raise UserError(
                    f"{name} changes its logits after the output layer ({key}), which the token shift does not know "
                    "of; leave it out of the study, or set diagnostics=null"
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
        """The head that `write` wrote."""
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
    """What two models must share to be compared layer by layer and token by token."""
    words = {word: number for word, number in tokenizer.get_vocab().items() if word not in tokenizer.get_added_vocab()}
    return {
        "hidden size": model.config.hidden_size,
        "number of layers": model.config.num_hidden_layers,
        "number of logits": model.get_output_embeddings().weight.shape[0],
        "vocabulary": hash_json(words)[:12],
    }


def require_same_shape(base: dict[str, Any], model: dict[str, Any], name: str) -> None:
    """Refuse two models (`shape_of`) whose states or distributions cannot be compared.

    Raises:
        UserError: their hidden sizes, numbers of layers or vocabularies differ.
    """
    for what in base:
        if base[what] != model[what]:
            raise UserError(
                f"{name} cannot be compared with the base layer by layer and token by token: its {what} is "
                f"{model[what]} and the base's {base[what]}; leave it out of the study, or set diagnostics=null"
            )
