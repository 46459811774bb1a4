"""Where an answer ends at a stop sequence, however the tokens split it.

Owns the search only; decoding is the renderer's.
"""

from __future__ import annotations

from collections.abc import Sequence

from caiflow.engine.llm.render import Renderer


class Stops:
    """Looks for stop sequences in growing answers, decoding only where a new token could have ended one."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._pieces: dict[int, str] = {}

    def may_end(self, token: int, stops: Sequence[str]) -> bool:
        """Return whether a stop sequence may end within this token; errs towards yes."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._renderer.decode([token])
        return not piece or "\ufffd" in piece or any(stop[-1] in piece or stop[-1].isspace() for stop in stops if stop)

    @staticmethod
    def cut(text: str, stops: Sequence[str]) -> int:
        """Return where the earliest stop sequence begins in `text`, or -1."""
        found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
        return min(found, default=-1)
