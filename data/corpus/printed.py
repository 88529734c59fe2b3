"""Whether a jinja template would print an empty value: a cell that a row leaves blank, or a null.

A filter is put around everything printed that is read from a value the template is given: a name, a path, a loop
variable, also through filters and methods. What is printed on purpose where a value is empty stays: `{{ a or '' }}`,
`{{ a | default('') }}`, and all that `{% if a %}` or `{{ a if a else '' }}` keeps from being printed.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from jinja2 import Environment, Template, Undefined, meta, nodes

_WHOLE, _EACH = "is not empty", "has nothing empty"  # names of filters that no template can write
_DELIBERATE = ("default", "d")


class EmptyPrintError(ValueError):
    """A template would print an empty value.

    Attributes:
        paths: the values that it is read from, as `path` of `_Read`.
        whole: whether it is one of these itself; it may also be one of a value's own values.
        remedy: what a template can do where it may be empty.
    """

    def __init__(self, paths: tuple[str, ...], whole: bool, value: Any, remedy: str) -> None:
        listed = ", ".join(map(repr, paths))
        subject = listed if whole and len(paths) == 1 else f"{'one' if whole else 'a value'} of {listed}"
        super().__init__(f"{subject} is {'null' if value is None else 'empty'}; if it may be, {remedy}")
        self.paths, self.whole, self.remedy = paths, whole, remedy


class _Read(NamedTuple):
    """What an expression reads."""

    path: str
    """The value: a name, with keys behind dots."""
    asked: str
    """How a template asks for it."""
    inside: bool
    """Whether it is one of the value's own values, by a loop."""


_Reads = tuple[_Read, ...]


def not_empty(environment: Environment, text: str, whole_row: str | None = None) -> Template:
    """A template that raises EmptyPrintError where it would print an empty value.

    `whole_row`: the name under which the template has all values as a mapping.

    Raises:
        TemplateSyntaxError: as jinja does.
    """
    environment.filters.setdefault(_WHOLE, _whole)
    environment.filters.setdefault(_EACH, _each)
    tree = environment.parse(text)
    reader = _Reader(tree, environment, whole_row)
    for output in list(tree.find_all(nodes.Output)):
        output.nodes = [reader.guarded(expression) for expression in output.nodes]
    return environment.from_string(tree)


def values_only(environment: Environment, text: str, cut: str) -> Template:
    """A template that prints `cut` in the place of each piece of its own text.

    Text in a macro or a `{% set %}` block stays: a condition may ask for it.

    Raises:
        TemplateSyntaxError: as jinja does.
    """
    tree = environment.parse(text)
    named = {id(node) for block in tree.find_all((nodes.AssignBlock, nodes.Macro)) for node in _own_texts(block)}
    for node in _own_texts(tree):
        if id(node) not in named:
            node.data = cut
    return environment.from_string(tree)


def _own_texts(tree: nodes.Node) -> list[nodes.TemplateData]:
    return list(tree.find_all(nodes.TemplateData))


