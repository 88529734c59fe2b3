r"""Extract the final answer of a completion.

Extraction reads the text after the thinking; a completion whose thinking never ends has no answer
(`data/prompts/thinking.py`). Form "boxed" takes the last `\boxed{...}` with balanced braces. Form "plain" takes that
box if there is one, else what follows the last statement of an answer ("The answer is", "Answer:", GSM8K's `#### 42`),
else the last non-empty line.
"""

import re
from typing import Literal

from data.prompts.thinking import answer_text

AnswerForm = Literal["boxed", "plain"]

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?=\S)")
_BRACE = re.compile(r"[{}]|\\.", re.DOTALL)  # `\{` is a literal set brace; `\\{` an escaped backslash and a group
_OPTION = re.compile(r"\(?([A-Z])(?:[).:]|,(?!\s*(?:and\s+|or\s+)?\(?[A-Z]\b)|\s*$)")
_MARKS = r"(?:[\s*_:：`]|-{3,}(?=\s))*"
_STATEMENT = re.compile(
    # no statement: "We check our answer: 6 * 7 = 42", "if the answer is 41"
    r"(?P<aside>\b(?:check|verify|confirm)(?:ing)?[ \t]+(?:\w+[ \t]+){0,2}answers?[ \t*_]*[:：]"
    r"|\b(?:if|whether)[ \t]+(?:\w+[ \t]+){0,3}answers?[ \t]+(?:is|are)\b)"
    # The answer is: **42**, also over a line break; the answer to part (a) must be 42
    r"|\banswers?\b(?:[ \t]+to(?![ \t]+be\b)[^\n.,:;?!\"“]{1,60}?)?[\s*_]*"
    rf"(?:\b(?:is|are|(?P<modal>(?:would|should|must|will)[ \t]+be))\b(?:[ \t]+given[ \t]+by\b)?|[:：=]){_MARKS}"
    r"|^[#> \t*_]*(?:final\s+)?answer[\s*_]*$"  # a heading of its own line
    r"|<answer>\s*"
    r"|^####[ \t]*(?=(?:[$€£]?[ ]?[-+]?(?:\d|\.\d)[-\d.,/ ]*%?|\(?[A-Z]\)?|\$[^$\n]+\$)\.?[ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)
# "Answers:" and a line break before a heading or a list: the statement has no value of its own.
_LIST = re.compile(r"[^\n]*\n\s*(?:#|\d{1,3}[.)][ \t]+\S|[-+*•][ \t])")
_RULER = re.compile(r"`{3,}\w*|-{3,}|\*{3,}")  # a code fence or a line between paragraphs
_VERDICT = re.compile(
    r"(?:(?:indeed|also|thus|therefore|not)[ ])?(?:correct|incorrect|right|wrong|accurate|valid|consistent|reasonable"
    r"|verified|confirmed)(?=[ *_]*(?:[.,;!\n]|$|(?:and|as|because|since|based|given)\b))"
)  # of an answer that was stated before
_VALUE = re.compile(r"[\s*_`]*(?:[-+−]?[$€£¥]?\s?[-+−]?[\d.]*\d|[-+−]?\s?\$?\\[A-Za-z([{]|\$|[(\[{]|[A-Z](?![A-Za-z]))")
_SHORT = 5  # words of an answer that is a text
_SENTENCE_END = re.compile(r"(?:(?<=[\d)}\]$*])|(?<=[a-z]{4}))[.!?][*_]*\s+(?=[A-Z])")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)

# TeX boxes the next character or command: \boxed 7. Of a word, of 3/4 and of 1,000 it would box a part: no answer.
_BARE_ARGUMENT = re.compile(r"(?:[-+−]?\d+(?:\.\d+)?|\\[A-Za-z]+|[^\s{}\\])(?=$|[.,](?!\d)|[\s;:!?$)\]*_}\\])")


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, braces balanced; None if there is none or it never closes."""
    span = last_boxed_span(text)
    return None if span is None else text[span[0] : span[1]]


def last_boxed_span(text: str) -> tuple[int, int] | None:
    """Where the content of the last box begins and ends; None as in `last_boxed`."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    opening = boxes[-1].end()
    if text[opening] != "{":
        argument = _BARE_ARGUMENT.match(text, opening)
        return argument.span() if argument else None
    depth = 0
    for match in _BRACE.finditer(text, opening):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return opening + 1, match.start()
    return None


def extract_answer(completion: str, form: AnswerForm = "boxed") -> str | None:
    """The final answer of a completion, or None. See the module docstring for the two forms."""
    text = answer_text(completion)
    if text is None:
        return None
    answer = last_boxed(text) if form == "boxed" else _plain_answer(text)
    return (answer or "").strip() or None


def _plain_answer(text: str) -> str | None:
    """The last box or the last statement of an answer, whichever is later; else the last line.

    Behind a box only a statement of a value or letter counts: "the answer is expected as a fraction" does not.
    """
    box = text.rfind("\\boxed")
    positions = [match.end() for match in _STATEMENT.finditer(text) if match.end() > box and _states(match)]
    positions = [position for position in positions if not _VERDICT.match(text, position)] or positions
    value = next((position for position in reversed(positions) if _VALUE.match(text, position)), None)
    if box >= 0 and value is None:
        return last_boxed(text)
    if positions:
        short = (
            position for position in reversed(positions) if _VALUE.match(text, position) or _is_short(text, position)
        )
        chosen = value if box >= 0 else next(short, positions[-1])
        rest = text[chosen:].strip()
        return _SENTENCE_END.split(_plain_value(rest))[0] if rest else None
    lines = [line.strip() for line in text.strip().split("\n") if line.strip() and not _RULER.fullmatch(line.strip())]
    return _plain_value(lines[-1]) if lines else None


def _states(match: re.Match[str]) -> bool:
    """Whether the words of a statement are followed by an answer, not by a check, a heading, a list or a wish."""
    if match["aside"] or ("\n" in match.group() and _LIST.match(match.string, match.start())):
        return False
    return not match["modal"] or _VALUE.match(match.string, match.end()) is not None


def _is_short(text: str, position: int) -> bool:
    return len(text[position:].lstrip().partition("\n")[0].split()) <= _SHORT


def _plain_value(rest: str) -> str:
    """The answer at the start of a text: an option letter, a formula in delimiters, or the sentence without marks."""
    bare = rest.lstrip("*_ \t")
    if formula := _FORMULA.match(bare):
        return formula[formula.lastindex or 0]
    line = bare.split("\n", 1)[0].split("</answer>", 1)[0].replace("**", "").replace("`", "").strip("*_ \t\r")
    if option := _OPTION.match(line):
        return option.group(1)
    formula = _FORMULA.match(line)
    return formula[formula.lastindex or 0] if formula else line
