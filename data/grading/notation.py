r"""Remove LaTeX notation that does not change the meaning of an answer."""

import re

from data.grading.marks import DOLLAR, ROW_END, SET_CLOSE, SET_OPEN, TEXT_CLOSE, TEXT_OPEN
from data.grading.units import is_symbol_behind_value

_AS_LATEX = str.maketrans({TEXT_OPEN: "", TEXT_CLOSE: "", SET_OPEN: "\\{", SET_CLOSE: "\\}", DOLLAR: "$"})
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|mbox|hbox|emph)\s*\{([^{}]*)\}")
_FONT_COMMAND = re.compile(
    r"\\(?:mathrm|mathbf|mathit|mathsf|mathcal|mathbb|boldsymbol|bm|operatorname|underline|textcolor\{\w+\})"
    r"\s*\{([^{}]*)\}"
)
_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "∞": r"\infty ", "π": r"\pi ", "√": r"\sqrt ",
        "∪": r"\cup ", "°": r"^\circ ", "±": r"\pm ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∈": r"\in ",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "²": "^2", "³": "^3", "\u00a0": " ",
        "（": "(", "）": ")", "，": ",", "θ": r"\theta ", "∅": r"\emptyset ", "’": "'",
    }
)  # fmt: skip
_SPACING = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|displaystyle|textstyle|limits|quad|qquad"
    r"|hspace\{[^}]*\}|phantom\{[^}]*\})(?![A-Za-z])|\\[!,;:> ]|~"
)
_LATEX_THOUSANDS = re.compile(r"(?<=\d)(?:,\s*\\!|\{,\}|\\,|\\!\s*,)\s*(?=\d{3}(?!\d))")  # 10{,}080
_ONE_SIDED = re.compile(rf"\\left\s*(?:{SET_OPEN}|\.)(.*)\\right\s*\.")  # \left\{ ... \right.
_REALS = re.compile(r"\\(?:mathbb|mathbf)\s*(?:\{R\}|R)|\\R(?![A-Za-z])")


def undress(answer: str) -> str:
    r"""An answer without notation that never changes its meaning: $, \left, spacing, \dfrac, fonts, a final full stop.

    Words inside \text{} stay marked (`marks.py`), so that they are not read as products of letters.

    The order of the replacements matters: each pattern below relies on the ones before it.
    """
    text = answer.translate(_UNICODE).strip()  # first: all later patterns match LaTeX only
    text = _without_delimiters(text)
    text = _LATEX_THOUSANDS.sub("", text)  # before spacing goes: `10\,080` is one number
    text = _REALS.sub(r"(-\\infty,\\infty)", text)  # before fonts go: `\mathbb{R}` is not a variable
    text = text.replace("\\varnothing", "\\emptyset")
    text = text.replace("\\\\", ROW_END)  # before `\{`: in `\\{` the brace opens a group
    text = text.replace("\\lbrace", "\\{").replace("\\rbrace", "\\}")
    text = text.replace("\\{", SET_OPEN).replace("\\}", SET_CLOSE)
    text = _ONE_SIDED.sub(r"\1", text)  # before `\left` goes
    text = _SPACING.sub(lambda match: " " if match.group() in ("\\ ", "~", "\\quad", "\\qquad") else "", text)
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\color\s*\{\w+\}|\\[lr]angle(?![A-Za-z])", _angle, text)
    text = text.replace("\\%", "%").replace("\\lvert", "|").replace("\\rvert", "|")
    text = text.replace("\\$", DOLLAR)  # before the remaining $ are taken for delimiters
    text = re.sub(r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge", text)
    text = re.sub(r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le", text)
    for _ in range(3):  # nested, as in \text{\textbf{(C)}}
        text = _TEXT_COMMAND.sub(f"{TEXT_OPEN}\\1{TEXT_CLOSE}", _FONT_COMMAND.sub(_font, text))
    # A single $ is a currency sign; several are delimiters within the answer.
    text = re.sub(r"(?<!\\)\$", "", text) if text.count("$") > 1 else text.replace("$", DOLLAR)
    text = text.strip().removesuffix(".").strip()
    return " ".join(text.split())


def _without_delimiters(text: str) -> str:
    """The text without math delimiters that enclose all of it."""
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
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
    return f"{TEXT_OPEN}{content}{TEXT_CLOSE}" if is_symbol_behind_value(content, before) else content


def plain(answer: str) -> str:
    """The undressed answer with its marks written as LaTeX again. Answers with equal plain text are equal."""
    text = undress(answer)
    return " ".join(text.translate(_AS_LATEX).split())
