"""Health measures of texts that models wrote: what `generate`, `critique` and `revise` share of them.

Owns their bounds and sentences. What is seen of a text is in `texts`; which of these a step has is its operator's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from caiflow.engine.health import Measure, Passed, RowValue
from caiflow.engine.rows.columns import Row
from caiflow.operators.measures import texts

Texts = Callable[[Row], Sequence[str]]
"""The texts of a finished row that are looked at."""

_REPEATS = "set `repetition_penalty: 1.15` or a temperature, and drop them with `repetition` in `filter`"


def each(of: Texts, flaw: Callable[[str, Row], bool | None]) -> RowValue:
    """Return the share of a row's texts that have a flaw; None where none of them says anything."""

    def value(passed: Passed) -> float | None:
        found = [wrong for row in passed.made for text in of(row) if (wrong := flaw(text, row)) is not None]
        return sum(found) / len(found) if found else None

    return value


LEARNT: Mapping[str, str] = {
    "empty": "nothing can be learned from them",
    "circles": "a model trained on them learns to repeat itself",
    "human_turn": "a model trained on them talks to itself",
    "truncated": "a model trained on them learns to stop in mid-sentence",
}
"""What flaws come to in texts that a model may be trained on."""
FOLLOWED: Mapping[str, str] = {
    "empty": "a revision has nothing to go by",
    "circles": "they say little for a revision to go by",
    "human_turn": "a revision goes by what nobody said",
    "truncated": "a revision goes by the half that is there",
}
"""What they come to in texts that the next one is made by."""


def common(noun: str, column: str, of: Texts, means: Mapping[str, str] = LEARNT) -> list[Measure]:
    """Return the measures of any text that a model wrote; `noun` names such texts, `column` is where they are."""
    rule = f"drop these rows with `length: {{column: {column}, min: 1}}` in `filter`"
    return [
        Measure(
            "empty", "<= 0.02", f"{noun} that are empty", means["empty"],
            f"look at the prompt and the stop texts, and {rule}", each(of, lambda text, _: not text.strip()),
        ),
        Measure(
            "circles", "<= 0.05", f"{noun} that go round in circles", means["circles"], _REPEATS,
            each(of, lambda text, _: texts.in_circles(text)),
        ),
        Measure(
            "human_turn", "<= 0.02", f"{noun} that write on the human's next turn", means["human_turn"],
            'end them with `sampling: {stop: ["Human:"]}`',
            each(of, lambda text, _: texts.plays_human(text)),
        ),
    ]  # fmt: skip


def truncated(noun: str, column: str, means: Mapping[str, str] = LEARNT) -> Measure:
    """Return the measure of texts cut at `max_tokens`; `column` says so of each row."""
    return Measure(
        "truncated", "<= 0.2", f"{noun} cut at max_tokens", means["truncated"],
        "raise `sampling.max_tokens`, or ask for shorter texts", each(lambda _: [""], lambda _, row: bool(row[column])),
    )  # fmt: skip


def copies(source: str, noun: str, of: Texts, others: Callable[[Row], Sequence[str]], means: str, advice: str) -> Measure:
    """Return the measure of texts that are copies of `others`; `source` names those in the measure's name and sentence."""
    return Measure(
        f"copies_{source}", "<= 0.05", f"{noun} that copy {_SOURCES[source]}", means, advice,
        each(of, lambda text, row: texts.is_copy(text, others(row)) if text.strip() else None),
    )  # fmt: skip


_SOURCES: Mapping[str, str] = {
    "prompt": "the prompt",
    "critique": "their critique",
    "answer": "the answer they are about",
    "example": "an example they were shown",
    "principle": "the principle's text",
}


def other_language(noun: str, of: Texts) -> Measure:
    """Return the measure of texts in another language than what was asked, as far as that can be told."""
    return Measure(
        "other_language", "<= 0.05", f"{noun} in another language than their prompt",
        "the answer isn't one that its reader can use", "name the language in the system turn or the principle",
        each(of, lambda text, row: texts.other_language(text, last_turn(row.get("prompt")))),
    )  # fmt: skip


def last_turn(prompt: Any) -> str:
    """Return what was asked last in a prompt, which may be a plain text."""
    if isinstance(prompt, str) or not prompt:
        return prompt or ""
    return next((str(turn["content"]) for turn in reversed(prompt) if turn["role"] == "user"), "")
