"""The page: one template for the server and for a file that opens without one, with the questions inside."""

import base64
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.viewer.cell import Filters
from eval.viewer.study import StudyView
from recipes.errors import UserError
from recipes.files import write_atomic

_TEMPLATES = Path(__file__).parent / "templates"


def content_policy() -> str:
    """The content security policy: the page's own script and style run, and it asks its own server alone."""
    script, style = (_hash(_text(name)) for name in ("page.js", "style.css"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def render_page(index: dict[str, Any], slice_: list[dict[str, Any]] | None = None) -> str:
    """The page of a study.

    Args:
        index: what `StudyView.index` returns.
        slice_: the questions to put into the page, as `StudyView.details` returns them; None: the page asks its server.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    data = {"index": index, "questions": slice_}
    # Within a script element only "<" can end it or open a comment; in JSON it may be written as an escape.
    embedded = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return environment.get_template("page.html.j2").render(
        index=index,
        policy=content_policy(),
        script=Markup(_text("page.js")),
        style=Markup(_text("style.css")),
        data=Markup(embedded),
    )


def export_page(study: StudyView, filters: Filters, limit: int, path: Path) -> tuple[int, int]:
    """Write the first `limit` questions that pass the filters as one page.

    Returns:
        How many questions are in it, and how many passed.

    Raises:
        UserError: none passes, or they are of a restricted benchmark, which must not be spread.
    """
    hits = study.find(filters)
    shown = [(cell, position) for cell, position in hits if not cell.benchmark.restricted]
    if not shown:
        why = (
            "only questions of restricted benchmarks, which must not be spread, pass" if hits else "no question passes"
        )
        raise UserError(f"{path} was not written: {why}; change the filters")
    details = [study.details(cell.identity(position)) for cell, position in shown[:limit]]
    chosen = ", ".join(f"{name} {value}" for name, value in asdict(filters).items() if value)
    note = f"{len(details)} of {len(shown)} questions" + (f"; {chosen}" if chosen else "")
    try:
        write_atomic(path, render_page(study.index() | {"notes": [*study.notes, note]}, details))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another file") from None
    return len(details), len(shown)


def _text(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
