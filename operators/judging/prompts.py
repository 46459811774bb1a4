"""The fixed wording of what models are asked: critiques, revisions, judgements.

Owns the message formats shared by the operators and by the bundled model's training data, so that both always agree.
Never asks a model and never chooses a principle or an example: those come in as arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from caiflow.engine.llm.base import Completion, Message, Sampling
from caiflow.engine.rows.tool_use import refuse_tools

if TYPE_CHECKING:
    from caiflow.engine.constitution.load import CritiqueExample, JudgeExample, Principle
    from caiflow.engine.operator import RowLLM

Prompt = str | Iterable[Message]
"""A conversation, or a plain text that is one user turn."""
FORMAT_VERSION = 1
"""Raised when the wording below changes; part of the identity of every step that uses it."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""What the options of a judgement are called, in their order."""
JUDGE_PREFILL = "The answer is ("
THOUGHT_PREFILL = "Let me think it through:"
THOUGHT_END = " So the answer is ("
RATING_PREFILL = "The rating is ("

_SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}


def user(content: str) -> Message:
    """Return a user turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """Return an assistant turn."""
    return {"role": "assistant", "content": content}


def turns(prompt: Prompt) -> list[Message]:
    """Return a prompt as messages; a plain text is one user turn."""
    if isinstance(prompt, str):
        return [user(prompt)]
    found: list[Message] = [{"role": m["role"], "content": m["content"]} for m in prompt]
    refuse_tools(found)
    return found


def conversation_text(messages: Iterable[Message]) -> str:
    """Return turns as `Human: ...` and `Assistant: ...` paragraphs."""
    return "\n\n".join(f"{_SPEAKERS[m['role']]}: {m['content']}" for m in messages)


def current_answer(row: Mapping[str, Any]) -> str:
    """Return the answer a further critique is about: the revision where there is one, else the response."""
    revision = row.get("revision")
    return str(row["response"] if revision is None else revision)


def revisions_so_far(row: Mapping[str, Any]) -> list[str]:
    """Return the revisions of earlier rounds, oldest first; a single one that came with the data counts as one round."""
    if row.get("revisions"):
        return list(row["revisions"])
    return [] if row.get("revision") is None else [row["revision"]]


def critique_messages(
    prompt: Prompt, answer: str, principle: Principle, examples: Sequence[CritiqueExample] = ()
) -> list[Message]:
    """Return the conversation whose next assistant turn is the critique of `answer`."""
    shown = [turn for e in examples for turn in _example_turns(e, critique=True)]
    return [*_under_system(shown, turns(prompt)), assistant(answer), user(principle.critique_request)]


def revise_messages(
    prompt: Prompt,
    answer: str,
    principle: Principle,
    critique: str | None,
    examples: Sequence[CritiqueExample] = (),
) -> list[Message]:
    """Return the conversation whose next assistant turn is the revision; without a critique it goes straight to the request."""
    if critique is not None:
        return [*critique_messages(prompt, answer, principle, examples), assistant(critique), user(principle.revision_request)]
    shown = [turn for e in examples for turn in _example_turns(e, critique=False)]
    return [*_under_system(shown, turns(prompt)), assistant(answer), user(principle.revision_request)]


Format = Literal["chat", "transcript"]
"""Turns for a chat template, or one plain text with the headings of the Constitutional AI paper, which a model continues."""
_HEADINGS = ("CritiqueRequest", "Critique", "RevisionRequest", "Revision")
TRANSCRIPT_STOPS = tuple(f"\n\n{heading}:" for heading in ("Human", "Assistant", *_HEADINGS))
"""Where an answer to a transcript ends: at the next heading."""


def critique_text(prompt: Prompt, answer: str, principle: Principle, examples: Sequence[CritiqueExample] = ()) -> str:
    """Return the transcript that goes on with the critique of `answer`."""
    shown = [_example_text(e, critique=True) for e in examples]
    talk = conversation_text([*turns(prompt), assistant(answer)])
    return _transcript(*shown, talk, _asked(principle.critique_request), "Critique:")


def revise_text(
    prompt: Prompt, answer: str, principle: Principle, critique: str | None, examples: Sequence[CritiqueExample] = ()
) -> str:
    """Return the transcript that goes on with the revision; without a critique it goes straight to the request."""
    shown = [_example_text(e, critique=critique is not None) for e in examples]
    talk = conversation_text([*turns(prompt), assistant(answer)])
    middle = [_asked(principle.critique_request), f"Critique: {critique}"] if critique is not None else []
    return _transcript(*shown, talk, *middle, _asked(principle.revision_request, "Revision"), "Revision:")


async def ask(llm: RowLLM, asked: Sequence[Message] | str, sampling: Sampling, sample: int) -> Completion:
    """Return what comes next: the assistant's turn, or what a transcript goes on with up to the next heading."""
    if isinstance(asked, str):
        return await llm.complete(asked, sampling._replace(stop=sampling.stop or TRANSCRIPT_STOPS), sample=sample)
    return await llm.chat(asked, sampling, sample=sample)


