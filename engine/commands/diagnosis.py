"""The verdict on one thing that was looked at or tried on this machine, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "skipped", "broken"]
_MARKS = {"ok": "✓", "note": "·", "skipped": "·", "broken": "✗"}
_WIDTH = 14


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing looked at. `broken` means that runs will fail, `skipped` that it wasn't tried; `hint` says what to do."""

    what: str
    verdict: Verdict
    detail: str
    hint: str = ""

    def __str__(self) -> str:
        skipped = "not tried: " if self.verdict == "skipped" else ""
        hint = f"\n  {'':<{_WIDTH}} {self.hint}" if self.hint else ""
        return f"{_MARKS[self.verdict]} {self.what:<{_WIDTH}} {skipped}{self.detail}{hint}"
