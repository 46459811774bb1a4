"""The report in a real Chromium, opened from file://: what is seen, what is asked of anybody, how fast rows are found.

Needs Playwright and a Chromium of the system; `CAIFLOW_SCREENSHOTS` names a folder for pictures to look at.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.lookback.opened import Run
from caiflow.engine.lookback.report.page import page
from support.made_runs import made_run, plain_rows

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this system")]

HOSTILE = "</script><script>window.hurt=1</script><img src=http://127.0.0.1:9/x onerror='window.hurt=2'>\x1b[2J\u202e"
PAGES = ("overview", "figures", "trainings", "health", "constitution", "rows", "comparison", "settings")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


class Opened:
    """A report in a tab, with all that it asked for and complained of."""

    def __init__(self, browser: Any, file: Path, place: str = "", **options: Any) -> None:
        self.tab = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("console", lambda told: self.wrong.append(told.text) if told.type in ("error", "warning") else None)
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.goto(f"file://{file}{place}")
        self.tab.wait_for_selector("html[data-ready]", timeout=120_000)

    def go(self, place: str) -> None:
        self.tab.evaluate("place => { location.hash = place; }", place)
        self.tab.wait_for_timeout(50)

    def picture(self, name: str) -> None:
        if folder := os.environ.get("CAIFLOW_SCREENSHOTS"):
            self.tab.screenshot(path=str(Path(folder) / f"{name}.png"))

    def close(self) -> None:
        assert self.wrong == []
        assert [url for url in self.asked if not url.startswith(("file://", "data:"))] == []
        assert len({url for url in self.asked if url.startswith("file://")}) == 1
        self.tab.close()


def written(tmp_path: Path, run: Run, other: Run | None = None) -> Path:
    file = tmp_path / "report.html"
    file.write_text(page(run, other), encoding="utf-8")
    return file


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (480, "dark")])
def test_every_page_shows_hostile_rows_as_text_and_asks_nothing(
    browser: Any, home: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    rows = [{**row, "prompt": [{"role": "user", "content": HOSTILE}], "critique": HOSTILE} for row in plain_rows(12)]
    run = Run(made_run(home, tmp_path / "one", rows, name=HOSTILE))
    other = Run(made_run(home, tmp_path / "two", plain_rows(12), name="other", rate=0.6))
    opened = Opened(browser, written(tmp_path, run, other), viewport={"width": width, "height": 800}, color_scheme=scheme)
    for name in PAGES:
        opened.go(f"#{name}")
        assert opened.tab.is_visible(f"section[data-page={name}]")
        opened.picture(f"{name}-{width}-{scheme}")
    opened.go("#rows/critiques/00000001")
    opened.tab.wait_for_selector(".way .card h3")
    seen = opened.tab.inner_text(".way")
    assert "</script><script>window.hurt=1</script>" in seen
    assert "\\u001b[2J\\u202e" in seen
    assert opened.tab.evaluate("window.hurt") is None
    assert opened.tab.query_selector("main img") is None
    wide = opened.tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1], "nothing runs out of the page sideways"
    opened.close()


def test_a_row_has_an_address_and_its_way_through_the_steps(browser: Any, home: Path, tmp_path: Path) -> None:
    run = Run(made_run(home, tmp_path / "run", plain_rows(40)))
    opened = Opened(browser, written(tmp_path, run), "#rows/revisions/00000005")
    opened.tab.wait_for_selector(".way ins")
    assert [one.inner_text() for one in opened.tab.query_selector_all(".way h3")][:4] == [
        "red",
        "answers",
        "critiques",
        "revisions",
    ]
    assert "Please" in [one.inner_text().strip() for one in opened.tab.query_selector_all(".way ins")]
    opened.picture("row")
    assert opened.tab.query_selector(".list .row").inner_text().split("\n")[1].startswith("How do I make"), (
        "a row is told by its prompt"
    )
    opened.tab.focus(".list")
    opened.tab.keyboard.press("ArrowDown")
    opened.tab.wait_for_function("location.hash === '#rows/revisions/00000006'")
    opened.go("#constitution/honest")
    assert opened.tab.is_visible("[data-principle=honest]")
    opened.go("#figures")
    assert "90% [80, 100] of 40" in opened.tab.inner_text("section[data-page=figures]")
    opened.close()


def test_what_arms_of_a_matrix_have_in_common_is_one_card(browser: Any, home: Path, tmp_path: Path) -> None:
    folder = made_run(home, tmp_path / "run", plain_rows(4))
    record = json.loads((folder / "run.json").read_text())
    note = {"measure": "ties", "uids": [], "threshold": 0.5, "value": 0.9}
    notes = [
        {**note, "step": f"judged@{arm}", "message": f"pairs tied: {n}%; they teach nothing"}
        for arm, n in (("a", 92), ("b", 97))
    ]
    (folder / "run.json").write_text(json.dumps({**record, "notes": notes}))
    run = Run(folder)
    opened = Opened(browser, written(tmp_path, run), "#overview")
    cards = [one.inner_text() for one in opened.tab.query_selector_all("section[data-page=overview] .card")]
    assert [card.split("\n") for card in cards if "tied" in card] == [
        ["▲ judged@a pairs tied: 92%; they teach nothing", "", "judged@b pairs tied: 97%"]
    ]
    opened.close()


@pytest.mark.soak
def test_among_100_000_rows_words_are_found_in_under_a_second_a_key(browser: Any, home: Path, tmp_path: Path) -> None:
    run = Run(made_run(home, tmp_path / "run", plain_rows(100_000)))
    opened = Opened(browser, written(tmp_path, run), "#rows/revisions")
    opened.tab.wait_for_function("document.querySelector('[role=status]').textContent.startsWith('100,000')", timeout=120_000)
    took = opened.tab.evaluate(
        """() => {
            const box = document.querySelector('input[type=search]'), took = [];
            for (const text of ['9', '99', '999', '9999', '99998', '99998 k', '99998 kindly']) {
                const begun = performance.now();
                box.value = text;
                box.dispatchEvent(new Event('input'));
                took.push(performance.now() - begun);
            }
            return took;
        }"""
    )
    print(f"\nms a key among 100,000 rows: {[round(one) for one in took]}")
    assert max(took) < 1000, took
    assert opened.tab.inner_text("[role=status]") == "1 of 100,000 rows"
    assert "number 99998" in opened.tab.inner_text(".list .row") or "99998" in opened.tab.inner_text(".list .row")
    opened.tab.fill("input[type=search]", "principle:honest")
    assert opened.tab.inner_text("[role=status]") == "50,000 of 100,000 rows"
    assert len(opened.tab.query_selector_all(".list .row")) < 80, "only rows in sight are in the page"
    opened.close()
