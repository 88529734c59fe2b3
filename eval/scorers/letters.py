"""The letter of the option that a response settles on."""

import re

from data.grading.extraction import last_boxed_span
from data.prompts.thinking import answer_text
from eval.questions.forms import LETTERS

# What may stand around a letter on its line: emphasis, dollar signs, quotes, brackets, LaTeX's text commands. The
# repetitions are possessive: a degenerate response of thousands of brackets or asterisks is read in linear time.
_SPACE = r"[ \t]"
_OPEN = r"[ \t*_$`\"'({\[]*+(?:\\(?:text|textbf|mathbf|mathrm|boxed)\s*\{)?+[ \t*({]*+"
_NO_BRACKET = r"[ \t*_$`\"'}\]]*+"
_CLOSE = r"[ \t*_$`\"')}\]]*+"
_ANOTHER = rf"(?:,|/|&|\band\b|\bor\b){_SPACE}*(?:\band\b|\bor\b)?{_OPEN}[{LETTERS}](?![A-Za-z'])"
_LETTER = rf"{_OPEN}(?:(?i:option|choice|answer):?)?{_OPEN}([{LETTERS}])(?![A-Za-z])"
_ALONE = rf"{_LETTER}(?!{_CLOSE}{_ANOTHER})"
_BREAK = r"[ \t*_:]*\n\s*"  # between a statement and its letter


def _ends(stops: str) -> str:
    """A letter's end: a bracket, or one of `stops`, the end of the line or of the text."""
    return rf"{_NO_BRACKET}(?:\){_CLOSE}|(?=[{stops}\n]|$))"


_SAID = re.compile(
    # "The answer is B", "Answer: **B**", "the correct option is (B)", on one line
    rf"(?i:\b(?:answer|choice|option)\b)[ \t*_]*"
    rf"(?:(?i:is|would be|should be|must be)[ \t*_]*:?|:){_ALONE}{_ends('.,;:!')}"
    # "The answer is:", then a line with the letter and nothing else, or with the letter and its text
    rf"|(?i:\banswer\b)[ \t*_]*(?i:is){_BREAK}{_ALONE}{_ends('.:')}"
    rf"|(?:^|(?<=\n))[ \t#>*_]*(?i:(?:the )?(?:final |correct |best )*answer)[ \t*_]*:?{_BREAK}{_ALONE}{_ends('.:')}"
    # "Option B is correct", "I go with B"
    rf"|(?i:\boption|\bchoice|\banswer){_SPACE}+{_LETTER}{_CLOSE}\b(?i:is|would be|must be)"
    rf"{_SPACE}+(?i:the\s+)?(?i:correct|right|best)"
    rf"|(?i:\b(?:go with|choose|pick|select)){_SPACE}+{_ALONE}{_ends('.,;:!')}",
)
_BOXED = re.compile(
    rf"{_ALONE}(?:{_NO_BRACKET}[).:][^=]*|[*_$`\"'}}\]]*+{_SPACE}+\([^)]*\)\s*|{_CLOSE})$",
)
_LINE = re.compile(rf"{_LETTER}[ \t*_$`\"')}}\].:]*+")
_BEGINS = re.compile(rf"{_OPEN}([{LETTERS}])[*_$`\"'}}\]]*+[.):][*_$`\"')}}\].:]*+\s+\S")
_SEVERAL = re.compile(rf"{_LETTER}(?:{_CLOSE}\s*{_ANOTHER})+{_CLOSE}")
# \(B\) and \[B\] are $B$
_FORMULA = re.compile(r"\\\(([^\n]{1,60}?)\\\)|\\\[\s*([^\n]{1,60}?)\s*\\\]")


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
    text = _FORMULA.sub(lambda match: f"${match[1] or match[2]}$", text)
    statements = [(match.end(), next(filter(None, match.groups()))) for match in _SAID.finditer(text)]
    span = last_boxed_span(text)
    boxed = "" if span is None else text[span[0] : span[1]].strip()
    if span is not None and (match := _BOXED.match(boxed)):
        statements.append((span[1] + 1, match[1]))
    if statements:
        return max(statements)[1]
    if span is not None and _SEVERAL.fullmatch(boxed):
        return None
    if span is not None:  # a letter in front of a box with a value is part of the working
        text = text[span[1] + 1 :]
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    for line in reversed(lines):
        if match := _LINE.fullmatch(line):
            return match[1]
    opening = _BEGINS.match(lines[-1]) if lines else None
    return opening[1] if opening else None
