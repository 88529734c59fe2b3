"""The site that `make docs` builds, opened from disk in a browser: no request leaves it, and its search works."""

import time

import pytest

from tests.paths import ROOT
from tests.support.browser import BROWSER, open_browser

SITE = ROOT / "site" / "index.html"
QUERY = """(() => {
  const box = document.querySelector("[data-md-component=search-query]")
  const toggle = document.querySelector("#__search")
  if (!toggle.checked) toggle.click()
  box.value = "decontamination"
  for (const kind of ["focus", "input", "keyup"]) box.dispatchEvent(new Event(kind, {bubbles: true}))
  return [...document.querySelectorAll(".md-search-result__link")].map(link => link.getAttribute("href"))
})()"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.skipif(not SITE.exists(), reason="`make docs` has not built the site")
def test_the_site_opens_from_disk_and_can_be_searched():
    with open_browser() as page:
        page.open(SITE)
        hits, deadline = [], time.monotonic() + 30
        while not hits and time.monotonic() < deadline:
            hits = page.evaluate(QUERY)
            time.sleep(0.3)
        assert any("corpus.html" in hit for hit in hits), (hits, page.problems)
        assert [problem for problem in page.problems if problem.startswith("request")] == []