def _transcript(*parts: str) -> str:
    return "\n\n" + "\n\n".join(parts)


def _asked(request: str, stage: str = "Critique") -> str:
    return f"{stage}Request: {request}"


def _example_text(example: CritiqueExample, *, critique: bool) -> str:
    talk = conversation_text([*turns(example.prompt), assistant(example.response)])
    middle = [_asked(example.critique_request), f"Critique: {example.critique}"] if critique else []
    return "\n\n".join([talk, *middle, _asked(example.revision_request, "Revision"), f"Revision: {example.revision}"])


def _example_turns(example: CritiqueExample, *, critique: bool) -> list[Message]:
    middle = [user(example.critique_request), assistant(example.critique)] if critique else []
    return [
        *turns(example.prompt),
        assistant(example.response),
        *middle,
        user(example.revision_request),
        assistant(example.revision),
    ]


def with_system(prompt: Sequence[Message], text: str) -> list[Message]:
    """Return the conversation under a system turn in place of its own; as it is where the text is empty."""
    if not text:
        return list(prompt)
    return [{"role": "system", "content": text}, *(m for m in prompt if m["role"] != "system")]


def _under_system(shown: Sequence[Message], prompt: Sequence[Message]) -> list[Message]:
    """Put examples before a prompt, but behind its system turns: chat templates take those only at the start."""
    lead = [m for m in prompt if m["role"] == "system"]
    return [*lead, *shown, *(m for m in prompt if m["role"] != "system")]


def judge_message(prompt: Prompt, instruction: str, options: Sequence[str]) -> Message:
    """Return the one user turn that asks which of the options is best; they are lettered in their order.

    Where a line of one begins as an option does, the further lines of all are quoted: none can pose as another option.
    """
    shown = [_quoted(text) for text in options] if any(map(_poses, options)) else options
    lines = "\n".join(f"({letter}) {text}" for letter, text in zip(LETTERS, shown, strict=False))
    return user(f"Conversation:\n\n{conversation_text(turns(prompt))}\n\n{instruction}\n\nOptions:\n{lines}")


def _poses(text: str) -> bool:
    """Return whether a further line of a text begins as an option does, or as the list of them."""
    return any(re.match(r"\s*(?:\(?[A-Z]\)|Options:)", line) for line in text.splitlines()[1:])


def _quoted(text: str) -> str:
    return "\n| ".join(text.splitlines())


def judge_messages(
    prompt: Prompt,
    instruction: str,
    options: Sequence[str],
    examples: Sequence[tuple[JudgeExample, str]] = (),
    *,
    thoughts: bool = False,
) -> list[Message]:
    """Return the judge's conversation; each example comes with its own instruction, and with its thought where asked."""
    shown = [turn for example, own in examples for turn in _judge_turns(example, own, thoughts)]
    return [*shown, judge_message(prompt, instruction, options)]


def _judge_turns(example: JudgeExample, instruction: str, thoughts: bool) -> list[Message]:
    answer = f"{JUDGE_PREFILL}{example.answer})."
    if thoughts:
        answer = f"{THOUGHT_PREFILL} {example.thought}{THOUGHT_END}{example.answer})."
    return [judge_message(example.prompt, instruction, (example.a, example.b)), assistant(answer)]


def whole_instruction(principles: Sequence[Principle]) -> str:
    """Return one judging instruction that holds a whole constitution, ranked principles first and in their order."""
    ranked = any(principle.rank is not None for principle in principles)
    ordered = sorted(principles, key=lambda principle: principle.rank or len(principles) + 1) if ranked else principles
    listed = "\n".join(f"{i}. {p.text('judge')}" for i, p in enumerate(ordered, 1))
    told = "Where two of them disagree, the one listed first decides. " if ranked else ""
    return f"Weigh all of these questions together:\n{listed}\n{told}Which response is better on the whole?"


def rating_message(prompt: Prompt, answer: str) -> Message:
    """Return the user turn that asks how harmful an answer is, from 0 to 4."""
    talk = conversation_text([*turns(prompt), assistant(answer)])
    return user(
        f"Conversation:\n\n{talk}\n\nHow harmful is the assistant's last answer? Rate it from (0), not harmful at all, "
        "to (4), extremely harmful."
    )
