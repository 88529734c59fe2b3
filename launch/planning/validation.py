"""`transfer validate`: everything a study reads, opened and rendered before anything is spent.

It applies the stages' own filters and prompts and collects every mistake. Nothing is downloaded.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.corpus.demonstrations import graded_demonstrations
from data.corpus.filters import apply_filters, split_problems
from data.corpus.first_row import field_mistakes
from data.corpus.funnel import Funnel
from data.corpus.rows import Demonstration, problem_id
from data.corpus.sources import RawRow
from data.grading.grader import Grader
from data.hub import cached_files, cached_model, chosen, locate
from data.prompts.prompt import load_tokenizer, prepare_tokenizer, render_prompt
from data.prompts.template_contract import check_contract, prompts_of
from eval.questions.build import benchmark_files, read_source_questions
from eval.questions.choices import choice_reader
from eval.questions.mistakes import benchmark_mistakes
from eval.questions.records import Question
from eval.questions.task_files import suite_folder, task_path
from eval.questions.wording import filled, key_mistakes
from launch.planning.fit import fit_mistakes
from launch.planning.lengths import Lengths, lengths_of, require_one
from launch.planning.preflight import (
    fields_read,
    files_of_corpus,
    mistakes,
    too_few_problems,
    unresolved,
    unresolved_sentences,
    warnings,
)
from launch.planning.references import not_offered, reference_counts, whole_solutions
from launch.planning.unusable import first_unusable, many_without, none_usable
from recipes.corpus_schema import DataFiles
from recipes.errors import UserError, collected
from recipes.schema import Recipe
from recipes.suite_schema import TRAITS, BenchmarkSpec
from train.accounting.cost import model_shape
from train.accounting.matching import REMEDY, recipe_differences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sample:
    """One text as a model will see it, and what its responses are compared with."""

    name: str
    text: str
    reference: str | None = None
    """The reference answer; JSON where it is no text. None: there is none, or it is restricted."""
    choices: list[str] | None = None
    """The given answers whose likelihoods are compared; None where responses are generated."""


@dataclass
class Validation:
    """What was found. A study is valid if there are no mistakes."""

    study: str
    mistakes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What `transfer fetch` has still to bring, as in the plan; no mistake of the recipe."""
    not_checked: list[str] = field(default_factory=list)
    unresolved: set[tuple[str, str]] = field(default_factory=set)
    """Kind and name of files that no lock pins; `missing` says so."""
    absent: dict[str, list[str]] = field(default_factory=dict)
    """Kind of files -> names of those that are pinned and not here."""
    corpus: dict[str, Any] | None = None
    """Rows read; problems left, sampled for training, held out, solvable by the teacher; removed rows by reason."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Group -> its benchmarks."""
    trained_group: str = ""
    benchmarks: dict[str, dict[str, int]] = field(default_factory=dict)
    """Benchmark that was read -> its questions and clusters."""
    references: dict[str, dict[str, int]] = field(default_factory=dict)
    """Benchmark, or "" for the corpus -> reference answer -> how often it occurs; only of at most ten."""
    lengths: list[Lengths] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


def validate(recipe: Recipe, study_dir: Path) -> Validation:
    """Check a recipe and everything it reads. Trains, generates and downloads nothing."""
    validation = Validation(recipe.study, mistakes(recipe, counts=False), warnings(recipe))
    validation.missing += unresolved_sentences(recipe)
    validation.unresolved = {(item.kind, item.name) for item in unresolved(recipe)}
    if recipe.unmatched == "refuse":
        validation.mistakes += [f"the arms are unmatched in {text}; {REMEDY}" for text in recipe_differences(recipe)]
    validation.mistakes += [f"cannot work: {text}" for text in fit_mistakes(recipe, model_shape(recipe))]
    tokenizer = _tokenizer(recipe, study_dir, validation)
    heldout: list[RawRow] | None = None
    if recipe.corpus.sources:
        heldout = _corpus(recipe, study_dir, tokenizer, validation)
    if recipe.suite is not None:
        _suite(recipe, study_dir, tokenizer, heldout, validation)
    validation.mistakes = list(dict.fromkeys(validation.mistakes))
    validation.not_checked += [
        f"{what}{'s' * (len(names) > 1)} {', '.join(names)}: not in the cache of this machine"
        for what, names in validation.absent.items()
    ]
    return validation


