"""The screen of a run that goes on: heading, what happens now, the steps, and the latest row in the room that is left.

Draws a board for a terminal of any size: what has no room is folded, counts and times are never cut. Never asks for a time or a
size by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from caiflow.engine.display.board import Board, Latest, StepState, amount_text, clean, duration, notes_text, time_text
from caiflow.engine.display.console import Console
from caiflow.engine.display.folding import Fold, folded

LOOKS = {
    "waiting": ("·", "dim"),
    "running": ("●", "bold cyan"),
    "done": ("✓", "green"),
    "noted": ("▲", "yellow"),
    "cached": ("≡", "green"),
    "failed": ("✗", "bold red"),
    "skipped": ("-", "magenta"),
    "interrupted": ("!", "yellow"),
    "not run": ("·", "dim"),
}
"""Symbol and style of a step's status; `noted` is done with notes. Red is for failures alone."""
WIDE = 100
"""From this width on operators and bars are shown."""
NAME = 30
"""Most columns of a step's name."""
BAR = 12
LEAST = 4
"""Lines that the latest row must have to be shown; those before it are shown where each text has one."""
CARD = 11
"""Lines that the latest row has at least, where the terminal has twice as many."""
HEADING = 3
"""Lines above the steps and below all: the cursor's own is one."""


