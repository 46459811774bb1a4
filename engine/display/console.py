"""Rich's console as every command uses it: markup in texts isn't obeyed, and no text steers the screen."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from caiflow.engine.display.terminal import escaped

UNBROKEN = 100_000
"""A width at which no line of a table is broken, for files and pipes."""


class Console(RichConsole):
    """A console whose own styling is all the terminal is told."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        """Have the command end as with any other output that nobody reads; rich would end the process with code 1."""
        raise BrokenPipeError

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is to be printed; here, before cells are cut to their width, texts are escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escaped(segment.text))


def unbroken_console() -> Console:
    """Return a console as wide as the terminal, which breaks no line for a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else UNBROKEN)
