"""Answers in words: option letters, short texts, spelled-out numbers, and words for sets."""

import re

from data.grading.marks import SET_OPEN, TEXT_CLOSE, TEXT_OPEN

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_NUMBERS = {word: number for number, word in enumerate(_ONES)}
for _number, _tens in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2):
    _NUMBERS |= {f"{_tens} {ones}".removesuffix(" zero"): 10 * _number + _NUMBERS[ones] for ones in _ONES[:10]}
_PARTS = {
    "half": 2, "third": 3, "fourth": 4, "quarter": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10,
}  # fmt: skip
NOTHING = {
    "no solution", "no real solution", "there is no solution", "there are no solution", "no real root", "empty set",
    "there are no real solution", "there is no real solution", "no integer solution", "none",
}  # fmt: skip
"""Canonical words that mean "no solution"."""
EVERYTHING = {"all real number", "all real", "every real number", "any real number", "real number", "real"}
"""Canonical words that mean "all real numbers"."""
MATH_WORDS = set("sqrt pi sin cos tan cot sec csc log ln exp mod infinity arcsin arccos arctan binom or and".split())
"""Names of functions and constants, which are no words."""
_OPTION = re.compile(r"(?:\(([A-J])\)\s+|([A-J])(?:[.)]\s+|:\s*|\s+-\s+(?=[A-Za-z]{2})))(.+)", re.DOTALL)
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}/\d{1,2}/\d{4}")


def is_prose(text: str) -> bool:
    """Whether a text is words or a date, without mathematics. Words may contain "v." or end in a number."""
    bare = text.replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ").strip()
    # Several single letters are options in order. Else the first word has two letters or more and names no function.
    if re.fullmatch(r"[A-Za-z](?:\s+[A-Za-z])+", bare) or _DATE.fullmatch(bare):
        return True
    first = re.match(r"[^\W\d_]{2,}[\w'.-]*|[^\W\d_]\.", bare)
    if not first or first.group().rstrip(".").lower() in MATH_WORDS or re.search(rf"[=^\\{{}}_+*/|{SET_OPEN}]", bare):
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
    if words == ["dne"]:
        words = ["does", "not", "exist"]
    words = [re.sub(r"^(\d+)(?:st|nd|rd|th)$", r"\1", word) for word in words]
    return " ".join({"vs": "v", "versus": "v"}.get(word, _singular(word)) for word in words)


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] not in "siu" else word


def spelled_number(words: str) -> str | None:
    """A spelled-out number or fraction in digits (three, twenty one, one half); None for other words."""
    if words in _NUMBERS:
        return str(_NUMBERS[words])
    first, _, part = words.partition(" ")
    return f"{_NUMBERS[first]}/{_PARTS[part]}" if first in _NUMBERS and part in _PARTS else None


_FUNCTION_WORDS = frozenset(
    "не нет nicht kein keine is are was were be been being am has have had do does did can cannot could will would "
    "shall should may might must not no none never nor and or but if then else than that which who whose what when "
    "where while because since so to from into onto over under above below between by with without within about "
    "approximately roughly nearly almost around plus minus times divided multiplied squared cubed factorial base "
    "mod modulo remainder root reciprocal inverse negative half twice thrice double more less fewer greater smaller "
    "larger most least both either neither wrong incorrect false impossible undefined except instead versus vs "
    "unless until point log ln sin cos tan fails short too off ish doubled halved tripled quadrupled raised added "
    "subtracted increased decreased reduced fail failed rejected invalid excluded extraneous eliminated discarded "
    "maybe perhaps missing bound otherwise elsewhere".split()
)
"""Words that say something about the number beside them, so that it is not the answer; other words name what is
counted or measured."""
_PLURALS = frozenset(
    "th st nd rd people children men women feet teeth mice geese oxen dice fish sheep deer cattle data".split()
)
_DENIALS = frozenset(
    "not no none never cannot without except less more most least fewer about approximately nearly roughly almost if "
    "unless or impossible false wrong incorrect".split()
)
_CHINESE_DENIAL = re.compile("[不非没無无未否]")
_CHINESE_CHANGE = re.compile("[不非没無无未否上下左右多余约倍负或和与到至近超]")
_COPULAS = ("is", "are", "equals", "was", "be")
_NEUTRAL = frozenset(
    "the a an final answer result solution value total sum amount number count so thus therefore hence exactly only "
    "just we get have obtain of".split()
)
ADVERBS = re.compile(r"\s*,?\s*\b(?:altogether|overall|in total|in all|respectively|only|exactly)\W*$", re.IGNORECASE)
"""What may be left out at the end of an answer."""
_PART_WORD = re.compile(r"(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|\w*[a-z]{3}(?:dth|nth))s?|halves")
"""A word that makes a fraction of the number before it, such as tenths or millionths."""