def draw(board: Board, lanes: Mapping[str, str], now: float, console: Console) -> RenderableType:
    """Return the live view of a run for a terminal of the console's size."""
    width, height = console.size
    card = min(CARD, (height - HEADING) // 2) if board.samples else 0
    lines = folded(list(board.steps.values()), max(4, height - HEADING - card))
    parts: list[RenderableType] = [_heading(board, now, width), _status(board, now, width)]
    parts += _steps(lines, lanes if len(lines) == len(board.steps) else {}, now, width)
    room = height - HEADING - len(lines)
    for place, latest in enumerate(reversed(board.samples.values())):
        if room < (len(latest.texts) + 1 if place else LEAST):
            break
        shown = _card(latest, console, width, room)
        parts += shown
        room -= len(shown)
    return Group(*parts)


def _heading(board: Board, now: float, width: int) -> Text:
    text = Text.assemble((clean(board.name) or "caiflow", "bold"))
    if not board.steps:
        return text
    ended = sum(step.ended for step in board.steps.values())
    text.append(f"  {ended}/{len(board.steps)} steps  {duration(max(0.0, now - board.started))}")
    if (left := board.left_s(now)) is not None:
        text.append(f"  {'' if left[1] else 'at least '}{duration(left[0])} left")
    if speed := sum(step.tokens_per_second or 0 for step in board.steps.values() if step.status == "running"):
        text.append(f"  {speed:,.0f} tokens/s")
    text.truncate(width - BAR - 2, overflow="ellipsis")
    return text.append("  ").append_text(_bar(board.share(), min(3 * BAR, width - text.cell_len - 2)))


def _status(board: Board, now: float, width: int) -> Text:
    """Return the line that says what happens now."""
    said = " · ".join(board.under_way(now)) or ("beginning" if board.status == "running" else board.status)
    text = Text(clean(said), style="cyan")
    text.truncate(width, overflow="ellipsis")
    return text


class _Cells(NamedTuple):
    """What a step's line says, from left to right."""

    graph: str
    name: Text
    op: str
    amount: str
    time: str
    notes: str


def _steps(lines: Sequence[StepState | Fold], lanes: Mapping[str, str], now: float, width: int) -> list[RenderableType]:
    """Return a line for each step or fold; the graph gives way where it takes more than a quarter of the width."""
    drawn = max(map(len, lanes.values()), default=0)
    graph = lanes if drawn * 4 <= width else {}
    cells = {line.name: _cells(line, graph, now) for line in lines if isinstance(line, StepState)}
    widths = [max((Text(cell).cell_len if isinstance(cell, str) else cell.cell_len for cell in column), default=0)
              for column in zip(*cells.values(), strict=True)] or [0] * len(_Cells._fields)  # fmt: skip
    return [
        _fold_line(line, width) if isinstance(line, Fold) else _line(line, cells[line.name], widths, width) for line in lines
    ]


def _cells(step: StepState, graph: Mapping[str, str], now: float) -> _Cells:
    symbol, style = LOOKS.get(step.look(), ("?", ""))
    name = Text(f"{symbol} {clean(step.name)}", style=style)
    name.truncate(NAME, overflow="ellipsis")
    return _Cells(graph.get(step.name, ""), name, clean(step.op), amount_text(step), time_text(step, now), notes_text(step))


def _line(step: StepState, cells: _Cells, widths: Sequence[int], width: int) -> Text:
    graph, name, op, amount, time, _ = widths
    line = Text(cells.graph.ljust(graph + 2) if graph else "")
    line.append_text(cells.name).pad_right(name - cells.name.cell_len + 2)
    if width >= WIDE:
        line.append(cells.op.ljust(op + 2), style="dim")
    line.append(cells.amount.rjust(amount) + "  ")
    if width >= WIDE:
        at_work = step.status == "running" and step.total
        line.append_text(_bar(step.done / step.total, BAR) if at_work and step.total else Text(" " * BAR)).append("  ")
    line.append(cells.time.ljust(time + 2))
    line.append(cells.notes, style="red" if step.error else "yellow" if step.notes else "dim")
    line.truncate(width, overflow="ellipsis")
    return line


def _bar(share: float, width: int) -> Text:
    full = round(width * min(1.0, share))
    return Text.assemble(("━" * full, "cyan"), ("─" * (width - full), "dim"))


def _fold_line(fold: Fold, width: int) -> Text:
    symbol, style = LOOKS.get(fold.look, ("?", ""))
    line = Text.assemble((f"{symbol} {clean(fold.title)}", style), ("  " + ", ".join(map(clean, fold.names)), "dim"))
    line.truncate(width, overflow="ellipsis")
    return line


def _card(latest: Latest, console: Console, width: int, room: int) -> list[RenderableType]:
    """Return the latest row's texts in at most `room` lines, wrapped, the words marked that the last text changed."""
    label = max(map(len, latest.texts)) + 2
    texts = {column: Text(text) for column, text in latest.texts.items()}
    if latest.changed in latest.texts:
        texts[latest.made] = marked(latest.texts[latest.changed], latest.texts[latest.made])
    wrapped = {column: list(text.wrap(console, max(20, width - label))) for column, text in texts.items()}
    shares = _shares({column: len(lines) for column, lines in wrapped.items()}, room - 1)
    parts: list[RenderableType] = [Text.assemble(("── latest row of ", "dim"), (latest.step, "bold"), (" ──", "dim"))]
    for column, lines in wrapped.items():
        style = "bold" if column == latest.made else "dim"
        for n, line in enumerate(_cut(lines, shares[column], width - label)):
            parts.append(Text.assemble(((column if not n else "").ljust(label), style), line))
    return parts


def _cut(lines: Sequence[Text], number: int, width: int) -> list[Text]:
    """Return the first lines, with dots behind the last where more would come."""
    shown = list(lines[:number])
    if shown and number < len(lines):
        shown[-1].rstrip()
        shown[-1].truncate(width - 2)
        shown[-1].append(" …")
    return shown


def marked(before: str, after: str, style: str = "bold green") -> Text:
    """Return the second of two texts, the words marked that the first doesn't have there."""
    old, new = before.split(), after.split()
    text = Text()
    for kind, _, _, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if words := " ".join(new[start:end]):
            text.append(words, style="" if kind == "equal" else style).append(" ")
    text.rstrip()
    return text


def _shares(wanted: Mapping[str, int], room: int) -> dict[str, int]:
    """Return how many lines each text gets of `room`: what it wants, where others leave that; the last texts first."""
    shares = dict.fromkeys(wanted, 0)
    while room > 0 and any(shares[name] < wanted[name] for name in wanted):
        for name in reversed(list(wanted)):
            if room > 0 and shares[name] < wanted[name]:
                shares[name] += 1
                room -= 1
    return shares
