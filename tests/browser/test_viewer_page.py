"""The trajectory viewer in headless Chromium: pip install 'zsjax[browser]', a Chromium, and pytest -m browser.

The browser is ZSJAX_CHROMIUM, one of NAMES on PATH (Debian: apt install chromium-headless-shell), or Playwright's own.
"""

import os
import shutil
import threading

import pytest

from zsjax.report.view_server import TrajectoryServer

pytestmark = pytest.mark.browser
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'zsjax[browser]'")
    path = os.environ.get("ZSJAX_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, trajectory_runs):
    """The page, and the texts of what its console and its scripts complain of."""
    with TrajectoryServer(trajectory_runs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = chromium.new_page(viewport={"width": 1400, "height": 800})
        page.set_default_timeout(30_000)
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
        page.goto(server.url)
        page.wait_for_selector("#list li")
        yield page
        page.close()
        server.shutdown()


def counts(page, text):
    page.wait_for_function("text => document.getElementById('count').textContent.startsWith(text)", arg=text)


def test_filters_and_paging(page):
    counts(page, "50 shown of 62, 1 damaged lines left out")
    page.click("#more")
    counts(page, "62 shown of 62")
    page.fill("input[name=low]", "0.9")
    counts(page, "6 shown of 6")
    page.fill("input[name=low]", "")
    page.fill("input[name=text]", "deep down")
    counts(page, "1 shown")
    page.fill("input[name=text]", "")
    page.select_option("select[name=status]", "out_of_turns")
    counts(page, "1 shown of 1")
    page.select_option("select[name=status]", "")
    page.select_option("select[name=run]", "1")
    counts(page, "20 shown of 20")
    assert not page.complaints


def test_two_runs_on_the_same_question(page):
    page.select_option("select[name=file]", "trajectories/train_000011")
    counts(page, "20 shown of 20")
    page.click("#list li:nth-child(8)")
    page.wait_for_selector("article:nth-of-type(2) .text")
    assert page.locator("article h2").all_inner_texts() == ["Question 7?", "Question 7?"]
    sides = page.locator("article select")
    chosen = [sides.nth(i).evaluate("select => select.selectedOptions[0].textContent") for i in range(2)]
    assert chosen == ["first  trajectories/train_000011:7  score 0.35", "second  trajectories/train_000011:7  score 1"]
    sides.nth(1).select_option("0")  # the first run again, at another step
    page.wait_for_function("document.querySelectorAll('article')[1].querySelector('select').value === '0'")
    page.locator("#list li:nth-child(8)").press("j")
    page.wait_for_function("document.querySelector('article h2').textContent === 'Question 8?'")
    assert not page.complaints


def test_documents_do_not_run(page, evil):
    page.select_option("select[name=file]", "evaluation/")
    counts(page, "2 shown of 2")
    page.click("#list li:nth-child(1)")
    page.wait_for_selector("article .document")
    shown = page.locator("article .document").first.inner_text()
    assert shown == evil.replace("\x1b", "␛").replace("\u202e", "\ufffd")
    assert page.title() == "Trajectories" and page.locator("article script, article img").count() == 0
    # Even where markup were set, the page's policy would not run it.
    page.evaluate("html => { document.body.insertAdjacentHTML('beforeend', html) }", evil)
    page.wait_for_timeout(200)
    assert page.title() == "Trajectories" and any("Content Security Policy" in text for text in page.complaints)
