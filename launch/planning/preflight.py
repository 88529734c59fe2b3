"""Mistakes that can be found before anything runs: missing files and models, unknown benchmarks, too few problems."""

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data.corpus.filters import split_problems
from data.corpus.first_row import field_mistakes, not_there
from data.corpus.funnel import Funnel
from data.corpus.sources import POCKET_POOL, not_compared, read_source, source_fields
from data.hub import chosen, lock_mismatch
from eval.questions.build import benchmark_files
from eval.questions.mistakes import suffix_warnings, suite_mistakes
from eval.questions.suite_size import WHOLE_FILE_BYTES
from launch.planning.lengths import check_lengths, check_questions
from launch.planning.templates import check_templates
from recipes.corpus_schema import BenchmarkTexts, CorpusSpec, DataFiles, SourceSpec, StoredCompletions
from recipes.errors import UserError, collected
from recipes.loading import recipe_of_study
from recipes.schema import Recipe
from recipes.suggestions import similar_path
from train.arms import ResolvedArm, resolve_arm


def check_before_running(recipe: Recipe) -> None:
    """Raise UserError with a sentence for every mistake that `mistakes` finds."""
    if sentences := mistakes(recipe):
        raise UserError("\n".join(sentences))


def mistakes(recipe: Recipe, counts: bool = True) -> list[str]:
    """Every mistake that the recipe and local files show in a fraction of a second, a sentence each.

    Files and models that are not there, columns and templates that do not fit the first row, more problems than there
    are, unusable chat templates, task files that a question does not fill, length limits that drop everything.
    Without `counts`, neither lengths nor the number of problems are looked at.
    """
    sentences = [*_corpus_mistakes(recipe, counts), *_model_mistakes(recipe)]
    if recipe.suite is not None:
        sentences += suite_mistakes(recipe)
    if counts and not sentences:  # what is missing above could not be read
        with collected(sentences):
            check_lengths(recipe)
        with collected(sentences):
            if recipe.suite is not None:
                check_questions(recipe)
    return list(dict.fromkeys(sentences))


def files_of_corpus(corpus: CorpusSpec) -> dict[str, DataFiles]:
    """Everything the corpus reads, by its key in the recipe below `corpus`."""
    named: dict[str, DataFiles] = {f"sources.{index}": source for index, source in enumerate(corpus.sources)}
    named |= {f"decontamination.benchmarks.{index}": texts
              for index, texts in enumerate(corpus.decontamination.benchmarks)}  # fmt: skip
    if corpus.teacher is not None and corpus.teacher.stored is not None:
        named["teacher.stored"] = corpus.teacher.stored
    return named


def fields_read(files: DataFiles) -> list[str]:
    """The fields that a part of the corpus reads of its rows."""
    if isinstance(files, SourceSpec):
        return source_fields(files)
    if isinstance(files, BenchmarkTexts):
        return list(files.text_fields)
    return [files.problem_field, files.completion_field] if isinstance(files, StoredCompletions) else []


def _corpus_mistakes(recipe: Recipe, counts: bool) -> list[str]:
    corpus = recipe.corpus
    sentences = []
    for key, files in files_of_corpus(corpus).items():
        if files.kind == "file" and not Path(str(files.path)).is_file():
            sentences.append(not_there(f"source {files.name}", files, f"corpus.{key}.path=FILE"))
        elif files.kind == "file":
            sentences += field_mistakes(files, fields_read(files))
    for sampler in corpus.samplers.values():
        if sampler.kind == "endpoint" and sampler.api_key_variable and not os.environ.get(sampler.api_key_variable):
            sentences.append(f"the environment variable {sampler.api_key_variable} with the server's key is not set")
    sentences += too_few_problems(recipe, corpus.train_problems)
    if corpus.sources and all(source.kind == "pocket" for source in corpus.sources):
        for setting, split in (("train_problems", "train"), ("heldout_problems", "heldout")):
            wanted, there = getattr(corpus, setting) or 0, POCKET_POOL[split]
            if wanted > there:
                sentences.append(f"corpus.{setting} is {wanted} but the synthetic world has {there}; lower it")
    elif counts and not sentences and corpus.sources and all(source.kind == "file" for source in corpus.sources):
        with collected(sentences):
            _check_counts(recipe)
    return sentences


