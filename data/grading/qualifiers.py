r"""What is said beside an answer about its variables, such as "for all real x" or "where c is a constant".

Such a qualifier is dropped if it restricts nothing: if it is made of the words below, variables, and the sets of
numbers that the variables of such an answer come from anyway. "for x > 0" and "n odd" stay, and are compared.
"""

import re

from data.grading.marks import TEXT_CLOSE, TEXT_OPEN
from data.grading.tree import NO_LETTER

_START = re.compile(
    rf"[,;]?\s*[({{]?\s*(?:{TEXT_OPEN}\s*,?\s*(?:for|where|with|any|all|every)\b"
    r"|\b(?:for|where|with)\s+(?:all|any|every|each|some)?\b"
    rf"|\\forall{NO_LETTER}"
    rf"|[,;(]\s*(?:\\?[A-Za-z](?:\s*,\s*\\?[A-Za-z])*)\s*(?:\\in{NO_LETTER}|{TEXT_OPEN}?\s*is an? ))"
)
_WORDS = frozenset(
    "for all any every each some where with and is are be a an arbitrary constant constants real reals number "
    "numbers integer integers variable parameter value values of the in".split()
)
_SIGNS = frozenset(r"\in \forall , ; ( ) . : \alpha \beta \gamma \lambda \theta \mu \t".split())
_DOMAINS = frozenset("natural positive nonnegative rational rationals complex ^ + * _".split())
_DEFINES = re.compile(r"\\?[A-Za-z]+'*\s*(?:\([A-Za-z]\)|_\{?[A-Za-z]\}?)\s*=")
_INTEGERS = re.compile(r"integer|\\in\s*[ZN]\b|natural")
_NATURAL = re.compile(r"natural|\\in\s*N\b")
_TOKEN = re.compile(r"\\[A-Za-z]+|[A-Za-z]+|\S")
_SET_LIKE = re.compile(rf"<|>|\\(?:le|ge|lt|gt|ne|in|cup|infty){NO_LETTER}")


def without_qualifiers(text: str) -> str:
    """A text without a qualifier at its end that restricts nothing."""
    for match in _START.finditer(text):
        body, qualifier = text[: match.start()].strip(), text[match.start() :]
        whole = body.count("(") == body.count(")") and body.count("{") == body.count("}")
        if body and whole and _is_empty(qualifier, body):
            return body
    return text


def _is_empty(qualifier: str, body: str) -> bool:
    words = _WORDS
    if _DEFINES.match(body):
        words = words | _DOMAINS  # f is sought on the domain that the problem gives
    elif _NATURAL.search(qualifier):
        return False
    if _INTEGERS.search(qualifier) and _SET_LIKE.search(body):
        return False  # the integers between 0 and 3 are not the interval
    bare = re.sub(rf"[{TEXT_OPEN}{TEXT_CLOSE}]", " ", qualifier)
    bare = re.sub(r"\(-\\infty,\s*\\infty\)", " Z ", bare)
    tokens = _TOKEN.findall(bare)
    empty = ((len(token) == 1 and token.isalpha()) or token in _SIGNS or token.lower() in words for token in tokens)
    return len(tokens) > 1 and all(empty)
