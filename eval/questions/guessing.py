"""What a model scores that picks among the given answers without reading the question."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.questions.build import load_questions
from eval.questions.choices import choice_reader
from eval.questions.forms import LETTERS
from eval.questions.records import Question
from eval.questions.task_files import suite_folder, task_path
from recipes.schema import Recipe
from recipes.suite_schema import TRAITS, BenchmarkSpec

# Their score is of several answers together, so what guessing gets depends on how the guesses go together.
_JOINT = ("strict_yes_no", "f1_yes_no", "strict_likelihood", "f1_likelihood")


def guess_levels(recipe: Recipe, study_dir: Path, reading: str) -> dict[str, float]:
    """Benchmark -> its score by guessing in a reading, in points, for those whose rule and questions tell it."""
    levels = {item.name: _level(recipe, study_dir, item, reading) for item in recipe.require_suite().benchmarks}
    return {name: round(level, 3) for name, level in levels.items() if level is not None}


def _level(recipe: Recipe, study_dir: Path, benchmark: BenchmarkSpec, reading: str) -> float | None:
    prompting, scoring = benchmark.cell(reading)
    rule = benchmark.scorings[scoring]
    if rule in _JOINT:
        return None
    if TRAITS[rule].references == "yes_no":
        return 50.0
    if TRAITS[rule].likelihoods:
        answers = choice_reader(task_path(suite_folder(recipe.require_suite()), benchmark.name, prompting))
        if answers is None or benchmark.restricted:
            return None
        return _by_guessing([len(answers(item)) for item in load_questions(recipe, benchmark, study_dir)])
    if TRAITS[rule].references != "letter":
        return None
    if benchmark.data is not None and benchmark.data.form == "gpqa":
        return 25.0  # its questions are restricted and always have four options
    return None if benchmark.restricted else letter_level(load_questions(recipe, benchmark, study_dir))


def letter_level(questions: Sequence[Question]) -> float | None:
    """The score by guessing among the letters of the options, in points; None where nothing tells how many there are.

    A question has as many options as its list of texts; where they are not a list, as many as the highest letter that
    is right somewhere in the benchmark says.
    """
    if not questions or any(item.reference not in tuple(LETTERS) for item in questions):
        return None
    highest = 1 + max(LETTERS.index(item.reference) for item in questions)
    counts = [_listed(item.fields) or highest for item in questions]
    return _by_guessing(counts) if min(counts) > 1 else None


def _listed(fields: dict[str, Any]) -> int:
    """How many options the only list of texts has; 0 where there is none, or several."""
    lists = [value for value in fields.values() if isinstance(value, list) and all(isinstance(x, str) for x in value)]
    return len(lists[0]) if len(lists) == 1 else 0


def _by_guessing(options: Sequence[int]) -> float:
    return 100 * sum(1 / count for count in options) / len(options)
