"""Which of the lettered options a judge's words name.

Owns the rule: one option, named in one of the usual ways and not denied. Whatever names several, or says of one what it isn't,
is read as none, so that no sentence is ever taken for its opposite. Asks no model.
"""

from __future__ import annotations

import re

_VERB = r"(?:is|was|seems|appears|looks|wins|would|because|since|as|and|or|over|than)"
_END = rf"(?=\W*$|\s*[).,:;!/&]|\s+[-\u2013\u2014]|\s+{_VERB}\b|\s*(?:isn|wasn)'t\b)"
"""What follows a letter that is no word: the end, a sign, or a verb; "A good one" has an article."""
_OPTION = r"([A-HJ-Z]|I(?!\s))"
_NAMING = (
    r"(?:answer|option|choice|response|assistant|model|candidate|output|completion|verdict|winner|choose|pick|prefer|select|"
    r"preferred|preference|selected|correct|go\s+with|lean\s+towards?|vote|better|best|one)"
)
_LEAD = (
    r"(?:so|thus|hence|therefore|clearly|definitely|obviously|overall|(?:it|that)(?:'s|\s+is|\s+would\s+be)|"
    r"i(?:'d|\s+would)?\s+(?:say|think|believe))"
)
_NAMED = (
    re.compile(r"\(([A-Z])\)"),
    re.compile(rf"^\W*{_OPTION}{_END}"),
    re.compile(rf"(?i:{_NAMING}(?:\s+(?:is|for|would\s+be|one|option|answer|response|choice))*)\s*[:=]?\s*\(?{_OPTION}{_END}"),
    re.compile(rf"^(?:\W*(?i:{_LEAD})\b[\s,:]*)+\(?{_OPTION}{_END}"),
    re.compile(rf"(?:\b(?:and|or|nor|not|than|over|both|neither|then)\s|[/&,])\s*\(?{_OPTION}{_END}"),
)
_LETTER = r"\(?[A-Z]\)?"
_BE = r"(?:is|was|seems|appears|looks|sounds|would\s+be)"
_BAD = (
    r"(?:un(?!der|iqu|iver|if|it|til)\w{3,}|in(?:accurate|adequate|appropriate|coherent|complete|considerate|correct|ferior|humane|sensitive|sincere)"
    r"|im(?:moral|polite|proper|practical)|ir(?:relevant|responsible)|dis(?:honest|respectful|missive|turbing)|mis\w{5,}|il(?:legal|logical)"
    r"|(?:harm|hate|hurt)ful|toxic|offensive|dangerous|terrible|awful|horrible|bad|worse|worst|poor(?:er|est)?|weak(?:er|est)?|evil|wrong"
    r"|flawed|false|biased|racist|sexist|rude(?:r|st)?|cruel(?:er|est)?|evasive|vague(?:r|st)?|problematic|lacking|violent|deceptive"
    r"|manipulative|risk(?:y|ier|iest)|reject(?:ed)?|los(?:er|es|ing)|preachy|insulting|criminal|threatening|abusive|mean(?:er|est)?)"
)
"""What speaks against an answer, unless there is less of it."""
_LESS = re.compile(rf"(?i)\b(?:less|least|fewer|fewest)\s+(?:\w+ly\s+)?(?:{_BAD})\b")
_DENIED = (
    re.compile(
        rf"{_LETTER}\s*(?:is|was|does|do|did|would|can|could|should|seems)"
        r"(?:n't|\s+(?:not|never|no|less|worse|the\s+worse|the\s+worst))\b"
    ),
    re.compile(rf"{_LETTER}\s*{_BE}\s+(?:\w+\s+){{0,3}}?(?i:{_BAD}|less|least|hardly|barely|scarcely)\b"),
    re.compile(rf"(?i:\b(?:{_BAD}|less|least)\b)(?:\s+\w+){{0,3}}?\s*[:=]?\s*{_LETTER}{_END}"),
    re.compile(
        r"(?i:\b(?:no|refuse|unable|cannot|avoid|except|excluding|without|hardly|barely|dislike|problem|unlike|maybe|perhaps|whether|either)\b)"
        rf"(?:\W+\w+){{0,3}}?\W*{_LETTER}{_END}"
    ),
    re.compile(rf"{_LETTER}\s*\?"),
    re.compile(
        r"(?i:\b(?:not|never|neither|nor|against|reject|than|over|worse|worst)\b|n't)"
        rf"(?:\s+\w+){{0,3}}?\s*[:=]?\s*{_LETTER}{_END}"
    ),
)
_TAG = re.compile(r"</?[a-z_]+>")
_PLAIN = str.maketrans({**dict.fromkeys('*_`"$\\\u201c\u201d', ""), "[": "(", "{": "(", "]": ")", "}": ")", "\u2019": "'"})


def parse_choice(text: str, letters: str = "AB") -> str | None:
    """Return the one option that an answer names; None where it names none, several, one that wasn't offered, or denies one.

    `text` may go on after an opening bracket: "A) ...", as well as "[[A]]", "**A**", "Answer: A", "A is better".
    """
    plain = " ".join(_TAG.sub(" ", text).translate(_PLAIN).replace("boxed", "").split())
    plain = _LESS.sub("good", plain)
    named = {letter for pattern in _NAMED for letter in pattern.findall(plain)}
    if len(named) != 1 or any(pattern.search(plain) for pattern in _DENIED):
        return None
    letter = named.pop()
    return letter if letter in letters else None
