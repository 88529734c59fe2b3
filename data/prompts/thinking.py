"""The thinking in a completion, and what is left without it.

Thinking ends at the last `</think>`; what follows answers. If that opens thinking again, or if there is no `</think>`
and the completion or its prompt opened thinking, then thinking never ended and nothing answers. A text without marks is
an answer.
"""

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


def split_thinking(completion: str, opened: bool = False) -> tuple[str | None, str | None]:
    """The thinking, None where there is none, and the answer, None where the thinking never ended.

    `opened`: whether the prompt opened the thinking, so that the completion does not.
    """
    before, closed, after = completion.rpartition(THINK_CLOSE)
    if THINK_OPEN in after or (opened and not closed):
        return completion.replace(THINK_OPEN, "", 1).strip(), None
    return (before.replace(THINK_OPEN, "", 1).strip() if closed else None), after


def answer_text(completion: str) -> str | None:
    """The answer of a completion with the blanks around it; None if the thinking never ended."""
    return split_thinking(completion)[1]


def strip_thinking(text: str, opened: bool = False) -> str:
    """The answer without blanks in front of it; empty if the thinking never ended. A text without thinking stays."""
    thinking, answer = split_thinking(text, opened)
    return text if thinking is None else (answer or "").lstrip()
