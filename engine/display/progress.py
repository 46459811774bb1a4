"""What is seen while a run goes on: a live graph in a terminal, plain lines elsewhere, JSON lines for machines.

A display consumes the events of the journal, whatever sends them, and keeps nothing after the run. Rich is imported only
where a live view is opened.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from caiflow.engine.display.board import Board, StepState, amount_text, clean, duration, note_text, notes_text, time_text
from caiflow.engine.display.step_graph import lanes
from caiflow.engine.display.terminal import say
from caiflow.engine.store.journal import Event, Listener

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from caiflow.engine.display.console import Console

PLAIN_EVERY_S = 10.0
"""Plain lines report a step's progress at most this often."""
LOGGED = ("log", "engine_ready", "lock_compared")
"""Events that are shown as a line of text."""
LOOKS = {
    "waiting": ("·", "dim"),
    "running": ("●", "bold yellow"),
    "done": ("✓", "green"),
    "noted": ("▲", "yellow"),
    "cached": ("≡", "cyan"),
    "failed": ("✗", "bold red"),
    "skipped": ("-", "magenta"),
    "interrupted": ("!", "yellow"),
    "not run": ("·", "dim"),
}
"""Symbol and style of a step's status; `noted` is done with notes."""


class JsonLines:
    """Print every event as one line of JSON."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def handle(self, event: Event) -> None:
        """Print one event."""
        say(json.dumps(event, ensure_ascii=False, default=str), file=self._out, flush=True)


class PlainLines:
    """Print a line where a step starts, ends, logs, or has gone on for a while: for files, pipes and CI."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._board = Board()
        self._last: dict[str, float] = {}

    def handle(self, event: Event) -> None:
        """Take in one event and print it if it is worth a line."""
        self._board.apply(event)
        line = self._line(event)
        if line:
            say(line, file=self._out, flush=True)

    def _line(self, event: Event) -> str:
        kind, step = event["event"], self._board.steps.get(event.get("step", ""))
        if kind == "run_started":
            return f"run {self._board.name}: {len(self._board.steps)} steps"
        if kind in LOGGED:
            return log_text(event)
        if step is None or kind == "sample":
            return ""
        if kind == "step_progress" and event["t"] - self._last.get(step.name, 0.0) < PLAIN_EVERY_S:
            return ""
        self._last[step.name] = event["t"]
        if kind == "step_started":
            return f"{step.name}: started ({step.op})"
        parts = [step.status, amount_text(step, named=True), notes_text(step), time_text(step, event["t"])]
        lines = [f"{step.name}: " + "; ".join(part for part in parts if part)]
        return "\n  ".join([*lines, *(note_text(note) for note in event.get("notes", ()))])


def log_text(event: Event) -> str:
    """Return an event that is shown as one line of text."""
    if event["event"] == "engine_ready":
        return f"{event['model']}: ready on {event['kind']} in {duration(event['seconds'])}"
    if event["event"] == "lock_compared":
        drift = event.get("drift") or ()
        return f"{event['grade']} as {event['lock']}" + (f"; {len(drift)} differences: {'; '.join(drift[:3])}" if drift else "")
    return f"{event.get('step', 'run')}: {clean(event['text'])}"


class LiveGraph:
    """The graph of steps, redrawn four times a second in place; use as a context manager."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._board = Board()
        self._lanes: dict[str, str] = {}
        self._lock = threading.Lock()
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveGraph:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def handle(self, event: Event) -> None:
        """Take in one event; logs scroll away above the graph."""
        with self._lock:
            self._board.apply(event)
            if event["event"] == "run_started":
                self._lanes = lanes({s.name: s.inputs for s in self._board.steps.values()})
        if event["event"] in LOGGED:
            self._console.print(log_text(event))

    def _draw(self) -> RenderableType:
        with self._lock:
            return draw(self._board, self._lanes, time.time(), self._console.size.height)


def draw(board: Board, drawn_lanes: Mapping[str, str], now: float, height: int = 100) -> RenderableType:
    """Return the live view of a run for a terminal of `height` lines."""
    from rich.console import Group
    from rich.text import Text

    sample_lines = 3 if board.sample else 0
    parts: list[RenderableType] = [_heading(board, now), _steps(board, drawn_lanes, now, max(4, height - 4 - sample_lines))]
    if board.sample:
        latest = board.sample
        parts.append(Text.assemble(("latest of ", "dim"), (latest.step, "bold")))
        width = max(len(latest.before_column), len(latest.after_column))
        for column, text, style in (
            (latest.before_column, latest.before, "red"), (latest.after_column, latest.after, "green"),
        ):  # fmt: skip
            parts.append(Text.assemble((f"  {column:<{width}} ", style), text, no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _heading(board: Board, now: float) -> RenderableType:
    from rich.text import Text

    ended = sum(step.status not in ("waiting", "running") for step in board.steps.values())
    taken = duration(max(0.0, now - board.started)) if board.started else ""
    return Text.assemble((board.name or "starting", "bold"), f"  {ended}/{len(board.steps)} steps  {taken}")


def _steps(board: Board, drawn_lanes: Mapping[str, str], now: float, height: int) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, max_width=32, overflow="ellipsis")
    table.add_column(no_wrap=True, overflow="ellipsis", style="dim")
    table.add_column(no_wrap=True, justify="right")
    table.add_column(width=12)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for step in _visible(list(board.steps.values()), height):
        symbol, style = LOOKS.get(step.look(), ("?", ""))
        name = Text(f"{symbol} {step.name}", style=style)
        bar = ProgressBar(total=step.total, completed=step.done, width=12) if step.status == "running" and step.total else ""
        graph = drawn_lanes.get(step.name, "")
        table.add_row(graph, name, step.op, amount_text(step), bar, time_text(step, now), Text(notes_text(step)))
    return table


def _visible(steps: list[StepState], height: int) -> list[StepState]:
    """Return the steps that fit: all, or from a little before the first that is still at work."""
    if len(steps) <= height:
        return steps
    first = next((k for k, step in enumerate(steps) if step.status in ("running", "waiting")), len(steps))
    start = min(max(0, first - 2), len(steps) - height)
    return steps[start : start + height]


@contextmanager
def display(*, as_json: bool = False, out: TextIO | None = None, err: TextIO | None = None) -> Iterator[Listener]:
    """Yield the listener that shows a run: JSON lines on `out`, else a live graph, or plain lines, on `err`."""
    out, err = out or sys.stdout, err or sys.stderr
    if as_json:
        yield JsonLines(out).handle
    elif err.isatty() or _in_notebook():
        from caiflow.engine.display.console import Console

        with LiveGraph(Console(file=err) if err.isatty() else Console()) as live:
            yield live.handle
    else:
        yield PlainLines(err).handle


def _in_notebook() -> bool:
    """Return whether this is a notebook's kernel that can redraw in place; Rich needs ipywidgets for that."""
    kernel = sys.modules.get("ipykernel.zmqshell")
    if kernel is None or sys.modules["IPython"].get_ipython() is None:
        return False
    from importlib.util import find_spec

    return find_spec("ipywidgets") is not None
