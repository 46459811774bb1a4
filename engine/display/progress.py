"""What is seen while a run goes on: a live graph in a terminal, plain lines elsewhere, JSON lines for machines.

A display consumes the events of the journal, whatever sends them, and keeps nothing after the run. Rich is imported only
where a live view is opened.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from caiflow.engine.display.board import Board, amount_text, clean, duration, note_text, notes_text, time_text
from caiflow.engine.display.step_graph import lanes
from caiflow.engine.display.terminal import say
from caiflow.engine.store.journal import Event, Listener

if TYPE_CHECKING:
    from rich.console import RenderableType

    from caiflow.engine.display.console import Console

PLAIN_EVERY_S = 10.0
"""Plain lines report a step's progress at most this often."""
LOGGED = ("log", "engine_ready", "lock_compared", "control")
"""Events that are shown as a line of text."""
UNABLE = ("dumb", "unknown")
"""Terminals that can't redraw."""
LASTING = ("entering", "engine_starting")
"""Those that a live view shows for as long as they last."""


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
        if kind in (*LOGGED, *LASTING):
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
    if event["event"] == "engine_starting":
        return f"{event['model']}: loading"
    if event["event"] == "engine_ready":
        return f"{event['model']}: ready on {event['kind']} in {duration(event['seconds'])}"
    if event["event"] == "lock_compared":
        return f"{event['grade']} as {event['lock']}{_drift_text(event.get('drift') or ())}"
    return f"{event.get('step', 'run')}: {clean(event['text'])}"


def _drift_text(drift: Sequence[str]) -> str:
    """Return what differs from a lock: settings with their values, steps by name alone, since digests say nothing."""
    steps = dict.fromkeys(name.split(".")[1] for name in drift if name.startswith("steps."))
    settings = [name for name in drift if not name.startswith("steps.")]
    listed = f"; {len(settings)} differences: {'; '.join(settings[:3])}" if settings else ""
    return f"{listed}; other content of {', '.join(steps)}" if steps else listed


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
        with suppress(OSError):  # the terminal is gone
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
        from caiflow.engine.display.screen import draw

        with self._lock:
            return draw(self._board, self._lanes, time.time(), self._console)


_GONE = frozenset({errno.EPIPE, errno.EIO})
"""The errors of a pipe that is read no more, and of a terminal that is gone."""


def _while_it_can(handle: Listener) -> Listener:
    """Return a listener that shows nothing more once its output is closed: a run doesn't end with who watches it.

    One on a disk that is full is told of.
    """
    closed = threading.Event()

    def listen(event: Event) -> None:
        if not closed.is_set():
            try:
                handle(event)
            except OSError as error:
                closed.set()
                if error.errno not in _GONE:
                    with suppress(OSError):
                        say(f"caiflow: no more is shown of the run: {error.strerror}", file=sys.stderr)

    return listen


@contextmanager
def display(*, as_json: bool = False, out: TextIO | None = None, err: TextIO | None = None) -> Iterator[Listener]:
    """Yield the listener that shows a run: JSON lines on `out`, else a live graph, or plain lines, on `err`."""
    out, err = out or sys.stdout, err or sys.stderr
    if as_json:
        yield _while_it_can(JsonLines(out).handle)
    elif (err.isatty() and os.environ.get("TERM") not in UNABLE) or _in_notebook():
        from caiflow.engine.display.console import Console

        with LiveGraph(Console(file=err) if err.isatty() else Console()) as live:
            yield _while_it_can(live.handle)
    else:
        yield _while_it_can(PlainLines(err).handle)


def _in_notebook() -> bool:
    """Return whether this is a notebook's kernel that can redraw in place; Rich needs ipywidgets for that."""
    kernel = sys.modules.get("ipykernel.zmqshell")
    if kernel is None or sys.modules["IPython"].get_ipython() is None:
        return False
    from importlib.util import find_spec

    return find_spec("ipywidgets") is not None
