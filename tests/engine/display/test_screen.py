"""The screen of a run in real terminals of several sizes: a recorded run of the quickstart, shown as it was at some moments.

Of the record, progress and rows are thinned out.
`CAIFLOW_PICTURES=DIR` leaves a picture (SVG) of each, light and dark, to be looked at.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.terminals import Seen, Terminal

EVENTS = Path(__file__).with_name("quickstart.jsonl")
MOMENTS = {"ray": 6.0, "loading": 15.0, "rows": 59.0, "training": 165.0}
SIZES = {"narrow": (80, 24), "wide": (140, 45)}


@contextmanager
def shown(size: tuple[int, int], environment: Mapping[str, str]) -> Iterator[Terminal]:
    command = [sys.executable, "-m", "support.replayed", str(EVENTS), *map(str, MOMENTS.values())]
    with Terminal(command, size, environment, cwd=Path(__file__).parents[2]) as terminal:
        yield terminal


@pytest.fixture(scope="module", params=SIZES)
def screens(request: pytest.FixtureRequest) -> dict[str, Seen]:
    """The screen at each moment, in a terminal of one size."""
    size = SIZES[request.param]
    found = {}
    heads = {"ray": "starting Ray", "loading": "loading base", "rows": "at work: response", "training": "at work: rl_cai"}
    with shown(size, {}) as terminal:
        for moment, head in heads.items():
            found[moment] = terminal.until(lambda seen, head=head: status_of(seen).startswith(head))
            keep(found[moment], f"{request.param}-{moment}")
            terminal.say("")
    return found


def keep(seen: Seen, name: str) -> None:
    """Leave pictures where they are asked for."""
    if folder := os.environ.get("CAIFLOW_PICTURES"):
        for theme in ("light", "dark"):
            (Path(folder) / f"{name}-{theme}.svg").write_text(seen.svg("caiflow run quickstart", dark=theme == "dark"))


def status_of(seen: Seen) -> str:
    """Return the line below the heading, which says what happens now."""
    head = next((n for n, line in enumerate(seen.lines) if line.startswith("quickstart  ")), None)
    return "" if head is None or head + 1 == len(seen.lines) else seen.lines[head + 1]


def test_the_line_below_the_heading_says_what_is_waited_for_and_how_long(screens: dict[str, Seen]) -> None:
    assert re.fullmatch(r"starting Ray \([\dhms. ]+\)", status_of(screens["ray"]))
    assert re.fullmatch(r"loading base \([\dhms. ]+\) · at work: red_team, more_red_team", status_of(screens["loading"]))
    assert status_of(screens["rows"]) == "at work: response, critique, revision"


def test_counts_and_times_are_never_cut(screens: dict[str, Seen]) -> None:
    rows = screens["rows"].text
    assert re.search(r"● revision .*\d+/40 .*[\d.]+s", rows)
    assert re.search(r"● rl_cai .*41/72 steps .*\ds", screens["training"].text)
    assert "loss 0." in screens["training"].text
    assert re.search(r"quickstart  7/18 steps  [\dhms. ]+  .*tokens/s", rows)


def test_nothing_scrolls_away_and_no_line_is_wider_than_the_terminal(screens: dict[str, Seen]) -> None:
    for seen in screens.values():
        assert all("ready on" in line for line in seen.above), "only what is printed above the view scrolls away"
        assert len([line for line in (*seen.above, *seen.lines) if line.startswith("quickstart  ")]) == 1


def test_the_latest_row_is_wrapped_and_its_new_words_are_marked(screens: dict[str, Seen]) -> None:
    seen = screens["rows"]
    assert "── latest row of revision ──" in seen.text
    for column in ("prompt", "response", "critique", "revision"):
        assert re.search(rf"^{column}  ", seen.text, re.MULTILINE), column
    card = " ".join(seen.text.partition("latest row of revision")[2].split())
    assert "I won't help to" in card
    made = seen.styled.plain.rindex("won't")
    assert any(span.start <= made < span.end and span.style.bold for span in seen.styled.spans), "the words are marked"  # type: ignore[union-attr]


def test_no_step_is_missing(screens: dict[str, Seen]) -> None:
    for seen in screens.values():
        for step in ("response", "sl_cai", "scores") if seen.columns > 100 else ("scores",):
            assert step in seen.text


def test_red_is_for_failures_alone(screens: dict[str, Seen]) -> None:
    for seen in screens.values():
        assert not [span for span in seen.styled.spans if "red" in str(getattr(span.style, "color", ""))]


def test_without_colours_the_screen_is_the_same() -> None:
    with shown(SIZES["narrow"], {"NO_COLOR": "1"}) as terminal:
        seen = terminal.until(lambda seen: "starting Ray" in status_of(seen))
        assert not [span for span in seen.styled.spans if getattr(span.style, "color", None)]


def test_a_terminal_that_cannot_redraw_is_told_line_by_line() -> None:
    with shown(SIZES["narrow"], {"TERM": "dumb"}) as terminal:
        terminal.until(lambda seen: "run: starting Ray" in seen.text)
        terminal.say("")
        terminal.until(lambda seen: "base: loading" in seen.text)
        assert b"\x1b" not in terminal.written
