"""Whether task files can be filled with a benchmark's questions. Needs no lm-evaluation-harness.

The harness renders with the same environment; here a mistake is a sentence, and it is found before anything runs.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.corpus.fields import printed_names
from data.corpus.printed import EmptyPrintError, is_empty, not_empty
from eval.questions.records import Question
from recipes.errors import UserError, collected
from recipes.suggestions import nearest
from recipes.yaml_files import StrictLoader, read_yaml_text

OF_EVERY_QUESTION = ("question_id", "suffix")
"""What task files may use besides a question's own fields."""
_TEMPLATES = ("doc_to_text", "doc_to_choice", "doc_to_target")
_DEEPEST_INCLUDE = 10
_SHOWN_CHARS = 60
_NOT_FILLED = (TypeError, ValueError, ArithmeticError, LookupError)  # of a template, besides jinja's own
_UNDEFINED = re.compile(r"'(\w+)' is undefined")  # jinja's words
_KEYS = (  # of lm-evaluation-harness's TaskConfig; `include` is read before
    "task", "task_alias", "tag", "custom_dataset", "dataset_path", "dataset_name", "dataset_kwargs", "training_split",
    "validation_split", "test_split", "fewshot_split", "process_docs", "doc_to_text", "doc_to_target", "doc_to_image",
    "doc_to_audio", "unsafe_code", "doc_to_choice", "process_results", "use_prompt", "description", "target_delimiter",
    "fewshot_delimiter", "fewshot_config", "num_fewshot", "metric_list", "output_type", "generation_kwargs", "repeats",
    "filter_list", "should_decontaminate", "doc_to_decontamination_query", "gen_prefix", "metadata",
)  # fmt: skip
_OF_THE_RECIPE = ("temperature", "top_p", "top_k", "max_response_tokens", "samples_per_question")  # below `suite`


class _Loader(StrictLoader):
    """YAML in which `!function` names are kept as text."""


_Loader.add_constructor("!function", lambda loader, node: {"function": node.value})


def task_values(path: Path) -> dict[str, Any]:
    """The settings of a task file with those of the files it includes. A mistyped key is read as the one it means.

    Raises:
        UserError: a file cannot be read or is not a YAML mapping.
    """
    values: dict[str, Any] = {}
    for _, settings in _files(path):
        meant = {key: key if key in _KEYS else nearest(str(key), _KEYS) or str(key) for key in settings}
        values |= {
            meant[key]: value for key, value in settings.items() if meant[key] == key or meant[key] not in settings
        }
    return values


def key_mistakes(path: Path) -> list[str]:
    """A sentence for each key of a task file, and of those it includes, that the harness does not have.

    It would end in an error of the harness when a task is built, which is after the training.
    """
    sentences = []
    for file, settings in _files(path):
        for key in (str(key) for key in settings if key not in _KEYS):
            near = nearest(key, (*_KEYS, *_OF_THE_RECIPE))
            meant = f"suite.{near} of the recipe" if near in _OF_THE_RECIPE else near
            hint = f"did you mean {meant}?" if near else f"allowed are {', '.join(_KEYS)}"
            sentences.append(f"task file {file} has the key {key!r}, which lm-evaluation-harness does not know; {hint}")
    return sentences


def _files(path: Path, depth: int = 0) -> list[tuple[Path, dict[str, Any]]]:
    """The settings of each file that a task file includes, and then its own. Raises UserError as `task_values`."""
    try:
        settings = read_yaml_text(path.read_text(encoding="utf-8"), "task file", path, _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"task file {path} cannot be read ({error}); restore it as a text file") from None
    if not isinstance(settings, dict):
        raise UserError(f"task file {path} holds no settings; it must be a YAML mapping with doc_to_text")
    names = settings.pop("include", None) or []
    included: list[tuple[Path, dict[str, Any]]] = []
    for name in [names] if isinstance(names, str) else names:
        if depth == _DEEPEST_INCLUDE:
            raise UserError(f"task file {path} includes files without end; take out the `include` that leads back")
        included += _files(path.parent / name, depth + 1)
    return [*included, (path, settings)]


def wording_mistakes(path: Path, fields: Mapping[str, Any], location: str = "") -> list[str]:
    """Why a task file cannot be filled with a question of these fields, a sentence for each template of it.

    `location`: where the question was read.
    """
    settings = task_values(path)
    if not settings.get("doc_to_text"):
        return [f"task file {path} has no doc_to_text, the wording of its questions"]
    sentences: list[str] = []
    for key, template in _templates(settings):
        with collected(sentences):
            rendered(path, key, template, fields, location)
    return sentences


def filled(path: Path, question: Question, suffix: str) -> str:
    """The wording of one question, without the chat template. Raises UserError if it cannot be filled."""
    (text,) = filled_all(path, [question], suffix)
    return text


def filled_all(path: Path, questions: Iterable[Question], suffix: str) -> list[str]:
    """The wording of each question, without the chat template. Raises UserError for the first that does not fill it."""
    template = dict(_templates(task_values(path))).get("doc_to_text")
    return [
        "" if template is None else rendered(path, "doc_to_text", template, q.fields | {"suffix": suffix}, q.location)
        for q in questions
    ]


