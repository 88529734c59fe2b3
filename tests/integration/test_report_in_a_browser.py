"""The report in a real browser: no complaint, readable, reachable by keyboard, printable, and nothing in it can act."""

import json
import re
from itertools import pairwise

import pytest
from matplotlib import pyplot as plt

from eval.drawing import to_drawing
from eval.report.ablation_verdict import Missing
from eval.report.build import training_curves
from eval.report.page import draw_figures, render_page
from eval.report.schema import Transfer
from recipes.loading import load_study
from tests.paths import ROOT
from tests.support.browser import BROWSER, open_browser
from tests.support.reports import RATES, ablation_page, rates_page

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

HOSTILE = (
    "</pre><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    '"><svg onload=window.hacked=1>',
    "javascript:window.hacked=1",
    "</style><script>window.hacked = 1</script>",
    "$\\frac{1}{2}$ ]]> <!-- \x1b[31m \u202e reversed",
)


@pytest.fixture(scope="module")
def hostile_page(analysed_study, analysed_transfer, tmp_path_factory):
    """The report of a study whose models wrote nothing but markup."""
    transfer = json.loads(json.dumps(analysed_transfer))
    for number, example in enumerate(transfer["examples"]):
        text = HOSTILE[number % len(HOSTILE)]
        example |= {"prompt": text, "reference": text}
        for response in example["responses"].values():
            response |= {"text": text, "thinking": text}
    for found in transfer["diagnostics"]["arms"].values():
        for number, word in enumerate(found["shifted"]["words"]):
            word["text"] = HOSTILE[number % len(HOSTILE)]
    transfer = Transfer.model_validate(transfer)
    recipe = load_study(analysed_study)
    clock = json.loads((analysed_study / "report" / "hours.json").read_text())
    figures = draw_figures(transfer, training_curves(recipe, analysed_study), clock)
    path = tmp_path_factory.mktemp("hostile") / "index.html"
    path.write_text(render_page(transfer, recipe, figures, clock))
    return path


def test_what_models_wrote_is_text(hostile_page):
    page = hostile_page.read_text()
    assert "&lt;script&gt;window.hacked" in page
    assert not re.search(r"<(script|img|svg onload)", page)


@pytest.mark.slow
@needs_browser
def test_hostile_output_does_nothing_in_a_browser(hostile_page):
    with open_browser() as browser:
        browser.open(hostile_page)
        assert browser.evaluate("window.hacked") is None
        assert browser.evaluate("document.querySelectorAll('script, img, iframe, object').length") == 0
        shown = browser.evaluate("[...document.querySelectorAll('.answers pre')].map(e => e.textContent)")
        assert HOSTILE[0] in shown
        assert HOSTILE[1] in shown
        # Even markup that did get in could not run.
        browser.evaluate("document.body.insertAdjacentHTML('beforeend', `<img src=x onerror='window.hacked = 1'>`)")
        assert browser.evaluate("window.hacked") is None


CONTRAST = """
(() => {
  const linear = v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
  const lum = c => { const [r, g, b] = c.map(linear); return .2126 * r + .7152 * g + .0722 * b; };
  const rgb = s => s.match(/[\\d.]+/g).map(Number);
  const back = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
  const bad = [];
  for (const e of document.querySelectorAll('main *')) {
    if (e.closest('svg') || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const one = lum(rgb(getComputedStyle(e).color).slice(0, 3)), two = lum(back(e));
    const ratio = (Math.max(one, two) + .05) / (Math.min(one, two) + .05);
    if (ratio < 4.5) bad.push(e.tagName + ' ' + e.textContent.slice(0, 20) + ' ' + ratio.toFixed(2));
  }
  return bad;
})()
"""


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_it_without_a_complaint(analysed_study, tmp_path):
    with open_browser() as browser:
        browser.resize(1240, 900)
        browser.open(analysed_study / "report" / "index.html")
        assert browser.problems == []
        for scheme in ("light", "dark"):
            browser.media(prefers_color_scheme=scheme)
            assert browser.evaluate(CONTRAST) == [], scheme
            browser.screenshot(tmp_path / f"{scheme}.png")
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 31)"
        assert (tmp_path / "light.png").read_bytes() != (tmp_path / "dark.png").read_bytes()
        # Every figure says what it shows, headings are in order, and the answer is on the first screen.
        figures = browser.evaluate("[...document.querySelectorAll('figure')].map(e => e.getAttribute('aria-label'))")
        assert len(figures) == 16
        assert all(text and len(text) > 20 for text in figures)
        levels = browser.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(e => +e.tagName[1])")
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        assert browser.evaluate("document.querySelector('.answer').getBoundingClientRect().bottom") < 900
        # The page itself never scrolls sideways. On a phone long tables do, on a larger screen none.
        browser.evaluate("[...document.querySelectorAll('details')].forEach(e => e.open = true)")
        for width in (1280, 390):
            browser.resize(width, 900)
            assert browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
            tables = "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
            assert max(browser.evaluate(tables)) <= 0 or width < 640


