"""Stage `arms/<arm>/seed-<n>` for every arm but SFT on a teacher, with TRL's GRPOTrainer.

GRPO weighs each completion by its group-normalised advantage; on-policy SFT gives correct completions weight 1 and
the others none. Either loss is divided by the tokens of the update that have a weight, as in SFT. The twin of
`train/sft.py`: same paragraphs, same problems in the same order; the difference between the two files is the
experiment.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from data.grading import Grader, strip_thinking
from data.language_model import load_model, on_cpu, seed_everything
from data.prompt import load_tokenizer, render_prompt, template_hash
from data.rows import Problem, presented_order, read_demonstrations, read_problems
from recipes.manifest import finish_stage, hash_files
from recipes.schema import Recipe, VllmSpec
from train.arms import ResolvedArm, resolve_arm
from train.callbacks import RunRecorder
from train.checkpoints import CheckpointMarker, keep_complete_checkpoints, remove_checkpoints
from train.ledger import LEDGER, Ledger
from train.model import Snapshots, adapter_config, count_parameters, save_final
from train.preemption import StopOnSignal
from train.ranks import gathered, rank, require_deepspeed, topology
from train.rewards import RecordedReward
from train.rollouts import PolicyRollouts, Rollouts, TeacherRollouts
from train.tracking import Tracker


class WeightedGRPOTrainer(GRPOTrainer):
    """GRPOTrainer with the weights of an arm, and a loss divided by the tokens whose weight is not zero.

    TRL divides by all completion tokens; then the step of GRPO would shrink with every problem whose samples are
    all right, and that of on-policy SFT would grow with the share of correct samples, while SFT's stays as it is.
    With beta 0 and one update per batch the importance ratio is 1, so with uniform weights the gradient is that of
    the mean negative log-likelihood of the correct samples; the logged `loss` is not it.

    Args:
        uniform_credit: weigh correct completions 1 and the others 0, in place of the advantage.
        negatives: whether completions of negative advantage push the policy away; without, their weight is 0.
        all_tokens: divide by all completion tokens after all; with advantages and negatives this is plain TRL.
    """

    def __init__(
        self, *args: Any, uniform_credit: bool, negatives: bool, all_tokens: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.uniform_credit = uniform_credit
        self.negatives = negatives
        self.all_tokens = all_tokens

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)
        self._gathered_rewards = rewards  # [completions of all ranks, reward functions]
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if batch.get("sampling_per_token_logps") is not None and batch.get("old_per_token_logps") is not None:
            found = mismatch(
                batch["old_per_token_logps"],
                batch["sampling_per_token_logps"],
                batch["completion_mask"],
                self.args.vllm_importance_sampling_clip_max,
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


def mismatch(trained: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor, clip: float | None) -> dict[str, float]:
    """How far the trainer's probabilities of sampled tokens are from the sampler's: the raw importance ratio.

    Args:
        trained: the trainer's log-probabilities, [completions, tokens].
        sampled: those of the program that drew them, the same shape.
        mask: 1 for tokens of a completion.
        clip: largest ratio that is used as it is; its inverse is the smallest.
    """
    ratio = (trained - sampled)[mask.bool()].float().exp()
    ratio = ratio[~ratio.isnan()]
    if not len(ratio):
        return {}
    low, middle, high = (ratio.kthvalue(max(1, round(q * len(ratio)))).values.item() for q in (0.01, 0.5, 0.99))
    limit = clip or float("inf")
    clipped = ((ratio > limit) | (ratio < 1 / limit)).float().mean().item()
    return {"ratio_p01": low, "ratio_median": middle, "ratio_p99": high, "clipped_share": clipped}


def arguments(
    settings: ResolvedArm,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    seed: int,
    vllm: VllmSpec | None = None,
) -> GRPOConfig:
    """TRL's arguments of one run. Under ZeRO-3 they must exist before the model is loaded, which is then divided."""
    return GRPOConfig(
        **settings.shared_arguments(directory, seed, on_cpu()),
        **_vllm_arguments(settings, tokenizer, vllm if settings.sampling != "teacher" else None),
        num_generations=settings.completions_per_problem,
        max_completion_length=settings.prompt.max_completion_tokens,
        temperature=settings.temperature,
        top_p=1.0,
        top_k=0,
        beta=settings.beta,
        loss_type="dapo",  # one division for the whole update, as in SFT
        shuffle_dataset=False,
    )


def _vllm_arguments(settings: ResolvedArm, tokenizer: PreTrainedTokenizerBase, vllm: VllmSpec | None) -> dict[str, Any]:
    if vllm is None:
        return {}
    stored = settings.sampling != "current"  # its log-probabilities are not kept
    return {
        "use_vllm": True,
        "vllm_mode": vllm.mode,
        "vllm_server_base_url": vllm.server_url,
        "vllm_gpu_memory_utilization": vllm.memory_share,
        "vllm_tensor_parallel_size": vllm.tensor_parallel,
        "vllm_enable_sleep_mode": vllm.sleep and vllm.mode == "colocate",
        "vllm_max_model_length": settings.prompt.max_prompt_tokens + settings.prompt.max_completion_tokens,
        "vllm_importance_sampling_correction": settings.importance_sampling != "off" and not stored,
        "vllm_importance_sampling_mode": "token_truncate"
        if settings.importance_sampling == "off"
        else settings.importance_sampling,
        "vllm_importance_sampling_clip_max": settings.importance_clip,
        # vLLM stops at what its model directory says; said again, because a wrong one trains on endless completions.
        "generation_kwargs": {"stop_token_ids": [tokenizer.eos_token_id, tokenizer.pad_token_id]},
    }


