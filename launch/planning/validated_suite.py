"""The questions of a suite, opened and rendered in every prompting as the evaluation does, for `transfer validate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from data.corpus.rows import problem_id
from data.corpus.sources import RawRow
from eval.questions.build import benchmark_files, read_source_questions
from eval.questions.choices import choice_reader, wordings
from eval.questions.mistakes import benchmark_mistakes
from eval.questions.records import Question
from eval.questions.task_files import suite_folder, task_path
from eval.questions.wording import key_mistakes
from launch.planning.lengths import lengths_of
from launch.planning.references import not_offered, reference_counts
from launch.planning.validated import Sample, Validation, readable
from recipes.errors import UserError, collected
from recipes.schema import Recipe
from recipes.suite_schema import TRAITS, BenchmarkSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def validate_suite(
    recipe: Recipe,
    study_dir: Path,
    tokenizer: "PreTrainedTokenizerBase | None",
    heldout: list[RawRow] | None,
    validation: Validation,
) -> None:
    """Read and render the questions of all benchmarks; `heldout`: the held-out problems, None if they are not known."""
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
        if not readable("benchmark", data, lock, validation):
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
        texts = wordings(path, questions, recipe.prompt.suffix)  # the harness does not say which row does not fill it
        if tokenizer is not None:
            texts = _rendered(recipe, benchmark, prompting, questions, tokenizer)
    if any(TRAITS[rule].references == "letter" for rule in benchmark.scorings.values()) and not benchmark.restricted:
        asked = [(q.location, q.reference, text) for q, text in zip(questions, texts, strict=False)]
        validation.warnings += not_offered(f"benchmark {name!r}", asked)
    validation.mistakes += [
        text if text.startswith("benchmark") else f"benchmark {benchmark.name!r}: {text}" for text in sentences
    ]
    if not texts:
        return
    how = "" if tokenizer is not None else " (without the chat template)"
    sample = Sample(f"one question of {name}{how}", "(restricted: not shown)")
    if not benchmark.restricted:
        choices = None if read is None or prompting not in benchmark.likelihood else read(questions[0])
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
