"""What can be seen of a text by itself or beside another: copies, circles, announcements, a turn written on, its language.

Pure, and cheap enough to be asked of every row as it passes. Decides nothing: how much is too much is the measures' affair.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice

PREAMBLE = (
    r"(?i)^\W*(?:(?:sure|certainly|of course|absolutely|okay|ok|alright)\b[\s,.!:]*)?(?:"
    r"here(?:['’]s| is| are)\b[^\n.]{0,60}\b(?:revis|rewrit|rewrote|improv|updat|edit|modif|rephras|version|alternative)\w*"
    r"|(?:the |my |a |an )?(?:revised|rewritten|improved|updated|edited|rephrased) (?:response|answer|version|reply)\b"
    r"|i(?:['’]ve| have)? (?:revised|rewritten|rewrote|edited|modified|rephrased|updated)\b)"
)
"""A beginning that announces a revision; a pattern that Python and polars read alike."""
RUN = 4
"""Words in a row that count as taken over, or as one thing said."""
COPIED = 0.6
"""From this share of its words taken over on, a text is a copy of another."""
CIRCLES = 0.3
"""Above this share of runs said before, a text goes in circles."""

_UNSPACED_RANGES = (
    ("\u0e00", "\u0e7f"), ("\u0e80", "\u0eff"), ("\u0f00", "\u0fff"), ("\u1000", "\u109f"), ("\u1780", "\u17ff"),
    ("\u3040", "\u30ff"), ("\u31f0", "\u31ff"), ("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"),
    ("\uff66", "\uff9f"), ("\U00020000", "\U0003ffff"),
)  # fmt: skip
UNSPACED = f"[{''.join(f'{first}-{last}' for first, last in _UNSPACED_RANGES)}]"
"""A character of a script without spaces between words (Thai, Lao, Tibetan, Burmese, Khmer, Japanese, Chinese), which counts as
a word. A pattern that Python and polars read alike."""
_EACH_UNSPACED = f"({UNSPACED})"  # large, and compiled by `re` when first used: checking a spec needs none of it
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_TOKEN = re.compile(r"(?:[^\W_]+|['’])+|[^\s\w]|_")
_HUMAN = re.compile(r"(?im)^[\s*#>\[]*(?:human|user)[\s*\]]*:|<\|im_start\|>\s*user")


def words(text: str) -> Sequence[str]:
    """Return the words in lower case; signs divide them, apostrophes don't. Scripts without spaces count by characters."""
    return _remembered_words(text) if len(text) <= REMEMBERED else _words(text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(_spaced(text.lower())))


REMEMBERED = 4096
"""Characters of a text whose words are kept a while: several measures look at one text, and at a principle's in every row."""
_remembered_words = lru_cache(maxsize=128)(_words)


def _spaced(text: str) -> str:
    return text if text.isascii() else re.sub(_EACH_UNSPACED, r" \1 ", text)


def copied_share(text: str, other: str) -> float:
    """Return the share (0..1) of a text's words that stand in runs of RUN words which the other text has as well.

    A text shorter than one run is a copy only where it is the whole of the other.
    """
    own, theirs = words(text), words(other)
    if len(own) < RUN or len(theirs) < RUN:
        return float(bool(own) and own == theirs)
    known = _runs(theirs)
    covered, upto = 0, 0  # words before `upto` have been counted
    for start, run in enumerate(zip(*(own[i:] for i in range(RUN)), strict=False)):
        if run in known:
            covered += start + RUN - max(start, upto)
            upto = start + RUN
    return covered / len(own)


def is_copy(text: str, others: Sequence[str], share: float = COPIED) -> bool:
    """Return whether at least `share` of a text's words are taken over from one of the others."""
    return any(copied_share(text, other) >= share for other in others)


def same(text: str, other: str) -> bool:
    """Return whether two texts have the same words in the same order; texts without words are the same if equal."""
    own = words(text)
    return own == words(other) and (bool(own) or text.strip() == other.strip())


