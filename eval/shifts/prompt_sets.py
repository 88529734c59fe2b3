"""The prompts on which base and tuned models are compared: those of the corpus and of every benchmark, as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.corpus.rows import read_demonstrations, read_problems
from data.prompts.prompt import completion_ids, load_tokenizer, render_prompt
from eval.questions.build import load_questions
from eval.questions.forms import sample_slice
from eval.questions.records import Question
from eval.responses.harness import render
from recipes.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINING = "training"
Ids = list[int]


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one benchmark, or of the corpus."""

    name: str
    group: str
    """The benchmark's group; `training` for the corpus."""
    question_ids: list[str]
    prompts: list[str]
    prompt_ids: list[Ids]
    references: list[Ids] | None
    """A fixed completion of each prompt, end of turn included; None where the benchmark has no text as reference."""
    paper_texts: list[str]
    """Question and reference as the published analysis joins them."""


def prompt_sets(recipe: Recipe, study_dir: Path) -> list[PromptSet]:
    """The sets of a study, rendered with the base's tokenizer and template: the corpus first, where there is one."""
    suite = recipe.require_suite()
    tokenizer, count = load_tokenizer(str(study_dir / "base")), recipe.require_diagnostics().prompts
    sets = [_training(recipe, study_dir, tokenizer, count)] if recipe.corpus.sources else []
    for benchmark in suite.benchmarks:
        questions = load_questions(recipe, benchmark, study_dir)
        questions = sample_slice(questions, count)
        prompting, _ = benchmark.cell(recipe.analysis.reading)
        prompts = [prompt.text for prompt in render(recipe, tokenizer, benchmark, prompting, questions)]
        references = [reference_completion(question) for question in questions]
        texts = [
            "  ".join([*(str(value) for value in question.fields.values()), reference or ""]).strip()
            for question, reference in zip(questions, references, strict=True)
        ]
        sets.append(
            PromptSet(
                benchmark.name,
                benchmark.group,
                [question.question_id for question in questions],
                prompts,
                [tokenizer(prompt)["input_ids"] for prompt in prompts],
                _completions(tokenizer, references),
                texts,
            )
        )
    return sets


def _training(recipe: Recipe, study_dir: Path, tokenizer: "PreTrainedTokenizerBase", count: int) -> PromptSet:
    corpus = study_dir / "corpus"
    problems = sorted(read_problems(corpus, "train"))[:count]  # by identity, which is a hash
    demonstrations = read_demonstrations(corpus) if recipe.corpus.teacher is not None else {}
    prompts = [render_prompt(tokenizer, problem.problem, recipe.prompt) for problem in problems]
    references: list[str | None] = []
    for problem in problems:
        usable = [row.completion for row in demonstrations.get(problem.problem_id, []) if row.usable]
        references.append(usable[0] if usable else problem.reference_answer)
    return PromptSet(
        TRAINING,
        TRAINING,
        [problem.problem_id for problem in problems],
        prompts,
        [tokenizer(prompt)["input_ids"] for prompt in prompts],
        _completions(tokenizer, references),
        [f"{problem.problem}  {problem.reference_answer}" for problem in problems],
    )


def reference_completion(question: Question) -> str | None:
    """The reference of a question as a text a model could have written; None where it is none."""
    reference: Any = question.reference
    if isinstance(reference, dict):
        reference = reference.get("answer", reference.get("annotators"))
    if isinstance(reference, list):
        reference = reference[0] if reference else None
    return reference if isinstance(reference, str) else None


def _completions(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str | None]) -> list[Ids] | None:
    known = [text for text in texts if text is not None]
    return completion_ids(tokenizer, known) if len(known) == len(texts) else None
