r"""Pairs of transcripts, many at once: what `hh` makes of them one by one, where they are as data sets mostly have them.

Any other record, such as one with further fields, lines that end in `\r` or neighbouring turns of one role, is left to `hh`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from caiflow.engine.identity import quick_texts
from caiflow.operators.formats.dialogue import TURN, goes_on
from caiflow.operators.formats.survey import ByColumn, Conversations

_OPENING, _REPLY, _END = "\n\nHuman:", "\n\nAssistant:", "\0"


_Parts = tuple[str, str, str, bytes]
"""Of two transcripts of one dialogue what they share, the last reply of each, and the JSON of both."""
Uids = Callable[[Sequence[bytes]], list[str]]
"""Gives the uids of records with such JSON."""


def quick_pairs(records: Sequence[Mapping[str, Any] | None], uids: Uids) -> tuple[ByColumn, list[int]]:
    """Return the pairs that part in their last replies, with the uids of their JSON, and the places of all other records."""
    found = {place: parts for place, record in enumerate(records) if record and (parts := _parted(record))}
    prompts, odd = _prompts([begun for begun, _, _, _ in found.values()])
    places = list(found) if odd else []
    for at in reversed(odd):
        del found[places[at]]
        prompts = prompts.without_one(at)
    better, worse = [text.strip() for _, text, _, _ in found.values()], [text.strip() for _, _, text, _ in found.values()]
    told = [one != other for one, other in zip(better, worse, strict=True)]
    columns: dict[str, list[Any] | Conversations] = {
        "uid": uids([text for _, _, _, text in found.values()]),
        "prompt": prompts,
        "response": better,
        "chosen": [text if apart else None for text, apart in zip(better, told, strict=True)],
        "rejected": [text if apart else None for text, apart in zip(worse, told, strict=True)],
        "p_chosen": [1.0 if apart else None for apart in told],
    }
    others = [place for place in range(len(records)) if place not in found] if len(found) < len(records) else []
    return ByColumn(len(found), columns), others


def _parted(record: Mapping[str, Any]) -> _Parts | None:
    """Return the parts of a pair; None where it isn't as usual."""
    chosen, rejected = record.get("chosen"), record.get("rejected")
    if type(chosen) is not str or type(rejected) is not str or len(record) != 2 or not chosen.startswith(_OPENING):
        return None
    end = chosen.rfind(_REPLY)
    begun, after = chosen[:end], end + len(_REPLY)
    if end < 0 or not rejected.startswith(begun) or rejected.rfind(_REPLY) != end or _END in begun:
        return None
    better, worse = chosen[after:], rejected[after:]
    if "\r" in chosen or "\r" in rejected or goes_on(better) or goes_on(worse):
        return None
    text = quick_texts(record)
    return None if text is None else (begun, better, worse, text)


def _prompts(begun: Sequence[str]) -> tuple[Conversations, list[int]]:
    """Return the turns of transcripts, read at once, and those in which neighbours have one role or the assistant is last."""
    _, *parts = TURN.split(_END.join([*begun, ""]))
    texts = parts[1::2]
    asked, last = [name == "Human" for name in parts[::2]], [text[-1:] == _END for text in texts]
    ends = [place for place, ends_here in enumerate(last, 1) if ends_here]
    contents = [text.strip() for text in texts]
    for end in ends:
        contents[end - 1] = texts[end - 1][:-1].strip()
    found = Conversations(["user" if human else "assistant" for human in asked], contents, [0, *ends])
    # after a question comes an answer, and the other way round, but at the end of a dialogue, where another question begins one
    if [*asked[1:], True] == [human == ends_here for human, ends_here in zip(asked, last, strict=True)]:
        return found, []
    dialogues = (asked[start:end] for start, end in pairwise([0, *ends]))
    return found, [place for place, human in enumerate(dialogues) if human != [n % 2 == 0 for n in range(len(human) | 1)]]
