"""The browser of responses in a real browser: list, keyboard, filters, links, widths, themes; texts that cannot act."""

import shutil
import time

import pytest

from eval.questions.records import write_jsonl
from eval.viewer.cell import Filters
from eval.viewer.study import StudyView
from launch.commands.main import main
from tests.integration.test_report_in_a_browser import CONTRAST, HOSTILE
from tests.support.browser import BROWSER, open_browser
from tests.support.viewing import GRPO, copy_of, rows_of, serving

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]

COUNT = "document.getElementById('count')?.textContent"
CHOSEN = "document.querySelector('#rows [aria-current]')?.dataset.id"
TITLE = "document.querySelector('#detail h2')?.textContent"
CARDS = "[...document.querySelectorAll('.model h3')].map(e => e.textContent)"
BOXES = """[...document.querySelectorAll('.model')].map(e => e.getBoundingClientRect()).map(b => [b.top, b.right])"""
LEGEND = (
    """(e => [e.open, ...[...e.querySelectorAll('li')].map(i => i.textContent)])(document.getElementById('legend'))"""
)
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def until(browser, script, wanted):
    deadline = time.monotonic() + 30
    while (found := browser.evaluate(script)) != wanted:
        assert time.monotonic() < deadline, f"{script} is {found!r}, not {wanted!r}"
        time.sleep(0.05)


def press(browser, key, code=0):
    for kind in ("rawKeyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


def choose(browser, name, value):
    browser.evaluate(
        f"{{ const e = document.forms.filters.elements[{name!r}]; e.value = {value!r};"
        " e.dispatchEvent(new Event('input', {bubbles: true})); }"
    )


def complaints(browser):
    """Problems other than the requests to the page's own server."""
    return [problem for problem in browser.problems if not problem.startswith("request: http://127.0.0.1:")]


def title_of(identity):
    return identity.replace("/", " · ", 2)


def test_the_served_page(smoke_study, tmp_path):
    view = StudyView(smoke_study)
    ids = [cell.identity(position) for cell, position in view.find(Filters())]
    lost = [cell.identity(position) for cell, position in view.find(Filters(model=GRPO, change="lost"))]
    assert 2 <= len(lost) < len(ids) == 60
    with serving(smoke_study) as port, open_browser() as browser:
        browser.resize(1280, 900)
        browser.call("Page.navigate", url=f"http://127.0.0.1:{port}/")
        until(browser, COUNT, "60 questions")
        until(browser, TITLE, title_of(ids[0]))
        assert browser.evaluate(CARDS) == view.labels
        # The badges are explained, and base and three arms stand side by side.
        assert browser.evaluate(LEGEND) == [True, *view.labels]
        boxes = browser.evaluate(BOXES)
        assert len(boxes) == 4
        assert len({top for top, _ in boxes}) == 1
        assert max(right for _, right in boxes) <= 1280
        # The keyboard goes through the list and stays in it.
        for key, position in (("j", 1), ("ArrowDown", 2), ("k", 1), ("ArrowUp", 0), ("k", 0)):
            press(browser, key)
            until(browser, TITLE, title_of(ids[position]))
            assert browser.evaluate(CHOSEN) == ids[position]
        # Filters narrow the list, and the address brings the same view back.
        choose(browser, "model", GRPO)
        choose(browser, "change", "lost")
        until(browser, COUNT, f"{len(lost)} questions")
        until(browser, TITLE, title_of(lost[0]))
        press(browser, "j")
        until(browser, TITLE, title_of(lost[1]))
        link = browser.evaluate("location.href")
        browser.call("Page.navigate", url="about:blank")
        browser.call("Page.navigate", url=link)
        until(browser, TITLE, title_of(lost[1]))
        until(browser, COUNT, f"{len(lost)} questions")
        assert browser.evaluate("document.forms.filters.elements.change.value") == "lost"
        press(browser, "/")
        assert browser.evaluate("document.activeElement.name") == "search"
        choose(browser, "search", "no model ever wrote this")
        until(browser, COUNT, "0 questions")
        until(browser, TITLE, None)
        choose(browser, "search", "")
        until(browser, COUNT, f"{len(lost)} questions")
        until(browser, TITLE, title_of(lost[0]))
        for scheme in ("light", "dark"):
            browser.media(prefers_color_scheme=scheme)
            for width in (1280, 390):
                browser.resize(width, 900)
                assert browser.evaluate(SIDEWAYS) <= 0, (scheme, width)
                assert browser.evaluate(CONTRAST) == [], (scheme, width)
                browser.screenshot(tmp_path / f"{scheme}-{width}.png")
        assert (tmp_path / "light-390.png").read_bytes() != (tmp_path / "dark-390.png").read_bytes()
        assert complaints(browser) == []


def test_an_exported_page_filters_alike_and_its_texts_do_nothing(smoke_study, tmp_path):
    study = copy_of(smoke_study, tmp_path / "study")
    (chunk,) = (study / "eval" / GRPO / "sum-native").glob("chunk-*.zst")
    rows = rows_of(study, GRPO, "sum")
    for number, row in enumerate(rows):
        row["responses"] = [
            "<think>" + HOSTILE[number % len(HOSTILE)] + "</think>" + HOSTILE[number % len(HOSTILE)]
        ] * 2
    write_jsonl(chunk, rows)
    page = tmp_path / "page.html"
    assert main(["view", str(study), "--export", str(page)]) == 0
    shutil.move(study, tmp_path / "gone")
    view = StudyView(tmp_path / "gone")
    with open_browser() as browser:
        browser.open(page)
        until(browser, COUNT, "60 questions")
        for position, row in enumerate(rows):
            until(browser, TITLE, f"sum · native · {row['question_id']}")
            hostile = HOSTILE[position % len(HOSTILE)]
            shown = "[...document.querySelectorAll('.model')].at(-1).querySelectorAll('pre')[1].textContent"
            assert browser.evaluate(shown) == hostile
            press(browser, "j")
        assert browser.evaluate("window.hacked") is None
        assert browser.evaluate("document.querySelectorAll('script, img, iframe, object, svg').length") == 2
        for filters in (
            Filters(model=GRPO, change="lost"),
            Filters(outcome="correct", change="won"),
            Filters(benchmark="copy", model=GRPO, outcome="wrong", scoring="paper"),
            Filters(search="HACKED = 1"),
        ):
            for name in ("benchmark", "scoring", "model", "outcome", "change", "search"):
                choose(browser, name, getattr(filters, name))
            total = len(view.find(filters))
            assert total
            until(browser, COUNT, f"{total} question" + "s" * (total != 1))
        assert browser.problems == []
