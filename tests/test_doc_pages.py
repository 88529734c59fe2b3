"""What the pages of docs/ say of other pages is what those say."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TEMPLATES = ROOT / "eval" / "report" / "templates"


def headings():
    """The sections of a report that has all of them, in the order of its page."""
    page = (TEMPLATES / "report.html.j2").read_text()
    page = re.sub(r'{% include "(\w+\.html\.j2)" %}', lambda found: (TEMPLATES / found[1]).read_text(), page)
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def test_the_parts_of_the_report_have_its_order_and_names():
    text = (DOCS / "report.md").read_text()
    parts = re.findall(r"^\d+\. \*\*(.*)", text, re.MULTILINE)
    names = [name.rstrip(".") for part in parts for name in re.findall(r"(?:^|and \*\*)([^*]+)\*\*", part)]
    assert names == ["The first screen", *headings()]
    assert len(names) == 16
