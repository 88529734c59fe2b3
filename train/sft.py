"""Stage `arms/<arm>/seed-<n>` for arms that learn from the teacher: SFT on demonstrations, with TRL's SFTTrainer.

Loss: mean negative log-likelihood of completion tokens over the whole update. The twin of `train/grpo.py`:
same paragraphs, same problems in the same order; the difference between the two files is the experiment.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer

from data.language_model import load_model, on_cpu, seed_everything
from data.prompt import load_tokenizer, render_prompt, template_hash
from data.rows import demonstrations_to_read, presented_order, read_demonstrations, read_problems
from recipes.manifest import finish_stage, hash_files
from recipes.schema import Recipe
from train.arms import ResolvedArm, resolve_arm
from train.callbacks import RunRecorder
from train.checkpoints import CheckpointMarker, keep_complete_checkpoints, remove_checkpoints
from train.cost import train_flops
from train.ledger import LEDGER, Ledger
from train.model import save_final
from train.ranks import rank, require_deepspeed, topology


def build_trainer(
    settings: ResolvedArm,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    directory: Path,
    seed: int,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTTrainer:
    """The trainer of one run. `rows`: `prompt` and `completion` of every demonstration, in order."""
    return SFTTrainer(
        model=model,
        args=SFTConfig(
            **settings.shared_arguments(directory, seed, on_cpu()),
            max_length=None,
            packing=False,
            completion_only_loss=True,
            shuffle_dataset=False,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list([{key: row[key] for key in ("prompt", "completion")} for row in rows]),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, arm: str, seed: int) -> None:
    """Train one arm with one seed; writes `final/`, metrics, ledger and manifest."""
    settings = resolve_arm(recipe, arm)
    group = settings.completions_per_problem
    rows_per_step = settings.problems_per_step * group

    # Policy
    seed_everything(seed)
    tokenizer = load_tokenizer(str(study_dir / "base"))
    model = load_model(settings.start_dir(study_dir, seed), "float32")
    parameters = model.num_parameters()

    # Problems in the order they are presented, each with its demonstrations.
    problems = read_problems(study_dir / "corpus", "train", settings.problem_set)
    order = presented_order(problems, settings.steps * settings.problems_per_step, seed)
    demonstrations = read_demonstrations(study_dir / "corpus")
    rows: list[dict[str, Any]] = []
    for exposure, problem in enumerate(order):
        prompt = render_prompt(tokenizer, problem.problem, settings.prompt)
        prompt_tokens = len(tokenizer(prompt)["input_ids"])
        read = demonstrations_to_read(
            demonstrations, problem.problem_id, group, exposure // len(problems), recipe.corpus.demonstrations, seed
        )
        for row in read:
            rows.append({"prompt": prompt, "completion": row.completion, "tokens": row.tokens, "ask": prompt_tokens})

    # Books
    checkpoint = keep_complete_checkpoints(stage_dir) if resume else None
    resumed_step = checkpoint.step if checkpoint else 0
    ledger = Ledger(stage_dir, resumed_step, write=rank() == 0)

    def enter_step(step: int) -> None:
        ids = [p.problem_id for p in order[(step - 1) * settings.problems_per_step : step * settings.problems_per_step]]
        batch = rows[(step - 1) * rows_per_step : step * rows_per_step]
        trained, asked = sum(row["tokens"] for row in batch), sum(row["ask"] for row in batch)
        ledger.spend(
            presented=ids,
            contributed=ids,
            exposures=len(ids),
            completions=len(batch),
            correct_completions=len(batch),
            prompt_tokens=asked,
            trained_tokens=trained,
            train_flops=train_flops(parameters, trained + asked),
        )

    # Trainer
    callbacks = [RunRecorder(stage_dir, settings.steps, resumed_step, ledger, enter_step), CheckpointMarker()]
    trainer = build_trainer(settings, model, tokenizer, rows, stage_dir, seed, callbacks)
    require_deepspeed(trainer)
    trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)

    # Final checkpoint
    outputs = save_final(trainer, tokenizer, stage_dir, settings.dtype)
    if rank() != 0:
        return
    facts = {
        "template_hash": template_hash(tokenizer, settings.prompt),
        "presented_problems": sorted({p.problem_id for p in order}),
        "contributed_problems": ledger.contributed(),
        "matched_on": settings.matched_on(),
        "totals": ledger.totals,
        "topology": topology(trainer),
    }
    finish_stage(stage_dir, outputs | hash_files(stage_dir, [LEDGER]), facts)
    remove_checkpoints(stage_dir)
