"""Stage `arms/<arm>/seed-<n>` for every arm but SFT on a teacher, with TRL's GRPOTrainer.

The weights of the completions and the loss are in `train/weights.py`, what had to be changed in TRL's trainer in
`train/weighted_grpo.py`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig

from data.corpus.rows import Problem, presented_order
from data.grading.grader import Grader
from data.language_model import on_cpu, stop_ids
from data.prompts.prompt import render_prompt
from data.prompts.thinking import strip_thinking
from recipes.resource_schema import VllmSpec
from recipes.schema import Recipe
from train.accounting.memory import resolve_vllm
from train.arms import ResolvedArm
from train.models.directory import adapter_config
from train.rewards import Judge, RecordedReward
from train.rollouts import DynamicSampling, PolicyRollouts, Rollouts, Row, TeacherRollouts
from train.run import Run, shared_arguments
from train.runtime.ranks import server_address
from train.runtime.sampler import can_sleep
from train.weighted_grpo import WeightedGRPOTrainer, read_rollouts


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, arm: str, seed: int) -> None:
    """Train one arm with one seed by GRPO; writes `final/`, metrics, ledger and manifest."""

    def make_arguments(settings: ResolvedArm, tokenizer: PreTrainedTokenizerBase) -> GRPOConfig:
        return arguments(settings, tokenizer, stage_dir, seed, resolve_vllm(recipe, settings))

    run = Run(recipe, study_dir, stage_dir, resume, arm, seed, make_arguments)
    rows = _problem_rows(run, run.order)
    rollouts: Rollouts | None = _stored_rollouts(run, rows)
    judge = Judge(Grader(), recipe.corpus.answer_form, run.settings, seed, stop_ids(run.model))
    surplus = rollouts.surplus if isinstance(rollouts, TeacherRollouts) else None
    reward = RecordedReward(judge, run.ledger, run.recorder.warn, run.tracker, surplus)
    if run.settings.dynamic_sampling:
        rollouts = _dynamic_sampling(run, rows, judge)
    run.train(
        build_trainer(run.settings, run.model, run.tokenizer, rows, run.arguments, reward, run.callbacks, rollouts)
    )


def arguments(
    settings: ResolvedArm,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    seed: int,
    vllm: VllmSpec | None = None,
) -> GRPOConfig:
    """TRL's arguments of one run."""
    return GRPOConfig(
        **shared_arguments(settings, directory, seed, on_cpu()),
        **vllm_arguments(settings, tokenizer, vllm if settings.sampling != "teacher" else None),
        num_generations=settings.completions_per_problem,
        max_completion_length=settings.prompt.max_completion_tokens,
        temperature=settings.temperature,
        top_p=1.0,
        top_k=0,
        beta=settings.beta,
        steps_per_generation=settings.updates_per_batch,
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        scale_rewards="group",  # what `group_advantages` computes for the ledger
        loss_type="dapo",  # one division for the whole step, as in SFT
        shuffle_dataset=False,
    )


def vllm_arguments(settings: ResolvedArm, tokenizer: PreTrainedTokenizerBase, vllm: VllmSpec | None) -> dict[str, Any]:
    """TRL's arguments about vLLM; none without it."""
    if vllm is None:
        return {}
    stored = settings.sampling != "current"  # their log-probabilities are not kept
    correction, url = settings.importance_sampling, server_address(vllm)
    return {
        "use_vllm": True,
        "vllm_mode": vllm.mode,
        "vllm_server_base_url": url,
        # Where this process sends weights from; jobs on parts of one node have servers of their own.
        "vllm_group_port": 20_000 + (urlsplit(url or "").port or 0) % 10_000,
        "vllm_gpu_memory_utilization": vllm.memory_share,
        "vllm_tensor_parallel_size": vllm.tensor_parallel,
        "vllm_enable_sleep_mode": can_sleep(vllm),
        "vllm_max_model_length": settings.prompt.max_prompt_tokens + settings.prompt.max_completion_tokens,
        "vllm_importance_sampling_correction": correction != "off" and not stored,
        "vllm_importance_sampling_mode": "token_truncate" if correction == "off" else correction,
        "vllm_importance_sampling_clip_max": settings.importance_clip,
        # vLLM stops at the ids in its model directory. They are set here too: without them completions never end.
        "generation_kwargs": {"stop_token_ids": [tokenizer.eos_token_id, tokenizer.pad_token_id]},
    }


def build_trainer(
    settings: ResolvedArm,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    arguments: GRPOConfig,
    reward: Callable[..., list[float]],
    callbacks: Sequence[TrainerCallback] = (),
    rollouts: Rollouts | None = None,
) -> WeightedGRPOTrainer:
    """The trainer of one run.

    `rows`: one per presented problem, in order; TRL repeats each for its group and passes its columns to `reward`.
    `rollouts`: source of the completions; None: sampled from the current policy.
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
        arm=settings,
        rollouts=rollouts,
    )


def _problem_rows(run: Run[GRPOConfig], problems: list[Problem]) -> list[Row]:
    """A row of the dataset for each problem."""
    rows = []
    for problem in problems:
        prompt = render_prompt(run.tokenizer, problem.problem, run.settings.prompt)
        row = {"prompt": prompt, "reference_answer": problem.reference_answer, "problem_id": problem.problem_id}
        rows.append(row | {"prompt_tokens": len(run.tokenizer(prompt)["input_ids"])})
    return rows


def _stored_rollouts(run: Run[GRPOConfig], rows: list[Row]) -> TeacherRollouts | PolicyRollouts | None:
    """Stored completions of an arm; None for one that samples from the current policy."""
    settings = run.settings
    if settings.sampling == "current":
        return None
    if settings.sampling == "teacher":
        text_of = strip_thinking if settings.strip_thinking else str
        return TeacherRollouts(run.order, run.demonstrations, run.tokenizer, settings, text_of)
    order = [(row["problem_id"], row["prompt"]) for row in rows]
    return PolicyRollouts(
        order, run.tokenizer, run.stage_dir, run.ledger, settings, run.seed, run.recorder.count_earlier
    )


def _dynamic_sampling(run: Run[GRPOConfig], rows: list[Row], judge: Judge) -> DynamicSampling:
    # The replacement problems have an order of their own.
    further = len(run.order) * run.settings.dynamic_sampling
    reserve = _problem_rows(run, presented_order(run.problems, further, run.seed + 1))
    return DynamicSampling(rows, reserve, judge, run.tokenizer, run.ledger, run.settings, run.seed)
