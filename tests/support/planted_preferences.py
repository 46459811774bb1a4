"""Preferences made by known principles, and a model that answers by what it sees alone: is what was planted found again?

The model reads the two responses in its prompt. It sees three things in a text; two of them decide the preferences, the third
is in the way. It proposes what tells the responses apart in several wordings, votes by the statement's word, and judges by
those that a constitution has, in their order; without one, by chance.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from caiflow.engine.identity import digest

SIGHTS = {"source": "according to", "example": "for example", "shout": "!"}
"""What the model sees in a text, by the word that names it in statements."""
WORDINGS = {
    "source": ("names the source of what it says", "names the source of what it tells", "gives the source of what it says"),
    "example": (
        "shows what it means by an example",
        "makes plain what it means by an example",
        "shows by an example what it means",
    ),
    "shout": ("shouts", "shouts loudly", "shouts a lot"),
}
_OPTION = re.compile(r"^\(([AB])\) (.*)$", re.MULTILINE)


def planted_pairs(number: int, *, wrong: float = 0.0, seed: int = 1) -> list[dict[str, Any]]:
    """Return pairs of which the chosen one names its source, or, where both or neither do, gives an example.

    Of each `wrong` share the preference is the other way round. Shouting is as common on either side.
    """
    draw, pairs = random.Random(seed), list[dict[str, Any]]()
    while len(pairs) < number:
        pair = [{name: draw.random() < 0.5 for name in SIGHTS} for _ in range(2)]
        worth = [2 * one["source"] + one["example"] for one in pair]
        if worth[0] == worth[1]:
            continue
        better = worth[1] > worth[0]
        better = not better if draw.random() < wrong else better
        texts = [_text(one, len(pairs), side) for side, one in enumerate(pair)]
        asked = f"What is thing {len(pairs)}?"
        pairs.append({"prompt": asked, "chosen": texts[better], "rejected": texts[not better]})
    return pairs


def _text(seen: dict[str, bool], number: int, side: int) -> str:
    parts = [f"Thing {number} is kind {side}", *(["according to the book"] * seen["source"])]
    return " ".join([*parts, *(["for example a red one"] * seen["example"])]) + ("!" if seen["shout"] else ".")


def reply(asked: str) -> str:
    """Return what the model says to a prompt: statements on lines, or the letter of an option."""
    shown = dict(_OPTION.findall(asked))
    first, second = ({name for name, sign in SIGHTS.items() if sign in shown[letter]} for letter in "AB")
    if "(C) Neither" in asked:
        statement = asked.split("the better response ", 1)[1].split(". Go by", 1)[0]
        named = _by([name for name in SIGHTS if name in statement], first, second)
        return {"A": "B", "B": "A"}[named] if named and "is the worse one" in asked else named or "C"
    if "reasons" in asked:
        better = "A" if "(A) was preferred" in asked or "(B) was passed over" in asked else "B"
        more = first - second if better == "A" else second - first
        if "passed over" in asked:  # what a better one would do in place of what the worse one does
            more = more or {"source"} - (second if better == "A" else first)
        number = int(digest(asked)[:6], 16)
        lines = [WORDINGS[name][number % len(WORDINGS[name])] for name in sorted(more)]
        return "\n".join(f"{n}. The better response {line}." for n, line in enumerate(lines, 1)) or "I can't tell:"
    instruction = asked.split("Options:")[0]
    rules = sorted((name for name in SIGHTS if name in instruction), key=instruction.index)
    return _by(rules, first, second) or ("A" if int(digest([*sorted(shown.values()), asked[:40]])[:2], 16) < 128 else "B")


def _by(rules: Sequence[str], first: set[str], second: set[str]) -> str:
    for name in rules:
        if (name in first) != (name in second):
            return "A" if name in first else "B"
    return ""
