"""Stage `arms/<arm>/seed-<n>` for arms that learn from their own samples, with TRL's GRPOTrainer.

GRPO weighs each completion by its group-normalised advantage. On-policy SFT keeps the correct completions with
weight 1 and masks the others, which makes the gradient the mean negative log-likelihood of the correct tokens
over the whole update. The twin of `train/sft.py`: same paragraphs, same problems in the same order; the
difference between the two files is the experiment.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from data.grading import Grader
from data.prompt import load_tokenizer, render_prompt, template_hash
from data.rows import presented_order, read_problems
from recipes.manifest import finish_stage, hash_files
from recipes.schema import Recipe
from train.arms import resolve_arm
from train.callbacks import RunRecorder
from train.checkpoints import CheckpointMarker, keep_complete_checkpoints, remove_checkpoints
from train.ledger import LEDGER, Ledger
from train.model import load_model, model_files, on_cpu, seed_everything
from train.rewards import CorrectnessReward


class OnPolicySFTTrainer(GRPOTrainer):
    """GRPOTrainer whose completions weigh 1 if correct and nothing otherwise.

    Wrong completions leave the token count the loss is divided by, as in SFT; otherwise the learning rate would
    silently scale with the share of correct tokens. With beta 0 and one update per batch the importance ratio
    is 1, so the gradient equals that of the negative log-likelihood; the logged `loss` is not it.
    """

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)
        self._gathered_rewards = rewards  # [completions of all ranks, reward functions]
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        own = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        weight = (self._gathered_rewards[own].sum(dim=1) > 0).to(batch["advantages"].dtype)
        batch["advantages"] = weight
        batch["completion_mask"] = batch["completion_mask"] * weight.unsqueeze(1).to(batch["completion_mask"].dtype)
        # A batch without a correct completion has no gradient; 1 avoids dividing by zero.
        tokens = self.accelerator.gather(batch["completion_mask"].sum()).sum()
        batch["num_items_in_batch"] = tokens.clamp(min=1)
        return batch


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, arm: str, seed: int) -> None:
    """Train one arm with one seed; writes `final/`, metrics, ledger and manifest."""
    settings = resolve_arm(recipe, arm)
    group = settings.completions_per_problem

    # Policy
    seed_everything(seed)
    tokenizer = load_tokenizer(str(study_dir / "base"))
    model = load_model(study_dir / "base", settings.dtype)

    # Problems in the order they are presented; TRL repeats each row for the group.
    problems = read_problems(study_dir / "corpus", "train", settings.problem_set)
    order = presented_order(problems, settings.steps * settings.problems_per_step, seed)
    rows = []
    for problem in order:
        prompt = render_prompt(tokenizer, problem.problem, settings.prompt)
        row = {"prompt": prompt, "reference_answer": problem.reference_answer, "problem_id": problem.problem_id}
        rows.append(row | {"prompt_tokens": len(tokenizer(prompt)["input_ids"])})
    dataset = Dataset.from_list(rows)

    # Books
    checkpoint = keep_complete_checkpoints(stage_dir) if resume else None
    resumed_step = checkpoint.step if checkpoint else 0
    ledger = Ledger(stage_dir, resumed_step)
    uses_advantage = settings.credit == "advantage"
    reward = CorrectnessReward(
        Grader(), recipe.corpus.answer_form, ledger, model.num_parameters(), group, learns_from_wrong=uses_advantage
    )

    # Trainer
    trainer_class = GRPOTrainer if uses_advantage else OnPolicySFTTrainer
    trainer = trainer_class(
        model=model,
        args=GRPOConfig(
            **settings.shared_arguments(stage_dir, seed, on_cpu()),
            num_generations=group,
            max_completion_length=settings.prompt.max_completion_tokens,
            temperature=settings.temperature,
            top_p=1.0,
            top_k=0,
            beta=settings.beta,
            loss_type="dapo",  # token mean over the whole update, the normalisation of SFT
            shuffle_dataset=False,
        ),
        reward_funcs=reward,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[RunRecorder(stage_dir, settings.steps, resumed_step, ledger), CheckpointMarker()],
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
