"""The letter of the option that a response settles on."""

import re

from data.grading.extraction import last_boxed
from data.prompts.thinking import answer_text
from eval.questions.forms import LETTERS

# What may stand around a letter on its line: emphasis, dollar signs, quotes, brackets, LaTeX's text commands.
_SPACE = r"[ \t]"
_OPEN = r"[ \t*_$`\"'({\[]*(?:\\(?:text|textbf|mathbf|mathrm|boxed)\s*\{)?[ \t*({]*"
_CLOSE = r"[ \t*_$`\"')}\]]*"
_NAMED = rf"{_OPEN}(?:(?i:option|choice|answer):?)?"
_LETTER = rf"{_NAMED}{_OPEN}([{LETTERS}])(?![A-Za-z]){_CLOSE}"
_ANOTHER = rf"(?:,|/|&|\band\b|\bor\b){_SPACE}*(?:\band\b|\bor\b)?{_OPEN}[{LETTERS}](?![A-Za-z'])"
_ALONE = rf"{_LETTER}(?!{_SPACE}*{_ANOTHER})"
_BREAK = r"[ \t*_:]*\n\s*"  # between a statement and its letter

_SAID = re.compile(
    # "The answer is B", "Answer: **B**", "the correct option is (B)", on one line
    rf"(?i:\b(?:answer|choice|option)\b)[ \t*_]*"
    rf"(?:(?i:is|would be|should be|must be)[ \t*_]*:?|:){_ALONE}(?=[.,;:!)]|\n|$)"
    # "The answer is:", then a line with the letter and nothing else, or with the letter and its text
    rf"|(?i:\banswer\b)[ \t*_]*(?i:is){_BREAK}{_ALONE}(?:[.:)]|\n|$)"
    rf"|(?:^|(?<=\n))[ \t#>*_]*(?i:(?:the )?(?:final |correct |best )*answer)[ \t*_]*:?{_BREAK}{_ALONE}(?:[.:)]|\n|$)"
    # "Option B is correct", "I go with B"
    rf"|(?i:\boption|\bchoice|\banswer){_SPACE}+{_LETTER}(?=(?i:is|would be|must be)\b)(?i:is|would be|must be)"
    rf"{_SPACE}+(?i:the\s+)?(?i:correct|right|best)"
    rf"|(?i:\b(?:go with|choose|pick|select)){_SPACE}+{_ALONE}(?=[.,;:!)]|\n|$)",
)
_BOXED = re.compile(rf"{_ALONE}(?:[.:)]\s*[^=]*|{_SPACE}+\([^)]*\)\s*)?$", re.DOTALL)
_BEGINS = re.compile(rf"{_OPEN}([{LETTERS}]){_CLOSE}[.):]\s+\S")


def read_choice(response: str) -> str | None:
    """The letter a response settles on, after its thinking.

    The last statement counts: a box that holds a letter, with or without the text of its option, or a sentence such as
    "The answer is B". A box with something else is working. Without a statement it is a letter alone on a line, behind
    the last box if there is one, else the letter that the last line begins with ("B. the ferry"). Letters are capitals:
    an article is not a choice, nor are several letters.
    """
    text = answer_text(response)
    if text is None:
        return None
    statements = [(match.end(), next(filter(None, match.groups()))) for match in _SAID.finditer(text)]
    boxed = last_boxed(text)
    if boxed is not None and (match := _BOXED.match(boxed.strip())):
        statements.append((text.rindex(boxed) + len(boxed) + 1, match[1]))
    if statements:
        return max(statements)[1]
    if boxed is not None and _is_letters(boxed):
        return None
    if boxed is not None:  # a letter in front of a box with a value is part of the working
        text = text[text.rindex(boxed) + len(boxed) + 1 :]
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    for line in reversed(lines):
        if match := re.fullmatch(rf"{_LETTER}[.):]*{_CLOSE}", line):
            return match[1]
    found = _BEGINS.match(lines[-1]) if lines else None
    return found[1] if found else None


def _is_letters(text: str) -> bool:
    """Whether a text is several letters of options and nothing else."""
    return re.fullmatch(rf"{_LETTER}(?:\s*{_ANOTHER}{_CLOSE})+", text.strip()) is not None
