"""The latest row of a step, for the screen: the text that was made beside the one it was made of, with their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from caiflow.engine.rows.columns import Row

ANSWERS = ("revision", "response")
UNSHOWN = ("uid", "thought")


class Sample(NamedTuple):
    """Two texts and the columns they are of; empty before the first row."""

    before_column: str = ""
    before: str = ""
    after_column: str = ""
    after: str = ""


NOTHING = Sample()


def sample(view: Row, made: Sequence[Row]) -> Sample:
    """Return the last text that a step made of a row, beside the answer that it read, or the prompt's end where it read none.

    `view` is what the operator sees: an answer of the data set that it doesn't read isn't shown as a model's.
    """
    texts = {name: value for name, value in (made[0] if made else {}).items() if isinstance(value, str) and name not in UNSHOWN}
    after = list(texts)[-1] if texts else ""
    answer = next((name for name in ANSWERS if view.get(name)), "")
    before = (answer, str(view[answer])) if answer else ("prompt", _last_turn(view.get("prompt")))
    return Sample(*before, after, texts.get(after, ""))


def _last_turn(prompt: object) -> str:
    if isinstance(prompt, list):
        return str(prompt[-1]["content"]) if prompt else ""
    return "" if prompt is None else str(prompt)
