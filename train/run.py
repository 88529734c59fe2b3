"""What every run of an arm does, whatever trains it: load, present problems in order, record, train, save.

`train/sft.py` and `train/grpo.py` hold what differs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_model_param_count

from data.attention import usable_attention
from data.corpus.rows import Demonstration, Problem, presented_order, read_demonstrations, read_problems
from data.language_model import device_name, load_model, seed_everything
from data.prompts.prompt import load_tokenizer, render_prompt, template_hash
from recipes.files import hash_files
from recipes.manifest import finish_stage
from recipes.schema import Recipe
from recipes.training_schema import PromptSpec
from train.accounting.arm_facts import ArmFacts
from train.accounting.ledger import LEDGER, Ledger
from train.arms import ResolvedArm, resolve_arm
from train.micro_batches import Work
from train.models.directory import Snapshots, record_attention, save_final
from train.runtime.checkpoints import (
    CheckpointMarker,
    accept_indexed_cpu,
    keep_complete_checkpoints,
    remove_checkpoints,
)
from train.runtime.heartbeat import Heartbeat
from train.runtime.preemption import PaceKeeper, StopOnSignal
from train.runtime.ranks import (
    device_arguments,
    rank,
    require_deepspeed,
    rows_per_rank,
    topology,
    with_deepspeed,
)
from train.runtime.recorder import RunRecorder
from train.runtime.sampler import released_engine, require_vllm, sampler_facts
from train.runtime.tracking import Tracker
from train.token_budget import TokenBudgetTrainer

_WAIT_SECONDS = 7 * 24 * 3600
"""How long a rank waits for another, which may be sampling. `resources.silence_minutes` decides when that is too long,
by heartbeats; the libraries' half hour would end a healthy run."""


Arguments = TypeVar("Arguments", bound=TrainingArguments)


class Run(Generic[Arguments]):
    """One arm with one seed, loaded. Make it, build a trainer from its attributes, `train`.

    `make_arguments`: TRL's arguments for these settings and tokenizer.

    Attributes:
        settings: of the arm.
        tokenizer: of the base.
        arguments: of TRL's trainer.
        model, parameters: the policy and its number of parameters.
        problems: the training problems that fit the arm's limits.
        order: the problems in the order they are presented.
        demonstrations: the teacher's samples by problem id; empty for arms that sample.
        ledger, tracker, recorder: of the run.
        callbacks: for the trainer.
    """

    def __init__(
        self,
        recipe: Recipe,
        study_dir: Path,
        stage_dir: Path,
        resume: bool,
        arm: str,
        seed: int,
        make_arguments: Callable[[ResolvedArm, PreTrainedTokenizerBase], Arguments],
    ) -> None:
        self.recipe, self.stage_dir, self.seed = recipe, stage_dir, seed
        self.settings = settings = resolve_arm(recipe, arm)
        require_vllm(recipe.resources.vllm if settings.sampling != "teacher" else None)
        seed_everything(seed)
        self.tokenizer = load_tokenizer(str(study_dir / "base"))

        # Policy; under ZeRO-3 the arguments must exist before the model does
        self.arguments = make_arguments(settings, self.tokenizer)
        self._start_dir = settings.start_dir(study_dir, seed)
        dtype = settings.weights_dtype_with(with_deepspeed())
        self.model = load_model(self._start_dir, dtype, usable_attention(recipe.require_model()))
        self._attention = record_attention(self.model, stage_dir)
        self.parameters = get_model_param_count(self.model)

        # Problems
        corpus = study_dir / "corpus"
        problems = read_problems(corpus, "train", settings.problem_set)
        demonstrations = read_demonstrations(corpus) if settings.sampling == "teacher" else {}
        self.problems, self.demonstrations = within_own_limits(
            settings, recipe.prompt, problems, demonstrations, self.tokenizer
        )
        settings.require_problems(len(self.problems))
        self.order = presented_order(self.problems, settings.steps * settings.problems_per_step, seed)

        # Records
        self._checkpoint = keep_complete_checkpoints(stage_dir) if resume else None
        step = self._checkpoint.step if self._checkpoint else 0
        self.ledger = Ledger(stage_dir, self.parameters, step, write=rank() == 0)
        self.tracker = Tracker(recipe, settings.matched_on(), stage_dir, arm, seed)
        self.recorder = RunRecorder(stage_dir, settings.steps, step, self.ledger, tracker=self.tracker)
        self._snapshots = Snapshots(
            settings.snapshot_steps(), stage_dir, self.tokenizer, settings.dtype, self._start_dir
        )
        self._pace = PaceKeeper(stage_dir, settings.steps, step, settings.updates_per_batch)
        self._stop = StopOnSignal(self._pace, settings.save_every_minutes)
        self.callbacks: list[TrainerCallback] = [
            self.recorder, self._snapshots, self._pace, self._stop, CheckpointMarker(),
        ]  # fmt: skip

    def train(self, trainer: TokenBudgetTrainer) -> None:
        """Train from the newest checkpoint, write `final/` and the manifest.

        Raises:
            PreemptedError: a signal stopped the run.
        """
        self._snapshots.trainer = trainer
        trainer.on_work = self._enter_work
        Heartbeat(self.stage_dir, self._pace).follow(trainer)
        require_deepspeed(trainer)
        accept_indexed_cpu()
        with released_engine(trainer):
            trainer.train(resume_from_checkpoint=str(self._checkpoint.path) if self._checkpoint else None)
            self._stop.require_finished(self.settings.steps)
            outputs = save_final(trainer, self.tokenizer, self.stage_dir, self.settings.dtype, self._start_dir)
            engine = sampler_facts(trainer, self.settings.sampling != "teacher")
        self.tracker.close()
        if rank() != 0:
            return
        facts = ArmFacts(
            template_hash=template_hash(self.tokenizer, self.settings.prompt),
            presented_problems=self.ledger.problems("presented"),
            contributed_problems=self.ledger.problems("contributed"),
            matched_on=self.settings.matched_on(),
            totals=self.ledger.totals,
            skipped_tokens=self.ledger.skipped_tokens,
            topology=topology(trainer),
            attention=self._attention,
            device=device_name(),
            engine=engine,
            warnings=self.recorder.warnings,
        )
        finish_stage(self.stage_dir, outputs | hash_files(self.stage_dir, [LEDGER]), facts.dump())
        remove_checkpoints(self.stage_dir)

    def _enter_work(self, work: Work) -> None:
        self.ledger.skipped_tokens += work.skipped


