"""What the site needs beyond what GitHub shows: links to source files, and fences with a second word."""

import re
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)\)")
_FENCE = re.compile(r"^```(\w+) .*$", flags=re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ become plain anchors, which work in a site built inside the clone.

    Raises:
        FileNotFoundError: there is no such file.
    """

    def anchor(match: re.Match[str]) -> str:
        text, target = match.groups()
        if not (_ROOT / "docs" / target).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {target}, which does not exist")
        inner = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
        return f'<a href="{target}">{inner}</a>'

    # The second word of a fence says how the command is tested; Python-Markdown takes no fence with two words.
    return _FENCE.sub(r"```\1", _OUTSIDE.sub(anchor, markdown))