def names_what_is_counted(words: str, one: bool = False) -> bool:
    """Whether words behind a number name what it counts or measures: "red apples", but not "km from the city".

    Something is named by a plural, or by a singular behind `one` or less; English adverbs and participles name nothing.
    """
    tokens = re.findall(r"[^\W\d_]+", words.casefold())
    if tokens == ["times"]:
        return True
    if re.search(r"n['\u2019]t\b", words) or _CHINESE_CHANGE.search(words):
        return False
    named = one or any(_is_plural(word) for word in tokens)
    return named and bool(tokens) and not _FUNCTION_WORDS & set(tokens) and not any(map(_PART_WORD.fullmatch, tokens))


def _is_plural(word: str) -> bool:
    return not word.isascii() or word in _PLURALS or (word[-1:] == "s" and word[-2:-1] not in ("s", "u", "i"))


def denies(words: str) -> bool:
    """Whether words on the left of an equation deny or weaken it ("not x", "at least")."""
    return bool(_DENIALS & set(re.findall(r"[^\W\d_]+", words.casefold())) or _CHINESE_DENIAL.search(words))


def introduces(words: str) -> bool:
    """Whether words in front of a value only introduce it: "The answer is", "Total:", "so"."""
    bare = words.strip()
    if not bare:  # \text{}
        return True
    tokens = re.findall(r"[^\W\d_]+", bare.casefold())
    if not tokens or re.search(r"[^\w\s:=,.'\u2019()-]", bare):
        return False
    if bare.endswith((":", "=", "是", "为")) or tokens[-1] in _COPULAS:
        stated = set(tokens[:-1]) if tokens[-1] in _COPULAS else set(tokens)
        return not (_FUNCTION_WORDS - _NEUTRAL) & stated and not _CHINESE_DENIAL.search(bare)
    return set(tokens) <= _NEUTRAL and (tokens[-1] != "of" or tokens[-2:-1] in (["total"], ["value"]))  # the sum of 8


def part_of(word: str) -> int | None:
    """The denominator that a word such as tenths stands for."""
    word = word.casefold().strip()
    singular = "half" if word == "halves" else word.removesuffix("s")
    powers = {"hundredth": 2, "thousandth": 3, "millionth": 6, "billionth": 9}
    return 10 ** powers[singular] if singular in powers else _PARTS.get(singular)


def named_option(words: str) -> str | None:
    """The capital letter of `option b`, `choice b` or `answer b`; None for other words."""
    kind = r"(?:(?:correct|right|final) )?(?:option|choice|answer)"
    match = re.fullmatch(
        rf"{kind}(?: is)?(?: option| choice)? ([a-j])|([a-j]) is (?:the )?(?:correct|right|{kind})", words
    )
    return (match.group(1) or match.group(2)).upper() if match else None


def split_option(text: str) -> tuple[str, str] | None:
    """The letter and the text of an option such as `B. 12` or `(B) 12`; None for other texts."""
    match = _OPTION.fullmatch(text.replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ").strip())
    if (
        match is None
        or re.match(r"(?:and|or)\b|[,&+=^*/-]|\(|[A-Z]\b|\\(?:cup|cap|cdot|times|to|land|lor|in)\b", match.group(3))
        or re.search(r"(?<![A-Za-z])[A-J][.):]", match[3])
    ):
        return None
    return match.group(1) or match.group(2), match.group(3)
