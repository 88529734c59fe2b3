"""Whether task files can be filled with a benchmark's questions. Needs no lm-evaluation-harness.

The harness renders with the same environment; here a mistake is a sentence, and it is found before anything runs.
"""

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.corpus.fields import printed_names
from recipes.errors import UserError, collected
from recipes.yaml_files import StrictLoader, read_yaml_text

OF_EVERY_QUESTION = ("question_id", "suffix")
"""What task files may use besides a question's own fields."""
_TEMPLATES = ("doc_to_text", "doc_to_choice", "doc_to_target")
_DEEPEST_INCLUDE = 10


class _Loader(StrictLoader):
    """YAML in which `!function` names are kept as text."""


_Loader.add_constructor("!function", lambda loader, node: {"function": node.value})


def task_values(path: Path, depth: int = 0) -> dict[str, Any]:
    """The settings of a task file with those of the files it includes.

    Raises:
        UserError: a file cannot be read or is not a YAML mapping.
    """
    try:
        settings = read_yaml_text(path.read_text(encoding="utf-8"), "task file", path, _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"task file {path} cannot be read ({error}); restore it as a text file") from None
    if not isinstance(settings, dict):
        raise UserError(f"task file {path} holds no settings; it must be a YAML mapping with doc_to_text")
    names = settings.pop("include", None) or []
    included: dict[str, Any] = {}
    for name in [names] if isinstance(names, str) else names:
        if depth == _DEEPEST_INCLUDE:
            raise UserError(f"task file {path} includes files without end; take out the `include` that leads back")
        included |= task_values(path.parent / name, depth + 1)
    return included | settings


def wording_mistakes(path: Path, fields: Mapping[str, Any]) -> list[str]:
    """Why a task file cannot be filled with a question of these fields, a sentence for each template of it."""
    settings = task_values(path)
    if not settings.get("doc_to_text"):
        return [f"task file {path} has no doc_to_text, the wording of its questions"]
    sentences: list[str] = []
    for key, template in _templates(settings):
        with collected(sentences):
            rendered(path, key, template, fields)
    return sentences


def filled(path: Path, fields: Mapping[str, Any]) -> str:
    """The wording of one question, without the chat template. Raises UserError if it cannot be filled."""
    texts = [text for key, text in _templates(task_values(path)) if key == "doc_to_text"]
    return rendered(path, "doc_to_text", texts[0], fields) if texts else ""


def rendered(path: Path, key: str, template: str, fields: Mapping[str, Any]) -> str:
    """What a template of a task file gives for a question. Raises UserError if it cannot be filled."""
    from jinja2 import TemplateError

    question = dict.fromkeys(OF_EVERY_QUESTION, "") | dict(fields)
    if template in question:  # a name alone is that field
        return str(question[template])
    try:
        return str(_compiled(template).render(**question))
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise UserError(
            f"task file {path}, {key}: {' '.join(str(error).split())}; a question has {', '.join(sorted(question))}"
            + _no_name(template, question)
        ) from None


def _no_name(template: str, names: Collection[str]) -> str:
    """What to do about a name in a template that is there but is none of jinja's; nothing if there is none."""
    wrong = [name for name in printed_names(template) if name in names and not name.isidentifier()]
    if not wrong:
        return ""
    other = re.sub(r"\W+", "_", wrong[0]).strip("_")
    return f"; {wrong[0]!r} is no name for a template: call it for instance {other!r} under data.fields"


@lru_cache(maxsize=64)
def _compiled(template: str) -> Any:
    from jinja2 import BaseLoader, Environment, StrictUndefined

    environment = Environment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = lambda text, *_, **__: text  # lm-evaluation-harness has it
    return environment.from_string(template)


def unknown_names(path: Path, names: Collection[str]) -> list[str]:
    """A sentence for each template of a task file that uses a name no question has; for questions not at hand."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    environment = Environment()
    environment.filters["regex_replace"] = str
    known = {*names, *OF_EVERY_QUESTION, *environment.globals}
    sentences = []
    for key, template in _templates(task_values(path)):
        try:
            unknown = meta.find_undeclared_variables(environment.parse(template)) - known
        except TemplateSyntaxError as error:
            sentences.append(
                f"task file {path}, {key}: line {error.lineno}: {error.message}{_no_name(template, names)}"
            )
            continue
        if unknown:
            there = ", ".join(sorted({*names, *OF_EVERY_QUESTION}))
            sentences.append(f"task file {path}, {key}: {', '.join(sorted(unknown))} undefined; a question has {there}")
    return sentences


def uses_suffix(path: Path, suffix: str) -> bool:
    """Whether the wording of a task file has the suffix, by its name or as text.

    Raises:
        UserError: the file cannot be read or parsed.
    """
    from jinja2 import Environment, TemplateSyntaxError, meta

    texts = [text for key, text in _templates(task_values(path)) if key == "doc_to_text"]
    try:
        environment = Environment()
        environment.filters["regex_replace"] = str
        named = any("suffix" in meta.find_undeclared_variables(environment.parse(text)) for text in texts)
        return named or any(suffix.strip() in text for text in texts)
    except TemplateSyntaxError as error:
        raise UserError(f"task file {path}, doc_to_text: line {error.lineno}: {error.message}") from None


def _templates(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The templates of a task file: key and text. Functions, numbers and lists, which are taken literally, are none."""
    return [(key, value) for key in _TEMPLATES if isinstance(value := settings.get(key), str)]
