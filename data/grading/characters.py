"""Unicode in answers, written as LaTeX."""

import re
import unicodedata
from itertools import groupby

_SCRIPT = {"<super>": "^", "<sub>": "_"}
_SIGNS = {
    "-": "−–‐‑‒﹣－", "*": "×·⋅∗✕", "/": "÷∕⁄", "\\infty ": "∞", "\\sqrt ": "√", "\\sqrt[3]": "∛", "\\sqrt[4]": "∜",
    "\\cup ": "∪", "\\cap ": "∩", "^\\circ ": "°º", "\\pm ": "±", "\\mp ": "∓", "\\le ": "≤⩽≦", "\\ge ": "≥⩾≧",
    "\\ne ": "≠", "\\in ": "∈", "\\notin ": "∉", "\\emptyset ": "∅⌀", "\\setminus ": "∖", "\\approx ": "≈≃≅",
    "\\equiv ": "≡", "\\land ": "∧", "\\lor ": "∨", "\\lnot ": "¬", "\\to ": "→⟶", "\\Rightarrow ": "⇒",
    "\\mathbb{R}": "ℝ", "\\mathbb{Z}": "ℤ", "\\mathbb{N}": "ℕ", "\\mathbb{Q}": "ℚ", "\\mathbb{C}": "ℂ",
    "\\langle ": "⟨〈", "\\rangle ": "⟩〉", "\\lfloor ": "⌊", "\\rfloor ": "⌋", "\\lceil ": "⌈", "\\rceil ": "⌉",
    "\\sum ": "∑", "\\prod ": "∏", "\\int ": "∫", "\\angle ": "∠", "\\triangle ": "△", "\\ldots ": "…⋯",
    ", ": "、", ". ": "。", "'": "’‘′", '"': "“”", "\\forall ": "∀", "\\exists ": "∃", "\\perp ": "⊥", "\\ell ": "ℓ",
    "\\partial ": "∂", "\\subset ": "⊂", "\\subseteq ": "⊆", "\\% ": "％", "\\mu ": "µ", "\\{": "｛", "\\}": "｝",
    "|": "∣｜", "[": "【", "]": "】",
}  # fmt: skip
_GREEK = {
    letter: f"\\{name} "
    for letter, name in zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩϕϑ",
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
        "omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega phi theta".split(),
        strict=True,
    )
}
_ROOTS = re.compile(r"([√∛∜])\s*(\d+(?:\.\d+)?)")
_TABLE = str.maketrans({letter: latex for latex, letters in _SIGNS.items() for letter in letters} | _GREEK)


def as_latex(text: str) -> str:
    """The text with Unicode's mathematics written as LaTeX.

    Invisible marks (byte order, text direction, zero width) go. So do private-use characters: `marks.py` needs them.
    """
    if text.isascii():
        return text
    text = "".join(_visible(letter) for letter in text)
    text = _ROOTS.sub(r"\1{\2}", text)  # the root of the whole number, not of its first digit
    text = _scripts(text)
    text = unicodedata.normalize("NFKC", text.translate(_TABLE)).translate(_TABLE)
    return re.sub(r"[　\s]+", " ", text) if "\n" not in text else text


def _scripts(text: str) -> str:
    """The text with raised and lowered characters as exponents and indices, and those around a slash as a fraction."""
    runs = []
    for sign, letters in groupby(text, lambda letter: _SCRIPT.get(unicodedata.decomposition(letter).split(" ")[0], "")):
        run = "".join(letters)
        runs.append((sign and not set(run) & set("ºª™℠") and sign, run))
    latex = "".join(f"{sign}{{{unicodedata.normalize('NFKC', run)}}}" if sign else run for sign, run in runs)
    return re.sub(r"\^\{(\d+)\}[/⁄∕]_\{(\d+)\}", r"\\frac{\1}{\2}", latex)


def _visible(letter: str) -> str:
    if unicodedata.category(letter) in ("Cf", "Co", "Cs"):
        return ""
    top, slash, bottom = unicodedata.normalize("NFKC", letter).partition("⁄")
    return f"\\frac{{{top}}}{{{bottom}}}" if slash and bottom else letter