def _check_counts(recipe: Recipe) -> None:
    """Raise UserError if small local files hold fewer problems than the recipe needs, whatever the filters leave."""
    sources = recipe.corpus.sources
    if sum(Path(str(source.path)).stat().st_size for source in sources) > WHOLE_FILE_BYTES:
        return
    funnel = Funnel()
    funnel.take([row for source in sources for row in read_source(source, recipe.corpus.seed)])
    _, train = split_problems(funnel, recipe)
    if sentences := too_few_problems(recipe, len(train)):
        raise UserError("\n".join(sentences))


def _model_mistakes(recipe: Recipe) -> list[str]:
    sentences = []
    paths = {"model.path": recipe.model.path} if recipe.model is not None and recipe.model.path is not None else {}
    paths |= {f"arms.{name}.external": external.path for name, external in recipe.external.items()}
    for key, path in paths.items():
        if (why := model_mistake(path)) is not None:
            sentences.append(f"{key} {path} {why}")
    sentences += [
        f"corpus.{name}.model {sampler.model} {why}"
        for name, sampler in recipe.corpus.samplers.items()
        if sampler.kind == "transformers" and Path(str(sampler.model)).is_dir()
        and (why := model_mistake(str(sampler.model))) is not None
    ]  # fmt: skip
    with collected(sentences):
        check_templates(recipe)
    return sentences


def model_mistake(path: str) -> str | None:
    """Why no model can be loaded from a path or hub id, to follow its name; None if nothing speaks against it."""
    folder = Path(path)
    if folder.is_dir():
        if any(folder.glob("*.safetensors")):
            return None
        within = [file.parent for depth in ("*", "*/*") for file in folder.glob(f"{depth}/*.safetensors")]
        if within:
            best = min(within, key=lambda part: (part.name != "final", len(part.parts), part))
            return f"has no safetensors weights; did you mean {best}?"
        return (
            "has no safetensors weights; name a folder that has them, or convert it with transformers: "
            "save_pretrained writes them"
        )
    if _may_be_hub_id(path):
        return None
    study, near = _study_of(folder), similar_path(folder)
    maker = None if study is None else recipe_of_study(study)
    made = f"`transfer run {maker}` makes it" if maker else f"the study {study} makes it" if study is not None else None
    if near is not None:
        return f"does not exist; did you mean {near}?" + (f" If not, {made}" if maker else "")
    return (
        f"does not exist; {made}"
        if made
        else "is neither a directory nor a Hugging Face id such as Qwen/Qwen3-14B-Base"
    )


def _study_of(path: Path) -> str | None:
    """The study that a missing folder would be a part of: the name below `runs`."""
    parts = path.parts
    below = parts.index("runs") + 1 if "runs" in parts else len(parts)
    return parts[below] if below < len(parts) else None


def _may_be_hub_id(path: str) -> bool:
    """Whether a path can be "owner/name" of the hub; whether that exists only the hub knows."""
    return path.count("/") == 1 and path[0] not in "./~"


_KINDS = ("model", "source", "benchmark")


class Unresolved(NamedTuple):
    """A hub dataset or model that no lock pins, so it could be another one tomorrow."""

    kind: Literal["source", "benchmark", "model"]
    name: str
    why: str | None = None
    """How the lock's entry contradicts the recipe; None if there is no entry."""


def unresolved(recipe: Recipe) -> list[Unresolved]:
    """What `transfer fetch` has still to resolve for a recipe: sources, then benchmarks, then models."""
    pending = []
    items: list[tuple[Literal["source", "benchmark"], DataFiles]] = []
    items += [("source", files) for files in recipe.corpus.all_files()]
    items += [("benchmark", benchmark_files(item)) for item in recipe.benchmarks if item.data is not None]
    for kind, files in items:
        if files.kind == "hub":
            entry = recipe.lock.get(f"{kind}s", {}).get(files.name)
            why = None if entry is None else _contradiction(files, entry)
            if entry is None or why is not None:
                pending.append(Unresolved(kind, files.name, why))
    for path, revision in recipe.models_read():
        if revision is None and not Path(path).is_dir() and recipe.lock_of_model(path, revision) is None:
            pending.append(Unresolved("model", path))
    return pending


