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


def split_thinking(completion: str, opened: bool = False) -> tuple[str | None, str]:
    """The thinking, None where there is none, and what follows it.

    `opened`: whether the prompt opened the thinking. Thinking that never ended is then all there is.
    """
    before, closed, after = completion.rpartition(THINK_CLOSE)
    if closed:
        return before.replace(THINK_OPEN, "", 1).strip(), after.lstrip()
    return (completion, "") if opened else (None, completion)
