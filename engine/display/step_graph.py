"""The graph of steps as lines of box-drawing characters, one line per step. Pure text; knows nothing of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def lanes(inputs: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return for each step (in topological order, as given) its piece of the drawn graph.

    A step is `●`; a line runs down from it until the last step that reads it: two steps right below each other are joined, so
    nothing else is put below a step that nobody reads. Inputs that aren't steps are left out.
    """
    readers = {name: {n for n, sources in inputs.items() if name in sources} for name in inputs}
    open_lanes: list[str | None] = []
    drawn = {}
    above: int | None = None
    for name, sources in inputs.items():
        for source in sources:
            readers.get(source, set()).discard(name)
        read = [k for k, source in enumerate(open_lanes) if source in sources]
        ending = [k for k in read if not readers[str(open_lanes[k])]]
        place = _place(open_lanes, ending, above)
        drawn[name] = _line(open_lanes, place, read, ending)
        for k in ending:
            open_lanes[k] = None
        open_lanes[place] = name if readers[name] else None
        above = None if readers[name] else place
    return drawn


def _place(open_lanes: list[str | None], ending: Sequence[int], above: int | None) -> int:
    """Return the lane a step goes to: that of an input nobody else reads, or a free one but not `above` (or a new one)."""
    if ending:
        return ending[0]
    free = [k for k, source in enumerate(open_lanes) if source is None and k != above]
    if not free:
        open_lanes.append(None)
    return free[0] if free else len(open_lanes) - 1


def _line(open_lanes: Sequence[str | None], place: int, read: Sequence[int], ending: Sequence[int]) -> str:
    low, high = min([place, *read]), max([place, *read])
    cells = []
    for k, source in enumerate(open_lanes):
        if k == place:
            cell = "●"
        elif k in read:
            within = low < k < high
            cell = "┼┴"[k in ending] if within else ("╰╯" if k in ending else "├┤")[k > place]
        elif low < k < high:
            cell = "┼" if source else "─"
        else:
            cell = "│" if source else " "
        cells.append(cell + ("─" if low <= k < high else " "))
    return "".join(cells).rstrip()
