"""Prose with headings and numbered rules, read into principles that say where they stand.

Owns the reading of Markdown's headings, numbers and lists: nothing is put in other words. Whether a text is prose at all,
`foreign_formats` tells. Never reads a file and asks no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from caiflow.engine.constitution.others_names import slug

_HEADING = re.compile(r"^#{1,6}\s+(.+?)[\s#]*$")
_NUMBER = re.compile(
    r"^(?:\((\d{1,3})\)|(\d{1,3})[.)](?=\s)|(?:priority|principle|rule|article)\s+(\d{1,3})\s*[:.)–—-]+)\s*", re.IGNORECASE
)
_BULLET = re.compile(r"^[-*•+]\s+")
_EMPHASIS = re.compile(r"\*\*|__")
_FEWEST = 2
"""Numbered rules, or headings, that a text has at the least: one with fewer is one rule as a whole."""

_ASKED = {
    "critique": "This is a rule. Say in detail where the assistant's last response goes against it. If it keeps it, say so.",
    "revision": "This is a rule. Rewrite the assistant's last response so that it keeps it. Keep what is helpful in it.",
    "judge": "This is a rule. Which response keeps it better?",
}


@dataclass
class _Passage:
    """A stretch of the text, its lines counted from 1: an item of a list, or what else stands under a heading."""

    first: int
    heading: str
    numbers: tuple[int | None, int | None]
    """The heading's number and the item's."""
    item: bool
    lines: list[str] = field(default_factory=list)
    last: int = 0

    def add(self, line: str, number: int) -> None:
        self.lines.append(line.strip())
        self.last = number

    @property
    def text(self) -> str:
        return _EMPHASIS.sub("", " ".join(self.lines)).strip()


def principles(text: str) -> list[dict[str, Any]]:
    """Return the principles of a text with rules, each with its `passage` (`:FIRST-LAST` lines); none where it has no such.

    Under several headings each item of a list is a rule, and each heading's text that has no list. Where headings or items have
    numbers, those alone are the rules, and the numbers, a heading's first, are their ranks.
    """
    found = [passage for passage in _passages(text.splitlines()) if passage.text]
    listed = {passage.heading for passage in found if passage.item}
    told = [passage for passage in found if passage.item or passage.heading not in listed]
    ranked = [passage for passage in told if passage.numbers != (None, None)]
    kept = ranked if len(ranked) >= _FEWEST else [passage for passage in told if passage.heading]
    if kept is not ranked and len({passage.heading for passage in kept}) < _FEWEST:
        return []
    places = sorted({_place(passage) for passage in kept})
    names = _names(kept)
    return [
        {
            "id": name,
            **{stage: f"{passage.text}\n\n{asked}" for stage, asked in _ASKED.items()},
            "guards": passage.heading,
            "passage": f":{passage.first}-{passage.last}",
            "rank": places.index(_place(passage)) + 1 if kept is ranked else None,
        }
        for name, passage in zip(names, kept, strict=True)
    ]


def _passages(lines: Sequence[str]) -> Iterator[_Passage]:
    heading, above, now, gap = "", None, None, False
    for number, line in enumerate(lines, 1):
        if found := _HEADING.match(line):
            if now:
                yield now
            heading, above = _numbered(found[1])
            now, gap = None, False
            continue
        if not line.strip():
            gap = True
            continue
        bare, own = _numbered(line)
        item = own is not None or _BULLET.match(line) is not None
        starts = item or now is None or (gap and now.item and not line[0].isspace())
        if starts:
            if now:
                yield now
            now = _Passage(number, heading, (above, own), item)
        assert now is not None
        now.add(_BULLET.sub("", bare), number)
        gap = False
    if now:
        yield now


def _numbered(line: str) -> tuple[str, int | None]:
    """Return a line without the number that it begins with, and the number."""
    found = _NUMBER.match(_EMPHASIS.sub("", line)) if not line[:1].isspace() else None
    if found is None:
        return line, None
    return _EMPHASIS.sub("", line)[found.end() :], int(next(filter(None, found.groups())))


def _place(passage: _Passage) -> tuple[int, int]:
    above, own = passage.numbers
    return (above or 0, own or 0)


def _names(passages: Sequence[_Passage]) -> list[str]:
    names: list[str] = []
    for passage in passages:
        alone = sum(other.heading == passage.heading for other in passages) == 1
        name = slug(passage.heading if passage.heading and alone else passage.text) or "rule"
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names