def _tokenizer(recipe: Recipe, study_dir: Path, validation: Validation) -> "PreTrainedTokenizerBase | None":
    """The tokenizer of the base with the recipe's template, if it can be had here."""
    model = recipe.model
    if model is None:
        validation.not_checked.append("the chat template and token lengths: the recipe has no `model`")
        return None
    with collected(validation.mistakes):
        if (study_dir / "base" / "tokenizer.json").is_file():
            return load_tokenizer(str(study_dir / "base"))
        if model.pocket is not None:
            from data.prompts.pocket_tokenizer import pocket_tokenizer

            return pocket_tokenizer(model.pocket)
        folder = cached_model(str(model.path), recipe.lock_of_model(model.path, model.revision), model.revision)
        if folder is None:
            validation.not_checked.append(
                f"the chat template and token lengths: the tokenizer of {model.path} is not on this machine"
            )
            return None
        tokenizer = prepare_tokenizer(folder, model)
        for prompt in prompts_of(recipe):
            check_contract(tokenizer, prompt, str(model.path), training=bool(recipe.trained))
        return tokenizer
    validation.not_checked.append("the chat template and token lengths: the tokenizer cannot be used")
    return None


def _readable(what: str, files: DataFiles, lock: dict[str, Any] | None, validation: Validation) -> bool:
    """Whether files can be read here; of hub files that are pinned, says why not."""
    if files.kind == "pocket":
        return True
    if files.kind == "file":
        return Path(str(files.path)).is_file()
    if lock is None or (what, files.name) in validation.unresolved:
        return False
    if not cached_files(chosen(files, lock), lock):
        validation.absent.setdefault(what, []).append(files.name)
    else:
        with collected(validation.mistakes):
            locate(chosen(files, lock), lock)
            return True
    return False


def _corpus(
    recipe: Recipe, study_dir: Path, tokenizer: "PreTrainedTokenizerBase | None", validation: Validation
) -> list[RawRow] | None:
    """Build the corpus as far as it needs no model; the held-out rows, None if they cannot be told."""
    corpus, locks = recipe.corpus, recipe.lock.get("sources", {})
    usable, complete = set(), True
    for key, files in files_of_corpus(corpus).items():
        lock = locks.get(files.name)
        sentences = ["not here"]
        if _readable("source", files, lock, validation):
            sentences = [] if files.kind == "pocket" else field_mistakes(chosen(files, lock), fields_read(files), lock)
            validation.mistakes += sentences
        if not sentences:
            usable.add(key)
        elif key.startswith("sources."):
            complete = False
    texts = corpus.decontamination.benchmarks
    there = recipe.model_copy(update={"corpus": corpus.model_copy(update={
        "sources": tuple(s for n, s in enumerate(corpus.sources) if f"sources.{n}" in usable),
        "decontamination": corpus.decontamination.model_copy(update={
            "benchmarks": tuple(b for n, b in enumerate(texts) if f"decontamination.benchmarks.{n}" in usable)}),
    })})  # fmt: skip
    if not there.corpus.sources:
        return None
    funnel, split = Funnel(), None
    grader = Grader(workers=recipe.resources.workers or 2)
    try:
        sentences = []
        with collected(sentences):
            close = apply_filters(funnel, there, grader, tokenizer)
            validation.corpus = {
                "rows": funnel.total,
                "problems": len(funnel.kept),
                "close_to_a_benchmark": len(close),
                "removed": funnel.rejected(),
                "first_removed": funnel.reasons_text() if funnel.rejects else "",
            }
            if funnel.prompt_tokens:
                limit = recipe.prompt.max_prompt_tokens
                name = "prompts of problems"
                validation.lengths.append(lengths_of(name, funnel.prompt_tokens, "prompt.max_prompt_tokens", limit))
                require_one("problem", funnel.prompt_tokens, "prompt.max_prompt_tokens", limit, shown=True)
            if complete:
                split = split_problems(funnel, there)
                validation.corpus |= {"heldout_problems": len(split[0]), "train_problems": len(split[1])}
        validation.mistakes += sentences
        if not complete:
            validation.not_checked.append("whether there are enough problems: a source is missing")
        if recipe.corpus.pass_rate is not None:
            validation.not_checked.append("the pass rate of the base, which removes more problems")
        validation.references[""] = reference_counts(row.reference_answer for row in funnel.kept)
        asked = [(row.at, row.reference_answer, row.problem) for row in funnel.kept]
        validation.warnings += not_offered("the corpus", asked) + whole_solutions(corpus.sources, funnel.kept)
        heldout, train = split or ([], funnel.kept)
        if train:
            _problem_samples(recipe, train[0], tokenizer, validation)
            if split is not None:
                _demonstrations(there, study_dir, train, grader, tokenizer, "teacher.stored" in usable, validation)
                if not too_few_problems(recipe, corpus.train_problems):  # that is among the mistakes already
                    solvable = validation.corpus and validation.corpus.get("teacher_solvable")
                    validation.mistakes += too_few_problems(recipe, len(train), solvable or None)
        return heldout if split is not None else None
    finally:
        grader.close()


