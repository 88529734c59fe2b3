"""Stage `arms/<arm>/seed-<n>` for arms that learn from the teacher: SFT on demonstrations, with TRL's SFTTrainer.

Loss: mean negative log-likelihood of completion tokens over the whole update. The twin of `train/grpo.py`:
same paragraphs, same problems in the same order; the difference between the two files is the experiment.
A demonstration is read once in an update. TRL wants the same number of rows in every update, so the places of those a
problem lacks are filled, at the end of the update, with rows of two tokens that no loss is taken of.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer

from data.attention import usable_attention
from data.corpus.rows import demonstrations_by_update, presented_order, read_demonstrations, read_problems
from data.language_model import load_model, on_cpu, seed_everything
from data.prompts.prompt import completion_ids, load_tokenizer, render_prompt, template_hash
from data.prompts.thinking import strip_thinking
from recipes.manifest import finish_stage, hash_files
from recipes.schema import Recipe
from train.accounting.cost import train_flops
from train.accounting.ledger import LEDGER, Ledger
from train.arms import ResolvedArm, resolve_arm
from train.limits import within_own_limits
from train.models.directory import Snapshots, adapter_config, count_parameters, record_attention, save_final
from train.runtime.checkpoints import CheckpointMarker, keep_complete_checkpoints, remove_checkpoints
from train.runtime.heartbeat import Heartbeat
from train.runtime.preemption import PaceKeeper, StopOnSignal
from train.runtime.ranks import rank, require_deepspeed, topology
from train.runtime.recorder import RunRecorder
from train.runtime.sampler import engine_facts
from train.runtime.tracking import Tracker


def arguments(settings: ResolvedArm, directory: Path, seed: int) -> SFTConfig:
    """TRL's arguments of one run. Under ZeRO-3 they must exist before the model is loaded, which is then divided."""
    return SFTConfig(
        **settings.shared_arguments(directory, seed, on_cpu()),
        max_length=None,
        packing=False,  # it would put another number of problems into every update
        padding_free=settings.padding_free,
        completion_only_loss=True,
        shuffle_dataset=False,
        train_sampling_strategy="sequential",
    )


class DemonstrationTrainer(SFTTrainer):
    """SFTTrainer whose logged means leave out micro-batches of nothing but filling."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; what it logged of a micro-batch without a trained token is taken back."""
        result = super().compute_loss(*args, **kwargs)
        metrics = self._metrics["train" if self.model.training else "eval"]
        if metrics["entropy"][-1] == 0:  # TRL's value where no rank had a token with a loss
            for name in ("entropy", "mean_token_accuracy"):
                metrics[name].pop()
        return result


