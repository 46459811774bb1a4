"""Makes the README's pictures from a finished run: its screen as it was, and its report in a browser.

`python docs/make_pictures.py RUN` fills docs/pictures. The screen is shown again from the run's own events, in the terminal
that the tests use; the report is opened by Chromium (`CHROMIUM`, by default the one on the path). Never runs anything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
sys.path.insert(0, str(TESTS))

from support.terminals import Terminal  # noqa: E402

PICTURES = HERE / "pictures"
SCREEN = (100, 34)
PAGE = (1200, 820)
STEP = "revision"
"""The step whose row the screen is to show."""


def main(run_dir: Path) -> None:
    """Make the pictures."""
    PICTURES.mkdir(exist_ok=True)
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = [event["t"] for event in events if event["event"] == "sample" and event["step"] == STEP]
    moment = shown[len(shown) // 2] - events[0]["t"] + 0.1
    command = [sys.executable, "-m", "support.replayed", str(run_dir / "events.jsonl"), str(moment)]
    with Terminal(command, SCREEN, cwd=TESTS) as terminal:
        seen = terminal.until(lambda seen: f"latest row of {STEP}" in seen.text)
    (PICTURES / "run.svg").write_text(seen.svg("caiflow run quickstart"), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        subprocess.run([sys.executable, "-m", "caiflow", "report", str(run_dir), "--out", str(page)], check=True)
        _photograph(page)


def _photograph(page: Path) -> None:
    from playwright.sync_api import sync_playwright

    browser_path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": PAGE[0], "height": PAGE[1]})
        tab.goto(page.as_uri())
        tab.wait_for_load_state("networkidle")
        tab.screenshot(path=PICTURES / "report.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
