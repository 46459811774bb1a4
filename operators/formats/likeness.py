"""Which column of a source seems to hold what a column of caiflow's does: by its name, and by what is in it.

Guesses, for the line that a message ends with; nothing is ever loaded by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from caiflow.operators.formats.dialogue import is_turns
from caiflow.operators.formats.named.compared import told_apart
from caiflow.operators.formats.shapes import CANONICAL

Row = Mapping[str, Any]

_KNOWN_AS: Mapping[str, Sequence[str]] = {
    "prompt": (
        "question", "goal", "instruction", "query", "behavior", "behaviour", "problem", "request", "prompt", "task", "history",
        "post", "user", "human", "attack", "input", "text", "sentence", "content",
    ),
    "response": ("answer", "output", "completion", "response", "reply", "target", "solution", "assistant", "text", "content"),
    "chosen": ("preferred", "better", "accepted", "winner", "correct", "good", "positive", "chosen"),
    "rejected": ("dispreferred", "worse", "refused", "loser", "incorrect", "wrong", "bad", "negative", "rejected"),
}  # fmt: skip
"""What data sets call caiflow's columns, the most telling first."""
_CONTEXTS = ("context", "passage", "document", "documents", "contexts", "article", "premise")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_ASKS = re.compile(
    r"(?i)\s*(who|whom|whose|what|when|where|which|why|how|is|are|am|was|were|do|does|did|can|could|should|would|will|may|"
    r"write|give|tell|explain|describe|list|make|create|name|find|say|show|provide|generate|develop|design|teach|help|"
    r"suggest|compare|summari[sz]e|translate|classify|rewrite|please|i (want|need|would like)|you are|imagine|pretend)\b"
)
_TURNS = re.compile(r"^\s*Human:|\s*Assistant:\s*$")
_NO_TEXT = re.compile(r"(?i)\s*((https?://|www\.)\S+|[\s\d.,:;/%+-]+)\s*")

_CLEARLY = 0.3
"""Share of texts that ask for something, from which on a column of several is taken for the questions."""


def line_for(wanted: str, rows: Sequence[Row], renamed: Mapping[str, str]) -> str:
    """Return the line of a `load` step that would give its rows the column `wanted`; empty where no column is like it."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "uid"]
    own = {new: old for old, new in renamed.items()}
    turns = next((name for name in names if name not in CANONICAL and any(map(is_turns, _values(rows, name)))), None)
    two = told_apart(names)
    if two and (turns in two or wanted in ("chosen", "rejected")):
        return "format: compared"
    if turns is not None and wanted in ("prompt", "response", "messages"):
        return f"rename: {{{own.get(turns, turns)}: messages}}"
    texts = {name: found for name in names if (found := _texts(rows, name))}
    name = _named(wanted, texts) or _alike(wanted, texts)
    if name is None:
        return ""
    context = _context(texts) if wanted == "prompt" else None
    if context is not None and context != name:
        always = len(texts[context]) == len(rows)
        before = f"{{{{ {context} }}}}\\n\\n" if always else f"{{% if {context} %}}{{{{ {context} }}}}\\n\\n{{% endif %}}"
        return f'prompt: "{before}{{{{ {name} }}}}"'
    return f"rename: {{{own.get(name, name)}: {'completion' if wanted == 'response' else wanted}}}"


def _texts(rows: Sequence[Row], name: str) -> list[str]:
    """Return what a column says, where it does; nothing of one with anything but texts, or with numbers and addresses."""
    found = _values(rows, name)
    return found if all(isinstance(value, str) and not _NO_TEXT.fullmatch(value) for value in found) else []


def _values(rows: Sequence[Row], name: str) -> list[Any]:
    return [value for row in rows if (value := row.get(name)) is not None and str(value).strip()]


def _named(wanted: str, texts: Mapping[str, Sequence[str]]) -> str | None:
    """Return the column with the most telling name: the whole of it, or a word in it where the column says sentences."""
    plain = {name.lower(): name for name in reversed(list(texts))}
    words = {name: [word.lower() for word in _WORDS.findall(name)] for name in texts}
    for known in _KNOWN_AS.get(wanted, ()):
        if known in plain and _mostly_said(texts[plain[known]]):
            return plain[known]
    for known in _KNOWN_AS.get(wanted, ()):
        for name, parts in words.items():
            if known in parts and _are_sentences(texts[name]):
                return name
    return None


def _mostly_said(texts: Sequence[str]) -> bool:
    """Return whether texts aren't the few words of a class or a key: some have a space in them."""
    return any(" " in text.strip() for text in texts)


def _alike(wanted: str, texts: Mapping[str, Sequence[str]]) -> str | None:
    """Return the column that reads like questions, or like answers to what reads so; None where none clearly does."""
    said = {name: found for name, found in texts.items() if _are_sentences(found) and _context([name]) is None}
    asked = {name: _share(found, _is_asked) for name, found in said.items()}
    question = max(asked, key=asked.__getitem__, default=None)
    if question is None or (len(said) > 1 and asked[question] < _CLEARLY):
        return None
    if wanted == "prompt":
        return question
    compared = {*_KNOWN_AS["chosen"], *_KNOWN_AS["rejected"]}
    others = [name for name in said if name != question and name.lower() not in compared]
    return max(others, key=lambda name: sum(map(len, said[name])), default=None) if wanted == "response" else None


def _are_sentences(texts: Sequence[str]) -> bool:
    """Return whether texts are words in a row, and not the same few again and again: no names, classes or keys."""
    different = len(set(texts))
    several = len(texts) == 1 or (different > 1 and 5 * different > len(texts))
    return several and _share(texts, lambda text: len(text.split(None, 3)) > 2) > 0.5


def _is_asked(text: str) -> bool:
    text = _TURNS.sub("", text)
    return text.rstrip(" \"'*)").endswith("?") or _ASKS.match(text) is not None


def _share(texts: Sequence[str], holds: Callable[[str], bool]) -> float:
    return sum(map(holds, texts)) / len(texts)


def _context(names: Mapping[str, Any] | Sequence[str]) -> str | None:
    """Return the column that stands before a question."""
    for known in _CONTEXTS:
        for name in names:
            if [word.lower() for word in _WORDS.findall(name)][:1] == [known]:
                return name
    return None
