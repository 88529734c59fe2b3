"""What the pages of docs/ say of other pages is what those say."""

import re

from tests.paths import DOCS, ROOT

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


def test_every_measured_time_of_the_pocket_study_is_within_what_readme_and_quickstart_promise():
    text = (DOCS / "performance.md").read_text()
    here = re.search(r"^\| `recipes/pocket/study\.yaml` \| (\d+) \|", text, re.MULTILINE)
    others = re.search(r"On other servers the pocket study took (\d+) s .*?\n?and (\d+) s", text, re.DOTALL)
    seconds = [int(found) for found in (here[1], *others.groups())]
    assert seconds == [250, 383, 277]
    for page, words in (
        (ROOT / "README.md", r"on two CPU cores: (\d) to (\d) minutes after installation"),
        (DOCS / "quickstart.md", r"in (\d) to (\d) minutes on two cores"),
    ):
        low, high = (60 * int(minutes) for minutes in re.search(words, page.read_text()).groups())
        assert low <= min(seconds) <= max(seconds) <= high, page.name


def test_no_two_entries_of_the_site_menu_differ_by_a_plural():
    names = re.findall(r"^ +- ([^:\n]+): [\w-]+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(names) > 20
    assert {"My benchmark", "Speed"} <= set(names)
    assert not (DOCS / "benchmarks.md").exists()  # whoever wants to add a benchmark would open it
    assert len({name.lower().rstrip("s") for name in names}) == len(names)
