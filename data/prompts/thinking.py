"""The thinking in a completion, and what is left without it."""

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


def answer_text(completion: str) -> str | None:
    """The part of a completion that answers: what follows the thinking. None if the thinking never ended."""
    _, closed, tail = completion.rpartition(THINK_CLOSE)
    if closed:
        return tail
    return None if THINK_OPEN in completion else completion


def strip_thinking(text: str) -> str:
    """What follows the thinking; the text itself if it never thought, nothing if it never stopped thinking."""
    _, closed, tail = text.rpartition(THINK_CLOSE)
    if closed:
        return tail.lstrip()
    return "" if THINK_OPEN in text else text
