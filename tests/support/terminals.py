"""Commands in a terminal of a given size, and what stands on its screen: as text, and as a picture of it (SVG).

The terminal is pyte's, behind a pseudo-terminal, so that what is seen is what the bytes that were written make of a screen.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, SVG_EXPORT_THEME
from rich.text import Text

HANGS_S = 120.0
QUIET_S = 0.1
"""A screen of which nothing more came for so long is drawn to its end: it is drawn anew every quarter of a second."""
_NAMES = {"brown": "yellow", "brightbrown": "bright_yellow"}
"""Colours as rich calls them, where pyte has another name."""


@dataclass(frozen=True)
class Seen:
    """What stands on a screen, or has scrolled off its top."""

    lines: tuple[str, ...]
    """Those on the screen, without blanks at their ends."""
    above: tuple[str, ...]
    """Those that scrolled away."""
    styled: Text
    columns: int
    rows: int

    @property
    def text(self) -> str:
        """The screen as one text."""
        return "\n".join(self.lines)

    @property
    def everything(self) -> str:
        """The screen, below what scrolled away."""
        return "\n".join((*self.above, *self.lines))

    def svg(self, title: str, *, dark: bool = True) -> str:
        """Return a picture of the screen."""
        with open(os.devnull, "w") as nowhere:
            console = Console(record=True, width=self.columns, file=nowhere, force_terminal=True, color_system="truecolor")
            console.print(self.styled, no_wrap=True, crop=True)
            return console.export_svg(title=title, theme=SVG_EXPORT_THEME if dark else DEFAULT_TERMINAL_THEME)


class Terminal:
    """A command in a terminal; use as a context manager, which ends the command."""

    def __init__(
        self,
        command: Sequence[str],
        size: tuple[int, int],
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        columns, rows = size
        self._screen = pyte.HistoryScreen(columns, rows, history=5000, ratio=1)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        quiet = termios.tcgetattr(slave)
        quiet[3] &= ~termios.ECHO  # what is typed isn't shown: it would be a line of the screen
        termios.tcsetattr(slave, termios.TCSANOW, quiet)
        own = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(rows), **(environment or {})}
        inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "CI")}
        self._process = subprocess.Popen(
            list(command), stdin=slave, stdout=slave, stderr=slave, env={**inherited, **own}, cwd=cwd, start_new_session=True
        )
        os.close(slave)
        self.written = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)

    def until(self, shown: Callable[[Seen], bool]) -> Seen:
        """Read until the screen is so, and return it."""
        deadline = time.monotonic() + HANGS_S
        while self._read(QUIET_S) or not shown(seen := self.seen()):
            assert time.monotonic() < deadline, f"never shown; the screen:\n{self.seen().text}"
            assert self._process.poll() is None, f"the command has ended; its screen:\n{self.seen().everything}"
        return seen

    def say(self, line: str) -> None:
        """Type a line."""
        os.write(self._master, f"{line}\n".encode())

    def ended(self) -> Seen:
        """Read until the command has ended, and return the last screen."""
        deadline = time.monotonic() + HANGS_S
        while self._read(1.0) or self._process.poll() is None:
            assert time.monotonic() < deadline, f"it hangs; the screen:\n{self.seen().text}"
        return self.seen()

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._master], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return False
        self.written += data
        self._stream.feed(data)
        return bool(data)

    def seen(self) -> Seen:
        """Return the screen as it is now."""
        screen = self._screen
        styled = Text()
        for y in range(screen.lines):
            cells = [screen.buffer[y][x] for x in range(screen.columns)]
            for style, same in groupby(cells, _style):
                styled.append("".join(cell.data for cell in same), style)
            styled.append("\n")
        lines = [line.rstrip() for line in screen.display]
        above = ["".join(line[x].data for x in range(screen.columns)).rstrip() for line in screen.history.top]
        return Seen(tuple(lines), tuple(above), styled, screen.columns, screen.lines)


def _style(cell: pyte.screens.Char) -> Style:
    return Style(
        color=_colour(cell.fg), bgcolor=_colour(cell.bg), bold=cell.bold, italic=cell.italics,
        underline=cell.underscore, strike=cell.strikethrough, reverse=cell.reverse,
    )  # fmt: skip


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    if len(name) == 6 and all(c in "0123456789abcdef" for c in name):
        return f"#{name}"
    return _NAMES.get(name, name.replace("bright", "bright_", 1))