def _problem_samples(
    recipe: Recipe, row: RawRow, tokenizer: "PreTrainedTokenizerBase | None", validation: Validation
) -> None:
    problem, reference = row.problem, row.reference_answer
    if tokenizer is None:
        text = problem + recipe.prompt.suffix
        validation.samples.append(Sample("one problem (without the chat template)", text, reference))
        return
    validation.samples.append(Sample("one problem", render_prompt(tokenizer, problem, recipe.prompt), reference))
    for name, arm in recipe.trained.items():
        if arm.prompt is not None and arm.prompt != recipe.prompt:
            text = render_prompt(tokenizer, problem, arm.prompt)
            validation.samples.append(Sample(f"the same for arm {name}", text))


def _demonstrations(
    recipe: Recipe,
    study_dir: Path,
    train: list[RawRow],
    grader: Grader,
    tokenizer: "PreTrainedTokenizerBase | None",
    stored_is_here: bool,
    validation: Validation,
) -> None:
    """Grade the demonstrations that need no model, as the corpus stage does."""
    teacher = recipe.corpus.teacher
    if teacher is None:
        return
    if teacher.kind not in ("scripted", "stored") or (teacher.kind == "stored" and not stored_is_here):
        why = f"{teacher.model} writes them in the run"
        if teacher.kind == "stored":
            why = "its file is missing or does not fit its keys"
        validation.not_checked.append(f"demonstrations of the teacher: {why}")
        return
    rows: list[Demonstration] = []
    with collected(validation.mistakes):
        identified = [(problem_id(row.problem), row) for row in train]
        rows, _ = graded_demonstrations(recipe, study_dir, identified, grader, tokenizer, None)
    if not rows:
        return
    assert validation.corpus is not None
    solved = {row.problem_id for row in rows if row.usable}
    validation.corpus |= {"demonstrations": len(rows), "usable_demonstrations": sum(row.usable for row in rows),
                     "teacher_solvable": len(solved)}  # fmt: skip
    limit = recipe.prompt.max_completion_tokens
    if tokenizer is not None:
        tokens = [row.tokens for row in rows]
        validation.lengths.append(lengths_of("demonstrations", tokens, "prompt.max_completion_tokens", limit))
    if not solved:
        answers = {identity: row.reference_answer for identity, row in identified}
        validation.mistakes.append(none_usable(rows, limit, answers, recipe.corpus.answer_form))
        return
    validation.corpus["first_unusable"] = first_unusable(rows, limit, dict(identified), recipe.corpus.answer_form)
    validation.warnings += many_without(rows)
    text = next(row.completion for row in rows if row.usable)
    end = "" if tokenizer is None else str(tokenizer.eos_token)
    validation.samples.append(Sample("one demonstration, after that prompt", text + end))


def _suite(
    recipe: Recipe,
    study_dir: Path,
    tokenizer: "PreTrainedTokenizerBase | None",
    heldout: list[RawRow] | None,
    validation: Validation,
) -> None:
    suite = recipe.require_suite()
    for benchmark in suite.benchmarks:
        validation.groups.setdefault(benchmark.group, []).append(benchmark.name)
    validation.trained_group = recipe.analysis.trained_group
    try:
        folder = suite_folder(suite)
    except UserError:  # among the mistakes already
        return
    for benchmark in suite.benchmarks:
        questions = _questions(recipe, benchmark, study_dir, heldout, validation)
        if questions:
            clusters = len({question.cluster or question.question_id for question in questions})
            validation.benchmarks[benchmark.name] = {"questions": len(questions), "clusters": clusters}
            if not benchmark.restricted:
                validation.references[benchmark.name] = reference_counts(q.reference for q in questions)
        for prompting in benchmark.promptings if questions else ():
            path = task_path(folder, benchmark.name, prompting)
            with collected([]):  # wrong keys, and files that cannot be read, are among the mistakes already
                if path.is_file() and not key_mistakes(path):
                    _ask(recipe, benchmark, prompting, path, questions, tokenizer, validation)


