"""System turns that show a constitution: its principles take the place of `{{ principles }}` in the text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from caiflow.engine.constitution.principles import Constitution

MARK = "x-principles"
SystemText = Annotated[str, Field(json_schema_extra={MARK: True})]
"""A system turn, in which the principles of the step's constitution take the place of `{{ principles }}`, numbered."""
_PLACE = re.compile(r"\{\{-?\s*principles\s*-?\}\}")
_ANY_PLACE = re.compile(r"\{\{-?\s*[A-Za-z_]\w*\s*-?\}\}")


def shows_principles(text: str) -> bool:
    """Return whether a system turn has a place for principles."""
    return _PLACE.search(text) is not None


def places_unfilled(text: str) -> list[str]:
    """Return what looks like a place for a text in a system turn, each once, and has nothing put into it."""
    return [place for place in dict.fromkeys(_ANY_PLACE.findall(text)) if not _PLACE.fullmatch(place)]


def with_principles(text: str, constitution: Constitution | None) -> str:
    """Return a system turn with the principles in it, each in the words of its rule where it has one."""
    if constitution is None or not shows_principles(text):
        return text
    listed = "\n".join(f"{number}. {one.stated}" for number, one in enumerate(constitution.principles, 1))
    return _PLACE.sub(lambda _: listed, text)
