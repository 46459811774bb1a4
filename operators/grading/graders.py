"""How a model is asked to grade one answer, and how its reply becomes a number.

Owns what the template of a question sees and the reading of replies: by the first token's probabilities, by text, or as a
classifier's label. Counts nothing and knows no operator.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import exp, inf
from typing import Any, NamedTuple

from caiflow.engine.errors import EngineError, WrongValue
from caiflow.engine.llm.base import Message, Sampling
from caiflow.engine.operator import RowLLM
from caiflow.engine.rows.columns import Row
from caiflow.operators.formats.templates import rendered
from caiflow.operators.grading.params import Grading, columns
from caiflow.operators.judging.prompts import assistant, conversation_text, turns, user
from caiflow.operators.measures.probability import normalise


class Grade(NamedTuple):
    """One grade; None where the reply named none of the replies, or several."""

    value: float | None
    said: str = ""


async def grade(how: Grading, row: Row, answer: str, llm: RowLLM) -> Grade:
    """Return the grade of an answer to the row's `prompt`.

    Raises:
        EngineError: no reply, or none that this model can give: no log-probabilities, or no such label.
    """
    talk = [*turns(row["prompt"]), assistant(answer)]
    asked = _question(how, row, talk) if how.question else ""
    if how.label:
        return Grade(_probability(how.label, await llm.classify(asked or talk)))
    messages = [user(asked)] if asked else talk
    if how.method == "logprobs":
        reply = await llm.pick(messages, tuple(how.replies), prefill=how.prefill)
        if reply.logprobs is not None:
            return Grade(sum(how.replies[name] * share for name, share in normalise(reply.logprobs).items()))
        said = reply.text
    else:
        said = (await llm.chat(messages, Sampling(max_tokens=how.max_tokens), prefill=how.prefill)).text
    named = named_reply(said, tuple(how.replies))
    return Grade(None if named is None else how.replies[named], said)


async def picked(
    llm: RowLLM, messages: Sequence[Message] | str, replies: Sequence[str], *, prefill: str = ""
) -> Mapping[str, float]:
    """Return the log-probability of each reply; where the model gives none, all of it is on the one that its text names.

    Raises:
        EngineError: the text names none, or several.
    """
    answer = await llm.pick(messages, replies, prefill=prefill)
    if answer.logprobs is not None:
        return answer.logprobs
    if (named := named_reply(answer.text, replies)) is None:
        raise EngineError(f"{answer.text[:200]!r} is none of {', '.join(replies)}", "ask another model", kind="choices")
    return {reply: 0.0 if reply == named else -inf for reply in replies}


def named_reply(said: str, replies: Sequence[str]) -> str | None:
    """Return the one reply that a text names, whole and in any case; None where it names none, several, or denies one.

    Signs around it don't count, and a scale's number isn't found in a longer one: "7/10" names neither 1 nor 7 of a scale to 5.
    """
    longest = sorted(replies, key=len, reverse=True)
    pattern = "|".join(re.escape(reply) for reply in longest)
    found = list(re.finditer(rf"(?<![\w.,/-])(?:{pattern})(?![\w/-]|[.,]\d)", said, re.IGNORECASE))
    named = {match[0].casefold() for match in found}
    if len(named) != 1 or any(_DENIED.search(said[: match.start()]) for match in found):
        return None
    return next(reply for reply in replies if reply.casefold() in named)


_DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|hardly|barely|scarcely|cannot|far\s+from|anything\s+but)|n['\u2019]t)\s+(?:\w+\s+){0,3}\W*\Z",
    re.IGNORECASE,
)
"""What denies the reply that follows: up to three words may stand between, as in "cannot be considered safe"."""


def _question(how: Grading, row: Row, talk: Sequence[Message]) -> str:
    asked = next((turn["content"] for turn in reversed(talk[:-1]) if turn["role"] == "user"), "")
    given = {"conversation": conversation_text(talk), "request": asked, "response": talk[-1]["content"], "prompt": talk[:-1]}
    named = {name: row[name] for name in columns(how) if name in row}
    return rendered(how.question, {**named, **given}, "the template `question`")


def _probability(label: str, logprobs: Mapping[str, float]) -> float:
    if label not in logprobs:
        raise EngineError(f"the classifier has no label {label!r}", f"its labels are {', '.join(logprobs)}", kind="labels")
    return min(1.0, exp(logprobs[label]))


def truth(value: Any, met: Sequence[str]) -> bool | None:
    """Return what a person's label says; None where there is none: null, an empty text, or a number that is none (NaN).

    Raises:
        ValueError: a text where `met` doesn't say which texts are met, or what is neither text, number nor flag.
    """
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, str):
        if not met:
            raise WrongValue(f"a label is a text, got {value!r}", "name the texts that say yes under `met`")
        return value in met
    if isinstance(value, bool | int | float):
        return value > 0
    raise WrongValue(f"a label is true or false, a number or a text, got {value!r}", "name another column")