def shared_arguments(settings: ResolvedArm, stage_dir: Path, seed: int, use_cpu: bool) -> dict[str, Any]:
    """The arguments that both TRL trainers take, the same for every arm."""
    return {
        "output_dir": str(stage_dir),
        "seed": seed,
        "max_steps": settings.steps,
        "num_train_epochs": 1,
        # All rows of a step; `train/token_budget.py` deals them into micro-batches.
        "per_device_train_batch_size": rows_per_rank(settings.problems_per_step * settings.completions_per_problem),
        "gradient_accumulation_steps": 1,
        "learning_rate": settings.learning_rate,
        # transformers' `constant` ignores warm-up.
        "lr_scheduler_type": "constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        "lr_scheduler_kwargs": {"num_decay_steps": settings.decay_steps} if settings.decay_steps else None,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "adam_beta2": settings.adam_beta2,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.dtype == "bfloat16",
        "gradient_checkpointing": not use_cpu,
        **device_arguments(use_cpu),
        "dataloader_pin_memory": not use_cpu,
        "save_strategy": "steps",
        "save_steps": settings.save_every_steps,
        "save_total_limit": 2,
        "ddp_timeout": _WAIT_SECONDS,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log the mean of earlier losses in place of nan
        "disable_tqdm": True,
        "report_to": [],
    }


def within_own_limits(
    settings: ResolvedArm,
    study: PromptSpec,
    problems: list[Problem],
    demonstrations: dict[str, list[Demonstration]],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[Problem], dict[str, list[Demonstration]]]:
    """The part of the corpus within an arm's own prompt and limits; the study's were applied when it was built.

    Returns the problems with a prompt that is short enough and, for arms that learn from a teacher, with a
    demonstration that is; and all demonstrations, with `fits` set for the arm's limit.
    """
    own = settings.prompt
    if own == study:
        return problems, demonstrations
    rendered = [render_prompt(tokenizer, problem.problem, own) for problem in problems]
    lengths = [len(ids) for ids in tokenizer(rendered)["input_ids"]]
    fitting = {
        identity: [row._replace(fits=row.fits and row.tokens <= own.max_completion_tokens) for row in rows]
        for identity, rows in demonstrations.items()
    }
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= own.max_prompt_tokens]
    if settings.sampling == "teacher":
        required = "usable" if settings.credit == "uniform" else "fits"
        kept = [p for p in kept if any(getattr(row, required) for row in fitting.get(p.problem_id, []))]
    return kept, fitting