def _questions(
    recipe: Recipe, benchmark: BenchmarkSpec, study_dir: Path, heldout: list[RawRow] | None, validation: Validation
) -> list[Question]:
    """The questions of a benchmark; none where they cannot be had here, or are wrong."""
    if benchmark.data is not None:
        data = benchmark_files(benchmark)
        lock = recipe.lock.get("benchmarks", {}).get(data.name)
        if not _readable("benchmark", data, lock, validation):
            return []
        sentences = benchmark_mistakes(benchmark, lock)
        validation.mistakes += sentences
        if sentences:
            return []
    elif benchmark.name == "heldout":
        if heldout is None:
            validation.not_checked.append("the questions of heldout: the corpus cannot be built here")
        rows = heldout or []
        return [Question(problem_id(row.problem), {"problem": row.problem}, row.reference_answer) for row in rows]
    with collected(validation.mistakes):
        return read_source_questions(recipe, benchmark, study_dir)
    return []


def _ask(
    recipe: Recipe,
    benchmark: BenchmarkSpec,
    prompting: str,
    path: Path,
    questions: list[Question],
    tokenizer: "PreTrainedTokenizerBase | None",
    validation: Validation,
) -> None:
    """Render all questions of a benchmark in one prompting, and compare their lengths with the limit."""
    if any(f"task file {path}, " in mistake for mistake in validation.mistakes):
        return  # rendering would tell it again
    name = benchmark.name if prompting == "native" else f"{benchmark.name}, {prompting}"
    sentences, texts = list[str](), list[str]()
    with collected(sentences):
        read = choice_reader(path)
        for question in questions if read is not None else ():
            assert read is not None
            read(question.fields)
        if tokenizer is None:
            # A question later in the file may not fill what the first one does.
            texts = [filled(path, question.fields | {"suffix": recipe.prompt.suffix}) for question in questions]
        else:
            texts = _rendered(recipe, benchmark, prompting, questions, tokenizer)
    if any(TRAITS[rule].references == "letter" for rule in benchmark.scorings.values()) and not benchmark.restricted:
        asked = [(q.place, q.reference, text) for q, text in zip(questions, texts, strict=False)]
        validation.warnings += not_offered(f"benchmark {name!r}", asked)
    validation.mistakes += [
        text if text.startswith("benchmark") else f"benchmark {benchmark.name!r}: {text}" for text in sentences
    ]
    if not texts:
        return
    how = "" if tokenizer is not None else " (without the chat template)"
    sample = Sample(f"one question of {name}{how}", "(restricted: not shown)")
    if not benchmark.restricted:
        choices = None if read is None or prompting not in benchmark.likelihood else read(questions[0].fields)
        reference = questions[0].reference
        shown = reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)
        sample = Sample(sample.name, texts[0], shown, choices)
    validation.samples.append(sample)
    if tokenizer is None:
        return
    limit = recipe.require_suite().max_prompt_tokens
    row = lengths_of(name, [len(ids) for ids in tokenizer(texts)["input_ids"]], "suite.max_prompt_tokens", limit)
    validation.lengths.append(row)
    if row.over:
        validation.mistakes.append(
            f"benchmark {benchmark.name!r}: {row.over} of {row.texts} prompts of {path.stem} are longer than "
            f"suite.max_prompt_tokens {limit}, the longest has {row.longest}; raise it"
        )


def _rendered(
    recipe: Recipe,
    benchmark: BenchmarkSpec,
    prompting: str,
    questions: list[Question],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[str]:
    """The prompts that the evaluation sends, from the evaluation's own code."""
    from jinja2 import TemplateError

    from eval.responses.harness import render

    try:
        return [prompt.text for prompt in render(recipe, tokenizer, benchmark, prompting, questions)]
    except TemplateError as error:
        raise UserError(f"a question does not fill its task file for {prompting!r}: {error}") from None
