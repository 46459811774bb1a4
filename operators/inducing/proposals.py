"""What may lie behind a preference, in a model's words: one statement a line.

Owns which pairs propose and which are held out, what is asked of each, and how lines are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from caiflow.engine.identity import digest
from caiflow.engine.llm.base import Sampling
from caiflow.engine.operator import LLMs, RowLLM, together
from caiflow.engine.rows.columns import Row
from caiflow.operators.inducing.voting import fitting
from caiflow.operators.judging.prompts import judge_message, user

FOR = """\
Response ({better}) was preferred to the other one. What in it may have been the reason? Think of what would hold for other \
conversations as well, not of this one's subject."""
AGAINST = """\
Response ({worse}) was passed over for the other one. What in it may have been the reason? Say what a better response would do \
in its place, in a way that would hold for other conversations as well."""
_FORM = """\
Give {number} different short reasons. Put each on a line of its own that goes on from "The better response", such as "The \
better response admits what it does not know". Write nothing else."""
_LEAD = re.compile(r"^(?:the|a)\s+(?:better|preferred|good|chosen)\s+(?:response|answer|reply)\s+", re.IGNORECASE)
_MARK = re.compile(r"^\s*(?:[-*•]|\(?\d+[.)]|\(?[a-z][.)]\s)\s*")
_OPTION = re.compile(r"^\s*\(?[A-Z][.)](?=\s|$)")
"""What an option begins with: a line of it that doesn't go on from the better response repeats what was shown."""
MOST_WORDS = 30
"""A line with more words is no short reason."""


def draw(seed: int, uid: str, what: str) -> float:
    """Return a number in 0..1 that is the row's own, whatever rows are beside it."""
    return int(digest([seed, uid, what])[:12], 16) / 16**12


def divided(pairs: Sequence[Row], held_out: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Return the pairs that are learnt from and those held out, each in the order given; equal prompts stay together."""
    held = [draw(seed, digest(_plain(pair["prompt"])), "held out") < held_out for pair in pairs]
    told = [{**pair, "prompt": _plain(pair["prompt"])} for pair in pairs]
    learnt = [pair for pair, out in zip(told, held, strict=True) if not out and _differ(pair)]
    return learnt, [pair for pair, out in zip(told, held, strict=True) if out and _differ(pair)]


def drawn(pairs: Sequence[Row], number: int | None, seed: int) -> list[Row]:
    """Return so many of the pairs, in the order given."""
    first = sorted(pairs, key=lambda pair: draw(seed, str(pair["uid"]), "vote"))[:number]
    uids = {pair["uid"] for pair in first}
    return [pair for pair in pairs if pair["uid"] in uids]


async def propose(pairs: Sequence[Row], model: str, number: int, sampling: Sampling, llms: LLMs) -> list[tuple[Row, str]]:
    """Return each statement with the pair that it was proposed for."""

    async def ask(row: Row, llm: RowLLM) -> Row:
        first = draw(0, str(row["uid"]), "propose") < 0.5  # the preferred answer is shown first for half of all rows
        options = (row["chosen"], row["rejected"]) if first else (row["rejected"], row["chosen"])
        better, worse = ("A", "B") if first else ("B", "A")
        asked = [text.format(better=better, worse=worse) for text in (FOR, AGAINST)]
        form = _FORM.format(number=number)
        turns = [[user(f"{judge_message(row['prompt'], text, options)['content']}\n\n{form}")] for text in asked]
        replies = await fitting(together(llm.chat(turn, sampling, sample=sample) for sample, turn in enumerate(turns)))
        return {"statements": [line for reply in replies or () for line in statements(reply.text)[:number]]}

    found = await llms.map("propose", model, pairs, ask)
    return [(pair, line) for pair, given in zip(pairs, found, strict=True) for line in given["statements"]]


def statements(text: str) -> list[str]:
    """Return the statements of a reply: its lines without bullets, numbers and what they go on from; no options shown."""
    found = []
    for line in text.splitlines():
        shown = _OPTION.match(line)
        told = line[shown.end() :].strip() if shown else _MARK.sub("", line)
        bare = _LEAD.sub("", told).strip(" \t.;\"'*_")
        if shown and not _LEAD.match(told):
            continue
        if bare and len(bare.split()) <= MOST_WORDS and not bare.endswith(":"):
            found.append(bare[0].lower() + bare[1:])
    return list(dict.fromkeys(found))


def _plain(prompt: Any) -> Any:
    return prompt if isinstance(prompt, str) else [{"role": turn["role"], "content": turn["content"]} for turn in prompt]


def _differ(pair: Row) -> bool:
    return bool(pair["chosen"] and pair["rejected"] and pair["chosen"] != pair["rejected"])