def _contradiction(files: DataFiles, entry: dict[str, Any]) -> str | None:
    try:
        return lock_mismatch(chosen(files, entry), entry)
    except UserError as error:
        return str(error)


def unresolved_sentences(recipe: Recipe) -> list[str]:
    """A sentence about what is not resolved, and one for each entry of the lock that contradicts the recipe."""
    pending = [item for item in unresolved(recipe) if item.kind != "model" or _may_be_hub_id(item.name)]
    named = {kind: [item.name for item in pending if item.kind == kind and item.why is None] for kind in _KINDS}
    # The corpus is compared with benchmarks, which are sources then.
    named["source"] = [name for name in named["source"] if name not in named["benchmark"]]
    fetch = f"run `{recipe.fetch_command}` on a connected machine"
    if recipe.fetches_models:
        groups = [(tuple(named), fetch)]
    else:
        of_model = "name a commit, as MODEL@COMMIT"
        groups = [(("model",), of_model), (("source", "benchmark"), fetch)]
    sentences = []
    for kinds, advice in groups:
        parts = [f"{kind}{'s' * (len(named[kind]) > 1)} {', '.join(named[kind])}" for kind in kinds if named[kind]]
        if parts:
            several = sum(len(named[kind]) for kind in kinds) > 1
            listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
            sentences.append(f"{listed} {'are' if several else 'is'} not resolved; {advice}")
    again = f"run `{recipe.fetch_command}` again"
    return [*sentences, *(f"{item.kind} {item.name}: {item.why}; {again}" for item in pending if item.why)]


def check_resolved(recipe: Recipe) -> None:
    """Raise UserError that lists every hub dataset and model that no lock pins."""
    if sentences := unresolved_sentences(recipe):
        raise UserError("\n".join(sentences))


def warnings(recipe: Recipe) -> list[str]:
    """What is allowed but probably not meant, as sentences."""
    sentences = []
    if missing := not_compared(recipe) if recipe.corpus.sources else []:
        sentences.append(
            f"the corpus is not compared with the questions of {', '.join(missing)}; list them under "
            "corpus.decontamination.benchmarks"
        )
    if recipe.arms and {benchmark.group for benchmark in recipe.benchmarks} == {recipe.analysis.trained_group}:
        sentences.append(
            f"every benchmark is in the trained group {recipe.analysis.trained_group}, so the report cannot show what "
            "was forgotten; add benchmarks of another group"
        )
    arms = {name: resolve_arm(recipe, name) for name in recipe.trained}
    return [*sentences, *suffix_warnings(recipe), *_no_full_rate(arms), *_no_snapshots(recipe, arms)]


def too_few_problems(recipe: Recipe, problems: int | None, solvable: int | None = None) -> list[str]:
    """What keeps arms from training on so many problems of the set `all` and of `teacher_solvable`; None: unknown."""
    sentences: list[str] = []
    for name in recipe.trained:
        arm = resolve_arm(recipe, name)
        there = problems if arm.problem_set == "all" or solvable is None else solvable
        if there is not None:
            with collected(sentences):
                arm.require_problems(there)
    return list(dict.fromkeys(sentences))


def _no_snapshots(recipe: Recipe, arms: dict[str, ResolvedArm]) -> list[str]:
    """A sentence about arms whose trajectory is their final model alone."""
    alone = [name for name, arm in arms.items() if arm.kept_weights == 1]
    if not recipe.with_trajectories or not alone:
        return []
    return [
        f"`trajectory` of {', '.join(alone)}: the final model alone, because train.snapshots is "
        f"{arms[alone[0]].snapshots}; set train.snapshots=8 for checkpoints on the way"
    ]


def _no_full_rate(arms: dict[str, ResolvedArm]) -> list[str]:
    """A sentence about arms whose warm-up does not end before their training."""
    never = {name: arm for name, arm in arms.items() if arm.warmup_steps >= arm.steps}
    if not never:
        return []
    arm = next(iter(never.values()))
    return [
        f"{', '.join(never)}: the learning rate never reaches its full value, because train.warmup_steps is "
        f"{arm.warmup_steps} and train.steps is {arm.steps}"
    ]
