"""What a check of `transfer doctor` found."""

from typing import Literal, NamedTuple


class Verdict(NamedTuple):
    """What a check found."""

    state: Literal["ok", "warn", "fail", "skipped"]
    found: str
    remedy: str = ""
