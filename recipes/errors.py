"""The exception for mistakes of the user."""


class UserError(Exception):
    """A mistake in a recipe, a file or a command: one sentence with the value, what is allowed, what to do.

    The command line prints it without a traceback and exits with status 2.
    """
