"""Stage `arms/<arm>/seed-<n>` for every arm but SFT on a teacher, with TRL's GRPOTrainer.

GRPO weighs each completion by its group-normalised advantage; on-policy SFT gives correct completions weight 1 and
the others none. Either loss is divided by the tokens of the update that have a weight, as in SFT
(`train/weighted_grpo.py`). The twin of `train/sft.py`: same paragraphs, same problems in the same order; the
difference between the two files is the experiment.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig

from data.attention import usable_attention
from data.corpus.rows import Demonstration, Problem, presented_order, read_demonstrations, read_problems
from data.grading.grader import Grader
from data.language_model import load_model, on_cpu, seed_everything
from data.prompts.prompt import load_tokenizer, render_prompt, template_hash
from data.prompts.thinking import strip_thinking
from recipes.manifest import finish_stage, hash_files
from recipes.resource_schema import VllmSpec
from recipes.schema import Recipe
from train.accounting.ledger import LEDGER, Ledger
from train.arms import ResolvedArm, resolve_arm
from train.limits import within_own_limits
from train.models.directory import Snapshots, adapter_config, count_parameters, record_attention, save_final
from train.rewards import RecordedReward
from train.rollouts import DynamicSampling, PolicyRollouts, Rollouts, TeacherRollouts
from train.runtime.checkpoints import CheckpointMarker, keep_complete_checkpoints, remove_checkpoints
from train.runtime.heartbeat import Heartbeat
from train.runtime.preemption import PaceKeeper, StopOnSignal
from train.runtime.ranks import from_first_rank, rank, require_deepspeed, server_address, topology
from train.runtime.recorder import RunRecorder
from train.runtime.sampler import can_sleep, engine_facts, released_engine, require_vllm
from train.runtime.tracking import Tracker
from train.weighted_grpo import WeightedGRPOTrainer, read_rollouts


def arguments(
    settings: ResolvedArm,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    seed: int,
    vllm: VllmSpec | None = None,
) -> GRPOConfig:
    """TRL's arguments of one run. Under ZeRO-3 they must exist before the model is loaded, which is then divided."""
    shared = settings.shared_arguments(directory, seed, on_cpu())
    return GRPOConfig(
        **shared,
        **_vllm_arguments(settings, tokenizer, vllm if settings.sampling != "teacher" else None),
        num_generations=settings.completions_per_problem,
        max_completion_length=settings.prompt.max_completion_tokens,
        temperature=settings.temperature,
        top_p=1.0,
        top_k=0,
        beta=settings.beta,
        steps_per_generation=shared["gradient_accumulation_steps"] * settings.updates_per_batch,
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        loss_type="dapo",  # one division for the whole update, as in SFT
        shuffle_dataset=False,
    )


def _vllm_arguments(settings: ResolvedArm, tokenizer: PreTrainedTokenizerBase, vllm: VllmSpec | None) -> dict[str, Any]:
    if vllm is None:
        return {}
    stored = settings.sampling != "current" or settings.dynamic_sampling > 0  # their log-probabilities are not kept
    return {
        "use_vllm": True,
        "vllm_mode": vllm.mode,
        "vllm_server_base_url": server_address(vllm),
        "vllm_gpu_memory_utilization": vllm.memory_share,
        "vllm_tensor_parallel_size": vllm.tensor_parallel,
        "vllm_enable_sleep_mode": can_sleep(vllm),
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
        rollouts=rollouts,
        uniform_credit=settings.credit == "uniform",
        negatives=settings.negatives,
        all_tokens=settings.loss_normalisation == "all_tokens",
        dtype=settings.dtype,
    )


def _rollouts(
    settings: ResolvedArm,
    demonstrations: dict[str, list[Demonstration]],
    stage_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    order: list[Problem],
    rows: list[dict[str, Any]],
    ledger: Ledger,
    parameters: int,
    seed: int,
    reward: RecordedReward,
    reserve: list[dict[str, Any]],
) -> Rollouts | None:
    """Who writes the completions of an arm; None: the policy of the very step."""
    group = settings.completions_per_problem
    if settings.sampling == "current" and not settings.dynamic_sampling:
        return None
    if settings.sampling == "current":
        return DynamicSampling(
            rows,
            reserve,
            # Grading has a clock, and the ranks must not disagree about what they learn from.
            lambda *judged: from_first_rank(lambda: reward.judge(*judged)),
            tokenizer,
            ledger,
            parameters,
            settings.problems_per_step,
            settings.dynamic_sampling,
            seed,
        )
    if settings.sampling == "teacher":
        read = strip_thinking if settings.strip_thinking else str
        return TeacherRollouts(order, demonstrations, tokenizer, settings.problems_per_step, group, read)
    asked = [(row["problem_id"], row["prompt"]) for row in rows]
    return PolicyRollouts(
        asked, tokenizer, stage_dir, ledger, parameters, settings.problems_per_step, group, settings.round_steps, seed
    )


