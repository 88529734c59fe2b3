r"""Remove LaTeX notation that does not change the meaning of an answer."""

import re
from functools import lru_cache

from data.grading.characters import as_latex
from data.grading.marks import DOLLAR, ROW_END, SET_CLOSE, SET_OPEN, TEXT_CLOSE, TEXT_OPEN
from data.grading.units import is_symbol_behind_value
from data.grading.words import introduces

_AS_LATEX = str.maketrans({TEXT_OPEN: "", TEXT_CLOSE: "", SET_OPEN: "\\{", SET_CLOSE: "\\}", DOLLAR: "$"})
_TEXTS = r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mbox|hbox|emph)\s*"
_TEXT_COMMAND = re.compile(rf"{_TEXTS}\{{([^{{}}]*)\}}")
_NESTED = r"[^{}]*+"  # with braces nested up to five deep, as in \frac{\sqrt{2}}{2}
for _level in range(5):
    _NESTED = rf"(?:[^{{}}]++|\{{{_NESTED}\}})*+"
_FORMULA_AS_TEXT = re.compile(rf"{_TEXTS}\{{({_NESTED})\}}")
_FONT_COMMAND = re.compile(
    r"\\(?:mathrm|mathbf|mathit|mathsf|mathcal|mathbb|boldsymbol|bm|operatorname|underline|textcolor\{\w+\})"
    rf"\s*\{{({_NESTED})\}}"
)
_SPACING = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|displaystyle|textstyle|limits|quad|qquad"
    r"|hspace\{[^}]*\}|phantom\{[^}]*\})(?![A-Za-z])|\\[!,;:> ]|~"
)
_LATEX_THOUSANDS = re.compile(r"(?<=\d)(?:,\s*\\!|\{,\}|\\,|\\!\s*,)\s*(?=\d{3}(?!\d))")  # 10{,}080
_ONE_SIDED = re.compile(rf"\\left\s*(?:{SET_OPEN}|\.)(.*)\\right\s*\.")  # \left\{ ... \right.
_BRACED_ARRAY = re.compile(
    rf"\\left\s*{SET_OPEN}\s*\\begin\{{array\}}\s*\{{[^{{}}]*\}}(.*)\\end\{{array\}}\s*\\right\s*\.", re.DOTALL
)
_DETERMINANT = re.compile(
    r"\\det\s*(?:\\left)?\(?\s*\\begin\{([pb]?matrix)\}(.*?)\\end\{\1\}\s*(?:\\right)?\)?", re.DOTALL
)
_LOGIC = {r"\vee": r"\lor", r"\wedge": r"\land"}
_ENTITIES = re.compile(r"&(lt|gt|amp|nbsp);")
_OPERATOR = re.compile(r"\\operatorname\*?\s*\{\s*([A-Za-z]+)\s*\}")
_PROGRAM_POWER = re.compile(r"\*\*")
_PROGRAM_INFINITY = re.compile(r"(?<![A-Za-z\\])(?:oo|inf)(?![A-Za-z])")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)")  # 2.5 x 10^-4
_RECURRING = re.compile(r"(\d*\.\d*)(?:\((\d+)\)|\\(?:bar|overline)\s*\{?(\d+)\}?)(?!\d)")
_DOTTED = re.compile(r"(\d*\.\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?")
_ELLIPSIS = re.compile(r"\\(?:dots|cdots|dotsc|dotsb|hdots)(?![A-Za-z])|\.\.\.+")
_ROW_GAP = re.compile(rf"{ROW_END}\s*\[\s*-?[\d.]+\s*(?:pt|ex|em|mm|cm|in)\s*\]")
_REVERSED = re.compile(r"([\[\](])([^\[\](){},;]+[,;][^\[\](){},;]+)([\[\])])")
_NUMBER_IN_WORDS = re.compile(
    rf"{TEXT_OPEN}((?:[^{TEXT_CLOSE}\d]*[^{TEXT_CLOSE}\d\w{DOLLAR}$£€¥-])?)"
    rf"([{DOLLAR}$£€¥]?-?(?:\d[\d,]*(?:[.:]\d+)?|\.\d+)%?)(?=\.?[\s{TEXT_CLOSE}])([^{TEXT_CLOSE}\d]*){TEXT_CLOSE}"
)
_UNIT_QUOTIENT = re.compile(
    rf"\\frac\s*\{{\s*{TEXT_OPEN}([^{TEXT_CLOSE}]*){TEXT_CLOSE}\s*\}}"
    rf"\s*\{{\s*{TEXT_OPEN}([^{TEXT_CLOSE}]*){TEXT_CLOSE}\s*\}}"
)
_MARKED_CURRENCY = re.compile(rf"{TEXT_OPEN}\s*([{DOLLAR}£€¥₹])\s*{TEXT_CLOSE}")
_MICRO = re.compile(rf"\\mu\s*{TEXT_OPEN}")
_POSITIVE = re.compile(r"\(-\\infty,\\infty\)\s*(?:\^|_)\s*\{?\s*([+-]|>\s*0|<\s*0|\\ge\s*0)\s*\}?")
_REALS = re.compile(r"\\(?:mathbb|mathbf)\s*(?:\{R\}|R)|\\R(?![A-Za-z])")


