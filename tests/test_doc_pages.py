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


def test_the_seeds_of_the_coverage_table_are_those_that_the_faq_names():
    table = (DOCS / "statistics.md").read_text()
    seeds = sorted({int(count) for count in re.findall(r"^\| (\d) seeds?\b", table, re.MULTILINE)})
    words = {1: "one", 3: "three", 5: "five"}
    assert seeds == list(words)
    assert f"has the coverage\nwith {words[1]}, {words[3]} and {words[5]}." in (DOCS / "faq.md").read_text()