def _rows(tokenizer: PreTrainedTokenizerBase, order: list[Problem], settings: ResolvedArm) -> list[dict[str, Any]]:
    """A row of the dataset for each problem; TRL hands the columns to the reward."""
    rows = []
    for problem in order:
        prompt = render_prompt(tokenizer, problem.problem, settings.prompt)
        row = {"prompt": prompt, "reference_answer": problem.reference_answer, "problem_id": problem.problem_id}
        rows.append(row | {"prompt_tokens": len(tokenizer(prompt)["input_ids"])})
    return rows


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, arm: str, seed: int) -> None:
    """Train one arm with one seed; writes `final/`, metrics, ledger and manifest."""
    settings = resolve_arm(recipe, arm)
    require_vllm(recipe.resources.vllm if settings.sampling != "teacher" else None)

    # Policy
    seed_everything(seed)
    tokenizer = load_tokenizer(str(study_dir / "base"))
    trl_arguments = arguments(settings, tokenizer, stage_dir, seed, recipe.resources.vllm)
    start_dir = settings.start_dir(study_dir, seed)
    assert recipe.model is not None
    model = load_model(start_dir, settings.weights_dtype, usable_attention(recipe.model))
    attention = record_attention(model, stage_dir)
    parameters = count_parameters(model)

    # Problems in the order they are presented; TRL repeats each row for the group.
    problems = read_problems(study_dir / "corpus", "train", settings.problem_set)
    demonstrations = read_demonstrations(study_dir / "corpus") if settings.sampling == "teacher" else {}
    problems, demonstrations = within_own_limits(settings, recipe.prompt, problems, demonstrations, tokenizer)
    settings.require_problems(len(problems))
    order = presented_order(problems, settings.steps * settings.problems_per_step, seed)
    rows = _rows(tokenizer, order, settings)
    # With dynamic sampling, the problems that may take the place of others: an order of its own.
    reserve = _rows(tokenizer, presented_order(problems, len(order) * settings.dynamic_sampling, seed + 1), settings)

    # Books
    checkpoint = keep_complete_checkpoints(stage_dir) if resume else None
    resumed_step = checkpoint.step if checkpoint else 0
    ledger = Ledger(stage_dir, resumed_step, write=rank() == 0)
    tracker = Tracker(recipe, settings, stage_dir, arm, seed)
    recorder = RunRecorder(stage_dir, settings.steps, resumed_step, ledger, tracker=tracker)
    form = recipe.corpus.answer_form
    reward = RecordedReward(Grader(), form, ledger, parameters, settings, seed, recorder.warn, tracker)
    rollouts = _rollouts(
        settings, demonstrations, stage_dir, tokenizer, order, rows, ledger, parameters, seed, reward, reserve
    )

    # Trainer
    snapshots = Snapshots(settings.snapshot_steps(), stage_dir, tokenizer, settings.dtype, start_dir)
    keeper = PaceKeeper(stage_dir, settings.steps, resumed_step, settings.updates_per_batch)
    stop = StopOnSignal(settings.updates_per_batch, keeper, settings.save_every_minutes)
    callbacks = [recorder, snapshots, keeper, stop, CheckpointMarker()]
    trainer = build_trainer(settings, model, tokenizer, rows, trl_arguments, reward, callbacks, rollouts)
    snapshots.trainer = trainer
    Heartbeat(stage_dir, keeper).follow(trainer)
    require_deepspeed(trainer)
    with released_engine(trainer):
        trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
        stop.require_finished(settings.steps)

        # Final checkpoint
        outputs = save_final(trainer, tokenizer, stage_dir, settings.dtype, start_dir)
        engine = engine_facts(trainer, settings.sampling != "teacher")
    tracker.close()
    if rank() != 0:
        return
    facts = {
        "template_hash": template_hash(tokenizer, settings.prompt),
        "presented_problems": ledger.presented(),
        "contributed_problems": ledger.contributed(),
        "matched_on": settings.matched_on(),
        "totals": ledger.totals,
        "topology": topology(trainer),
        "attention": attention,
        "engine": engine,
        "warnings": recorder.warnings,
    }
    finish_stage(stage_dir, outputs | hash_files(stage_dir, [LEDGER]), facts)
    remove_checkpoints(stage_dir)
