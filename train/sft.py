"""Stage `arms/<arm>/seed-<n>` for arms that learn from the teacher: SFT on demonstrations, with TRL's SFTTrainer.

Loss: mean negative log-likelihood of completion tokens over the whole update. The twin of `train/grpo.py`:
same paragraphs, same problems in the same order; the difference between the two files is the experiment.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from data.prompt import load_tokenizer, render_prompt, template_hash
from data.rows import correct_demonstrations, presented_order, read_demonstrations, read_problems
from recipes.manifest import finish_stage, hash_files
from recipes.schema import Recipe
from train.arms import resolve_arm
from train.callbacks import RunRecorder
from train.checkpoints import CheckpointMarker, keep_complete_checkpoints, remove_checkpoints
from train.cost import train_flops
from train.ledger import LEDGER, Ledger
from train.model import load_model, model_files, on_cpu, seed_everything


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, arm: str, seed: int) -> None:
    """Train one arm with one seed; writes `final/`, metrics, ledger and manifest."""
    settings = resolve_arm(recipe, arm)
    group = settings.completions_per_problem
    rows_per_step = settings.problems_per_step * group

    # Policy
    seed_everything(seed)
    tokenizer = load_tokenizer(str(study_dir / "base"))
    model = load_model(study_dir / "base", settings.dtype)
    parameters = model.num_parameters()

    # Problems in the order they are presented, each with its demonstrations.
    problems = read_problems(study_dir / "corpus", "train", settings.problem_set)
    order = presented_order(problems, settings.steps * settings.problems_per_step, seed)
    demonstrations = read_demonstrations(study_dir / "corpus")
    rows: list[dict[str, Any]] = []
    for exposure, problem in enumerate(order):
        prompt = render_prompt(tokenizer, problem.problem, settings.prompt)
        prompt_tokens = len(tokenizer(prompt)["input_ids"])
        first = exposure // len(problems) * group
        for row in correct_demonstrations(demonstrations, problem.problem_id, group, first):
            rows.append({"prompt": prompt, "completion": row.completion, "tokens": row.tokens, "ask": prompt_tokens})
    dataset = Dataset.from_list([{"prompt": row["prompt"], "completion": row["completion"]} for row in rows])

    # Books
    checkpoint = keep_complete_checkpoints(stage_dir) if resume else None
    resumed_step = checkpoint.step if checkpoint else 0
    ledger = Ledger(stage_dir, resumed_step)

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
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            **settings.shared_arguments(stage_dir, seed, on_cpu()),
            max_length=None,
            packing=False,
            completion_only_loss=True,
            shuffle_dataset=False,
            train_sampling_strategy="sequential",
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[RunRecorder(stage_dir, settings.steps, resumed_step, ledger, enter_step), CheckpointMarker()],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)

    # Final checkpoint
    final = stage_dir / "final"
    trainer.save_model(str(final))
    tokenizer.save_pretrained(final)
    remove_checkpoints(stage_dir)
    outputs = {f"final/{name}": digest for name, digest in hash_files(final, model_files(final)).items()}
    facts = {
        "template_hash": template_hash(tokenizer, settings.prompt),
        "presented_problems": sorted({p.problem_id for p in order}),
        "matched_on": settings.matched_on(),
        "totals": ledger.totals,
    }
    finish_stage(stage_dir, outputs | hash_files(stage_dir, [LEDGER]), facts)
