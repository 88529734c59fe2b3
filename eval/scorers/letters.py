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
# "A or B", "A (or B)", "A - B"; but "A - B is wrong" has a reason behind its letter
_ALONE = (
    rf"{_LETTER}(?!{_CLOSE}(?:\({_SPACE}*)?{_ANOTHER})"
    rf"(?!{_CLOSE}[-–—]{_OPEN}[{LETTERS}](?![A-Za-z']){_CLOSE}(?:[.,;\n]|$))"
)
_BREAK = r"[ \t*_:]*\n\s*"  # between a statement and its letter


# "C (5 eV)", "C — 5 eV", "C because", "C and not D"; a dash or bracket that touches the letter is a formula's
_EXPLAINED = (
    r"[—–→]|(?<=[ \t*_$`\"'}\]])(?:\(|[-=]*>|-+[ \t]|"
    r"(?i:(?:because|since|as|due|which|not|rather|instead|and[ \t]+not)\b))"
)
_NOT_IF = "".join(rf"(?<!\b{word} the )(?<!\b{word} the correct )" for word in ("if", "If", "whether"))
_IS = (  # "is", "would be", "is therefore"
    r"(?i:(?:is|(?:would|should|must|will)[ \t]+be|can[ \t]+only[ \t]+be|has[ \t]+to[ \t]+be)\b[ \t*_]*+:?+"
    r"(?:[ \t*_]*+(?:therefore|thus|hence|then|so|indeed|clearly|(?:most[ \t]+)?(?:likely|probably)|actually|simply"
    r"|definitely|in[ \t]+fact)\b,?){0,2})"
)
_RIGHT = (  # "correct about the mass" is right in part only
    r"(?i:(?:correct|right|best)\b(?![ \t]+(?:about|in|on|only|when|if|insofar|regarding|to|with|for|but)\b))"
)
_BEFORE = (  # "C is the correct answer", but not "if C is ..." or "vitamin C is ..."
    r"(?:(?:^|(?<=\n))[ \t#>*_-]*+|(?<=[.,:;!?—–])[ \t\n]++|(?<=[.,:;!?—–]\*\*)[ \t\n]++"
    r"|\b(?i:so|therefore|thus|hence|(?<!suppose )(?<!assume )(?<!assuming )that)[ \t]+)"
)


def _ends(stops: str) -> str:
    """A letter's end: a bracket, or one of `stops`, the end of the line or of the text, or what explains the letter."""
    return rf"{_NO_BRACKET}(?:\){_CLOSE}|(?=[{stops}\n]|$|{_EXPLAINED}))"


_SAID = re.compile(
    # "The answer is B", "Answer: **B**", "the correct option is (B)", on one line
    rf"{_NOT_IF}(?i:\b(?:answer|choice|option|(?:correct|right|best)[ \t]+(?:statement|one|letter|response))\b)[ \t*_]*"
    rf"(?:{_IS}|:){_ALONE}{_ends('.,;:!')}"
    # "The answer is:", then a line with the letter and nothing else, or with the letter and its text
    rf"|(?i:\banswer\b)[ \t*_]*(?i:is){_BREAK}{_ALONE}{_ends('.:')}"
    rf"|(?:^|(?<=\n))[ \t#>*_]*(?i:(?:the )?(?:final |correct |best )*answer)[ \t*_]*:?{_BREAK}{_ALONE}{_ends('.:')}"
    # "Option B is correct", "B is the correct answer", "I go with B"
    rf"|(?i:\boption|\bchoice|\banswer){_SPACE}+{_LETTER}{_CLOSE}\b(?i:is|would be|must be)"
    rf"{_SPACE}+(?i:the\s+)?{_RIGHT}"
    rf"|{_BEFORE}{_ALONE}{_CLOSE}\b(?i:is|must be){_SPACE}+(?i:the\s+)?(?i:only\s+|most\s+)?"
    rf"(?:(?i:correct|right|best)[ \t]+(?i:answer|option|choice)\b|(?i:correct|right)(?=[ \t*_]*(?:[.,;!\n]|$)))"
    rf"|(?i:\b(?:go with|choose|pick|select)){_SPACE}+{_ALONE}{_ends('.,;:!')}",
)
_BLANK = r"(?:\s|~|\\[ ,;:]|\\q?quad(?![A-Za-z]))"
_BOXED = re.compile(  # behind "C." and a blank an equation is the option's text
    rf"{_ALONE}(?:{_NO_BRACKET}[).:](?:[^=]*|[*_$`\"'}}\])]*+{_BLANK}+(?![=\s])[\s\S]*)"
    rf"|[*_$`\"'}}\]]*+{_BLANK}+(?:\([^)]*\)\s*|[-–—]{_BLANK}+[\s\S]*)|{_CLOSE})$",
)
_LINE = re.compile(rf"{_LETTER}[ \t*_$`\"')}}\].:]*+")
_BEGINS = re.compile(rf"{_OPEN}([{LETTERS}])[*_$`\"'}}\]]*+[.):][*_$`\"')}}\].:]*+\s+\S")
_SEVERAL = re.compile(rf"{_LETTER}(?:{_CLOSE}\s*{_ANOTHER})+{_CLOSE}")
# \(B\) and \[B\] are $B$
_FORMULA = re.compile(r"\\\(([^\n]{1,60}?)\\\)|\\\[\s*([^\n]{1,60}?)\s*\\\]")


def read_choice(response: str) -> str | None:
    """The letter a response settles on, after its thinking.

    The last statement counts: a box that holds a letter, with or without the text of its option, a sentence such as
    "The answer is B" or "B is the correct answer", or a last line that is a letter. A box with something else is
    working.
    Without a statement it is a letter alone on a line, behind the last box if there is one, else the letter that the
    last line begins with ("B. the ferry"). Letters are capitals: an article is not a choice, nor are several letters.
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
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    if statements and (last := _LINE.fullmatch(lines[-1])):
        statements.append((len(text), last[1]))
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