def printed_empty(path: Path, fields: Mapping[str, Any]) -> EmptyPrintError | None:
    """The empty value that a task file would print for a question of these fields, if there is one."""
    from jinja2 import TemplateError

    if not _has_empty(fields):
        return None
    templates = dict(_templates(task_values(path)))
    for key in ("doc_to_text", "doc_to_choice"):
        template = templates.get(key, "")
        if template in fields and is_empty(fields[template]):  # a name alone is that field
            return EmptyPrintError((template,), True, fields[template], "print another field")
        try:
            if template not in fields:
                _compiled(template, guarded=True).render(**dict.fromkeys(OF_EVERY_QUESTION, "-") | dict(fields))
        except EmptyPrintError as error:
            return error
        except (TemplateError, *_NOT_FILLED):  # said by those who fill it
            continue
    return None


def _has_empty(value: Any) -> bool:
    """Whether a value is empty, or holds one that is."""
    if isinstance(value, Mapping):
        return any(map(_has_empty, value.values()))
    return any(map(_has_empty, value)) if isinstance(value, list | tuple) else is_empty(value)


def rendered(path: Path, key: str, template: str, fields: Mapping[str, Any], location: str = "") -> str:
    """What a template of a task file gives for a question. Raises UserError if it cannot be filled.

    `location`: where the question was read; it is said where another question may fill the template.
    """
    from jinja2 import TemplateError

    question = dict.fromkeys(OF_EVERY_QUESTION, "") | dict(fields)
    if template in question:  # a name alone is that field
        return str(question[template])
    try:
        return str(_compiled(template).render(**question))
    except (TemplateError, *_NOT_FILLED) as error:
        of_all = getattr(error, "lineno", None) is not None or _UNDEFINED.match(str(error))
        where = "" if of_all or not location else f", in {location}"
        raise UserError(
            f"task file {path}, {key}: {_at(error, template)}{' '.join(str(error).split())}{where}; a question has "
            f"{', '.join(sorted(question))}{_no_name(template, question) or _meant(str(error), question)}"
        ) from None


def _at(error: Exception, template: str) -> str:
    """The line of a template that jinja cannot parse, with its number."""
    line = getattr(error, "lineno", None)
    lines = template.split("\n")
    if not isinstance(line, int) or not 0 < line <= len(lines):
        return ""
    text = lines[line - 1].strip()
    return f"line {line}, {text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + '...'!r}: "


def _meant(error: str, names: Collection[str]) -> str:
    """The name that an undefined one in an error of jinja's means."""
    undefined = _UNDEFINED.match(error)
    near = nearest(undefined[1], sorted(names)) if undefined is not None else None
    return f"; did you mean {near!r}?" if near is not None else ""


def _no_name(template: str, names: Collection[str]) -> str:
    """What to do about a name in a template that is there but is none of jinja's; nothing if there is none."""
    wrong = [name for name in printed_names(template) if name in names and not name.isidentifier()]
    if not wrong:
        return ""
    other = re.sub(r"\W+", "_", wrong[0]).strip("_")
    return f"; {wrong[0]!r} is no name for a template: call it for instance {other!r} under data.fields"


@lru_cache(maxsize=64)
def _compiled(template: str, guarded: bool = False) -> Any:
    """A template of a task file. `guarded`: it raises EmptyPrintError where it would print an empty value."""
    from jinja2 import BaseLoader, Environment, StrictUndefined

    environment = Environment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = lambda text, *_, **__: text  # lm-evaluation-harness has it
    return not_empty(environment, template) if guarded else environment.from_string(template)


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
                f"task file {path}, {key}: {_at(error, template)}{error.message}{_no_name(template, names)}"
            )
            continue
        if unknown:
            there = ", ".join(sorted({*names, *OF_EVERY_QUESTION}))
            sentences.append(f"task file {path}, {key}: {', '.join(sorted(unknown))} undefined; a question has {there}")
    return sentences


def uses_suffix(path: Path, suffix: str) -> bool:
    """Whether the wording of a task file has the suffix, by its name or as text, or asks for a box in its own words.

    Raises:
        UserError: the file cannot be read or parsed.
    """
    from jinja2 import Environment, TemplateSyntaxError, meta

    texts = [text for key, text in _templates(task_values(path)) if key == "doc_to_text"]
    text = "\n".join(texts)  # there is at most one
    try:
        environment = Environment()
        environment.filters["regex_replace"] = str
        named = any("suffix" in meta.find_undeclared_variables(environment.parse(text)) for text in texts)
        return named or any(suffix.strip() in text or "boxed" in text for text in texts)
    except TemplateSyntaxError as error:
        raise UserError(f"task file {path}, doc_to_text: {_at(error, text)}{error.message}") from None


def _templates(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The templates of a task file: key and text. Functions, numbers and lists, which are taken literally, are none."""
    return [(key, value) for key in _TEMPLATES if isinstance(value := settings.get(key), str)]
