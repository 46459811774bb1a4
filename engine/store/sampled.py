"""The ids of the tokens that a model sampled, kept by the words that they spell: a ledger of its own for each model.

Answers, rows and their keys know nothing of it: without it everything runs as ever, and less is known of trainings.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence

from caiflow.engine.identity import key
from caiflow.engine.store.ledger import Ledger, ledger_name

_NARROW = 1 << 16


def sampled_name(model_identity: str) -> str:
    """Return the namespace of what a model sampled."""
    return ledger_name("sampled", model_identity)


def keep_sampled(ledger: Ledger, text: str, ids: Sequence[int]) -> None:
    """Keep the ids of an answer, its end of turn among them, in two bytes each where they fit; of equal texts the last."""
    narrow = max(ids, default=0) < _NARROW
    ledger.append(_key(text), {"ids" if narrow else "wide": _swapped(array("H" if narrow else "I", ids)).decode()})


def sampled_ids(ledger: Ledger, text: str) -> list[int] | None:
    """Return the ids that the model sampled when it last said a text; None where it isn't known to have."""
    kept = ledger.get(_key(text))
    if kept is None:
        return None
    ids = array("H" if "ids" in kept else "I", base64.b64decode(kept.get("ids") or kept.get("wide", "")))
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()


def _key(text: str) -> bytes:
    return key("sampled", text)


def _swapped(ids: array[int]) -> bytes:
    if sys.byteorder == "big":
        ids.byteswap()
    return base64.b64encode(ids)
