"""The given answers of a benchmark that compares likelihoods, as lm-evaluation-harness reads `doc_to_choice`.

A list is taken literally; a text is a field, or a template that prints a list. Needs no lm-evaluation-harness.
"""

import ast
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eval.questions.forms import LETTERS
from eval.questions.wording import OF_EVERY_QUESTION, rendered, task_values, unknown_names
from recipes.errors import UserError
from recipes.suite_schema import BenchmarkSpec

_SHOWN_CHARS = 80
_EXAMPLE = 'doc_to_choice: "{{[a, b]}}"'


def choice_reader(path: Path) -> Callable[[Mapping[str, Any]], list[str]] | None:
    """What gives the answers of a question from its fields; None for a task file without any.

    It raises UserError if the task file gives no list for a question.

    Raises:
        UserError: the task file cannot be read, or its answers would be the same braces for every question.
    """
    settings = task_values(path)
    choices = settings.get("doc_to_choice")
    if choices is None:
        if settings.get("output_type") == "multiple_choice":
            raise UserError(
                f"task file {path} has output_type multiple_choice but no doc_to_choice; add it, as in {_EXAMPLE}"
            )
        return None
    if isinstance(choices, dict):
        choices = list(choices.values())
    if isinstance(choices, list):
        texts = [str(choice) for choice in choices]
        if literal := next((text for text in texts if "{{" in text or "{%" in text), None):
            raise UserError(
                f"task file {path}, doc_to_choice is a list, which is taken literally: {literal!r} would be an answer; "
                f"write {_template_of(texts)}"
            )
        return lambda fields: texts
    if not isinstance(choices, str):
        return None  # a function of the task file
    return lambda fields: _answers(path, choices, fields)


def _answers(path: Path, template: str, fields: Mapping[str, Any]) -> list[str]:
    question = dict.fromkeys(OF_EVERY_QUESTION, "") | dict(fields)
    value = question.get(template)
    text = "" if template in question else rendered(path, "doc_to_choice", template, fields)
    if template not in question:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
    if not isinstance(value, list | tuple) or not value:
        for sentence in unknown_names(path, question):  # printed in a list, it is no error of jinja's
            if sentence.startswith(f"task file {path}, doc_to_choice"):
                raise UserError(sentence)
        shown = text or str(question.get(template))
        raise UserError(
            f"task file {path}, doc_to_choice gives {shown[:_SHOWN_CHARS]!r}, which is no list of answers; write a "
            f"template that prints a list, as in {_EXAMPLE}"
        )
    return [str(item) for item in value]


def _template_of(texts: list[str]) -> str:
    """The template that prints the list which was meant by a list of templates."""
    if any("{%" in text for text in texts):
        return f"a template that prints the list, as in {_EXAMPLE}"
    expressions = []
    for text in texts:
        parts = re.split(r"\{\{(.*?)\}\}", text, flags=re.DOTALL)  # text, expression, text, ...
        terms = [part.strip() if index % 2 else f"'{part}'" for index, part in enumerate(parts) if part]
        expressions.append(" ~ ".join(terms))
    return f'doc_to_choice: "{{{{[{", ".join(expressions)}]}}}}"'


def is_answer(reference: Any, choices: list[str]) -> bool:
    """Whether a reference can be found right: the letter of a choice, or its text."""
    return isinstance(reference, str) and (
        reference in tuple(LETTERS[: len(choices)]) or reference in [choice.strip() for choice in choices]
    )


def require_output_type(path: Path, output_type: str, benchmark: BenchmarkSpec, prompting: str) -> None:
    """Raise UserError if a task file stores likelihoods and the recipe does not say so, or the reverse."""
    stores_likelihood, listed = output_type == "multiple_choice", prompting in benchmark.likelihood
    if stores_likelihood and not listed:
        raise UserError(
            f"{path} has output_type {output_type} but the recipe does not list {prompting!r} under `likelihood` of "
            f"{benchmark.name}; add `likelihood: [{', '.join((*benchmark.likelihood, prompting))}]` and a scoring "
            "`likelihood`, or leave output_type out"
        )
    if listed and not stores_likelihood:
        raise UserError(
            f"{path} has output_type {output_type} but the recipe lists {prompting!r} under `likelihood` of "
            f"{benchmark.name}; set output_type: multiple_choice and doc_to_choice, or leave it out of `likelihood`"
        )