class _Reader:
    """What the expressions of one template read."""

    def __init__(self, tree: nodes.Template, environment: Environment, whole_row: str | None) -> None:
        self._environment, self._whole_row = environment, whole_row
        given = meta.find_undeclared_variables(tree) - set(environment.globals)
        self._known: dict[str, _Reads] = {name: (_Read(name, name, False),) for name in given}
        for node in tree.find_all((nodes.For, nodes.Assign)):
            assert isinstance(node, nodes.For | nodes.Assign)
            loop = isinstance(node, nodes.For)
            reads = self._reads(node.iter if isinstance(node, nodes.For) else node.node)
            names = [node.target] if isinstance(node.target, nodes.Name) else node.target.find_all(nodes.Name)
            for name in names if reads else ():
                assert isinstance(name, nodes.Name)
                self._known[name.name] = tuple(_Read(read.path, name.name, loop) for read in reads)

    def guarded(self, node: nodes.Expr) -> nodes.Expr:
        """An expression that raises where it prints an empty value."""
        if isinstance(node, nodes.CondExpr):
            node.expr1 = self.guarded(node.expr1)
            node.expr2 = node.expr2 and self.guarded(node.expr2)
        elif isinstance(node, nodes.Concat):
            node.nodes = [self.guarded(part) for part in node.nodes]
        elif isinstance(node, nodes.Add):
            node.left, node.right = self.guarded(node.left), self.guarded(node.right)
        elif reads := self._reads(node):
            inner = node
            while isinstance(inner, nodes.Filter) and inner.node is not None:
                if inner.name == "join":
                    inner.node = self._filtered(inner.node, _EACH, reads)
                    break
                inner = inner.node
            return self._filtered(node, _WHOLE, reads)
        elif isinstance(node, nodes.Filter) and node.node is not None and node.name not in _DELIBERATE:
            node.node = self.guarded(node.node)
        return node

    def _filtered(self, node: nodes.Expr, name: str, reads: _Reads) -> nodes.Expr:
        told = nodes.Const(tuple(tuple(read) for read in reads))
        return nodes.Filter(node, name, [told], [], None, None, lineno=node.lineno, environment=self._environment)

    def _reads(self, node: nodes.Node | None) -> _Reads:
        """The given values that an expression reads; none where it makes text of its own, or is empty on purpose."""
        if isinstance(node, nodes.Name):
            return self._known.get(node.name, ())
        if isinstance(node, nodes.Filter):
            return () if node.name in _DELIBERATE else self._reads(node.node)
        if isinstance(node, nodes.Call):  # a method, such as options.values()
            return self._reads(node.node.node) if isinstance(node.node, nodes.Getattr) else ()
        if isinstance(node, nodes.Getattr):
            return self._step(node.node, node.attr, f".{node.attr}")
        if isinstance(node, nodes.Getitem):
            key = node.arg.value if isinstance(node.arg, nodes.Const) else None
            return self._reads(node.node) if key is None else self._step(node.node, str(key), f"[{_quoted(key)}]")
        if isinstance(node, nodes.List | nodes.Tuple):
            return tuple(read for item in node.items for read in self._reads(item))
        if isinstance(node, nodes.Or):
            return self._reads(node.left) + self._reads(node.right) if self._reads(node.right) else ()
        return self._reads(node.right) if isinstance(node, nodes.And) else ()

    def _step(self, node: nodes.Node, key: str, written: str) -> _Reads:
        """What a key of a value reads."""
        if isinstance(node, nodes.Call | nodes.Filter):  # of what is made of it
            return self._reads(node)
        if self._whole_row is not None and isinstance(node, nodes.Name) and node.name == self._whole_row:
            return (_Read(key, f"{node.name}{written}", False),)
        return tuple(
            _Read(read.path if read.inside else f"{read.path}.{key}", read.asked + written, read.inside)
            for read in self._reads(node)
        )


def _quoted(key: Any) -> str:
    return f'"{key}"' if isinstance(key, str) else str(key)


def _whole(value: Any, reads: Iterable[tuple[str, str, bool]]) -> Any:
    """A printed value. Raises EmptyPrintError if it is null or a blank text."""
    if isinstance(value, Undefined) or not is_empty(value):
        return value
    several = [_Read(*read) for read in reads]
    asked = f"{several[0].asked}{' | trim' if value else ''}"
    paths = tuple(dict.fromkeys(read.path for read in several))
    raise EmptyPrintError(paths, len(paths) > 1 or not several[0].inside, value, f"write {{% if {asked} %}} around it")


def _each(values: Any, reads: Iterable[tuple[str, str, bool]]) -> Any:
    """The values that a template joins. Raises EmptyPrintError if one is null or a blank text."""
    if isinstance(values, Undefined | str) or values is None:
        return values
    listed, several = list(values), [_Read(*read) for read in reads]
    for index, value in enumerate(listed):
        if is_empty(value):
            told = len(several) == len(listed) > 1  # which one it is
            path = several[index if told else 0].path
            raise EmptyPrintError((path,), told, value, "leave it out with `| select` before `| join`")
    return listed


def is_empty(value: Any) -> bool:
    """Whether a value is null or a text of blanks alone."""
    return value is None or (isinstance(value, str) and not value.strip())
