"""`transfer validate`: everything a study reads, opened and rendered before anything is spent.

It applies the stages' own filters and prompts and collects every mistake. Nothing is downloaded.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from data.corpus.demonstrations import graded_demonstrations
from data.corpus.filters import apply_filters, split_problems
from data.corpus.first_row import field_mistakes
from data.corpus.funnel import Funnel
from data.corpus.rows import Demonstration, problem_id
from data.corpus.sources import RawRow
from data.corpus.stored import PassedOver
from data.grading.grader import Grader
from data.hub import cached_model, chosen
from data.prompts.prompt import load_tokenizer, prepare_tokenizer, render_prompt
from data.prompts.template_contract import check_contract, prompts_of
from launch.planning.fit import fit_mistakes
from launch.planning.lengths import lengths_of, require_one
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
from launch.planning.validated import Sample, Validation, readable
from launch.planning.validated_suite import validate_suite
from recipes.errors import collected
from recipes.schema import Recipe
from train.accounting.cost import model_shape
from train.accounting.matching import REMEDY, recipe_differences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        validate_suite(recipe, study_dir, tokenizer, heldout, validation)
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


def _corpus(
    recipe: Recipe, study_dir: Path, tokenizer: "PreTrainedTokenizerBase | None", validation: Validation
) -> list[RawRow] | None:
    """Build the corpus as far as it needs no model; the held-out rows, None if they cannot be told."""
    corpus, locks = recipe.corpus, recipe.lock.get("sources", {})
    usable, complete = set(), True
    for key, files in files_of_corpus(corpus).items():
        lock = locks.get(files.name)
        sentences = ["not here"]
        if readable("source", files, lock, validation):
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
                "first_removed": funnel.first_rejects(),
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
    rows, passed_over = list[Demonstration](), PassedOver()
    with collected(validation.mistakes):
        identified = [(problem_id(row.problem), row) for row in train]
        rows, _ = graded_demonstrations(recipe, study_dir, identified, grader, tokenizer, None, passed_over)
    assert validation.corpus is not None
    if passed_over.rows:
        validation.corpus["stored_passed_over"] = {"rows": passed_over.rows, "first": passed_over.first}
    if not rows:
        return
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
