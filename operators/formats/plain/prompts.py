"""Records of a prompt as plain text, many at once: what `prompt` makes of them one by one, where nothing of them needs a look.

Any others, such as some with system turns, message lists or fields that others lack, are left to `prompt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caiflow.engine.identity import are_plain, quick_texts
from caiflow.operators.formats.named.conversations import SYSTEM
from caiflow.operators.formats.plain.transcripts import Uids
from caiflow.operators.formats.shapes import CANONICAL
from caiflow.operators.formats.survey import ByColumn, Conversations

_OTHERS = frozenset((*CANONICAL, *SYSTEM, "input", "label")) - {"prompt"}
"""Fields beside which a prompt is read otherwise, or which are renamed."""


def quick_prompts(records: Sequence[Mapping[str, Any] | None], uids: Uids) -> ByColumn | None:
    """Return the rows of records that all have the same fields, with the uids of their JSON; None of others."""
    given = [record for record in records if record]
    if len(given) < len(records) or len({*map(tuple, given)}) != 1 or not are_plain(given):
        return None
    names = [*given[0]]
    texts = [quick_texts(record) for record in given]
    if "prompt" not in names or not _OTHERS.isdisjoint(names) or None in texts:
        return None
    said = {name: [record[name] for record in given] for name in names}
    if not _are_texts(said["prompt"], blank=False) or not _are_texts(said.get("completion", ())):
        return None
    prompts = Conversations(["user"] * len(given), said.pop("prompt"), range(len(given) + 1))
    answers = {"response": said.pop("completion")} if "completion" in said else {}
    return ByColumn(len(given), {"uid": uids([text for text in texts if text]), "prompt": prompts, **answers, **said})


def _are_texts(values: Sequence[Any], blank: bool = True) -> bool:
    """Return whether these are texts, none of which may be a list of messages written out."""
    if not {*map(type, values)} <= {str}:
        return False
    begun = {text.lstrip()[:1] for text in values}
    return "[" not in begun and (blank or "" not in begun)