@lru_cache(maxsize=65536)
def undress(answer: str) -> str:
    r"""An answer without notation that never changes its meaning: $, \left, spacing, \dfrac, fonts, a final full stop.

    Words inside \text{} stay marked (`marks.py`), so that they are not read as products of letters.

    The order of the replacements matters: each pattern below relies on the ones before it.
    """
    text = as_latex(answer).strip()  # first: all later patterns match LaTeX only
    text = _without_delimiters(text)
    text = _ENTITIES.sub(lambda match: {"lt": "<", "gt": ">", "amp": "&", "nbsp": " "}[match.group(1)], text)
    text = _OPERATOR.sub(r"\\\1 ", text)
    text = _PROGRAM_POWER.sub("^", text)
    text = _PROGRAM_INFINITY.sub(r"\\infty ", text)
    text = _TIMES_TEN.sub("*", text)
    text = _recurring(text)
    text = _LATEX_THOUSANDS.sub("", text)  # before spacing goes: `10\,080` is one number
    text = _REALS.sub(r"(-\\infty,\\infty)", text)  # before fonts go: `\mathbb{R}` is not a variable
    text = _POSITIVE.sub(_half_line, text)
    text = text.replace("\\varnothing", "\\emptyset")
    text = re.sub(r"\\cr(?![A-Za-z])", ROW_END, text)
    text = text.replace("\\\\", ROW_END)  # before `\{`: in `\\{` the brace opens a group
    text = _ROW_GAP.sub(ROW_END, text)
    text = text.replace("\\lbrace", "\\{").replace("\\rbrace", "\\}")
    text = text.replace("\\{", SET_OPEN).replace("\\}", SET_CLOSE)
    text = _BRACED_ARRAY.sub(r"\\begin{cases}\1\\end{cases}", text)
    text = _DETERMINANT.sub(r"\\begin{vmatrix}\2\\end{vmatrix}", text)
    text = _ONE_SIDED.sub(r"\1", text)  # before `\left` goes
    text = _SPACING.sub(lambda match: " " if match.group()[1:2] in ",;:> q" or match.group() == "~" else "", text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\color\s*\{\w+\}|\\[lr]angle(?![A-Za-z])", _angle, text)
    text = text.replace("\\%", "%").replace("\\lvert", "|").replace("\\rvert", "|")
    text = text.replace("\\$", DOLLAR)  # before the remaining $ are taken for delimiters
    text = re.sub(r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge", text)
    text = re.sub(r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le", text)
    text = re.sub(r"\\(?:to|rightarrow|longrightarrow)(?![A-Za-z])", r"\\to", text)
    text = re.sub(r"\\(?:vee|wedge)(?![A-Za-z])", lambda match: _LOGIC[match.group()], text)
    text = re.sub(r"\\lnot(?![A-Za-z])", r"\\neg", text)
    text = re.sub(r"\^?\s*\{?\\degree(?![A-Za-z])\}?", r"^\\circ ", text)
    text = _ELLIPSIS.sub(r"\\ldots ", text)
    text = re.sub(r"\\neq(?![A-Za-z])", r"\\ne", text)
    for _ in range(3):  # nested, as in \text{\textbf{(C)}}
        text = _FORMULA_AS_TEXT.sub(_formula, text)
        text = _TEXT_COMMAND.sub(f"{TEXT_OPEN}\\1{TEXT_CLOSE}", _FONT_COMMAND.sub(_font, text))
    text = _MARKED_CURRENCY.sub(r"\1", text)
    text = _NUMBER_IN_WORDS.sub(_apart, text)
    text = _UNIT_QUOTIENT.sub(f"{TEXT_OPEN}\\1/\\2{TEXT_CLOSE}", text)
    text = _MICRO.sub(f"{TEXT_OPEN}µ", text)
    text = _REVERSED.sub(_bourbaki, text)
    # A single $ is a currency sign; several are delimiters within the answer.
    text = re.sub(r"(?<!\\)\$", "", text) if text.count("$") > 1 else text.replace("$", DOLLAR)
    text = text.strip().removesuffix(ROW_END).removesuffix("\\").removesuffix(".").strip()
    return " ".join(text.split())


def _formula(match: re.Match[str]) -> str:
    """The content of a text command if it is a formula, as in \\textbf{\\frac{3}{4}} and \\text{(3,4]}."""
    content = re.sub(r"\\[()]", "", match.group(1))
    outside = _TEXT_COMMAND.sub("", content)
    commands, letters = re.search(r"\\[A-Za-z]", outside), re.search("[A-Za-z]", outside)
    dressed = outside != content or re.search(r"[(\[,_]", outside)
    return content if commands or (letters is None and dressed) else match.group()


def _recurring(text: str) -> str:
    """`0.(3)`, `0.\\bar{3}` and `0.\\dot{3}` as `0.\\overline{3}`."""
    text = _RECURRING.sub(lambda match: f"{match[1]}\\overline{{{match[2] or match[3]}}}", text)
    return _DOTTED.sub(lambda match: f"{match[1]}\\overline{{{''.join(match.groups('')[1:])}}}", text)


def _apart(match: re.Match[str]) -> str:
    """`\\text{20 years}` as 20 and words, `\\text{The answer is 42}` as words and 42."""
    before, number, behind = match.groups()
    if before.strip() and not introduces(before):
        return match.group()
    parts = (f"{TEXT_OPEN}{words}{TEXT_CLOSE}" if words.strip(" .") else "" for words in (before, behind))
    return f"{number}".join(parts)


def _bourbaki(match: re.Match[str]) -> str:
    """`]0,1[` as (0,1)."""
    opening, ends, closing = match.groups()
    return {"]": "("}.get(opening, opening) + ends + {"[": ")"}.get(closing, closing)


def _half_line(match: re.Match[str]) -> str:
    """The positive or negative real numbers."""
    sign = match.group(1)
    if sign in ("-", "<0") or sign.startswith("<"):
        return "(-\\infty,0)"
    return "[0,\\infty)" if "ge" in sign else "(0,\\infty)"


def _without_delimiters(text: str) -> str:
    """The text without math delimiters that enclose all of it."""
    for opening, closing in (
        ("$$", "$$"),
        ("$", "$"),
        ("\\(", "\\)"),
        ("\\[", "\\]"),
        ("**", "**"),
        ("`", "`"),
        ('"', '"'),
    ):
        enclosed = len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
        if enclosed and opening not in text[len(opening) : -len(closing)]:
            text = text[len(opening) : -len(closing)].strip()
    return text


def _angle(match: re.Match[str]) -> str:
    return {"\\langle": "(", "\\rangle": ")"}.get(match.group(), "")


def _font(match: re.Match[str]) -> str:
    """The content of a font command, marked as text if it is the unit of a value."""
    content = match.group(1)
    before = match.string[: match.start()]
    if is_symbol_behind_value(content, before):
        return f"{TEXT_OPEN}{content}{TEXT_CLOSE}"
    return f" {content}" if re.search(r"\\[A-Za-z]+$", before) else content


def plain(answer: str) -> str:
    """The undressed answer with its marks written as LaTeX again. Answers with equal plain text are equal."""
    text = undress(answer)
    return " ".join(text.translate(_AS_LATEX).split())
