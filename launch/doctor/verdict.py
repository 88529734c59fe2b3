"""The result of a check of `transfer doctor`."""

from typing import Literal, NamedTuple


class Verdict(NamedTuple):
    """The result of a check, in words, with what to do about it."""

    state: Literal["ok", "note", "warn", "fail", "skipped"]
    text: str
    remedy: str = ""


def shortened(text: str, length: int = 300) -> str:
    """A text, cut between words where it is longer."""
    return text if len(text) <= length else f"{text[: length - 3].rpartition(' ')[0]} ..."
