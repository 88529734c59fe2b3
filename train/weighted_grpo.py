"""What TRL's GRPOTrainer lacks for the arms: their weights, one normalisation, and stored completions."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer

from data.language_model import seed_everything
from train.arms import ResolvedArm
from train.rollouts import Completions, DynamicSampling, LogProbs, PolicyRollouts, Rollouts, TeacherRollouts
from train.runtime.ranks import gathered
from train.runtime.sampler import engine_options, engine_seed, merged_weights, rank_variables
from train.token_budget import Batch, TokenBudgetTrainer
from train.token_log_probs import token_log_probs
from train.weights import completion_weights, is_divided_by


class WeightedGRPOTrainer(TokenBudgetTrainer, GRPOTrainer):
    """GRPOTrainer with the loss of `train/weights.py`, in micro-batches by length.

    TRL divides by all completion tokens. GRPO's update would then shrink with every group without a weight, and that of
    on-policy SFT with the share of incorrect samples, while SFT's stays the same. With several steps per generation
    batch the divisor is that of a mean step of the batch, as in TRL. With beta 0 and one step per batch the importance
    ratio is 1, so with uniform weights the gradient is that of the mean negative log-likelihood of the correct samples;
    the logged `loss` is not that likelihood.

    Args:
        arm: decides the weights and what the loss is divided by.
        rollouts: source of the completions; None: sampled from the current policy.

    Attributes:
        loaded_step: the step whose weights vLLM has; -1 before the first.
    """

    loaded_step = -1

    def __init__(self, *args: Any, arm: ResolvedArm, rollouts: Rollouts | None = None, **kwargs: Any) -> None:
        self.environment_before = rank_variables()
        with engine_options(arm.dtype):
            super().__init__(*args, arm=arm, **kwargs)
        self.rollouts = rollouts
        if self.use_vllm:  # TRL has seeded every generator with the rank alone, whatever the training seed
            parallel = self.args.vllm_tensor_parallel_size
            seed_everything(engine_seed(self.args.seed, self.accelerator.process_index, parallel))
            self.vllm_generation.sync_weights = partial(self._load_weights, self.vllm_generation.sync_weights)
            if isinstance(self.model, PeftModel) and not self._dist.is_zero3:
                self.vllm_generation._iter_named_params = partial(merged_weights, self.model)

    def _load_weights(self, sync_weights: Callable[[], None]) -> None:
        with self.clock.section("weight_sync"):
            sync_weights()
        self.loaded_step = self.state.global_step

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """TRL's rewards, [completions of all ranks, 1]; nan, which TRL leaves out of a group, for surplus rows."""
        with self.clock.section("rewards"):
            rewards = super()._calculate_rewards(*args, **kwargs)
        if isinstance(self.rollouts, TeacherRollouts):
            rewards[torch.tensor(self.rollouts.surplus(self.state.global_step), device=rewards.device)] = torch.nan
        self._gathered_rewards = rewards
        return rewards

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.section("generation"):
            return super()._generate(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.use_vllm and isinstance(self.rollouts, PolicyRollouts):
            self._last_loaded_step = self.state.global_step  # vLLM needs new weights only where `draw` samples
        if isinstance(self.rollouts, DynamicSampling):
            with self.clock.section("generation"):
                rows = self.rollouts.choose(self.state.global_step, partial(sample, self, self.processing_class))
            first = self.accelerator.process_index * len(inputs)
            inputs = [row for row in rows for _ in range(self.num_generations)][first : first + len(inputs)]
        batch = super()._generate_and_score_completions(inputs)
        self._log_mismatch(batch)
        self._set_weights(batch)
        return batch

    def rows_of(self, inputs: Batch) -> tuple[list[int], list[bool]]:
        """Tokens of each row, 0 for surplus ones, and whether its weight or the KL term gives it a gradient."""
        mask, weights = inputs["completion_mask"], inputs["advantages"]
        if "importance_sampling_ratio" in inputs:
            weights = weights * inputs["importance_sampling_ratio"].any(dim=1)
        reached = mask.any(dim=1) & ((weights != 0) | (self.beta != 0))
        return inputs["row_tokens"].tolist(), reached.tolist()

    def micro_batch(self, inputs: Batch, rows: Sequence[int]) -> Batch:
        """These rows, cut to the longest prompt and completion among them; of none, a token of a prompt alone."""
        chosen = list(rows) or [0]
        prompt, completion = (
            int(inputs[name][chosen].sum(dim=1).max()) if rows else 1 for name in ("prompt_mask", "completion_mask")
        )
        width = inputs["completion_ids"].size(1)

        def cut(name: str, values: torch.Tensor | None) -> Any:
            if values is None or values.dim() == 0:
                return values
            if name.startswith("prompt_"):
                return values[chosen, -prompt:]
            return values[chosen, :completion] if values.dim() == 2 and values.size(1) == width else values[chosen]

        part = {name: cut(name, values) for name, values in inputs.items()}
        if not rows:
            part["completion_mask"] = torch.zeros_like(part["completion_mask"])
        return part

    def trained_tokens(self, inputs: Batch) -> int:
        """Completion tokens of a micro-batch that the loss counts."""
        return int(inputs["completion_mask"].sum())

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **unused: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """TRL's function, whose rows are all padded to the longest one, in micro-batches by length.

        Args:
            model: whose log-probabilities.
            input_ids: prompts padded on the left and completions padded on the right, [rows, tokens].
            attention_mask: 1 for tokens, same shape.
            logits_to_keep: tokens of `input_ids` that are the completions'.
            batch_size: None: the rows are one micro-batch already, else they are dealt into micro-batches.
            compute_entropy: TRL asks for entropies of single micro-batches only.
            unused: what TRL passes for images and mixtures of experts, which no arm has.

        Returns:
            Log-probabilities and entropies of the completions, [rows, logits_to_keep] each, 0 for padding; None.
        """
        if batch_size is None:
            with self.accelerator.autocast():
                return *token_log_probs(model, input_ids, attention_mask, logits_to_keep, self.joins_rows), None
        assert not compute_entropy
        logps = torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device)
        with self.clock.section("log_probs"), self.accelerator.autocast():
            tokens = attention_mask.sum(dim=1)
            for rows in self.deal(tokens.tolist()):
                read = rows or [int(tokens.argmin())]
                micro_logps, _ = token_log_probs(
                    model, input_ids[read], attention_mask[read], logits_to_keep, self.joins_rows
                )
                logps[rows] = micro_logps[: len(rows)].to(logps.dtype)
        return logps, None, None

    def _set_weights(self, batch: dict[str, Any]) -> None:
        """Put the arm's weights in place of TRL's advantages, and set what the loss is divided by."""
        rewards = [None if math.isnan(reward) else reward for reward in self._gathered_rewards.squeeze(1).tolist()]
        advantages, mask = batch["advantages"], batch["completion_mask"]
        weights = completion_weights(rewards, self.arm, self.accelerator.gather(advantages).tolist())
        counted = is_divided_by(rewards, weights, self.arm)
        first = self.accelerator.process_index * len(advantages)
        own = slice(first, first + len(advantages))
        batch["advantages"] = torch.tensor(weights[own], dtype=advantages.dtype, device=advantages.device)
        counted_rows = torch.tensor(counted[own], dtype=mask.dtype, device=mask.device)
        # Taken before the mask of completions that the loss leaves out becomes 0
        present = torch.tensor([reward is not None for reward in rewards[own]], device=mask.device)
        batch["row_tokens"] = (batch["prompt_mask"].sum(dim=1) + mask.sum(dim=1)) * present
        batch["completion_mask"] = mask * counted_rows.unsqueeze(1)
        # A batch without any weight has no gradient; 1 avoids dividing by zero.
        tokens = self.accelerator.gather(batch["completion_mask"].sum()).sum()
        batch["num_items_in_batch"] = tokens.clamp(min=1)

    def _log_mismatch(self, batch: dict[str, Any]) -> None:
        """Log the raw sampler/trainer mismatch; TRL's own metrics are computed after clipping."""
        if batch.get("sampling_per_token_logps") is None or batch.get("old_per_token_logps") is None:
            return
        metrics = mismatch(
            batch["old_per_token_logps"],
            batch["sampling_per_token_logps"],
            batch["completion_mask"],
            self.args.vllm_importance_sampling_clip_max if self.vllm_importance_sampling_correction else None,
            self.vllm_importance_sampling_mode.startswith("sequence"),
        )
        for name, value in metrics.items():
            of_all_ranks = self.accelerator.gather(torch.tensor([value], device=self.accelerator.device))
            self._metrics["train"][f"mismatch/{name}"].append(of_all_ranks.mean().item())


