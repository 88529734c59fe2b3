"""YAML of recipes and task files: no key twice, and errors that name the file and the line."""

from pathlib import Path
from typing import Any

import yaml

from recipes.errors import UserError

_ADVICE = {  # by what PyYAML says
    "mapping values are not allowed here": "indent it like the keys around it, or put a text with a colon in quotes",
    "character '\\t'": "indent with blanks, not with tabs",
    "that cannot start any token": "put the text in quotes",
}
_FLOW = "a text that begins with {{ must be in quotes"


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but for a key that a mapping has twice: the last would win without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping, before anything is merged into it. Raises MarkedYAMLError if it has a key twice."""
        node = super().compose_mapping_node(anchor)
        assert isinstance(node, yaml.MappingNode)
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            earlier = first.setdefault((key.tag, key.value), key)
            if earlier is not key:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is there already, in line {earlier.start_mark.line + 1}; keep one "
                    "of the two",
                    problem_mark=key.start_mark,
                )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node. Raises MarkedYAMLError also for a date that does not exist."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.MarkedYAMLError(
                problem=f"{error}; put what is no date in quotes", problem_mark=node.start_mark
            ) from None


def read_yaml_text(text: str, what: str, path: Path, loader: type[StrictLoader] = StrictLoader) -> Any:
    """The value of a YAML file with this text, called `what` in messages.

    Raises:
        UserError: it is not valid YAML; the sentence has the line.
    """
    try:
        return yaml.load(text, loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"{what} {path} is not valid YAML: line {line} has the character {chr(int(error.character))!r}; remove it"
        ) from None
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{what} {path} is not valid YAML: {_explained(error, text)}") from None


def _explained(error: yaml.MarkedYAMLError, text: str) -> str:
    """PyYAML's error as a part of a sentence: the line, the problem, where its surroundings begin, what to do."""
    problem, mark = str(error.problem or error.context), error.problem_mark or error.context_mark
    context = ""
    if error.context and error.problem and error.context_mark is not None:
        context = f" ({error.context} that begins in line {error.context_mark.line + 1})"
    advice = next((advice for words, advice in _ADVICE.items() if words in problem), "")
    lines = text.split("\n")
    at = f"line {mark.line + 1}: " if mark is not None else ""
    if mark is not None and mark.line < len(lines) and _begins_with_braces(lines[mark.line]):
        advice = _FLOW
    return f"{at}{problem}{context}{f'; {advice}' if advice else ''}"


def _begins_with_braces(line: str) -> bool:
    """Whether the value on a line is a template without quotes."""
    return line.partition(": ")[2].lstrip().startswith("{{") or line.lstrip(" -").startswith("{{")