@pytest.mark.slow
@needs_browser
def test_the_keyboard_reaches_everything_and_chooses_the_axis(analysed_study):
    def press(key, code):
        for kind in ("rawKeyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    with open_browser() as browser:
        browser.resize(1240, 900)
        browser.open(analysed_study / "report" / "index.html")
        seen = []
        for _ in range(60):
            press("Tab", 9)
            seen.append(
                browser.evaluate("document.activeElement.id || document.activeElement.textContent.slice(0, 25)")
            )
            if "axis-1" in seen:
                break
        assert seen[0] == "to the report"
        assert "Gains" in seen
        shown = "[...document.querySelectorAll('.tabs figure')].map(e => getComputedStyle(e).display != 'none')"
        assert browser.evaluate(shown) == [True] + [False] * 6
        press("ArrowRight", 39)
        assert browser.evaluate(shown) == [False, True] + [False] * 5
        assert browser.evaluate("document.activeElement.id") == "axis-2"


@pytest.mark.slow
@needs_browser
def test_it_prints_every_axis_and_no_navigation(analysed_study):
    with open_browser() as browser:
        browser.open(analysed_study / "report" / "index.html")
        browser.media(type="print")
        shown = "[...document.querySelectorAll('.tabs figure')].every(e => getComputedStyle(e).display != 'none')"
        assert browser.evaluate(shown)
        assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert len(browser.call("Page.printToPDF")["data"]) > 50_000


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("rates", [False, True])
def test_the_page_of_an_ablation_reads_well_at_every_width(tmp_path, rates):
    """The page of gains, and that of a choice of learning rates."""
    late = Missing(point="late", values={"train.learning_rate": 8e-4}, reason=HOSTILE[1])
    path = tmp_path / "index.html"
    page = rates_page(path, [late], HOSTILE[0]) if rates else ablation_page(path, RATES, [late], title=HOSTILE[0])
    with open_browser() as browser:
        browser.resize(1280, 900)
        browser.open(page)
        assert browser.problems == []
        assert browser.evaluate("window.hacked") is None
        assert browser.evaluate("document.querySelector('.missing').textContent").endswith(HOSTILE[1])
        assert browser.evaluate("document.querySelector('.answer').getBoundingClientRect().bottom") < 900
        for width in (1280, 390):
            browser.resize(width, 900)
            assert browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
            tables = "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
            assert max(browser.evaluate(tables)) <= 0
            for scheme in ("light", "dark"):
                browser.media(prefers_color_scheme=scheme)
                assert browser.evaluate(CONTRAST) == [], scheme


@pytest.mark.slow
@needs_browser
def test_letters_of_one_panel_are_as_large_as_those_of_two(tmp_path):
    """Three panels fill the page as two do; one is shown at the scale of two, also on a phone."""
    css = (ROOT / "eval" / "report" / "templates" / "style.css").read_text()
    figures = []
    for panels in (1, 2, 3):
        figure, _ = plt.subplots(1, panels, figsize=(3.9 * panels, 3.5))
        figures.append(f'<figure class="wide">{to_drawing(figure).svg}</figure>')
    path = tmp_path / "index.html"
    path.write_text(f"<!doctype html><style>{css}</style><main>{''.join(figures)}</main>")
    widths = "[...document.querySelectorAll('svg')].map(e => [e.getBoundingClientRect().width, e.width.baseVal.value])"
    with open_browser() as browser:
        for window, place in ((1280, 1072), (390, 760)):
            browser.resize(window, 800)
            browser.open(path)
            shown = browser.evaluate(widths)
            one, two, three = (now / drawn for now, drawn in shown)
            assert one == pytest.approx(two, rel=0.05)
            assert three < two
            assert shown[2][0] == pytest.approx(place)


@pytest.mark.slow
@needs_browser
def test_on_a_phone_an_interval_stands_on_one_line_and_gains_fit(tmp_path):
    css = (ROOT / "eval" / "report" / "templates" / "style.css").read_text()
    cell = '<td>+23.2 <span class="interval">[+18.8, +27.5]</span></td>'
    row = "<tr><td>off-policy SFT</td>{}</tr>"
    tables = [("", 3), ("wrap", 4)]  # gains of three groups; token shift by four measures, which has to wrap
    body = "".join(
        f'<div class="scroll"><table class="{kind}">{row.format(n * cell)}</table></div>' for kind, n in tables
    )
    (tmp_path / "page.html").write_text(f"<!doctype html><style>{css}</style><main>{body}</main>")
    lines = "[...document.querySelectorAll('.interval')].map(e => e.getClientRects().length)"
    wider = "[...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
    with open_browser() as browser:
        for width, wrapped in ((390, 2), (1280, 1)):
            browser.resize(width, 900)
            browser.open(tmp_path / "page.html")
            assert browser.evaluate(lines) == [1] * 3 + [wrapped] * 4
            assert browser.evaluate(wider) == [0, 0]
