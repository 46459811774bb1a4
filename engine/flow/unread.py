"""What a ledger holds of servers' answers from before refusals, reasoning, tool calls and parts were told from texts.

Such answers were kept as empty texts, or as Python prints a list. They are set aside, and asked for again, once: what is kept
now bears a mark. Owns the mark and what is doubtful without it; asks nobody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from caiflow.engine.rows.columns import Row

READ: Mapping[str, Any] = {"read": 1}
"""Marks a record of a served model's answer, or of a row made of such, as read for what it is."""
_PARTS = re.compile(r"\[\{'(?:type|text)': ")
"""How Python prints a list of an answer's parts."""
_LIKELIHOODS = ("logprobs", "prompt_logprobs")


def doubtful_answer(kept: Mapping[str, Any]) -> bool:
    """Return whether the record of a call may hold no answer, or another than was given."""
    return not (kept.keys() & {*READ, *_LIKELIHOODS}) and _doubtful(kept["text"])


def doubtful_row(kept: Mapping[str, Any], answers: Callable[[Row], Sequence[str]]) -> bool:
    """Return whether the record of a row may rest on such an answer: one of its `answers`, or what it was left out for."""
    if kept.keys() & {*READ, "failed"}:
        return False
    return "dropped" in kept or any(_doubtful(text) for row in kept["out"] for text in answers(row))


def _doubtful(text: str) -> bool:
    return not text.strip() or bool(_PARTS.search(text)) or any("\ud800" <= sign <= "\udfff" for sign in text)