def repeated_share(text: str) -> float:
    """Return the share (0..1) of the runs of RUN words or single signs that the text has had before; 0 where it has none."""
    tokens = _TOKEN.findall(_spaced(text.lower()))
    total = len(tokens) - RUN + 1
    return 1 - len(_runs(tokens)) / total if total > 0 else 0.0


def in_circles(text: str) -> bool:
    """Return whether a text says the same again and again."""
    return repeated_share(text) > CIRCLES


def announces(text: str) -> bool:
    """Return whether a text begins by announcing a revision."""
    return re.match(PREAMBLE, text) is not None


def plays_human(text: str) -> bool:
    """Return whether a text goes on with a turn of the human."""
    return _HUMAN.search(text) is not None


def _runs(tokens: Sequence[str]) -> set[tuple[str, ...]]:
    return set(zip(*(tokens[i:] for i in range(RUN)), strict=False))


# ------------------------------------------------------------------------------------------------------- language

LEAST_LETTERS = 20
"""A text with fewer letters tells no script."""
LEAST_HITS = 3
"""A text with fewer of a language's commonest words tells no language."""
_SCRIPTS = frozenset(
    {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "THAI", "HANGUL", "CJK"}
    | {"HIRAGANA", "KATAKANA"}
)
_ONE_SCRIPT = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}
_COMMON = {
    "en": "the of and to is that it you for are with this be not have as your can what how do i",
    "de": "der die das und ist nicht ein eine ich zu den mit sie es auf für dem wie sich auch",
    "fr": "le la les et est une un des que pas pour vous dans il ce qui je sur avec être",
    "es": "el la los las y es una un que no para en por con del se lo como su usted",
    "it": "il la di che e un una è per non sono con si del le gli questo come lo della",
    "pt": "o a os as e é um uma que não para em por com do da se como você seu",
    "nl": "de het een en van is dat niet ik je op te zijn met voor die er aan ook wat",
}
_COMMON_WORDS = {language: frozenset(text.split()) for language, text in _COMMON.items()}
_ANY_COMMON = frozenset().union(*_COMMON_WORDS.values())


def script(text: str) -> str | None:
    """Return the script that three quarters of a text's letters are of; None where it has few letters or mixes scripts."""
    if text.isascii():
        return "LATIN" if any(_letters(part) >= LEAST_LETTERS for part in (text[: 2 * LEAST_LETTERS], text)) else None
    letters = list(islice(filter(str.isalpha, text), 400))
    if len(letters) < LEAST_LETTERS:
        return None
    found = Counter(_script_of(c) for c in letters)
    name, count = found.most_common(1)[0]
    return name if name and count >= 0.75 * len(letters) else None


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _script_of(letter: str) -> str:
    if letter < "\u0250":
        return "LATIN"
    name = unicodedata.name(letter, "").split(" ")[0].split("-")[0]
    return _ONE_SCRIPT.get(name, name) if name in _SCRIPTS else ""


def language(text: str) -> str | None:
    """Return one of seven languages in Latin script whose commonest words a text has clearly more of than any other's."""
    own = [word for word in words(text[:2000]) if word in _ANY_COMMON]
    if len(own) < LEAST_HITS:
        return None
    hits = sorted(((sum(map(common.__contains__, own)), name) for name, common in _COMMON_WORDS.items()), reverse=True)
    (first, name), (second, _) = hits[:2]
    return name if first >= LEAST_HITS and first >= 2 * second else None


def is_english(text: str) -> bool | None:
    """Return whether a text is in English; None where that can't be told, as of short ones."""
    written = script(text)
    if written != "LATIN":
        return None if written is None else False
    spoken = language(text)
    return None if spoken is None else spoken == "en"


def other_language(text: str, asked: str) -> bool | None:
    """Return whether a text is clearly in another script or language than what was asked; None where that can't be told.

    It can't for short texts, for texts that mix scripts, and within a script for languages beyond seven in Latin letters.
    """
    scripts = script(text), script(asked)
    if None in scripts:
        return None
    if scripts[0] != scripts[1]:
        return True
    if scripts[0] != "LATIN":
        return None
    spoken = language(text), language(asked)
    return None if None in spoken else spoken[0] != spoken[1]
