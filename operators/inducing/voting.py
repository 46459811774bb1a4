"""How a pair votes on a statement: by the letter that a model gives, or by what the statement does to the answers' likelihood.

Owns what is asked and how answers become a vote: for what was preferred, against it, or neither. What becomes of votes is in
`votes`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, Literal, TypeVar

from caiflow.engine.errors import EngineError
from caiflow.engine.identity import digest
from caiflow.engine.llm.base import Completion, Message
from caiflow.engine.operator import LLMs, RowLLM, together
from caiflow.engine.rows.columns import Row
from caiflow.operators.judging.phrases import parse_choice
from caiflow.operators.judging.prompts import JUDGE_PREFILL, judge_message, turns, user
from caiflow.operators.measures.probability import normalise

Voting = Literal["letters", "likelihood"]
VOTE = """\
Somebody holds that the better response {statement}. Go by this alone, whatever else speaks for either response. Which \
response is the {wanted} one by it? Choose (C) where it does not apply, or holds for both alike."""
NEITHER = "Neither: it does not tell them apart."
NOTE = "{asked}\n\n(Write a response that {statement}.)"
DIGITS = 9
"""Decimals of nats per token that count: what differs in a later one is how sums were rounded."""
T = TypeVar("T")
Votes = Mapping[str, tuple[tuple[str, str], ...]]
"""By statement, (uid, vote) of each pair; a vote is for, against, neither or unread."""


async def fitting(asked: Awaitable[T]) -> T | None:
    """Return what is answered; None where the model takes no prompt as long."""
    try:
        return await asked
    except EngineError as error:
        if error.kind != "overflow":
            raise
        return None


async def by_letters(pairs: Sequence[Row], statements: Sequence[str], model: str, llms: LLMs, wanted: str = "better") -> Votes:
    """Return the votes by the letter of the better response, or of the worse one: then `for` is that the rejected one is worse.

    Both orders are asked and their probabilities added, so that a model's liking for a letter decides no vote.
    """
    found = await llms.map("vote", model, _each(pairs, statements), _asking_letters(wanted))
    return _by_statement(pairs, statements, [row["vote"] for row in found])


def _asking_letters(wanted: str) -> Any:
    async def ask(row: Row, llm: RowLLM) -> Row:
        text, pair = VOTE.format(statement=row["statement"], wanted=wanted), (row["chosen"], row["rejected"])
        shown = [judge_message(row["prompt"], text, (*order, NEITHER)) for order in (pair, pair[::-1])]
        replies = await fitting(together(llm.pick([asked], ("A", "B", "C"), prefill=JUDGE_PREFILL) for asked in shown))
        first, second = map(_shares, replies) if replies else (None, None)
        return {"vote": _decided(first, second, worse=wanted == "worse") if first and second else "unread"}

    return ask


def _shares(reply: Completion) -> dict[str, float] | None:
    if reply.logprobs is not None:
        return normalise(reply.logprobs)
    named = parse_choice(reply.text, "ABC")
    return {letter: float(letter == named) for letter in "ABC"} if named else None


def _decided(first: Mapping[str, float], second: Mapping[str, float], *, worse: bool) -> str:
    chosen, rejected = first["A"] + second["B"], first["B"] + second["A"]
    if chosen == rejected or first["C"] + second["C"] >= max(chosen, rejected):
        return "neither"
    return "for" if (chosen > rejected) != worse else "against"


async def by_likelihood(
    pairs: Sequence[Row], statements: Sequence[str], unrelated: Sequence[str], model: str, llms: LLMs
) -> tuple[Votes, dict[str, float]]:
    """Return the votes by which answer gains more, per token, when it is asked for in these words, and each mean gain.

    A pair in which a statement does no more and no less than those unrelated votes for neither.
    """
    gained = await gains(pairs, statements, unrelated, model, llms)
    idle = [n for n, text in enumerate(statements) if text in unrelated]
    told = [vote for row in gained for vote in (_told(row, idle) if row else ["unread"] * len(statements))]
    columns = list(zip(*(row for row in gained if row is not None), strict=True)) or [(0.0,)] * len(statements)
    return _by_statement(pairs, statements, told), dict(zip(statements, map(fmean, columns), strict=True))


def _told(gained: Sequence[float], idle: Sequence[int]) -> list[str]:
    """Return a pair's votes by what each statement does there, those at `idle` places being unrelated."""
    by_chance = [gained[n] for n in idle] or [0.0]
    least, most = min(by_chance), max(by_chance)
    return ["for" if gain > most else "against" if gain < least else "neither" for gain in gained]


async def gains(
    pairs: Sequence[Row], statements: Sequence[str], unrelated: Sequence[str], model: str, llms: LLMs
) -> list[list[float] | None]:
    """Return, by pair and statement, what the statement does for the preferred answer beyond the other one, in nats per token.

    What any note would do is taken off, as `beyond_others` does. None for a pair that is too long for the model.
    """
    found = await llms.map("likelihood", model, _each(pairs, statements), _compare)
    values = [row["lead"] for row in found]
    rows = [values[start : start + len(statements)] for start in range(0, len(values), len(statements) or 1)]
    return [None if None in row else beyond_others(row, statements, unrelated) for row in rows]


def beyond_others(values: Sequence[float], statements: Sequence[str], unrelated: Sequence[str]) -> list[float]:
    """Return each statement's value less the median of those unrelated, or of all where none is.

    With the mean, one that does much has all others vote against it; less a middle that lies between a statement and its
    opposite, the two always vote against each other, whether they are read or not.
    """
    middle = median([value for text, value in zip(statements, values, strict=True) if text in unrelated] or values)
    return [round(value - middle, DIGITS) for value in values]


async def leads(pairs: Sequence[Row], model: str, llms: LLMs) -> list[float | None]:
    """Return how much likelier each preferred answer is than the other without any statement, in nats per token."""
    found = await llms.map("likelihood", model, [{**pair, "statement": ""} for pair in pairs], _compare)
    return [row["lead"] for row in found]


async def _compare(row: Row, llm: RowLLM) -> Row:
    talk = _noted(turns(row["prompt"]), str(row["statement"]))
    replies = await fitting(together(llm.score(talk, prefill=row[name]) for name in ("chosen", "rejected")))
    return {"lead": _mean(replies[0]) - _mean(replies[1]) if replies else None}


def _noted(talk: Sequence[Message], statement: str) -> list[Message]:
    """Return the conversation whose last turn asks for such a response."""
    *before, last = talk
    return [*before, user(NOTE.format(asked=last["content"], statement=statement)) if statement else last]


def _mean(reply: Completion) -> float:
    values = reply.prompt_logprobs or (0.0,)
    return sum(values) / len(values)


def _each(pairs: Sequence[Row], statements: Sequence[str]) -> list[Row]:
    """Return a row for every pair and statement, all of one pair after another."""
    return [
        {**pair, "uid": f"{pair['uid']}/{digest(statement)[:12]}", "statement": statement}
        for pair in pairs
        for statement in statements
    ]


def _by_statement(pairs: Sequence[Row], statements: Sequence[str], told: Sequence[str]) -> Votes:
    """Return what was told of each pair and statement, in the order of `_each`."""
    step, uids = len(statements), [str(pair["uid"]) for pair in pairs]
    return {text: tuple(zip(uids, told[n::step], strict=True)) for n, text in enumerate(statements)}
