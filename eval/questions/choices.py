"""The given answers of a benchmark that compares likelihoods, as lm-evaluation-harness reads `doc_to_choice`.

A list is taken literally; a text is a field, or a template that prints a list. Needs no lm-evaluation-harness.
"""

import ast
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from eval.questions.forms import LETTERS
from eval.questions.records import Question
from eval.questions.wording import OF_EVERY_QUESTION, filled_all, rendered, task_values, unknown_names
from recipes.errors import UserError
from recipes.suite_schema import BenchmarkSpec

_SHOWN_CHARS = 80
_EXAMPLE = 'doc_to_choice: "{{[a, b]}}"'


def choice_reader(path: Path) -> Callable[[Question], list[str]] | None:
    """What gives the answers of a question; None for a task file without any.

    It raises UserError if the task file gives no list for a question, or the names of fields in the place of answers.

    Raises:
        UserError: the task file cannot be read, or its answers would be the same braces for every question, true or
            false, or empty.
    """
    settings = task_values(path)
    choices = settings.get("doc_to_choice")
    if choices is None:
        if settings.get("output_type") == "multiple_choice":
            raise UserError(
                f"task file {path} has output_type multiple_choice but no doc_to_choice; add it, as in {_EXAMPLE}"
            )
        return None
    texts = _literal(choices)
    if texts is not None:
        given = choices.values() if isinstance(choices, dict) else choices
        if any(isinstance(choice, bool) for choice in given):
            raise UserError(
                f"task file {path}, doc_to_choice is {list(given)}: YAML reads yes, no, on and off as true and false; "
                'write each answer in quotes, as in doc_to_choice: ["no", "yes"]'
            )
        if not all(text.strip() for text in texts):
            raise UserError(f"task file {path}, doc_to_choice is {texts}, of which an answer is empty; fill it in")
        if literal := next((text for text in texts if "{{" in text or "{%" in text), None):
            raise UserError(
                f"task file {path}, doc_to_choice is a list, which is taken literally: {literal!r} would be an answer; "
                f"write {_template_of(texts)}"
            )

        def read(question: Question) -> list[str]:
            _require_no_names(path, texts, question.fields)
            return texts

        return read
    if not isinstance(choices, str):
        return None  # a function of the task file
    return lambda question: _answers(path, choices, question)


def _literal(choices: Any) -> list[str] | None:
    """The answers that a YAML list or mapping of them has; None where `doc_to_choice` is something else."""
    function = isinstance(choices, dict) and choices.keys() == {"function"}
    values = list(choices.values()) if isinstance(choices, dict) and not function else choices
    return [str(choice) for choice in values] if isinstance(values, list) else None


def require_no_fields(path: Path, names: Collection[str]) -> None:
    """Raise UserError if the answers of a task file are the names of fields, for questions not at hand."""
    texts = _literal(task_values(path).get("doc_to_choice"))
    if texts:
        _require_no_names(path, texts, names)


def _require_no_names(path: Path, texts: Sequence[str], names: Collection[str]) -> None:
    """Single capital letters may be both the names of fields and the answers that follow a prompt with options."""
    if all(text in names for text in texts) and not all(text in tuple(ascii_uppercase) for text in texts):
        raise UserError(
            f"task file {path}, doc_to_choice is a list, which is taken literally: {texts[0]!r} would be an answer, "
            f"not the field of that name; write {_template_of([f'{{{{{text}}}}}' for text in texts])}"
        )


def _answers(path: Path, template: str, asked: Question) -> list[str]:
    question = dict.fromkeys(OF_EVERY_QUESTION, "") | asked.fields
    value = question.get(template)
    text = "" if template in question else rendered(path, "doc_to_choice", template, asked.fields, asked.location)
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
        if text.startswith("[") and re.search(r"\bUndefined\b", text):  # as jinja prints it in a list
            raise UserError(
                f"task file {path}, doc_to_choice gives {shown[:_SHOWN_CHARS]!r} in {asked.location}, where a value "
                "that it names is missing; fill it in, or remove the row"
            )
        raise UserError(
            f"task file {path}, doc_to_choice gives {shown[:_SHOWN_CHARS]!r} in {asked.location}, which is no list of "
            f"answers; write a template that prints a list, as in {_EXAMPLE}"
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


def wordings(path: Path, questions: Sequence[Question], suffix: str) -> list[str]:
    """The wording of each question, as `filled_all`, of which also the given answers can be read.

    Raises:
        UserError: for the first question that does not fill the task file.
    """
    read = choice_reader(path)
    for question in questions if read is not None else ():
        assert read is not None
        read(question)
    return filled_all(path, questions, suffix)


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
