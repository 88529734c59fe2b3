"""Stage `arms/<arm>/seed-<n>` for arms that learn from a teacher's correct solutions, with TRL's SFTTrainer.

The loss is the mean negative log-likelihood of the completion tokens of a step: that of `train/weights.py` with
every weight 1. No demonstration is trained on twice in a step. TRL needs the same number of rows in every step, so
fillers, rows of two tokens without a loss, take the place of missing demonstrations. The rows of a step are dealt to
the ranks so that each has about as many tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerState
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from data.corpus.rows import demonstrations_by_step
from data.language_model import on_cpu
from data.prompts.prompt import completion_ids, render_prompt
from data.prompts.thinking import strip_thinking
from recipes.schema import Recipe
from train.accounting.ledger import Completion
from train.arms import ResolvedArm
from train.micro_batches import in_rank_order
from train.models.directory import adapter_config
from train.run import Run, shared_arguments
from train.runtime.ranks import gathered, world_size
from train.token_budget import IDLE_TOKENS, Batch, TokenBudgetTrainer


def run(recipe: Recipe, study_dir: Path, stage_dir: Path, resume: bool, arm: str, seed: int) -> None:
    """Train one arm with one seed by SFT; writes `final/`, metrics, ledger and manifest."""
    run = Run(recipe, study_dir, stage_dir, resume, arm, seed, lambda settings, _: arguments(settings, stage_dir, seed))
    rows = _demonstration_rows(run)
    callbacks = [EnterDemonstrations(run, rows), *run.callbacks]
    run.train(build_trainer(run.settings, run.model, run.tokenizer, rows, run.arguments, callbacks))


def arguments(settings: ResolvedArm, directory: Path, seed: int) -> SFTConfig:
    """TRL's arguments of one run."""
    return SFTConfig(
        **shared_arguments(settings, directory, seed, on_cpu()),
        max_length=None,
        packing=False,  # it would change the number of problems in a step
        shuffle_dataset=False,
        train_sampling_strategy="sequential",
    )


class DemonstrationTrainer(TokenBudgetTrainer, SFTTrainer):
    """SFTTrainer in micro-batches by length; fillers are not computed."""

    data_collator: DataCollatorForLanguageModeling  # of all rows of a step
    _total_train_tokens: int

    def rows_of(self, inputs: Batch) -> tuple[list[int], list[bool]]:
        """Tokens of each row, and whether it has a token with a loss; fillers have neither."""
        trained = (inputs["labels"] != -100).any(dim=1)
        return (inputs["attention_mask"].sum(dim=1) * trained).tolist(), trained.tolist()

    def micro_batch(self, inputs: Batch, rows: Sequence[int]) -> Batch:
        """These rows, padded to the longest among them or joined; of none, tokens without a loss."""
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        examples = [
            {name: inputs[name][index, : lengths[index]].tolist() for name in ("input_ids", "labels")} for index in rows
        ]
        idle = {"input_ids": inputs["input_ids"][0, :IDLE_TOKENS].tolist(), "labels": [-100] * IDLE_TOKENS}
        collate = replace(self.data_collator, padding_free=self.joins_rows)
        return self._prepare_inputs(collate(examples or [idle]))

    def trained_tokens(self, inputs: Batch) -> int:
        """Tokens of a micro-batch with a loss."""
        return int((inputs["labels"][:, 1:] != -100).sum())

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of a step; the logged number of tokens read so far is that of all ranks."""
        before = self._total_train_tokens
        result = super().compute_loss(*args, **kwargs)
        if self.model.training:
            self._total_train_tokens = before + sum(gathered([self._total_train_tokens - before]))
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
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

    `rows`: `prompt` and `completion` of every demonstration, in order; a completion of None makes a filler.
    """
    return DemonstrationTrainer(
        model=model,
        args=arguments,
        peft_config=adapter_config(settings.lora),
        train_dataset=tokenized_dataset(tokenizer, rows),
        processing_class=tokenizer,
        callbacks=list(callbacks),
        arm=settings,
    )