def build_trainer(
    settings: ResolvedArm,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    arguments: SFTConfig,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTTrainer:
    """The trainer of one run.

    `rows`: `prompt` and `completion` of every demonstration, in order; a completion that is None fills a place.
    """
    return DemonstrationTrainer(
        model=model,
        args=arguments,
        peft_config=adapter_config(settings.lora),
        train_dataset=_dataset(tokenizer, rows),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def _dataset(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> Dataset:
    """Prompt and completion of each row as the ids a sampled one has too, so that no tokens merge between them.

    Each demonstration is tokenized once, however often it is read: a run repeats hundreds of thousands of long rows.
    """
    places: dict[tuple[str, str | None], int] = {}
    order = [places.setdefault((row["prompt"], row["completion"]), len(places)) for row in rows]
    pairs = list(places)
    tables = []
    for start in range(0, len(pairs), 1000):
        part = pairs[start : start + 1000]
        prompts = tokenizer([prompt for prompt, _ in part])["input_ids"]
        completions = completion_ids(tokenizer, [completion or "" for _, completion in part])
        for place, (_, completion) in enumerate(part):
            if completion is None:
                prompts[place], completions[place] = prompts[place][:2], []
        ids = [[*asked, *said] for asked, said in zip(prompts, completions, strict=True)]
        mask = [[0] * len(a) + [1] * len(s) for a, s in zip(prompts, completions, strict=True)]
        columns = {
            "input_ids": pa.array(ids, pa.list_(pa.int32())),
            "completion_mask": pa.array(mask, pa.list_(pa.int8())),
        }
        tables.append(pa.table(columns))
    return Dataset(pa.concat_tables(tables)).select(order)


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, arm: str, seed: int) -> None:
    """Train one arm with one seed; writes `final/`, metrics, ledger and manifest."""
    settings = resolve_arm(recipe, arm)
    group = settings.completions_per_problem
    rows_per_step = settings.problems_per_step * group

    # Policy
    seed_everything(seed)
    tokenizer = load_tokenizer(str(study_dir / "base"))
    trl_arguments = arguments(settings, stage_dir, seed)
    start_dir = settings.start_dir(study_dir, seed)
    assert recipe.model is not None
    model = load_model(start_dir, settings.weights_dtype, usable_attention(recipe.model))
    attention = record_attention(model, stage_dir)
    parameters = count_parameters(model)

    # Problems in the order they are presented, each with its demonstrations.
    problems = read_problems(study_dir / "corpus", "train", settings.problem_set)
    demonstrations = read_demonstrations(study_dir / "corpus")
    problems, demonstrations = within_own_limits(settings, recipe.prompt, problems, demonstrations, tokenizer)
    settings.require_problems(len(problems))
    order = presented_order(problems, settings.steps * settings.problems_per_step, seed)
    rows: list[dict[str, Any]] = []
    prompts = {problem: render_prompt(tokenizer, problem.problem, settings.prompt) for problem in set(order)}
    asked = {problem: len(tokenizer(prompt)["input_ids"]) for problem, prompt in prompts.items()}
    for update in demonstrations_by_update(
        demonstrations, order, settings.problems_per_step, len(problems), group, recipe.corpus.demonstrations, seed
    ):
        for problem, row in update:
            text, tokens = row.completion, row.tokens
            if settings.strip_thinking:
                text = strip_thinking(text)
                tokens = len(completion_ids(tokenizer, [text])[0])
            rows.append({"prompt": prompts[problem], "completion": text, "tokens": tokens, "ask": asked[problem]})
        filling = {"prompt": rows[0]["prompt"], "completion": None, "tokens": 0, "ask": 0}
        rows += [filling] * (rows_per_step - len(update))

    # Books
    checkpoint = keep_complete_checkpoints(stage_dir) if resume else None
    resumed_step = checkpoint.step if checkpoint else 0
    ledger = Ledger(stage_dir, resumed_step, write=rank() == 0)

    def enter_step(step: int) -> None:
        ids = [p.problem_id for p in order[(step - 1) * settings.problems_per_step : step * settings.problems_per_step]]
        batch = [r for r in rows[(step - 1) * rows_per_step : step * rows_per_step] if r["completion"] is not None]
        trained, read = sum(row["tokens"] for row in batch), sum(row["ask"] for row in batch)
        ledger.spend(
            presented=ids,
            contributed=ids,
            exposures=len(ids),
            completions=len(batch),
            correct_completions=len(batch),
            prompt_tokens=read,
            trained_tokens=trained,
            train_flops=train_flops(parameters, trained + read),
        )

    tracker = Tracker(recipe, settings, stage_dir, arm, seed)
    recorder = RunRecorder(stage_dir, settings.steps, resumed_step, ledger, enter_step, tracker)

    # Trainer
    snapshots = Snapshots(settings.snapshot_steps(), stage_dir, tokenizer, settings.dtype, start_dir)
    keeper = PaceKeeper(stage_dir, settings.steps, resumed_step, settings.updates_per_batch)
    stop = StopOnSignal(settings.updates_per_batch, keeper, settings.save_every_minutes)
    callbacks = [recorder, snapshots, keeper, stop, CheckpointMarker()]
    trainer = build_trainer(settings, model, tokenizer, rows, trl_arguments, callbacks)
    snapshots.trainer = trainer
    Heartbeat(stage_dir, keeper).follow(trainer)
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
        "presented_problems": ledger.presented(),
        "contributed_problems": ledger.contributed(),
        "matched_on": settings.matched_on(),
        "totals": ledger.totals,
        "topology": topology(trainer),
        "attention": attention,
        "engine": engine_facts(trainer, sampled=False),
        "warnings": recorder.warnings,
    }
    finish_stage(stage_dir, outputs | hash_files(stage_dir, [LEDGER]), facts)
    remove_checkpoints(stage_dir)