def build_trainer(
    settings: ResolvedArm,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    arguments: GRPOConfig,
    reward: Callable[..., list[float]],
    callbacks: Sequence[TrainerCallback] = (),
    rollouts: Rollouts | None = None,
) -> WeightedGRPOTrainer:
    """The trainer of one run. `rows`: one per presented problem, in order; their columns reach `reward`.

    `rollouts`: who wrote the completions; None: the policy of the very step.
    """
    return WeightedGRPOTrainer(
        model=model,
        args=arguments,
        peft_config=adapter_config(settings.lora),
        reward_funcs=reward,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=list(callbacks),
        rollout_func=None if rollouts is None else partial(read_rollouts, rollouts, tokenizer),
        uniform_credit=settings.credit == "uniform",
        negatives=settings.negatives,
        all_tokens=settings.loss_normalisation == "all_tokens",
    )


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
    seed_everything((seed + own) % 2**31)
    ids = tokenizer([prompt for prompt in mine for _ in range(group)])["input_ids"]
    rows, _ = trainer._generate_single_turn(ids, None, {}, group)
    return gathered([rows[start : start + group] for start in range(0, len(rows), group)])[: len(prompts)]


def _rollouts(
    settings: ResolvedArm,
    study_dir: Path,
    stage_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    order: list[Problem],
    rows: list[dict[str, Any]],
    ledger: Ledger,
    parameters: int,
    seed: int,
) -> Rollouts | None:
    """Who writes the completions of an arm; None: the policy of the very step."""
    group = settings.completions_per_problem
    if settings.sampling == "current":
        return None
    if settings.sampling == "teacher":
        demonstrations = read_demonstrations(study_dir / "corpus")
        read = strip_thinking if settings.strip_thinking else str
        return TeacherRollouts(order, demonstrations, tokenizer, settings.problems_per_step, group, read)
    asked = [(row["problem_id"], row["prompt"]) for row in rows]
    return PolicyRollouts(
        asked, tokenizer, stage_dir, ledger, parameters, settings.problems_per_step, group, settings.round_steps, seed
    )


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, arm: str, seed: int) -> None:
    """Train one arm with one seed; writes `final/`, metrics, ledger and manifest."""
    settings = resolve_arm(recipe, arm)

    # Policy
    seed_everything(seed)
    tokenizer = load_tokenizer(str(study_dir / "base"))
    trl_arguments = arguments(settings, tokenizer, stage_dir, seed, recipe.resources.vllm)
    start_dir = settings.start_dir(study_dir, seed)
    model = load_model(start_dir, settings.weights_dtype, settings.attention)
    parameters = count_parameters(model)

    # Problems in the order they are presented; TRL repeats each row for the group.
    problems = read_problems(study_dir / "corpus", "train", settings.problem_set)
    settings.require_problems(len(problems))
    order = presented_order(problems, settings.steps * settings.problems_per_step, seed)
    rows = []
    for problem in order:
        prompt = render_prompt(tokenizer, problem.problem, settings.prompt)
        row = {"prompt": prompt, "reference_answer": problem.reference_answer, "problem_id": problem.problem_id}
        rows.append(row | {"prompt_tokens": len(tokenizer(prompt)["input_ids"])})

    # Books
    checkpoint = keep_complete_checkpoints(stage_dir) if resume else None
    resumed_step = checkpoint.step if checkpoint else 0
    ledger = Ledger(stage_dir, resumed_step, write=rank() == 0)
    tracker = Tracker(recipe, settings, stage_dir, arm, seed)
    recorder = RunRecorder(stage_dir, settings.steps, resumed_step, ledger, tracker=tracker)
    form = recipe.corpus.answer_form
    reward = RecordedReward(Grader(), form, ledger, parameters, settings, seed, recorder.warn, tracker)
    rollouts = _rollouts(settings, study_dir, stage_dir, tokenizer, order, rows, ledger, parameters, seed)

    # Trainer
    stop, snapshots = (
        StopOnSignal(),
        Snapshots(settings.snapshot_steps(), stage_dir, tokenizer, settings.dtype, start_dir),
    )
    callbacks = [recorder, snapshots, stop, CheckpointMarker()]
    trainer = build_trainer(settings, model, tokenizer, rows, trl_arguments, reward, callbacks, rollouts)
    snapshots.trainer = trainer
    require_deepspeed(trainer)
    trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
    stop.require_finished(settings.steps)

    # Final checkpoint
    outputs = save_final(trainer, tokenizer, stage_dir, settings.dtype, start_dir)
    tracker.close()
    if rank() != 0:
        return
    facts = {
        "template_hash": template_hash(tokenizer, settings.prompt),
        "presented_problems": sorted({p.problem_id for p in order}),
        "contributed_problems": ledger.contributed(),
        "matched_on": settings.matched_on(),
        "totals": ledger.totals,
        "topology": topology(trainer),
        "warnings": recorder.warnings,
    }
    finish_stage(stage_dir, outputs | hash_files(stage_dir, [LEDGER]), facts)
    remove_checkpoints(stage_dir)