def _demonstration_rows(run: Run[SFTConfig]) -> list[dict[str, Any]]:
    """The rows of all steps: the demonstrations of the presented problems and fillers."""
    settings, tokenizer = run.settings, run.tokenizer
    prompts = {problem: render_prompt(tokenizer, problem.problem, settings.prompt) for problem in set(run.order)}
    prompt_tokens = {problem: len(tokenizer(prompt)["input_ids"]) for problem, prompt in prompts.items()}
    size = settings.problems_per_step * settings.completions_per_problem
    rows: list[dict[str, Any]] = []
    for demonstrations in demonstrations_by_step(
        run.demonstrations,
        run.order,
        settings.problems_per_step,
        len(run.problems),
        settings.completions_per_problem,
        run.recipe.corpus.demonstrations,
        run.seed,
    ):
        of_step = []
        for problem, demonstration in demonstrations:
            text, tokens = demonstration.completion, demonstration.tokens
            if settings.strip_thinking:
                text = strip_thinking(text)
                tokens = len(completion_ids(tokenizer, [text])[0])
            row = {"problem_id": problem.problem_id, "prompt": prompts[problem], "completion": text, "tokens": tokens}
            of_step.append(row | {"prompt_tokens": prompt_tokens[problem]})
        rows += rows_of_step(of_step, size, prompts[run.order[0]])
    return rows


def rows_of_step(demonstrations: list[dict[str, Any]], size: int, prompt: str) -> list[dict[str, Any]]:
    """The `size` rows of a step, those of the first rank first: its demonstrations, and fillers with a prompt."""
    filler = {"prompt": prompt, "completion": None, "tokens": 0, "prompt_tokens": 0}
    rows = [*demonstrations, *[filler] * (size - len(demonstrations))]
    return [rows[index] for index in in_rank_order([r["tokens"] + r["prompt_tokens"] for r in rows], world_size())]


class EnterDemonstrations(TrainerCallback):
    """Enters what a step reads in the ledger as it begins; in GRPO the reward does, once it has the completions."""

    def __init__(self, run: Run[SFTConfig], rows: Sequence[dict[str, Any]]) -> None:
        self.ledger, self.settings, self.rows = run.ledger, run.settings, rows
        self.order = [problem.problem_id for problem in run.order]

    def on_step_begin(self, args: object, state: TrainerState, *unused: object, **also_unused: object) -> None:
        """Enter the step that begins."""
        step, problems = state.global_step, self.settings.problems_per_step
        size = problems * self.settings.completions_per_problem
        ids = self.order[step * problems : (step + 1) * problems]
        self.ledger.enter(
            ids,
            ids,
            [
                Completion(row["problem_id"], row["prompt_tokens"], row["tokens"], correct=True, has_gradient=True)
                for row in self.rows[step * size : (step + 1) * size]
                if row["completion"] is not None
            ],
        )


def tokenized_dataset(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> Dataset:
    """Token ids and labels of each row, with a loss on completions alone.

    Prompt and completion are tokenized apart, as those of a sample are, so none merge. Each demonstration is tokenized
    once, however often it is trained on.
    """

    def tokenize(texts: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        prompts = tokenizer(texts["prompt"])["input_ids"]
        completions = completion_ids(tokenizer, [text or "" for text in texts["completion"]])
        for index, text in enumerate(texts["completion"]):
            if text is None:
                prompts[index], completions[index] = prompts[index][:IDLE_TOKENS], []
        pairs = list(zip(prompts, completions, strict=True))
        return {
            "input_ids": [prompt + completion for prompt, completion in pairs],
            "labels": [[-100] * len(prompt) + completion for prompt, completion in pairs],
        }

    indices: dict[tuple[str, str | None], int] = {}
    order = [indices.setdefault((row["prompt"], row["completion"]), len(indices)) for row in rows]
    texts = Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in indices])
    return texts.map(tokenize, batched=True, remove_columns=texts.column_names).select(order)
