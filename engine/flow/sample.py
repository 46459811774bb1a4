"""The latest row of a step, for the screen: the question, what it began with and what was made of it, with their columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from caiflow.engine.rows.columns import Row

ANSWERS = ("revision", "response")
UNSHOWN = ("uid", "thought")
LONGEST = 1500
"""Characters of a text that are kept: more has no room on a screen."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Texts of one row by column, the one that was made last; none before the first row."""

    texts: Mapping[str, str] = field(default_factory=dict)
    made: str = ""
    changed: str = ""
    """The column of which `made` is another version; empty where it is of none."""


NOTHING = Sample()


def sample(view: Row, made: Sequence[Row]) -> Sample:
    """Return the last text that a step made of a row, behind those that it was made of.

    `view` is what the operator sees: an answer of the data set that it doesn't read isn't shown as a model's.
    """
    row = {name: value for name, value in (made[0] if made else {}).items() if isinstance(value, str) and name not in UNSHOWN}
    if not row:
        return NOTHING
    after = list(row)[-1]
    answer = next((name for name in ANSWERS if view.get(name)), "")
    before = f"{answer} before" if answer == after else answer
    texts = dict(_context(view, row, answer, before))
    changed = before if after in ANSWERS else ""
    texts.pop(after, None)
    return Sample({name: text[:LONGEST] for name, text in {**texts, after: row[after]}.items()}, after, changed)


def _context(view: Row, made: Row, answer: str, before: str) -> Iterator[tuple[str, str]]:
    """Yield what the text was made of: the question, the principle, the answer, the critique; of two candidates the other."""
    if prompt := _last_turn(view.get("prompt")):
        yield "prompt", prompt
    if isinstance(principle := made.get("principle") or view.get("principle"), str):
        yield "principle", principle
    if answer:
        yield before, str(view[answer])
    for name, where in (("critique", view), ("rejected", made)):
        if isinstance(text := where.get(name), str):
            yield name, text


def _last_turn(prompt: object) -> str:
    if isinstance(prompt, list):
        return str(prompt[-1]["content"]) if prompt else ""
    return "" if prompt is None else str(prompt)
