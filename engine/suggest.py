"""Suggestions: the nearest valid name for one that isn't."""

from __future__ import annotations

from collections.abc import Iterable

MANY = 300
"""Names among which only the same letters in another order are looked for: comparing each pair of thousands takes minutes."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name most like `name`, or None where none is alike; letter case and `-` against `_` don't count."""
    plain = {_plain(candidate): candidate for candidate in reversed(list(names))}
    asked = _plain(name)
    letters = sorted(asked)
    swapped = next((candidate for candidate in plain if sorted(candidate) == letters), None) if asked else None
    if swapped is not None or not asked or len(plain) > MANY:
        return plain.get(swapped or "")
    from difflib import get_close_matches

    found = get_close_matches(asked, plain, n=1, cutoff=0.6)
    return plain[found[0]] if found else None


def suggest(name: str, names: Iterable[str], what: str) -> str:
    """Return a hint: `did you mean x?`, or the valid names, or that there are none. `what` is their plural."""
    names = list(names)
    found = nearest(name, names)
    if found is not None:
        return f"did you mean `{found}`?"
    if not names:
        return f"there are no {what} to name"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"{what}: {shown}"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
