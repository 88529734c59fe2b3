"""What TRL's GRPOTrainer lacks for the arms: their weights, one normalisation, and completions from elsewhere."""

from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer

from data.language_model import seed_everything
from train.rollouts import DynamicSampling, PolicyRollouts, Rollouts
from train.runtime.ranks import gathered
from train.runtime.sampler import engine_options, engine_seed, rank_variables


class WeightedGRPOTrainer(GRPOTrainer):
    """GRPOTrainer with the weights of an arm, and a loss divided by the tokens whose weight is not zero.

    TRL divides by all completion tokens; then the step of GRPO would shrink with every problem whose samples are
    all right, and that of on-policy SFT would grow with the share of correct samples, while SFT's stays as it is.
    With several updates per batch the tokens are those of a mean update of the batch, as in TRL.
    With beta 0 and one update per batch the importance ratio is 1, so with uniform weights the gradient is that of
    the mean negative log-likelihood of the correct samples; the logged `loss` is not it.

    Args:
        uniform_credit: weigh correct completions 1 and the others 0, in place of the advantage.
        negatives: whether completions of negative advantage push the policy away; without, their weight is 0.
        all_tokens: divide by all completion tokens after all; with advantages and negatives this is plain TRL.
        rollouts: who wrote the completions; None: the policy of the very step.
        dtype: that vLLM samples in, where it does.
    """

    def __init__(
        self,
        *args: Any,
        uniform_credit: bool,
        negatives: bool,
        all_tokens: bool = False,
        rollouts: Rollouts | None = None,
        dtype: str = "auto",
        **kwargs: Any,
    ) -> None:
        self.environment_before = rank_variables()
        with engine_options(dtype):
            super().__init__(*args, **kwargs)
        if self.use_vllm:  # which has seeded every generator with the number of the rank, whatever the training seed
            seed_everything(self._engine_seed(self.args.seed))
        self.rollouts = rollouts
        self.uniform_credit = uniform_credit
        self.negatives = negatives
        self.all_tokens = all_tokens

    def _engine_seed(self, seed: int) -> int:
        return engine_seed(seed, self.accelerator.process_index, self.args.vllm_tensor_parallel_size)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)
        self._gathered_rewards = rewards  # [completions of all ranks, reward functions]
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.use_vllm and isinstance(self.rollouts, PolicyRollouts):
            self._last_loaded_step = self.state.global_step  # no weights for vLLM, unless something is drawn (`draw`)
        if isinstance(self.rollouts, DynamicSampling):
            rows = self.rollouts.choose(self.state.global_step, partial(draw, self, self.processing_class))
            first = self.accelerator.process_index * len(inputs)
            inputs = [row for row in rows for _ in range(self.num_generations)][first : first + len(inputs)]
        batch = super()._generate_and_score_completions(inputs)
        if batch.get("sampling_per_token_logps") is not None and batch.get("old_per_token_logps") is not None:
            found = mismatch(
                batch["old_per_token_logps"],
                batch["sampling_per_token_logps"],
                batch["completion_mask"],
                self.args.vllm_importance_sampling_clip_max if self.vllm_importance_sampling_correction else None,
                self.vllm_importance_sampling_mode.startswith("sequence"),
            )
            for name, value in found.items():  # TRL's own figures are of what is left after cutting
                gathered_value = self.accelerator.gather(torch.tensor([value], device=self.accelerator.device))
                self._metrics["train"][f"mismatch/{name}"].append(gathered_value.mean().item())
        if self.uniform_credit:
            first = self.accelerator.process_index * len(inputs)
            correct = self._gathered_rewards[first : first + len(inputs)].sum(dim=1) > 0
            batch["advantages"] = correct.to(batch["advantages"].dtype)
        elif not self.negatives:
            batch["advantages"] = batch["advantages"].clamp(min=0)
        if self.all_tokens:
            return batch
        if self.beta == 0:  # with a KL term every token has a weight
            weighted = (batch["advantages"] != 0).unsqueeze(1)
            batch["completion_mask"] = batch["completion_mask"] * weighted.to(batch["completion_mask"].dtype)
        # A batch in which nothing has a weight has no gradient; 1 avoids dividing by zero.
        tokens = self.accelerator.gather(batch["completion_mask"].sum()).sum()
        batch["num_items_in_batch"] = tokens.clamp(min=1)
        return batch


def mismatch(
    trained: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor, clip: float | None, by_sequence: bool = False
) -> dict[str, float]:
    """How far the trainer's probabilities of sampled tokens are from the sampler's: the raw importance ratio.

    Args:
        trained: the trainer's log-probabilities, [completions, tokens].
        sampled: those of the program that drew them, the same shape.
        mask: 1 for tokens of a completion.
        clip: largest ratio that is used as it is; None: nothing is cut.
        by_sequence: whether the ratio that is cut is that of a whole completion, the product over its tokens.
    """
    difference = (trained - sampled).float()
    difference = torch.where(mask.bool() & ~difference.isnan(), difference, 0.0)
    ratio = difference.sum(-1).exp() if by_sequence else difference[mask.bool()].exp()
    if not len(ratio):
        return {"ratio_p01": 1.0, "ratio_median": 1.0, "ratio_p99": 1.0, "clipped_share": 0.0}
    low, middle, high = (ratio.kthvalue(max(1, round(q * len(ratio)))).values.item() for q in (0.01, 0.5, 0.99))
    clipped = (ratio > (clip or float("inf"))).float().mean().item()
    return {"ratio_p01": low, "ratio_median": middle, "ratio_p99": high, "clipped_share": clipped}


def read_rollouts(
    rollouts: Rollouts, tokenizer: PreTrainedTokenizerBase, prompts: list[str], trainer: GRPOTrainer
) -> dict[str, Any]:
    """Stored completions for the rows of this update that this rank has, in TRL's form.

    They get no log-probabilities of their own, so the importance ratio is 1: the loss is the weighted log-likelihood.
    """
    completions = rollouts.completions(trainer.state.global_step, partial(draw, trainer, tokenizer))
    first = trainer.accelerator.process_index * len(prompts)
    prompt_ids = tokenizer(prompts)["input_ids"]
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completions[first : first + len(prompts)],
        "logprobs": None,
    }


def draw(
    trainer: GRPOTrainer, tokenizer: PreTrainedTokenizerBase, prompts: list[str], seed: int
) -> list[list[list[int]]]:
    """A group of the policy's completions for each prompt, drawn by all ranks together with the trainer's generator."""
    ranks, own, group = trainer.accelerator.num_processes, trainer.accelerator.process_index, trainer.num_generations
    share = -(-len(prompts) // ranks)
    # Every rank draws as many, because under ZeRO-3 they can only generate together; the surplus is dropped.
    mine = [*prompts, *prompts[-1:] * (share * ranks - len(prompts))][own * share : (own + 1) * share]
    # Ranks whose engines hold one model together must draw the same.
    parallel = trainer.args.vllm_tensor_parallel_size if trainer.use_vllm else 1
    seed_everything((seed + own // parallel) % 2**31)
    ids = tokenizer([prompt for prompt in mine for _ in range(group)])["input_ids"]
    trainer._last_loaded_step = -1  # the policy may have moved
    rows, _ = trainer._generate_single_turn(ids, None, {}, group)
    return gathered([rows[start : start + group] for start in range(0, len(rows), group)])[: len(prompts)]
