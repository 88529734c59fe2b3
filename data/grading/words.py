"""Answers in words: option letters, short texts, spelled-out numbers, and words for sets."""

import re

from data.grading.marks import SET_OPEN, TEXT_CLOSE, TEXT_OPEN
from data.grading.units import is_mathematical_word

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_PARTS = {"half": 2, "third": 3, "fourth": 4, "quarter": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_NOTHING = {
    "no solution", "no real solution", "there is no solution", "there are no solution", "no real root", "empty set",
    "there are no real solution", "there is no real solution", "no integer solution",
}  # fmt: skip
_EVERYTHING = {"all real number", "all real", "every real number", "any real number", "real number", "real"}
_PLACEHOLDERS = {"na", "none", "null", "nan", "unknown", "proof", "no answer", "not available"}
_OPTION = re.compile(r"(?:\(([A-J])\)|([A-J])[.)])\s+(.+)", re.DOTALL)
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}/\d{1,2}/\d{4}")


def is_prose(text: str) -> bool:
    """Whether a text is words or a date, without mathematics. Words may contain "v." or end in a number."""
    bare = text.replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ").strip()
    # Several single letters are options in order; other words start with two letters and are not functions.
    if re.fullmatch(r"[A-Za-z](?:\s+[A-Za-z])+", bare) or _DATE.fullmatch(bare):
        return True
    first = re.match(r"[^\W\d_]{2,}[\w'.-]*|[^\W\d_]\.", bare)
    if not first or is_mathematical_word(first.group().rstrip(".")) or re.search(rf"[=^\\{{}}_+*/|{SET_OPEN}]", bare):
        return False
    return "(" not in bare or " " in bare


def canonical_words(text: str) -> str:
    """Words without case, punctuation, leading article and plural endings; "versus" becomes "v"."""
    bare = text.replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ").casefold().strip()
    if _DATE.fullmatch(bare):
        return bare
    words = re.sub(r"[.,;:!?'\"()\u2010-\u2015-]+", " ", bare.replace("'s", "s")).split()
    if len(words) > 1 and words[0] in ("the", "a", "an") and len(words[1]) > 1:
        words = words[1:]
    return " ".join({"vs": "v", "versus": "v"}.get(word, _singular(word)) for word in words)


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] not in "siu" else word


def number_of(words: str) -> str | None:
    """A spelled-out number or fraction in digits (three, twenty one, one half); None for other words."""
    parts = words.split()
    fraction = 1
    if len(parts) == 2 and parts[1] in _PARTS:
        parts, fraction = parts[:1], _PARTS[parts[1]]
    if not 1 <= len(parts) <= 2:
        return None
    tens = _TENS.index(parts[0]) * 10 + 20 if parts[0] in _TENS else None
    if len(parts) == 2 and (tens is None or parts[1] not in _ONES[1:10]):
        return None
    first = tens if tens is not None else _ONES.index(parts[0]) if parts[0] in _ONES else None
    if first is None:
        return None
    value = first + (_ONES.index(parts[1]) if len(parts) == 2 else 0)
    return str(value) if fraction == 1 else f"{value}/{fraction}"


def is_placeholder(answer: str) -> bool:
    """Whether a reference answer is a placeholder for a missing one, such as `N/A` or `see the solution`."""
    words = canonical_words(
        re.sub(r"\\(?:text|mathrm)\s*|[{}$\\]", " ", answer).replace("n/a", "na").replace("N/A", "na")
    )
    return words in _PLACEHOLDERS or bool(
        re.match(r"(?:see|refer to) (?:the )?(?:figure|solution|explanation|above)", words)
    )


def is_nothing(words: str) -> bool:
    """Whether canonical words mean "no solution"."""
    return words in _NOTHING


def is_everything(words: str) -> bool:
    """Whether canonical words mean "all real numbers"."""
    return words in _EVERYTHING


def named_option(words: str) -> str | None:
    """The capital letter of `option b`, `choice b` or `answer b`; None for other words."""
    match = re.fullmatch(r"(?:option|choice|answer)\s+([a-j])", words)
    return match.group(1).upper() if match else None


def split_option(text: str) -> tuple[str, str] | None:
    """The letter and the text of an option such as `B. 12` or `(B) 12`; None for other texts."""
    match = _OPTION.fullmatch(text.replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ").strip())
    if (
        match is None
        or re.match(r"(?:and|or)\b|[,&+=^*/-]|\(", match.group(3))
        or re.search(r"(?<![A-Za-z])[A-J][.):]", match[3])
    ):
        return None
    return match.group(1) or match.group(2), match.group(3)
