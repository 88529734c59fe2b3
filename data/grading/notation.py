r"""Remove LaTeX notation that does not change the meaning of an answer."""

import re
from collections.abc import Callable
from functools import lru_cache

from data.grading.characters import as_latex
from data.grading.marks import DOLLAR, ROW_END, SET_CLOSE, SET_OPEN, TEXT_CLOSE, TEXT_OPEN
from data.grading.units import is_symbol_behind_value
from data.grading.words import introduces

_Match = re.Match[str]
_Steps = list[tuple[re.Pattern[str], str | Callable[[_Match], str]]]

_AS_LATEX = str.maketrans({TEXT_OPEN: "", TEXT_CLOSE: "", SET_OPEN: "\\{", SET_CLOSE: "\\}", DOLLAR: "$"})
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"), ('"', '"'))
_TEXTS = r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mbox|hbox|emph)\s*"
_TEXT_COMMAND = re.compile(rf"{_TEXTS}\{{([^{{}}]*)\}}")
_NESTED = r"[^{}]*+"  # with braces nested up to five deep, as in \frac{\sqrt{2}}{2}
for _level in range(5):
    _NESTED = rf"(?:[^{{}}]++|\{{{_NESTED}\}})*+"
_WORDS = rf"{TEXT_OPEN}([^{TEXT_CLOSE}]*){TEXT_CLOSE}"
_SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "geq": "ge", "geqslant": "ge", "leq": "le", "leqslant": "le",
    "neq": "ne", "rightarrow": "to", "longrightarrow": "to", "vee": "lor", "wedge": "land", "lnot": "neg",
}  # fmt: skip


def _formula(match: _Match) -> str:
    """The content of a text command if it is a formula, as in \\textbf{\\frac{3}{4}} and \\text{(3,4]}."""
    content = re.sub(r"\\[()]", "", match[1])
    outside = _TEXT_COMMAND.sub("", content)
    commands, letters = re.search(r"\\[A-Za-z]", outside), re.search("[A-Za-z]", outside)
    dressed = outside != content or re.search(r"[(\[,_]", outside)
    return content if commands or (letters is None and dressed) else match[0]


def _font(match: _Match) -> str:
    """The content of a font command, marked as text if it is the unit of a value."""
    before = match.string[: match.start()]
    if is_symbol_behind_value(match[1], before):
        return f"{TEXT_OPEN}{match[1]}{TEXT_CLOSE}"
    return f" {match[1]}" if re.search(r"\\[A-Za-z]+$", before) else match[1]


def _apart(match: _Match) -> str:
    """`\\text{20 years}` as 20 and words, `\\text{The answer is 42}` as words and 42."""
    before, number, behind = match.groups()
    if before.strip() and not introduces(before):
        return match[0]
    parts = (f"{TEXT_OPEN}{words}{TEXT_CLOSE}" if words.strip(" .") else "" for words in (before, behind))
    return f"{number}".join(parts)


def _half_line(match: _Match) -> str:
    """The positive or negative real numbers."""
    if match[1].startswith(("-", "<")):
        return "(-\\infty,0)"
    return "[0,\\infty)" if "ge" in match[1] else "(0,\\infty)"


def _compiled(*steps: tuple[str, str | Callable[[_Match], str]]) -> _Steps:
    return [(re.compile(pattern, re.DOTALL), replacement) for pattern, replacement in steps]