def mismatch(
    trained: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor, clip: float | None, by_sequence: bool = False
) -> dict[str, float]:
    """Sampler/trainer mismatch: quantiles of the raw importance ratio, and the share of ratios that are clipped.

    Args:
        trained: the trainer's log-probabilities, [completions, tokens].
        sampled: those of the engine that sampled the completions, same shape. nan counts as no mismatch.
        mask: 1 for tokens of a completion, same shape.
        clip: largest ratio that is used unchanged; None: nothing is clipped.
        by_sequence: whether the clipped ratio is that of a whole completion, the product over its tokens.
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
    rollouts: Rollouts, tokenizer: PreTrainedTokenizerBase, prompts: list[str], trainer: WeightedGRPOTrainer
) -> dict[str, Any]:
    """TRL's `rollout_func` for stored completions: those of this rank's rows of the step.

    Those of dynamic sampling have the log-probabilities with which vLLM sampled them. All others have none, so the
    importance ratio is 1 and the loss is the weighted log-likelihood.
    """
    completions = rollouts.completions(
        trainer.state.global_step, lambda prompts, seed: sample(trainer, tokenizer, prompts, seed)[0]
    )
    first = trainer.accelerator.process_index * len(prompts)
    own = slice(first, first + len(prompts))
    log_probs = rollouts.log_probs() if isinstance(rollouts, DynamicSampling) else None
    return {
        "prompt_ids": tokenizer(prompts)["input_ids"],
        "completion_ids": completions[own],
        "logprobs": None if log_probs is None else log_probs[own],
    }


def sample(
    trainer: WeightedGRPOTrainer, tokenizer: PreTrainedTokenizerBase, prompts: list[str], seed: int
) -> tuple[list[Completions], list[LogProbs] | None]:
    """Sample a group of completions for each prompt from the current policy, on all ranks together.

    Returns:
        Token ids, [prompts][group][tokens], the same on every rank; vLLM's log-probabilities of them, same shape.
    """
    ranks, own, group = trainer.accelerator.num_processes, trainer.accelerator.process_index, trainer.num_generations
    share = -(-len(prompts) // ranks)
    # Every rank samples as many, because under ZeRO-3 they can only generate together; the surplus is dropped.
    mine = [*prompts, *prompts[-1:] * (share * ranks - len(prompts))][own * share : (own + 1) * share]
    # Ranks whose engines hold one model together must sample the same.
    parallel = trainer.args.vllm_tensor_parallel_size if trainer.use_vllm else 1
    seed_everything((seed + own // parallel) % 2**31)
    ids = tokenizer([prompt for prompt in mine for _ in range(group)])["input_ids"]
    trainer._last_loaded_step = trainer.loaded_step  # vLLM must have the current weights
    rows, log_probs = trainer._generate_single_turn(ids, None, {}, group)

    def groups(of_rows: list[Any]) -> list[Any]:
        return gathered([of_rows[start : start + group] for start in range(0, len(rows), group)])[: len(prompts)]

    return groups(rows), None if log_probs is None else groups(log_probs)
