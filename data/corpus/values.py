"""Values of rows as texts, repairs of known damage, and placeholders for missing answers.

`as_text` is exact: it cuts nothing and invents nothing. `repaired` undoes damage that only one original explains.
"""

import ast
import html
import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from data.corpus.files import Repeated

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")  # but tab, newline, form feed and carriage return
_JSON_TEXT = re.compile(r"""\[\s*["']|\{\s*["'][\w ]+["']\s*:""")
_NOISY_DIGITS = 15  # a double has between 15 and 17 significant digits; what the last two say is noise
_MEANT_DIGITS = 12


class RowError(ValueError):
    """A row that cannot be used.

    Attributes:
        reason: for the rejects file.
        detail: more about it.
    """

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(detail or reason)
        self.reason, self.detail = reason, detail


class NoTextError(RowError):
    """A value that is not text."""


def as_text(value: Any) -> str:
    """The text of a value: numbers as a person writes them, the one element of a list or object.

    Raises:
        NoTextError: it is null, true or false, not a number, bytes, or holds several values.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Repeated):
        raise NoTextError("several_values", f"its key comes twice, with {_shown(value.values)}")
    if isinstance(value, bool) or value is None:
        raise NoTextError("no_text", f"it is {json.dumps(value)}")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        different = list(dict.fromkeys(as_text(inner) for inner in value))
        if len(different) > 1:
            raise NoTextError("several_values", f"it is a list of {len(different)}: {_shown(different)}")
        if different:
            return different[0]
        raise NoTextError("no_text", "it is an empty list")
    if isinstance(value, dict):
        if len(value) == 1:
            return as_text(next(iter(value.values())))
        raise NoTextError("no_text", f"it is an object with the keys {', '.join(map(str, value)) or '(none)'}")
    kind = "bytes that are no UTF-8" if isinstance(value, bytes) else f"a {type(value).__name__}"
    raise NoTextError("no_text", f"it is {kind}")


def _shown(values: Any) -> str:
    return ", ".join(repr(value)[:40] for value in list(values)[:4])


def _number(value: float) -> str:
    """A float without the noise of binary arithmetic, in digits: 0.30000000000000004 is 0.3 and 1e+20 all its zeros."""
    if value != value or value in (float("inf"), float("-inf")):
        raise NoTextError("no_text", f"it is {value}")
    if value.is_integer():
        return str(int(value)) if abs(value) < 1e22 else format(Decimal(repr(value)), "f")
    short = f"{value:.{_NOISY_DIGITS}g}"
    if len(Decimal(short).normalize().as_tuple().digits) > _MEANT_DIGITS:
        short = repr(value)
    return format(Decimal(short), "f")


def from_json_text(text: Any) -> Any:
    """The list or object that a text writes, as JSON or Python; what is given if it writes neither.

    Lists are recognised by a quoted element, objects by a quoted key: `[1, 2]` is an interval and `{1, 2}` a set.
    """
    if isinstance(text, str) and _JSON_TEXT.match(text):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            return value if isinstance(value, list | dict) else text
    return text


# Commands that a lost escape leaves without backslash and first letter: "\frac" is a form feed and "rac" if its
# backslash was read as an escape. After a tab, newline or carriage return, which texts have, only remainders that are
# no words count; the other characters are in no text.
_REMAINDERS = {
    "\b": "ar|egin|eta|ig[gl]?|inom|mod|oldsymbol|ot|owtie|oxed|ullet|ackslash|ecause|inom|f",
    "\f": "box|lat|orall|rac|rown",
    "\a": "lpha|ngle|pprox|rccos|rcsin|rctan|st",
    "\v": "arepsilon|arphi|artheta|ec|ee|dots|ert",
    "\t": "an(?=[\\\\({^])|au|binom|ext(?:bf|it|rm|tt|sf)?|frac|heta|herefore|ilde|imes|riangle(?:left|right)?",
    # but not "eg 2 and 3", "eq. 1" and "eq 1: x = 2" at the beginning of a line
    "\n": "abla|earrow|eg(?=\\s*(?:[(\\\\]|[A-HJ-Zp-z](?![A-Za-z])))|eq(?!\\.|\\s*\\(?\\d+\\)?\\s*:)|otin",
    "\r": "ceil|floor|ight(?:arrow)?|ho|angle|brace|brack|m(?=\\{)",
}
_LETTER = {"\b": "b", "\f": "f", "\a": "a", "\v": "v", "\t": "t", "\n": "n", "\r": "r"}
_LOST = re.compile(
    "|".join(f"{re.escape(character)}(?=(?:{words})(?![a-z]))" for character, words in _REMAINDERS.items())
)
_ENTITY = re.compile(
    r"&(?:lt|gt|amp|quot|apos|nbsp|le|ge|ne|times|divide|minus|plusmn|deg|pi|radic|infin|frac\d\d|sup[123]"
    r"|#\d{1,7}|#x[0-9a-fA-F]{1,6});"
)
_SCRIPT = re.compile(r"<(sup|sub)>([^<>]*)</\1>", re.IGNORECASE)
_MOJIBAKE = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122]"
)
_NOISE = re.compile(r"-?\d+\.\d{14,}")


def _lost_escapes(text: str) -> str:
    return _LOST.sub(lambda match: "\\" + _LETTER[match.group()], text)


def _doubled_escapes(text: str) -> str:
    """Commands with two backslashes, where every one has two; TeX's line break stands beside single ones."""
    commands = re.findall(r"(\\+)([A-Za-z]+)", text)
    doubled = commands and all(len(run) % 2 == 0 and len(name) > 1 for run, name in commands)
    return text.replace("\\\\", "\\") if doubled else text


