"""The exception for mistakes of the user, and how several are reported at once."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in a recipe, a file or a command: one sentence with the value, what is allowed, what to do.

    The command line prints it without a traceback and exits with status 2.
    """


@contextmanager
def collected(sentences: list[str]) -> Iterator[None]:
    """Add the sentences of a UserError that is raised inside to `sentences`, and go on after the block."""
    try:
        yield
    except UserError as error:
        sentences += [line for line in str(error).split("\n") if line not in sentences]
