"""Mistakes that can be found before anything runs: missing files and models, unknown benchmarks, too few problems."""

import os
from pathlib import Path

from data.sources import POCKET_POOL, not_compared
from eval.task_files import task_folder
from recipes.corpus_schema import SamplerSpec
from recipes.errors import UserError
from recipes.schema import Recipe


def check_before_running(recipe: Recipe) -> None:
    """Raise UserError for a source file, a model directory or a task file that is not there, or too large a wish."""
    corpus = recipe.corpus
    keys = [f"sources.{number}" for number in range(len(corpus.sources))]
    keys += [f"decontamination.benchmarks.{number}" for number in range(len(corpus.decontamination.benchmarks))]
    for key, files in zip([*keys, "teacher.stored"], corpus.all_files(), strict=False):
        if files.kind == "file" and not Path(str(files.path)).is_file():
            raise UserError(f"source file {files.path} of {files.name} does not exist; set corpus.{key}.path=FILE")
    for sampler in _samplers(recipe):
        if sampler.kind == "endpoint" and sampler.api_key_variable and not os.environ.get(sampler.api_key_variable):
            raise UserError(f"the environment variable {sampler.api_key_variable} with the server's key is not set")
    if all(source.kind == "pocket" for source in corpus.sources):
        for setting, split in (("train_problems", "train"), ("heldout_problems", "heldout")):
            wanted, there = getattr(corpus, setting) or 0, POCKET_POOL[split]
            if wanted > there:
                raise UserError(f"corpus.{setting} is {wanted} but the synthetic world draws {there}; ask for fewer")
    path = recipe.model.path if recipe.model is not None else None
    # A hub id is "owner/name"; whether it exists only the hub knows.
    if path is not None and not Path(path).is_dir() and (path.count("/") != 1 or path[0] in "./~"):
        raise UserError(f"model.path {path} is neither a directory nor a Hugging Face id such as Qwen/Qwen3-14B-Base")
    if recipe.suite is not None:
        task_folder(recipe.suite)


def check_resolved(recipe: Recipe) -> None:
    """Raise UserError for a hub dataset or model that no lock pins: it could be another one tomorrow."""
    locked = recipe.lock.get("sources", {})
    for item in recipe.corpus.all_files():
        if item.kind == "hub" and item.name not in locked:
            raise UserError(f"source {item.name} is not resolved; run `transfer fetch RECIPE` on a connected machine")
    models = [(recipe.model.path, recipe.model.revision)] if recipe.model is not None else []
    models += [(s.model, s.revision) for s in _samplers(recipe) if s.kind == "transformers" and s.model != "base"]
    for path, revision in models:
        if path is None or Path(path).is_dir() or revision is not None or path in recipe.lock.get("models", {}):
            continue
        raise UserError(f"model {path} is not resolved; run `transfer fetch RECIPE` on a connected machine")


def warnings(recipe: Recipe) -> list[str]:
    """What is allowed but probably not meant, as sentences."""
    missing = not_compared(recipe)
    if not missing:
        return []
    return [
        f"the corpus is not compared with the questions of {', '.join(missing)}; list them under "
        "corpus.decontamination.benchmarks"
    ]


def _samplers(recipe: Recipe) -> list[SamplerSpec]:
    pass_rate = recipe.corpus.pass_rate
    found = [recipe.corpus.teacher, pass_rate.sampler if pass_rate is not None else None]
    return [sampler for sampler in found if sampler is not None]
