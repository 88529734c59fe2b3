r"""Matrices: rows in any LaTeX environment, multiples, sums and transposes of them, entry by entry."""

import re

from data.grading.marks import ROW_END
from data.grading.tree import NO_LETTER, UnparseableError, enclosed, split

_ENVIRONMENT = r"\\begin\{(?:[pbB]?matrix|smallmatrix|array)\}"
_MATRIX = re.compile(
    r"(?P<factor>.*?)(?P<open>[(\[]?)\s*\\begin\{(?P<kind>[pbB]?matrix|smallmatrix|array)\}(?:\{[clr|\s]*\})?"
    r"(?P<body>.*?)\\end\{(?P=kind)\}\s*(?P<close>[)\]]?)\s*(?P<power>\^\s*(?:\{\s*)?(?:\\top|T|\\intercal|\\prime)(?:\s*\})?|')?"
    r"(?P<divisor>/\s*[^/]+)?$",
    re.DOTALL,
)
_TUPLE = re.compile(r"[(\[](?P<body>[^()\[\]]*,[^()\[\]]*)[)\]]\s*\^\s*\{?\s*(?:\\top|T|\\intercal)\s*\}?$")
_ROW_GAP = re.compile(rf"{ROW_END}\s*\[[^\]]*\]")  # \\[4pt]

Rows = list[list[str]]


def read_matrix(text: str) -> Rows | None:
    """The entries of a matrix, or of a sum of multiples of matrices, as texts; None for other texts.

    Raises:
        UnparseableError: there is a matrix and something that is not read, such as a power.
    """
    if column := _TUPLE.match(text):
        return [[entry.strip()] for entry in split(column["body"], "[,;]")]
    if enclosed(text, "[", "]"):  # program notation: [[1, 2], [3, 4]]
        parts = [part.strip() for part in split(text[1:-1], ",")]
        if len(parts) > 1 and all(enclosed(part, "[", "]") for part in parts):
            return [[entry.strip() for entry in split(part[1:-1], ",")] for part in parts]
    if not re.search(_ENVIRONMENT, text):
        return None
    total: Rows | None = None
    for sign, term in _terms(text):
        rows = _scaled(sign, term)
        if total is None:
            total = rows
            continue
        if [len(row) for row in rows] != [len(row) for row in total]:
            raise UnparseableError("matrices of different sizes")
        total = [
            [f"{a}+{b}" for a, b in zip(sums, other, strict=True)] for sums, other in zip(total, rows, strict=True)
        ]
    return total


def _terms(text: str) -> list[tuple[str, str]]:
    """The terms of a sum with their signs."""
    terms, start = [], 0
    for part in split(text, "[+-]"):
        if part.strip():
            terms.append((text[start - 1] if start else "+", part.strip()))
        start += len(part) + 1
    return terms


def _scaled(sign: str, term: str) -> Rows:
    match = _MATRIX.match(term)
    if match is None or bool(match["open"]) != bool(match["close"]) or "\\begin" in match["factor"]:
        raise UnparseableError("a matrix with something beside it")
    body = _ROW_GAP.sub(ROW_END, match["body"]).replace("\\hline", "")
    rows = [[entry.strip() for entry in row.split("&")] for row in body.split(ROW_END) if row.strip()]
    if not rows or any(not entry for row in rows for entry in row):
        raise UnparseableError("an empty entry")
    factor = re.sub(rf"(?:\\cdot|\\times){NO_LETTER}|\*\s*$", "", match["factor"]).strip()
    if factor or sign == "-" or match["divisor"]:
        scale = f"({factor or 1})" if sign == "+" else f"(-({factor or 1}))"
        rows = [[f"{scale}*({entry}){match['divisor'] or ''}" for entry in row] for row in rows]
    if match["power"]:
        if len({len(row) for row in rows}) > 1:
            raise UnparseableError("rows of different lengths")
        rows = [list(column) for column in zip(*rows, strict=True)]
    return rows
