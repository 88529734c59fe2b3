"""What a rehearsal scales down. Settings that are not named here stay as in the recipe."""

from collections.abc import Collection
from copy import deepcopy
from math import lcm
from typing import Any, NamedTuple

from launch.rehearsal.hardware import Hardware
from recipes.loading import validate_recipe
from recipes.schema import Recipe

STEPS = 2  # of samplings, if several steps share one
COMPLETIONS = 4
QUESTIONS = 4
SOURCE_ROWS = 48
HELDOUT = 8
LEARNING_RATE = 1e-3  # in bfloat16, two steps at a large model's learning rate would be rounded away
PROMPT_TOKENS, COMPLETION_TOKENS, RESPONSE_TOKENS = 1024, 48, 32
_MOST_IN_TRAIN = {
    "warmup_steps": 0,  # the learning rate of a warm-up starts at 0
    "decay_steps": 1,
    "snapshots": 2,
    "overlong_tokens": COMPLETION_TOKENS // 4,
}
"""Largest values of settings of `train`, the study's or an arm's own."""


class Scaled(NamedTuple):
    """One setting that a rehearsal changes."""

    key: str
    recipe: Any
    """Its value in the recipe."""
    rehearsal: Any
    """Its value in the rehearsal."""


class Scale(NamedTuple):
    """A recipe at toy size."""

    recipe: Recipe
    changes: tuple[Scaled, ...]
    not_rehearsed: tuple[str, ...]


class Replacements(NamedTuple):
    """What a rehearsal reads instead of the data and models of the recipe."""

    models: dict[str, str]
    """Key of a model, such as `model.path` -> folder of a small one."""
    files: dict[str, str]
    """Key of a section, such as `corpus.sources.0` -> JSONL file of a few rows."""
    teacher: str | None
    """Address of the stand-in teacher."""
    settings: dict[str, dict[str, Any]]
    """Key of a section -> settings of the locked alternative that differ from the section's."""


