"""Which of the lettered options a judge's words name.

Owns the rule: one option, named in one of the usual ways and not denied. Whatever names several, or says of one what it isn't,
is read as none, so that no sentence is ever taken for its opposite. Asks no model.
"""

from __future__ import annotations

import re

_VERB = r"(?:is|was|seems|wins|would|because|since|as|and|or|over|than)"
_END = rf"(?=\W*$|\s*[).,:;!/&]|\s+[-\u2013\u2014]|\s+{_VERB}\b|\s*(?:isn|wasn)'t\b)"
"""What follows a letter that is no word: the end, a sign, or a verb; "A good one" has an article."""
_OPTION = r"([A-HJ-Z]|I(?!\s))"
_NAMING = r"(?:answer|option|choice|response|verdict|winner|choose|pick|prefer|select|vote|better|best)"
_NAMED = (
    re.compile(r"\(([A-Z])\)"),
    re.compile(rf"^\W*{_OPTION}{_END}"),
    re.compile(rf"(?i:{_NAMING}(?:\s+(?:is|for|would\s+be|one|option|answer|response|choice))*)\s*[:=]?\s*\(?{_OPTION}{_END}"),
    re.compile(rf"(?:\b(?:and|or|nor|not|than|over|both|neither)\s|[/&,])\s*\(?{_OPTION}{_END}"),
)
_LETTER = r"\(?[A-Z]\)?"
_DENIED = (
    re.compile(
        rf"{_LETTER}\s*(?:is|was|does|do|did|would|can|could|should|seems)"
        r"(?:n't|\s+(?:not|never|no|less|worse|the\s+worse|the\s+worst))\b"
    ),
    re.compile(rf"{_LETTER}\s*(?:is|was|seems)\s+(?:\w+\s+)?(?:wrong|incorrect|inferior|bad|worse|worst|rejected)\b"),
    re.compile(
        r"(?i:\b(?:not|never|neither|nor|against|reject|than|over|worse|worst)\b|n't)"
        rf"(?:\s+\w+){{0,3}}?\s*[:=]?\s*{_LETTER}{_END}"
    ),
)
_PLAIN = str.maketrans({**dict.fromkeys('*_`"$\\\u201c\u201d', ""), "[": "(", "{": "(", "]": ")", "}": ")", "\u2019": "'"})


def parse_choice(text: str, letters: str = "AB") -> str | None:
    """Return the one option that an answer names; None where it names none, several, one that wasn't offered, or denies one.

    `text` may go on after an opening bracket: "A) ...", as well as "[[A]]", "**A**", "Answer: A", "A is better".
    """
    plain = " ".join(text.translate(_PLAIN).replace("boxed", "").split())
    named = {letter for pattern in _NAMED for letter in pattern.findall(plain)}
    if len(named) != 1 or any(pattern.search(plain) for pattern in _DENIED):
        return None
    letter = named.pop()
    return letter if letter in letters else None
