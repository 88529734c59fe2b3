"""The result of a check of `transfer doctor`."""

from typing import Literal, NamedTuple


class Verdict(NamedTuple):
    """The result of a check, in words, with what to do about it."""

    state: Literal["ok", "warn", "fail", "skipped"]
    text: str
    remedy: str = ""