def _entities(text: str) -> str:
    return _ENTITY.sub(lambda match: html.unescape(match.group()), text)


def _scripts(text: str) -> str:
    return _SCRIPT.sub(lambda match: f"{'^' if match[1].lower() == 'sup' else '_'}{{{match[2]}}}", text)


def _encoding(text: str) -> str:
    """UTF-8 that was read as Latin-1 or Windows-1252, read again."""
    if _MOJIBAKE.search(text):
        for encoding in ("latin-1", "cp1252"):
            try:
                return text.encode(encoding).decode()
            except UnicodeError:
                continue
    return text


def _float_noise(text: str) -> str:
    return _number(float(text)) if _NOISE.fullmatch(text) else text


_IN_ALL: dict[str, Callable[[str], str]] = {
    "lost escape": _lost_escapes,
    "HTML entity": _entities,
    "HTML sub- or superscript": _scripts,
    "wrong encoding": _encoding,
}
_IN_ANSWERS: dict[str, Callable[[str], str]] = {
    "doubled escape": _doubled_escapes,
    "invisible character": lambda text: _INVISIBLE.sub("", text),
    "float noise": _float_noise,
}


def repaired(text: str, answer: bool = False) -> tuple[str, tuple[str, ...]]:
    """A text without known damage, and the kinds of damage it had. `answer`: it is a reference answer."""
    kinds = []
    for kind, repair in (_IN_ALL | (_IN_ANSWERS if answer else {})).items():
        better = repair(text)
        if better != text:
            kinds.append(kind)
            text = better
    return text, tuple(kinds)


def require_whole(text: str) -> None:
    """Raise NoTextError if half a surrogate pair or a control character shows that something of a text is lost."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NoTextError("invalid_text", "it has half of a surrogate pair") from None
    if left := _CONTROL.search(text):
        raise NoTextError("invalid_text", f"it has the control character {left.group()!r}")


_NON_ANSWERS = {
    "answer not found", "answers may vary", "answers vary", "answers will vary", "error", "fixme", "inf", "n a", "na",
    "nan", "nil", "no answer", "no answer found", "no answer provided", "no solution provided", "none",
    "not applicable", "not available", "not found", "not given", "not provided", "notfound", "null", "omitted", "proof",
    "proof omitted", "proved", "proven", "q e d", "qed", "see below", "tba", "tbd", "the statement is proved",
    "the statement is proven", "to be determined", "todo", "unknown",
}  # fmt: skip
_MARKS_OF_NOTHING = {"#n/a", "#name?", "#null!", "#num!", "#ref!", "#value!", "#div/0!", "[deleted]", "[removed]"}
_REFERRED = re.compile(
    r"(?:see|refer to) (?:the )?"
    r"(?:answer|attached|below|diagram|explanation|figure|image|picture|proof|solution|above)\b"
)


def is_non_answer(answer: str) -> bool:
    """Whether a reference answer says only that there is none: `N/A`, `QED`, `see the solution`."""
    bare = re.sub(r"\\(?:text(?:bf|it|rm)?|mathrm|mbox|boxed)\b|[{}$\\]", " ", answer).casefold()
    words = " ".join(re.sub(r"[^\w\s]", " ", bare).split())
    if answer.strip() == "Na":  # sodium
        return False
    known = words in _NON_ANSWERS or answer.strip().casefold() in _MARKS_OF_NOTHING
    return known or _REFERRED.match(words) is not None


_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)|<img\b[^>]*>|\\includegraphics(?:\[[^\]]*\])?\{[^}]*\}|<image(?:_?\d+)?>")
_DRAWING = re.compile(r"\[asy\].*?(?:\[/asy\]|$)", re.DOTALL)
_FIGURE = re.compile(
    r"\b(?:shown|given|as|in|from|see) (?:in |on )?(?:the |this )?(?:following |above |adjoining |accompanying )?"
    r"(?:figure|diagram|picture|image|graph)\b|\b(?:figure|diagram) (?:above|below|shown)\b",
    re.IGNORECASE,
)


def has_words(problem: str) -> bool:
    """Whether a problem says anything besides images, drawing code, links and punctuation."""
    return re.search(r"\w", re.sub(r"https?://\S+", " ", _DRAWING.sub(" ", _IMAGE.sub(" ", problem)))) is not None


def figure_mark(problem: str) -> str | None:
    """The figure a problem depends on: `image`, `asy` (drawing code) or `figure` (only named); None: it needs none."""
    if _IMAGE.search(problem):
        return "image"
    if "[asy]" in problem:
        return "asy"
    return "figure" if _FIGURE.search(problem) else None