# The order matters: each pattern relies on the ones before it.
_STEPS = _compiled(
    (r"&(lt|gt|amp|nbsp);", lambda match: {"lt": "<", "gt": ">", "amp": "&", "nbsp": " "}[match[1]]),
    (r"\\operatorname\*?\s*\{\s*([A-Za-z]+)\s*\}", r"\\\1 "),
    (r"\*\*", "^"),  # of programs
    (r"(?<![A-Za-z\\])(?:oo|inf)(?![A-Za-z])", r"\\infty "),
    (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", "*"),  # 2.5 x 10^-4
    # 0.(3), 0.\bar{3} and 0.\dot{3} as 0.\overline{3}
    (
        r"(\d*\.\d*)(?:\((\d+)\)|\\(?:bar|overline)\s*\{?(\d+)\}?)(?!\d)",
        lambda match: f"{match[1]}\\overline{{{match[2] or match[3]}}}",
    ),
    (
        r"(\d*\.\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?",
        lambda match: f"{match[1]}\\overline{{{''.join(match.groups('')[1:])}}}",
    ),
    # 10{,}080 and 10\,080; before spacing goes
    (r"(?<=\d)(?:,\s*\\!|\{,\}|\\,|\\!\s*,)\s*(?=\d{3}(?!\d))", ""),
    # Before fonts go: \mathbb{R} is not a variable.
    (r"\\(?:mathbb|mathbf)\s*(?:\{R\}|R)|\\R(?![A-Za-z])", r"(-\\infty,\\infty)"),
    (r"\(-\\infty,\\infty\)\s*(?:\^|_)\s*\{?\s*([+-]|>\s*0|<\s*0|\\ge\s*0)\s*\}?", _half_line),
    (r"\\varnothing", r"\\emptyset"),
    (r"\\cr(?![A-Za-z])", ROW_END),
    (r"\\\\", ROW_END),  # before \{: in \\{ the brace opens a group
    (rf"{ROW_END}\s*\[\s*-?[\d.]+\s*(?:pt|ex|em|mm|cm|in)\s*\]", ROW_END),
    (r"\\\{|\\lbrace", SET_OPEN),
    (r"\\\}|\\rbrace", SET_CLOSE),
    (
        rf"\\left\s*{SET_OPEN}\s*\\begin\{{array\}}\s*\{{[^{{}}]*\}}(.*)\\end\{{array\}}\s*\\right\s*\.",
        r"\\begin{cases}\1\\end{cases}",
    ),
    (
        r"\\det\s*(?:\\left)?\(?\s*\\begin\{([pb]?matrix)\}(.*?)\\end\{\1\}\s*(?:\\right)?\)?",
        r"\\begin{vmatrix}\2\\end{vmatrix}",
    ),
    (rf"\\left\s*(?:{SET_OPEN}|\.)([^\n]*)\\right\s*\.", r"\1"),  # \left\{ ... \right.
    (
        r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|displaystyle|textstyle|limits|quad|qquad"
        r"|hspace\{[^}]*\}|phantom\{[^}]*\})(?![A-Za-z])|\\[!,;:> ]|~",
        lambda match: " " if match[0] == "~" or match[0][1] in ",;:> q" else "",
    ),
    (r"\\color\s*\{\w+\}|\\[lr]angle(?![A-Za-z])", lambda match: {"\\langle": "(", "\\rangle": ")"}.get(match[0], "")),
    (r"\\%", "%"),
    (r"\\[lr]vert", "|"),
    (r"\\\$", DOLLAR),  # before the remaining $ are taken for delimiters
    (rf"\\({'|'.join(_SYNONYMS)})(?![A-Za-z])", lambda match: "\\" + _SYNONYMS[match[1]]),
    (r"\^?\s*\{?\\degree(?![A-Za-z])\}?", r"^\\circ "),
    (r"\\(?:dots|cdots|dotsc|dotsb|hdots)(?![A-Za-z])|\.\.\.+", r"\\ldots "),
    *(  # nested, as in \text{\textbf{(C)}}
        (rf"{_TEXTS}\{{({_NESTED})\}}", _formula),
        (
            r"\\(?:mathrm|mathbf|mathit|mathsf|mathcal|mathbb|boldsymbol|bm|operatorname|underline|textcolor\{\w+\})"
            rf"\s*\{{({_NESTED})\}}",
            _font,
        ),
        (_TEXT_COMMAND.pattern, f"{TEXT_OPEN}\\1{TEXT_CLOSE}"),
    )
    * 3,
    (rf"{TEXT_OPEN}\s*([{DOLLAR}£€¥₹])\s*{TEXT_CLOSE}", r"\1"),
    (
        rf"{TEXT_OPEN}((?:[^{TEXT_CLOSE}\d]*[^{TEXT_CLOSE}\d\w{DOLLAR}$£€¥-])?)"
        rf"([{DOLLAR}$£€¥]?-?(?:\d[\d,]*(?:[.:]\d+)?|\.\d+)%?)(?=\.?[\s{TEXT_CLOSE}])([^{TEXT_CLOSE}\d]*){TEXT_CLOSE}",
        _apart,
    ),
    (rf"\\frac\s*\{{\s*{_WORDS}\s*\}}\s*\{{\s*{_WORDS}\s*\}}", f"{TEXT_OPEN}\\1/\\2{TEXT_CLOSE}"),  # a unit
    (rf"\\mu\s*{TEXT_OPEN}", f"{TEXT_OPEN}µ"),
    (  # ]0,1[ as (0,1)
        r"([\[\](])([^\[\](){},;]+[,;][^\[\](){},;]+)([\[\])])",
        lambda match: match[1].replace("]", "(") + match[2] + match[3].replace("[", ")"),
    ),
)


@lru_cache(maxsize=65536)
def undress(answer: str) -> str:
    r"""An answer without notation that never changes its meaning: $, \left, spacing, \dfrac, fonts, a final full stop.

    Words inside \text{} stay marked (`marks.py`), so that they are not read as products of letters.
    """
    text = as_latex(answer).strip()  # first: all patterns match LaTeX only
    for opening, closing in _DELIMITERS:
        enclosed = len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
        if enclosed and opening not in text[len(opening) : -len(closing)]:
            text = text[len(opening) : -len(closing)].strip()
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    # A single $ is a currency sign; several are delimiters within the answer.
    text = re.sub(r"(?<!\\)\$", "", text) if text.count("$") > 1 else text.replace("$", DOLLAR)
    text = text.strip().removesuffix(ROW_END).removesuffix("\\").removesuffix(".").strip()
    return " ".join(text.split())


def plain(answer: str) -> str:
    """The undressed answer with its marks written as LaTeX again. Answers with equal plain text are equal."""
    text = undress(answer)
    return " ".join(text.translate(_AS_LATEX).split())
