"""Answers that are marked as good or bad, one a record (KTO): a good and a bad one to the same prompt are a pair.

Each answer is in one row only. Those without a partner wait in memory for the end of the source; a bad one is never a response.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from caiflow.engine.errors import WrongValue
from caiflow.operators.formats.dialogue import Turns, decode, is_human, is_turns, shorten
from caiflow.operators.formats.named.conversations import CHATS, CONVERSATIONS, alpaca, messages, prompted, sharegpt
from caiflow.operators.formats.named.fields import Fields, Record, has, present
from caiflow.operators.formats.named.layout import Group, See, Take
from caiflow.operators.formats.opening import Line

_LABELS = ("label", "kto_tag")
_WORDS = {"true": True, "false": False}
_MARKS = {**_WORDS, "1": True, "1.0": True, "0": False, "0.0": False}
WORSE = "(the bad answer)"
_READERS: Mapping[str, Callable[[Record, Turns], Fields]] = {
    "completion": prompted,
    "output": alpaca,
    "messages": messages,
    **dict.fromkeys(CONVERSATIONS, sharegpt),
}
"""How a record is read, by the field that its answer is in."""


def label_of(record: Record) -> bool | None:
    """Return whether an answer is marked as good, also as a table writes it, and by 1 or 0; None where nothing says so."""
    return _MARKS.get(_mark(record))


def _mark(record: Record) -> str:
    value = next((record[name] for name in _LABELS if record.get(name) is not None), "")
    return str(value).strip().lower()


def is_labelled(record: Record) -> bool:
    """Return whether a record has an answer and a mark, in words: a number may be that of a class."""
    return _mark(record) in _WORDS and _answer_field(record) is not None


def by_prompt(lines: Iterator[Line], see: See) -> Iterator[Group]:
    """Yield a good and a bad answer to the same prompt together, once the second of them is read; at the end the others."""
    alone: dict[int, Line] = {}
    places: dict[tuple[bool, str], deque[int]] = defaultdict(deque)
    for place, line in enumerate(lines):
        record = see(line)
        label, field = label_of(record), _answer_field(record)
        asked = None if label is None or field is None else _asked(record, field)
        if label is None or asked is None:
            yield (line,)
            continue
        if places[not label, asked]:
            other = alone.pop(places[not label, asked].popleft())
            yield (line, other) if label else (other, line)
        else:
            alone[place] = line
            places[label, asked].append(place)
    yield from ((line,) for line in alone.values())


def joined(records: Sequence[Record], _take: Take) -> Sequence[Record]:
    """Return a record as it is, and of two the good one, which has the bad one as a further field."""
    return records if len(records) == 1 else [{**records[0], WORSE: records[1]}]


def labelled(record: Record, which: Turns) -> Fields:
    """Read an answer and its mark, beside the bad one to the same prompt where there is one.

    Raises:
        ValueError: it has no answer, or a mark that says neither.
    """
    fields, good = _read(record, which), label_of(record)
    if good is None and (mark := _mark(record)):
        raise WrongValue(f"the label says neither true nor false, got {shorten(mark)}", "write one of these")
    if good is False:
        is_other = which == "first" and _read(record, "all")["prompt"] != fields["prompt"]  # the bad one answers a later turn
        return {"prompt": fields["prompt"], "response": None, "rejected": None if is_other else fields["response"]}
    worse = record.get(WORSE)
    if not isinstance(worse, Mapping):
        return fields
    better, other = fields["response"], _read({**worse, "prompt": record.get("prompt")}, which)["response"]
    told = better is not None and other is not None and better != other
    pair = {"chosen": better, "rejected": other, "p_chosen": 1.0}
    return {**fields, **(pair if told else dict.fromkeys(pair))}


def _read(record: Record, which: Turns) -> Fields:
    field = _answer_field(record)
    if field is None:
        present(record, "prompt")
        present(record, "completion")
    return _READERS[field or "completion"]({**record, "label": None}, which)


def _answer_field(record: Record) -> str | None:
    """Return the field that has the answer, in a record that has what was asked too."""
    chat = next((name for name in CHATS if is_turns(record.get(name))), None)
    if chat is None and has("prompt", "completion")(record):
        return "completion"
    return chat or ("output" if has("instruction", "output")(record) else None)


def _asked(record: Record, field: str) -> str | None:
    """Return what an answer is to, the same text for equal prompts; None where that can't be read, which its reader tells."""
    beside = [record.get(name) for name in ("system", "system_prompt", "prompt", "instruction", "input")]
    try:
        turns = decode(record[field]) if field in CHATS else []
    except ValueError:
        return None
    said = turns if turns and is_human(turns[-1]) else turns[:-1]
    return json.dumps([said, beside], sort_keys=True, default=str)
