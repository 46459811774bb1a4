"""Formats of a question by itself or under other names: with a system text (Orca), or turn by turn (MT-bench)."""

from __future__ import annotations

from caiflow.operators.formats.dialogue import Turns
from caiflow.operators.formats.named.conversations import SYSTEM, prompted
from caiflow.operators.formats.named.fields import Fields, Record, has, present, said

_ANSWERS = ("response", "answer", "completion")


def is_orca(record: Record) -> bool:
    """Return whether a record has a question with a system text beside it, and no prompt."""
    asked = isinstance(record.get("question"), str) and record.get("prompt") is None
    return asked and any(isinstance(record.get(name), str) for name in SYSTEM)


def orca(record: Record, which: Turns) -> Fields:
    """Read `question`, and the answer to it where there is one."""
    answer = next((record[name] for name in _ANSWERS if record.get(name) is not None), None)
    return prompted({**record, "prompt": said(record, "question"), "completion": answer}, which)


def is_mt_bench(record: Record) -> bool:
    """Return whether a record has nothing but texts as its turns, and no prompt."""
    turns = record.get("turns")
    return (
        isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns) and not has("prompt")(record)
    )


def mt_bench(record: Record, _which: Turns) -> Fields:
    """Read the first of `turns`; those after it, which answers come between, become a column.

    Raises:
        ValueError: there are no such texts.
    """
    turns = present(record, "turns")
    if not is_mt_bench({"turns": turns}):
        raise ValueError("`turns` must be a list of texts")
    fields = prompted({**record, "prompt": turns[0], "completion": None}, "all")
    return {**fields, "later_turns": turns[1:]} if turns[1:] else fields