class _ScaledSettings:
    """The nested settings of a recipe, and every change to them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = deepcopy(settings)
        self.changes: list[Scaled] = []

    def set(self, key: str, value: Any) -> None:
        """Set a dotted key, unless its section is off or its value is the same."""
        section, last = self._section(key)
        if section is not None and section.get(last) != value:
            self.changes.append(Scaled(key, section.get(last), value))
            section[last] = value

    def lower(self, key: str, most: int) -> None:
        """Set a number to `most` if it is larger."""
        section, last = self._section(key)
        if section is not None and section.get(last) is not None and section[last] > most:
            self.set(key, most)

    def _section(self, key: str) -> tuple[Any, str]:
        """The mapping that holds a dotted key (None if a section is off), and the last part of the key."""
        *path, last = key.split(".")
        section: Any = self.settings
        for part in path:
            section = section[int(part)] if isinstance(section, list) else section.get(part)
            if section is None:
                break
        return section, last


def scale(recipe: Recipe, hardware: Hardware, replacements: Replacements) -> Scale:
    """A recipe at toy size for this hardware."""
    scaled, missing = _ScaledSettings(recipe.dump()), list(hardware.missing)
    scaled.settings["rehearsal"] = True
    scaled.settings["title"] = f"REHEARSAL of {recipe.title or recipe.study}"
    scaled.set("seeds", [recipe.seeds[0]])
    _resources(scaled, recipe, hardware, missing)
    _training(scaled, recipe, hardware)
    _corpus(scaled, recipe)
    _evaluation(scaled, recipe, hardware, missing)
    _replace(scaled, recipe, replacements)
    if (tracked := recipe.wandb_settings) is not None:
        scaled.set("wandb.mode", "offline")
        scaled.set("wandb.project", f"{tracked.project}-rehearsal")
    rehearsed = validate_recipe(scaled.settings, "the rehearsal")
    return Scale(rehearsed, tuple(scaled.changes), tuple(dict.fromkeys(missing)))


def _resources(scaled: _ScaledSettings, recipe: Recipe, hardware: Hardware, missing: list[str]) -> None:
    scaled.set("resources.ranks", hardware.ranks)
    scaled.set("resources.nodes", hardware.nodes)
    vllm = recipe.resources.vllm
    if not hardware.gpus:
        # The plan's checks of GPU memory do not apply.
        scaled.set("resources.gpu", None)
        if recipe.model is not None and recipe.model.attention.startswith("flash"):
            scaled.set("model.attention", "sdpa")
            missing.append(f"model.attention {recipe.model.attention}: sdpa is used, because there is no GPU")
        scaled.set("resources.workers", 1)
    if vllm is None or not any(arm.sampling != "teacher" for arm in recipe.trained.values()):
        return
    if vllm.mode == "server" and (vllm.server_url is not None or not hardware.gpus):
        why = "the server has another model" if vllm.server_url else "sending it weights needs NCCL and GPUs"
        scaled.set("resources.vllm", None)
        missing.append(f"resources.vllm server: transformers samples during training, because {why}")
    elif hardware.vllm is None:
        scaled.set("resources.vllm", None)
        missing.append("resources.vllm: transformers samples during training, because vLLM is not installed")
    else:
        if not hardware.gpus and vllm.sleep is not False:
            scaled.set("resources.vllm.sleep", False)
            missing.append("resources.vllm.sleep: vLLM keeps its memory during training, because there is no GPU")
        if vllm.tensor_parallel > hardware.ranks or (not hardware.gpus and vllm.tensor_parallel > 1):
            scaled.set("resources.vllm.tensor_parallel", 1)
            missing.append(f"resources.vllm.tensor_parallel {vllm.tensor_parallel}: each rank has a whole model")


def _training(scaled: _ScaledSettings, recipe: Recipe, hardware: Hardware) -> None:
    if recipe.train is None:
        return
    train = recipe.train
    # Two samplings of every arm, with a checkpoint between them.
    shared = lcm(*(arm.updates_per_batch for arm in recipe.trained.values()))
    steps = STEPS * shared
    completions = min(train.completions_per_problem, COMPLETIONS)
    micro = min(train.micro_batch_size or COMPLETIONS, 2)
    # At least two micro-batches on every rank, so that gradients accumulate.
    problems = max(2, -(-2 * hardware.ranks * micro // completions))
    while problems * completions % (hardware.ranks * micro):
        problems += 1
    scaled.set("train.steps", steps)
    scaled.set("train.learning_rate", LEARNING_RATE)
    scaled.set("train.completions_per_problem", completions)
    scaled.set("train.problems_per_step", problems)
    fixed = {
        "micro_batch_size": micro,
        "micro_batch_tokens": micro * (PROMPT_TOKENS + COMPLETION_TOKENS),
        "save_every_steps": shared,
    }
    _limits(scaled, "train", [key for key, value in train if value is not None], fixed)
    for name, arm in recipe.trained.items():
        if arm.learning_rate is not None:
            scaled.set(f"arms.{name}.learning_rate", LEARNING_RATE)
        if arm.steps is not None:
            scaled.set(f"arms.{name}.steps", steps)
        if arm.round_steps is not None:
            scaled.set(f"arms.{name}.round_steps", 1)
        if arm.prompt is not None:
            scaled.lower(f"arms.{name}.prompt.max_prompt_tokens", PROMPT_TOKENS)
            scaled.lower(f"arms.{name}.prompt.max_completion_tokens", COMPLETION_TOKENS)
        own = f"arms.{name}.train"
        _limits(scaled, own, arm.train, fixed)
        if "completions_per_problem" in arm.train or "problems_per_step" in arm.train:  # as many rows as other arms
            group_size = min(arm.train.get("completions_per_problem", completions), completions)
            while problems * completions % group_size:
                group_size -= 1
            scaled.set(f"{own}.completions_per_problem", group_size)
            scaled.set(f"{own}.problems_per_step", problems * completions // group_size)


def _limits(scaled: _ScaledSettings, section: str, given: Collection[str], fixed: dict[str, int]) -> None:
    """Scale a `train` section, the study's or an arm's own, which has the keys `given`."""
    for key, value in fixed.items():
        if key in given:
            scaled.set(f"{section}.{key}", value)
    for key, most in _MOST_IN_TRAIN.items():
        scaled.lower(f"{section}.{key}", most)


def _corpus(scaled: _ScaledSettings, recipe: Recipe) -> None:
    scaled.lower("prompt.max_prompt_tokens", PROMPT_TOKENS)
    scaled.lower("prompt.max_completion_tokens", COMPLETION_TOKENS)
    if recipe.corpus.train_problems is not None:
        scaled.lower("corpus.train_problems", SOURCE_ROWS - HELDOUT)
    scaled.lower("corpus.heldout_problems", HELDOUT)
    scaled.lower("drift.problems", QUESTIONS)
    scaled.lower("model.pocket.documents", 4000)
    for sampler in ("teacher", "pass_rate.sampler"):
        scaled.lower(f"corpus.{sampler}.max_completion_tokens", COMPLETION_TOKENS)
    if recipe.corpus.pass_rate is not None:  # the pass rates of a toy base must not filter problems
        scaled.set("corpus.pass_rate.low", 0.0)
        scaled.set("corpus.pass_rate.high", 1.0)


def _evaluation(scaled: _ScaledSettings, recipe: Recipe, hardware: Hardware, missing: list[str]) -> None:
    suite = recipe.suite
    scaled.lower("statistics.draws", 200)
    if suite is None:
        return
    scaled.lower("suite.questions", QUESTIONS)
    scaled.lower("suite.samples_per_question", 2)
    scaled.lower("suite.max_response_tokens", RESPONSE_TOKENS)
    scaled.lower("suite.chunk_questions", QUESTIONS // 2)
    scaled.lower("suite.engine.batch_size", 16)
    for index, benchmark in enumerate(suite.benchmarks):
        scaled.lower(f"suite.benchmarks.{index}.samples", 2)
        if benchmark.data is not None:
            scaled.set(f"suite.benchmarks.{index}.data.rows", None)
    scaled.lower("trajectory.questions", QUESTIONS)
    scaled.lower("trajectory.heldout_problems", QUESTIONS)
    scaled.lower("trajectory.draws", 100)
    scaled.lower("diagnostics.prompts", QUESTIONS)
    scaled.lower("diagnostics.max_completion_tokens", RESPONSE_TOKENS // 2)
    scaled.lower("diagnostics.draws", 50)
    engine = suite.engine
    if engine.kind == "endpoint":
        scaled.set("suite.engine", {**engine.model_dump(mode="json"), "kind": "hf", "base_url": None, "model": None})
        missing.append("suite.engine endpoint: transformers generates, because the server has another model")
    if engine.kind == "vllm" and hardware.vllm is None:
        scaled.set("suite.engine.kind", "hf")
        missing.append("suite.engine vllm: transformers generates, because vLLM is not installed")
    elif engine.kind == "vllm":
        if engine.tensor_parallel > max(1, hardware.gpus):
            scaled.set("suite.engine.tensor_parallel", 1)
            missing.append(f"suite.engine.tensor_parallel {engine.tensor_parallel}: one process has the whole model")
        if not hardware.gpus:
            scaled.set("suite.engine.eager", True)


def _replace(scaled: _ScaledSettings, recipe: Recipe, replacements: Replacements) -> None:
    """Use small models, the files of a few rows and the stand-in teacher."""
    for key, folder in replacements.models.items():
        scaled.set(key, folder)
        scaled.set(f"{key.rpartition('.')[0]}.revision", None)
    for key, file in replacements.files.items():
        # `columns` names those of a file without a header; JSONL rows have keys.
        section: dict[str, Any] = {"kind": "file", "path": file, "dataset": None, "files": [], "columns": []}
        section |= {"alternatives": [], "revision": None}
        for name, value in (replacements.settings.get(key, {}) | section).items():
            scaled.set(f"{key}.{name}", value)
    for sampler, spec in recipe.corpus.samplers.items():
        if spec.kind == "endpoint" and replacements.teacher is not None:
            scaled.set(f"corpus.{sampler}.base_url", replacements.teacher)
            scaled.set(f"corpus.{sampler}.api_key_variable", None)
            scaled.lower(f"corpus.{sampler}.concurrency", 8)
    scaled.settings["lock"] = {}
